"""What the package exports: each public name is documented, with an example that runs."""

from __future__ import annotations

import ast
import doctest
import io
import sys
from pathlib import Path

import pytest

import hybrid_mobilenet

#: Public names that need no example, each with the reason.
WITHOUT_EXAMPLE = {
    "__version__": "a string",
    "CheckpointError": "an exception",
    "DataError": "an exception",
    "Evaluation": "returned by evaluate and train",
    "ExportError": "an exception",
    "Exported": "returned by export",
    "Interrupted": "an exception",
    "Layer": "of a Network",
    "ModelError": "an exception",
    "Monitor": "a protocol",
    "Network": "returned by resolve",
    "OtherProcessFailed": "an exception",
    "Parity": "of an Exported",
    "Prediction": "returned by predict",
    "ProcessLost": "an exception",
    "RuntimeFileError": "an exception",
    "Splits": "returned by load_data",
    "TrainingDiverged": "an exception",
}
NAMES = [name for name in hybrid_mobilenet.__all__ if name not in WITHOUT_EXAMPLE]


def examples(name: str) -> list[doctest.DocTest]:
    """Those of a function, or of a class and then of its methods."""
    value = getattr(hybrid_mobilenet, name)
    found = doctest.DocTestFinder().find(value, name, module=sys.modules[value.__module__], globs={})
    return sorted(found, key=lambda test: test.name)


def run(test: doctest.DocTest) -> None:
    report = io.StringIO()
    failed, _ = doctest.DocTestRunner().run(test, out=report.write, clear_globs=False)
    assert failed == 0, report.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented_and_its_examples_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own, *methods = examples(name)
    assert own.name == name
    assert own.examples, f"the docstring of {name} has no example"
    run(own)
    assert own.globs.get(name) is getattr(hybrid_mobilenet, name), f"the example of {name} does not import it"
    for method in methods:  # goes on where the example of its class ends
        method.globs.update(own.globs)
        run(method)


def test_names_without_an_example_are_public_and_documented() -> None:
    assert set(WITHOUT_EXAMPLE) <= set(hybrid_mobilenet.__all__)
    values = [getattr(hybrid_mobilenet, name) for name in WITHOUT_EXAMPLE if name != "__version__"]
    assert all(value.__doc__ and not value.__doc__.startswith(f"{value.__name__}(") for value in values)


def test_names_are_sorted_and_imported_from_where_type_checkers_see_them() -> None:
    assert sorted(hybrid_mobilenet.__all__) == hybrid_mobilenet.__all__
    tree = ast.parse(Path(hybrid_mobilenet.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.name: f"{node.module}"
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == alias.asname
    }
    assert seen == hybrid_mobilenet._MODULE_OF
    assert {*seen, "__version__"} == set(hybrid_mobilenet.__all__)


@pytest.mark.parametrize("wrong", ["1 + 1\n3", "import warnings; warnings.warn('old')"], ids=["result", "warning"])
def test_an_example_that_is_wrong_fails(wrong: str) -> None:
    test = doctest.DocTestParser().get_doctest(f">>> {wrong}\n", {}, "wrong", None, None)
    with pytest.raises(AssertionError, match="Failed example"):
        run(test)
