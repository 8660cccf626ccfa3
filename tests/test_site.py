"""The documentation site: every public name is on it, and a docstring that does not render fails the build."""

from __future__ import annotations

import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import hybrid_mobilenet
from processes import run_python

ROOT = Path(__file__).parents[1]

#: Builds the site with a change to the package, as a line of Python.
BUILD = """
import sys
import hybrid_mobilenet
{change}
from sphinx.cmd.build import main
sys.exit(main(sys.argv[1:]))
"""


def options() -> list[str]:
    """Those of `make docs`, without the folders."""
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if "-m sphinx " in line]
    return [option for option in line.partition("-m sphinx ")[2].split() if option.startswith("--")]


def build(out: Path, change: str = "") -> subprocess.CompletedProcess[str]:
    arguments = [*options(), f"--doctree-dir={out}/doctrees", str(ROOT / "docs" / "site"), str(out / "site")]
    return run_python("-c", BUILD.format(change=change), *arguments)


class Identifiers(HTMLParser):
    """The id of every element of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, _tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found |= {value for name, value in attributes if name == "id" and value}


@pytest.mark.slow
def test_every_public_name_is_on_the_page(tmp_path: Path) -> None:
    done = build(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    names = {f"hybrid_mobilenet.{name}" for name in hybrid_mobilenet.__all__ if name != "__version__"}
    assert names <= Identifiers((tmp_path / "site" / "index.html").read_text(encoding="utf-8")).found


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            'hybrid_mobilenet.resolve.__doc__ += "\\n    An open *emphasis.\\n\\n    Raises:\\n        Oops: never."',
            ["Inline emphasis start-string without end", "target not found: Oops"],
        ),
        ('hybrid_mobilenet._MODULE_OF["resolve"] = "study.grid"', ["resolve is defined in study.grid, which has no"]),
    ],
    ids=["docstring", "no section"],
)
@pytest.mark.slow
def test_what_does_not_render_fails(change: str, messages: list[str], tmp_path: Path) -> None:
    done = build(tmp_path, change)
    assert done.returncode != 0
    assert all(message in done.stderr for message in messages), done.stderr
