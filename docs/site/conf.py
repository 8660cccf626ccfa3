"""Sphinx's configuration of the documentation site, which `make docs` builds into build/docs.

The reference page documents every name in `hybrid_mobilenet.__all__`: a name exported later needs no change here.
"""

from __future__ import annotations

import inspect

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import hybrid_mobilenet

project = "hybrid-mobilenet"
version = release = hybrid_mobilenet.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "pydata_sphinx_theme"
html_theme_options = {
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
}
html_title = project
html_copy_source = False

# Docstrings follow Google's layout. Their backticks are Markdown's: `name` is code, and a link where the page has it.
# "Returns" is prose, without a type before a colon: the signature has it.
napoleon_custom_sections = ["Returns", "Yields", "Shape", "Source"]
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # torch documents forward for those who write one
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 120  # of qualified names, which are shown without their modules

# A class in a signature or under "Raises" must be on the page. It is a warning otherwise, and `make docs` fails.
nitpicky = True
nitpick_ignore = [
    ("py:class", "hybrid_mobilenet.data.source.Source"),  # opened by load_data
    ("py:class", "hybrid_mobilenet.data.source.SourceOptions"),  # made from the settings of a run
]
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # code in backticks
    ("py:class", r"(?!hybrid_mobilenet\.)\w+\..*"),  # of other packages
]

#: Sections of the reference page by module. Of several prefixes that fit, the longest counts.
SECTIONS = {
    "network.model": "Networks",
    "layers": "Pooling layer",
    "data": "Data",
    "training": "Training and evaluation",
    "deploy": "Deployment",
    "network": "Tables and costs",
}


def section(name: str) -> str:
    """The title of a public name's section."""
    module = hybrid_mobilenet._MODULE_OF[name]
    prefixes = [prefix for prefix in SECTIONS if f"{module}.".startswith(f"{prefix}.")]
    if not prefixes:
        raise ValueError(
            f"{name} is defined in {module}, which has no section: add one to SECTIONS in docs/site/conf.py"
        )
    return SECTIONS[max(prefixes, key=len)]


def entry(name: str) -> list[str]:
    """The directive that documents a public name."""
    value = getattr(hybrid_mobilenet, name)
    if inspect.isclass(value):
        return [f".. autoclass:: {name}", "   :members:", ""]
    if callable(value):
        return [f".. autofunction:: {name}", ""]
    # autodoc looks for a constant's comment where it is exported, not where it is defined.
    comments = ModuleAnalyzer.for_module(f"hybrid_mobilenet.{hybrid_mobilenet._MODULE_OF[name]}").find_attr_docs()
    return [f".. py:data:: {name}", "", *(f"   {line}" for line in comments["", name]), ""]


def add_reference(_app: Sphinx, page: str, source: list[str]) -> None:
    """Append an entry for each public name to the reference page."""
    if page != "index":
        return
    names = [name for name in hybrid_mobilenet.__all__ if name != "__version__"]
    lines = ["", ".. currentmodule:: hybrid_mobilenet", ""]
    for title in SECTIONS.values():
        chosen = [name for name in names if section(name) == title]
        if chosen:
            lines += [title, "-" * len(title), ""]
            lines += [line for name in chosen for line in entry(name)]
    source[0] += "\n".join(lines)


def keep_prose(_app: Sphinx, what: str, _name: str, _value: object, _options: object, lines: list[str]) -> None:
    """Start an attribute's description with an empty comment, or napoleon takes the words before a colon as a type."""
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", add_reference)
    app.connect("autodoc-process-docstring", keep_prose, priority=400)  # napoleon has 500
