"""Sphinx's configuration of the documentation site: `make docs` builds it into build/docs.

The reference page lists what `hybrid_mobilenet.__all__` names, so that a name exported later is on it by itself.
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
    "footer_start": [],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
html_title = "hybrid-mobilenet"
html_copy_source = False
html_show_copyright = False

# Docstrings use single backticks as Markdown does: `name` links to what has that name on the page, and is code.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # what torch says of forward is for those who write one
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
napoleon_custom_sections = ["Shape", "Source"]
nitpicky = True
nitpick_ignore_regex = [("py:obj", ".*"), ("py:class", ".*")]

#: Sections of the reference page, by the module that defines a name: the longest prefix counts.
SECTIONS = {
    "network.model": "Networks",
    "layers": "Pooling layer",
    "data": "Data",
    "training": "Training and evaluation",
    "deploy": "Deployment",
    "network": "Tables and costs",
}


def section(name: str) -> str:
    """The title of the section for a public name."""
    module = hybrid_mobilenet._MODULE_OF[name]
    prefixes = [prefix for prefix in SECTIONS if f"{module}.".startswith(f"{prefix}.")]
    return SECTIONS[max(prefixes, key=len)]


def entry(name: str) -> list[str]:
    """The directive that documents a public name."""
    value = getattr(hybrid_mobilenet, name)
    if inspect.isclass(value):
        return [f".. autoclass:: {name}", "   :members:", ""]
    if callable(value):
        return [f".. autofunction:: {name}", ""]
    comments = ModuleAnalyzer.for_module(f"hybrid_mobilenet.{hybrid_mobilenet._MODULE_OF[name]}").find_attr_docs()
    return [f".. py:data:: {name}", "", *(f"   {line}" for line in comments["", name]), ""]


def add_reference(_app: Sphinx, page: str, source: list[str]) -> None:
    """Append an entry for each public name to the reference page."""
    if page != "index":
        return
    names = [name for name in hybrid_mobilenet.__all__ if name != "__version__"]
    lines = ["", ".. currentmodule:: hybrid_mobilenet", ""]
    for title in SECTIONS.values():
        if chosen := [name for name in names if section(name) == title]:
            lines += [title, "-" * len(title), ""]
            lines += [line for name in chosen for line in entry(name)]
    source[0] += "\n".join(lines)


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_reference)
