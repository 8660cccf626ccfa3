"""Checkpoints from which a run cannot resume."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hybrid_mobilenet.network.model import CHECKPOINT_FILE
from hybrid_mobilenet.training.checkpoint import CheckpointError
from hybrid_mobilenet.training.run import resume
from runs import (
    RECIPE,
    SMALL,
    STEPS,
    Killed,
    Quiet,
    kill,
    refuses,
    stopped,
)


def test_there_is_nothing_to_resume(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        refuses(CheckpointError, lambda folder=folder: resume(folder, Quiet()), f"no {CHECKPOINT_FILE}", str(folder))  # type: ignore[misc]


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stopped(tmp_path_factory.mktemp("runs") / "unfinished", STEPS, kill, Killed)


@pytest.fixture
def run(unfinished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unfinished, tmp_path / "run"))


@pytest.fixture(scope="module")
def unfinished_best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    setup = replace(SMALL, recipe=replace(RECIPE, keep="best"))
    return stopped(tmp_path_factory.mktemp("runs") / "best", STEPS, kill, Killed, setup)


@pytest.mark.parametrize("change", [None, torch.zeros(2, 2)])
def test_a_checkpoint_without_the_weights_of_the_best_epoch(
    unfinished_best: Path, tmp_path: Path, change: torch.Tensor | None
) -> None:
    run = Path(shutil.copytree(unfinished_best, tmp_path / "run"))
    rewritten(run, tensors={"best.features.conv.conv.weight": change})
    refuses(CheckpointError, lambda: resume(run, Quiet()), "does not fit its own network", "best epoch")


def rewritten(
    run: Path, header: dict[str, str] | None = None, tensors: dict[str, torch.Tensor | None] | None = None
) -> None:
    with safe_open(run / CHECKPOINT_FILE, "pt") as file:
        before = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        metadata = file.metadata() | (header or {})
    merged: dict[str, torch.Tensor | None] = before | (tensors or {})
    kept = {name: tensor for name, tensor in merged.items() if tensor is not None}
    save_file(kept, run / CHECKPOINT_FILE, {key: value for key, value in metadata.items() if value})


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_a_truncated_checkpoint(run: Path, size: int) -> None:
    path = run / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:size])
    refuses(CheckpointError, lambda: resume(run, Quiet()), str(path), "damaged", "start a new run")


def test_a_checkpoint_of_another_program(run: Path) -> None:
    path = run / CHECKPOINT_FILE
    save_file({"weight": torch.zeros(2)}, path)
    refuses(CheckpointError, lambda: resume(run, Quiet()), str(path), "not a checkpoint of hybrid-mobilenet")
    path.write_bytes(b"\x80\x05K\x01.")  # a pickle
    refuses(CheckpointError, lambda: resume(run, Quiet()), str(path), "not a checkpoint of hybrid-mobilenet")


@pytest.mark.parametrize("key", ["setup", "progress"])
@pytest.mark.parametrize("value", ["", "{", "[]", "{}", '{"epoch": 1, "recipes": {}}'])
def test_a_checkpoint_with_another_header(run: Path, key: str, value: str) -> None:
    rewritten(run, {key: value})
    if (key, value) == ("progress", "{}"):  # every field has a default: it is a run at its start
        return
    refuses(CheckpointError, lambda: resume(run, Quiet()), str(run))


def test_a_checkpoint_of_another_version(run: Path) -> None:
    with safe_open(run / CHECKPOINT_FILE, "pt") as file:
        setup = json.loads(file.metadata()["setup"])
    setup["recipe"]["teacher"] = "none"
    rewritten(run, {"setup": json.dumps(setup)})
    refuses(CheckpointError, lambda: resume(run, Quiet()), str(run), "another version", "teacher")


@pytest.mark.parametrize("name", ["model.features.conv.conv.weight", "random.cpu", "optimizer.0.exp_avg"])
def test_a_checkpoint_that_lacks_a_tensor(run: Path, name: str) -> None:
    rewritten(run, tensors={name: None})
    refuses(CheckpointError, lambda: resume(run, Quiet()), "does not fit its own network")


@pytest.mark.parametrize("name", ["model.features.conv.conv.weight", "optimizer.0.exp_avg", "random.cpu"])
def test_a_checkpoint_with_a_tensor_of_another_shape(run: Path, name: str) -> None:
    rewritten(run, tensors={name: torch.zeros(2, 2)})
    refuses(CheckpointError, lambda: resume(run, Quiet()), "does not fit its own network")
