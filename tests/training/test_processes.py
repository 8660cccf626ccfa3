"""One network trained by two processes: the same model in both, as good as one process's, and nobody left hanging."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.training.checkpoint import CheckpointError, read_checkpoint
from hybrid_mobilenet.training.run import resume
from processes import TESTS, run_python, start_python
from runs import FINISHED, SMALL, STEPS, Quiet, refuses

pytestmark = pytest.mark.slow

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left that did all of two_processes.py."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torchrun |= {"TORCHELASTIC_RUN_ID": "tests", "GROUP_RANK": "0", **NO_GPU}
    script = ["-W", "error", str(TESTS / "two_processes.py"), str(folder)]
    processes = [
        start_python(*script, environment=torchrun | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=None)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    assert errors == ["", ""]
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    """What either process saw."""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_both_end_with_the_same_model(folder: Path, seen: list[dict[str, Any]]) -> None:
    assert seen[0]["weights"] == seen[1]["weights"]
    assert sorted(path.name for path in (folder / "undisturbed").iterdir()) == FINISHED


def test_both_fit_the_same_model(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["history"] == seen[1]["history"]
    assert seen[0]["history"][2] < seen[0]["history"][0]
    assert seen[0]["fitted weights"] == seen[1]["fitted weights"]
    assert all(seen[0]["generators"])  # the pooling layers have their own again


def test_both_pool_the_same_regions_and_drop_out_their_own(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["regions"] == seen[1]["regions"]
    assert seen[0]["draws"] > 3 * STEPS
    assert seen[0]["random"] != seen[1]["random"]


def test_a_batch_is_shared_out(seen: list[dict[str, Any]]) -> None:
    splits = load_data("digits", image_size=8, channels=1, validation=SMALL.validation)
    for epoch in range(3):
        order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(epoch))
        for step, batch in enumerate(torch.split(order, 256)[:STEPS], epoch * STEPS):
            assert seen[0]["batches"][step] + seen[1]["batches"][step] == batch.tolist()


def test_every_image_is_evaluated_once(seen: list[dict[str, Any]]) -> None:
    validation = load_data("digits", image_size=8, channels=1, validation=SMALL.validation).validation
    assert validation is not None
    for both, alone, images in (("evaluation", "alone", 359), ("one batch", "one batch alone", len(validation))):
        assert seen[0][both] == seen[1][both]
        assert seen[0][both]["images"] == images
        assert seen[0][both]["confusion"] == seen[0][alone]["confusion"]
        assert seen[0][both]["loss"] == pytest.approx(seen[0][alone]["loss"], rel=1e-12)


def test_a_signal_to_one_stops_both_and_resuming_ends_with_the_same_weights(
    folder: Path, seen: list[dict[str, Any]]
) -> None:
    for process in seen:
        assert process["stopped at"] == [1, 3]
        assert process["resumed weights"] == process["weights"]
    lines = [
        [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("undisturbed", "interrupted")
    ]
    for key in ("epoch", "loss", "accuracy", "validation_loss", "validation_accuracy"):
        assert [line[key] for line in lines[0]] == [line[key] for line in lines[1]]


def test_a_weight_that_is_no_number_stops_both(folder: Path, seen: list[dict[str, Any]]) -> None:
    assert seen[0]["diverged"] == seen[1]["diverged"]
    assert "diverged in epoch 2" in seen[0]["diverged"]
    assert all(tensor.isfinite().all() for tensor in read_checkpoint(folder / "diverged")[2].values())


def test_a_mistake_is_told_once_and_stops_both(folder: Path, seen: list[dict[str, Any]]) -> None:
    for name, teller, part in (
        ("mistake of both", 0, "alpha is 0.3"),
        ("mistake of 1", 1, "delta is 0"),
        ("other settings", 0, "process 1 of 2 has other settings, data or checkpoint than process 0"),
        ("odd batch", 0, "batch_size is 33, but must be a multiple of the number of processes (2)"),
        ("small batch", 0, "batch_size is 2, but"),
    ):
        assert part in seen[teller][name]
        assert not seen[teller][name].startswith("silent")
        assert seen[1 - teller][name] == f"silent: process {teller} of 2 failed: see its error"
        assert not list((folder / name).glob("*"))


def test_a_process_that_ends_takes_the_other_with_it(folder: Path, seen: list[dict[str, Any]]) -> None:
    assert seen[1]["lost"] == "DataError: unreadable"
    assert seen[0]["lost"].startswith("ProcessLost: process 0 of 2 has lost the connection to another")
    assert read_checkpoint(folder / "lost")[1].epoch >= 1


def test_another_number_of_processes_is_refused(folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(folder / "lost", tmp_path / "run"))
    command = f"continue with torchrun --nproc-per-node 2 -m hybrid_mobilenet train --resume {run}"
    refuses(CheckpointError, lambda: resume(run, Quiet()), "was started in 2 processes, not 1", command)


def test_torchrun_is_as_good_as_one_process(tmp_path: Path) -> None:
    options = ["--family", "mobilenet", "--alpha", "0.5", "--image-size", "16", "--in-channels", "1"]
    options += ["--epochs", "4", "--batch-size", "64", "--validation", "0", "--json"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    results = []
    for name, launcher in (("one", []), ("two", torchrun)):
        command = [*launcher, "-m", "hybrid_mobilenet", "train", "digits", *options, "--out", str(tmp_path / name)]
        done = run_python(*command, environment=NO_GPU)
        assert (done.returncode, done.stderr) == (0, "")
        results.append(json.loads(done.stdout))  # one JSON document: the second process printed nothing
    one, two = (result["accuracy"] for result in results)
    assert min(one, two) > 0.8
    assert abs(one - two) < 0.067  # 3 standard deviations of the difference of two shares of 0.9 among 359 images
    with safe_open(tmp_path / "two" / "model.safetensors", "pt") as file:
        assert "features.conv.conv.weight" in file.keys()  # noqa: SIM118  not a dict
