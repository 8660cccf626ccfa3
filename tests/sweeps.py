"""Small sweeps over handwritten digits, and what they leave: fixtures and functions for the tests of the study."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybrid_mobilenet.network.architecture import Family
from hybrid_mobilenet.study.engines.local import run_here
from hybrid_mobilenet.study.grid import Run, select
from hybrid_mobilenet.study.records import Record, read_record
from hybrid_mobilenet.study.reproduce import Folders, RunState
from hybrid_mobilenet.training import recipe as recipe_module
from hybrid_mobilenet.training.recipe import PAPER_RECIPES
from processes import start_command


def chosen(*families: Family, epochs: int = 2) -> list[Run]:
    return select(data=["digits"], families=families, deltas=[2], alphas=[0.25], epochs=epochs)


def outcome(record: Record) -> dict[str, Any]:
    """What does not depend on the machine's speed."""
    times = {"images_per_second", "seconds", "step_seconds", "evaluation_seconds"}
    fields = {name: value for name, value in vars(record).items() if name not in times | {"environment", "code"}}
    epochs = [{key: value for key, value in line.items() if key not in times} for line in record.epochs]
    return fields | {"epochs": epochs}


def outcomes(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: outcome(read_record(path)) for path in folder.glob("*.json")}


def options(folders: Folders, *families: str) -> list[str]:
    selected = ["--data", "digits", "--delta", "2", "--alpha", "0.25", "--family", ",".join(families)]
    return [*selected, "--results", str(folders.results), "--runs", str(folders.runs)]


def sweep(folders: Folders, *arguments: str) -> subprocess.Popen[str]:
    """A sweep over two runs, in a process group of its own."""
    command = ["reproduce", *options(folders, "mobilenet", "fmp"), *arguments]
    return start_command(*command, environment={"COLUMNS": "200"}, start_new_session=True)


def worker(folders: Folders, run: Run) -> int:
    """The process that works on a run, as its lock says."""
    return int((folders.runs / f"{folders.run_folder(run).name}.lock").read_text().split()[1])


def _with_large_batches(patch: pytest.MonkeyPatch) -> None:
    recipes = {family: replace(recipe, batch_size=719) for family, recipe in PAPER_RECIPES.items()}
    patch.setattr(recipe_module, "PAPER_RECIPES", recipes)


@pytest.fixture
def large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of two steps, so that runs in this process take a second."""
    _with_large_batches(monkeypatch)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "results", tmp_path / "runs")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folders, list[RunState]]:
    """A sweep over mobilenet and fmp that nobody disturbed, and what it told."""
    folder = tmp_path_factory.mktemp("sweep")
    folders, states = Folders(folder / "results", folder / "runs"), list[RunState]()
    with pytest.MonkeyPatch.context() as patch:
        _with_large_batches(patch)
        run_here(chosen("mobilenet", "fmp"), folders, states.append)
    return folders, states
