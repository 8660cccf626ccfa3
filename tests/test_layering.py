"""A folder imports only from folders below it, `common` needs no other; only the command line prints."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hybrid_mobilenet
from processes import run_python

PACKAGE = Path(hybrid_mobilenet.__file__).parent

#: Highest first. `study` and `deploy` are side by side: neither imports the other.
FLOORS = ({"cli"}, {"study", "deploy"}, {"training"}, {"data"}, {"network"}, {"layers"}, {"common"})
FLOOR = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}

SOURCES = sorted(PACKAGE.rglob("*.py"))


def folder(path: Path) -> str:
    """The folder of the package that a file is in; the package itself is "." and the highest floor."""
    return path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else "."


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module, from the package's name on where it is the package's, of each import."""
    package = ["hybrid_mobilenet", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from ((node.lineno, ".".join([*base, *filter(None, [node.module]), a.name])) for a in node.names)


def ids(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_imports_only_from_lower_folders(path: Path) -> None:
    for line, module in imported(path):
        root, _, rest = module.partition(".")
        target = rest.partition(".")[0]
        if root == "hybrid_mobilenet" and target not in (folder(path), "__version__") and folder(path) != ".":
            assert FLOOR[folder(path)] < FLOOR[target], f"{path}:{line}: {folder(path)} must not import {module}"


@pytest.mark.parametrize("path", [path for path in SOURCES if folder(path) != "cli"], ids=ids)
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    forbidden = {"print", "exit", "quit", "SystemExit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
    used = {
        ast.unparse(node): node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Name, ast.Attribute))
    }
    assert not forbidden & set(used), f"{path}: {used}"


@pytest.mark.parametrize(
    "module",
    [
        "network.cost",
        "study.claims",
        "study.finished",
        "study.grid",
        "study.paper",
        "study.records",
        "study.selection",
        "training.recipe",
        "common.files",
    ],
)
def test_facts_need_no_torch(module: str) -> None:
    script = f"import sys, hybrid_mobilenet.{module}; sys.exit(bool({{'torch', 'numpy', 'rich'}} & set(sys.modules)))"
    assert run_python("-c", script).returncode == 0


def test_the_checks_see_what_they_look_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "deploy/web").mkdir(parents=True)
    bad = tmp_path / "deploy/web/page.py"
    bad.write_text("from ...study.grid import Run\nimport torch\nfrom . import serve\nprint(1)\n")
    assert list(imported(bad)) == [
        (1, "hybrid_mobilenet.study.grid.Run"),
        (2, "torch"),
        (3, "hybrid_mobilenet.deploy.web.serve"),
    ]
    for test in (test_imports_only_from_lower_folders, test_only_the_command_line_prints_or_exits):
        with pytest.raises(AssertionError):
            test(bad)
