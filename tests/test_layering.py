"""A module imports only from strictly lower levels; the lowest need the standard library alone; only `cli` prints."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hybrid_mobilenet

PACKAGE = Path(hybrid_mobilenet.__file__).parent

#: Lowest first. The first test below fails for a module that is missing here: say where it belongs.
LEVELS: tuple[set[str], ...] = (
    {"architecture", "devices", "errors", "files", "machine", "serve", "signals"},
    {"cost", "paper", "recipe", "plots", "progress", "images", "processes"},
    {"kernels", "tables", "sources", "runtimes", "grid"},
    {"pooling", "depthwise", "batch_norm", "data", "latency", "records"},
    {"pointwise"},
    {"model", "claims"},
    {"checkpoint", "report"},
    {"evaluate"},
    {"cuda_graph", "export", "precise_statistics"},
    {"train"},
    {"reproduce", "classify", "benchmark"},
    {"estimate", "engines", "ray_engine"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
STANDARD_LIBRARY_ONLY = {
    "__init__",
    "architecture",
    "errors",
    "files",
    "machine",
    "serve",
    "cost",
    "paper",
    "recipe",
    "grid",
    "records",
    "claims",
}

SOURCES = sorted(PACKAGE.rglob("*.py"))


def module(path: Path) -> str:
    """The module of a file below the package; a subpackage is one module."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, top-level module outside the package (or ""), and module of the package (or "") of each import."""
    inside = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.partition(".")[0], ""
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield node.lineno, str(node.module).partition(".")[0], ""
            elif node.level == inside and node.module:
                yield node.lineno, "", node.module.partition(".")[0]
            elif node.level == inside:
                for alias in node.names:
                    yield node.lineno, "", alias.name
            else:
                yield node.lineno, "", module(path)  # a subpackage's module importing its sibling


def ids(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_every_module_has_a_level() -> None:
    assert {module(path) for path in SOURCES} - {"__init__"} - set(LEVEL) == set()


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_imports_only_from_lower_levels(path: Path) -> None:
    importer = module(path)
    for line, outside, name in imported(path):
        assert outside != "hybrid_mobilenet", f"{path}:{line}: import from the package relatively"
        if not name or importer == "__init__" or name == "__version__":
            continue
        siblings = name == importer and path.parent != PACKAGE
        assert siblings or LEVEL[name] < LEVEL[importer], f"{path}:{line}: {importer} must not import {name}"


@pytest.mark.parametrize("path", [path for path in SOURCES if module(path) in STANDARD_LIBRARY_ONLY], ids=ids)
def test_the_lowest_need_the_standard_library_only(path: Path) -> None:
    assert {outside for _, outside, _ in imported(path)} - {""} <= sys.stdlib_module_names


@pytest.mark.parametrize("path", [path for path in SOURCES if module(path) != "cli"], ids=ids)
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    forbidden = {"print", "exit", "quit", "SystemExit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
    used = {
        ast.unparse(node): node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Name, ast.Attribute))
    }
    assert not forbidden & set(used), f"{path}: {used}"


def test_the_checks_see_what_they_look_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    bad = tmp_path / "cost.py"
    bad.write_text("from .train import fit\nimport torch\nfrom . import model\nprint(1)\n")
    assert list(imported(bad)) == [(1, "", "train"), (2, "torch", ""), (3, "", "model")]
    for test in (
        test_imports_only_from_lower_levels,
        test_the_lowest_need_the_standard_library_only,
        test_only_the_command_line_prints_or_exits,
    ):
        with pytest.raises(AssertionError):
            test(bad)
