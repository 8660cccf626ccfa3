"""Runs: what they learn, what they leave, and what is left of them when they are stopped at the worst moment."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.network.model import CHECKPOINT_FILE, HybridMobileNet
from hybrid_mobilenet.training import fit as fit_module
from hybrid_mobilenet.training import run as training
from hybrid_mobilenet.training.checkpoint import CheckpointError, read_checkpoint
from hybrid_mobilenet.training.processes import Processes
from hybrid_mobilenet.training.recipe import Recipe
from hybrid_mobilenet.training.run import resume, train
from hybrid_mobilenet.training.setup import Interrupted, Setup, TrainingDiverged
from processes import start_command
from runs import (
    FINISHED,
    OPTIONS,
    RECIPE,
    SMALL,
    STEPS,
    Killed,
    Quiet,
    before_step,
    kill,
    poison,
    refuses,
    stopped,
    weights,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of SMALL without interruption."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(SMALL, out, Quiet())
    return out


@pytest.mark.slow
def test_a_short_run_learns(tmp_path: Path) -> None:
    recipe = Recipe(epochs=5, batch_size=32, learning_rate=0.003)
    evaluation = train(Setup("digits", "mobilenet", 0.25, 1, (16, 16), 1, recipe=recipe), tmp_path / "run", Quiet())
    assert evaluation.images == 359
    assert evaluation.accuracy > 0.35  # chance is 0.1


def test_a_finished_run_holds_what_is_promised(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == FINISHED
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert evaluation["accuracy"] == evaluation["correct"] / evaluation["images"]
    assert 0 <= evaluation["accuracy"] <= 1
    assert sum(map(sum, evaluation["confusion"])) == evaluation["images"] == 359
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    model = HybridMobileNet.from_pretrained(finished)
    record = model.training_record
    images = len(load_data("digits", image_size=8, channels=1, validation=0.1).train)
    assert {key: record[key] for key in ("data", "family", "seed", "images", "threads", "device")} == {
        "data": "digits", "family": "fmp", "seed": 0, "images": images, "threads": 1, "device": "cpu",
    }  # fmt: skip
    assert record["recipe"]["dropout"] == 0.1
    assert len(record["data_fingerprint"]) == 64
    assert record["torch"] == torch.__version__


def test_metrics_have_a_line_per_epoch(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert list(line) == [
            "epoch", "loss", "accuracy", "learning_rate", "images_per_second", "seconds", "step_seconds",
            "validation_loss", "validation_accuracy", "validation_balanced_accuracy", "evaluation_seconds",
        ]  # fmt: skip
        assert 0 < line["step_seconds"] < line["seconds"]
        assert line["evaluation_seconds"] > 0
        assert line["images_per_second"] == pytest.approx(STEPS * 256 / line["step_seconds"])
    assert lines[-1] == HybridMobileNet.from_pretrained(finished).training_record["last_epoch"]


def test_a_seed_decides_all(finished: Path, tmp_path: Path) -> None:
    train(SMALL, tmp_path / "again", Quiet())
    assert weights(tmp_path / "again") == weights(finished)
    train(replace(SMALL, seed=1), tmp_path / "other", Quiet())
    assert weights(tmp_path / "other") != weights(finished)


@pytest.mark.parametrize("seed", [20241124123456, 2**63, 2**64 - 1])
@pytest.mark.slow
def test_a_large_seed_is_a_seed_like_others(seed: int, tmp_path: Path) -> None:
    setup = replace(SMALL, seed=seed, recipe=replace(RECIPE, epochs=2, batch_size=500))
    train(setup, tmp_path / "whole", Quiet())
    out = stopped(tmp_path / "stopped", 3, kill, Killed, setup)  # before the second epoch
    resume(out, Quiet())
    assert weights(out) == weights(tmp_path / "whole")
    model = HybridMobileNet.from_pretrained(out)
    assert model.training_record["seed"] == seed
    before = torch.get_rng_state()
    fit_module._separate_randomness(model, seed, Processes(rank=1, size=2))
    torch.set_rng_state(before)


@pytest.mark.parametrize("at", [0, STEPS - 1, STEPS, 2 * STEPS + 3])
@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(finished: Path, tmp_path: Path, at: int) -> None:
    out = stopped(tmp_path / "run", at, kill, Killed)
    metrics = ["metrics.jsonl"] * (at >= STEPS)
    assert sorted(path.name for path in out.iterdir()) == [CHECKPOINT_FILE, *metrics, "split.json"]
    monitor = Quiet()
    resume(out, monitor)
    assert monitor.starts[0] == (at // STEPS, 0)
    assert weights(out) == weights(finished)
    assert sorted(path.name for path in out.iterdir()) == FINISHED


@pytest.mark.parametrize("at", [1, STEPS + 4])
@pytest.mark.slow
def test_a_run_killed_between_two_saves_within_an_epoch(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    out = stopped(tmp_path / "run", at, kill, Killed)
    monkeypatch.undo()
    assert read_checkpoint(out)[1].step == at % STEPS
    resume(out, monitor := Quiet())
    assert monitor.starts[0] == (at // STEPS, at % STEPS)
    assert weights(out) == weights(finished)
    ours, theirs = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (out, finished)
    )
    for key in ("epoch", "loss", "accuracy", "validation_loss", "validation_accuracy"):
        assert [line[key] for line in ours] == [line[key] for line in theirs]


def test_a_run_goes_on_with_the_device_that_is_named(finished: Path, tmp_path: Path) -> None:
    out = stopped(tmp_path / "run", 2, lambda: signal.raise_signal(signal.SIGINT), Interrupted)
    refuses(ValueError, lambda: resume(out, Quiet(), device="cuda:99"), "--device is 'cuda:99'", "leave it out")
    result = CliRunner().invoke(cli.app, ["train", "--resume", str(out), "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.stderr
    assert weights(out) == weights(finished)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(finished: Path, tmp_path: Path, number: signal.Signals) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    out = stopped(tmp_path / "run", STEPS + 3, lambda: signal.raise_signal(number), Interrupted)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    progress = read_checkpoint(out)[1]
    assert (progress.epoch, progress.step) == (1, 4)  # the step that was under way is finished
    resume(out, Quiet())
    assert weights(out) == weights(finished)


@pytest.mark.parametrize("epoch", [2, 3])
@pytest.mark.slow
def test_a_signal_between_the_steps_of_two_epochs_or_after_the_last(finished: Path, tmp_path: Path, epoch: int) -> None:
    class Stopping(Quiet):
        def on_epoch(self, record: dict[str, Any]) -> None:
            if record["epoch"] == epoch:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(SMALL, tmp_path / "run", Stopping())
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resume(tmp_path / "run", Quiet())
    assert weights(tmp_path / "run") == weights(finished)


@pytest.mark.slow
def test_a_run_stopped_many_times(finished: Path, tmp_path: Path) -> None:
    out = stopped(tmp_path / "run", 3, lambda: signal.raise_signal(signal.SIGINT), Interrupted)
    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch:
            before_step(
                patch, lambda taken, _model, _optimizer: signal.raise_signal(signal.SIGTERM) if taken == 2 else None
            )
            with pytest.raises(Interrupted):
                resume(out, Quiet())
    resume(out, Quiet())
    assert weights(out) == weights(finished)


def stop_in_epoch(epoch: int, out: Path, process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send a signal shortly after an epoch began; returns what the process wrote on stderr."""
    deadline = time.monotonic() + 300
    # The metrics of an epoch are written before its checkpoint.
    while not (out / CHECKPOINT_FILE).exists() or read_checkpoint(out)[1].epoch < epoch - 1:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"epoch {epoch} did not begin in five minutes"
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert stdout == ""
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".tmp") == [
        CHECKPOINT_FILE,
        "metrics.jsonl",
        "split.json",
    ]
    return stderr


@pytest.mark.slow
def test_a_process_stopped_by_ctrl_c_then_killed(tmp_path: Path) -> None:
    # Steps of 32 images, so that an epoch is long enough to be hit in its middle.
    setup = replace(SMALL, validation=0, recipe=replace(RECIPE, batch_size=32))
    train(setup, tmp_path / "undisturbed", Quiet())
    out = tmp_path / "run"
    process = start_command("train", "digits", *OPTIONS, "--batch-size", "32", "--validation", "0", "--out", str(out))
    stderr = stop_in_epoch(2, out, process, signal.SIGINT)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == f"error: stopped and saved; continue with: hybrid-mobilenet train --resume {out}"
    assert "Traceback" not in stderr
    progress = read_checkpoint(out)[1]
    assert progress.epoch == 1
    assert progress.step > 0

    process = start_command("train", "--resume", str(out))
    stop_in_epoch(3, out, process, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    progress = read_checkpoint(out)[1]
    assert (progress.epoch, progress.step) == (2, 0)

    resume(out, Quiet())
    assert weights(out) == weights(tmp_path / "undisturbed")


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int, error: BaseException) -> None:
    """Let the `call`-th call of a function fail, counted from 1."""
    module, _, attribute = name.rpartition(".")
    function = getattr(sys.modules[module], attribute)
    calls = 0

    def fails(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return function(*arguments)

    monkeypatch.setattr(name, fails)


@pytest.mark.parametrize("call", [3, 4, 7, 9, 10, 11])
@pytest.mark.slow
def test_a_run_survives_a_failure_at_any_save(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    # Saves: split.json; the start; metrics and state of 3 epochs; weights, configuration, curves and evaluation.
    out = tmp_path / "run"
    fail_at(monkeypatch, "os.fsync", call, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left on device"):
        train(SMALL, out, Quiet())
    monkeypatch.undo()
    progress = read_checkpoint(out)[1]
    assert progress.epoch == min((call - 3) // 2, 3)
    resume(out, Quiet())
    assert weights(out) == weights(finished)
    assert sorted(path.name for path in out.iterdir()) == FINISHED


@pytest.mark.slow
def test_what_a_kill_while_saving_left_is_no_state(finished: Path, tmp_path: Path) -> None:
    out = stopped(tmp_path / "run", STEPS + 1, kill, Killed)
    (out / f".{CHECKPOINT_FILE}.abcdefgh.tmp").write_bytes(b"half a checkpoint")
    resume(out, Quiet())
    assert weights(out) == weights(finished)
    assert sorted(path.name for path in out.iterdir()) == FINISHED


@pytest.mark.slow
def test_a_disk_that_is_really_full(finished: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # The first state, without Adam's moments, takes 0.9 MB; the next, 2.7 MB.
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small tmpfs cannot be mounted here: needs root on Linux")
    try:
        arguments = ["train", "digits", *OPTIONS, "--batch-size", "256", "--out", str(disk / "run"), "--json"]
        result = CliRunner().invoke(cli.app, arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == (
            f"error: {disk / 'run' / CHECKPOINT_FILE}: No space left on device; fix this, then: "
            f"hybrid-mobilenet train --resume {disk / 'run'}\n"
        )
        assert read_checkpoint(disk / "run")[1].epoch == 0
        subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)
        resume(disk / "run", Quiet())
        assert weights(disk / "run") == weights(finished)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "run", Path("/proc/run")):
        refuses(ValueError, lambda out=out: train(SMALL, out, Quiet()), f"out is '{out}'", "choose another with --out")  # type: ignore[misc]


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refuses(
        ValueError, lambda: train(SMALL, tmp_path / "run", Quiet()), "Permission denied", "choose another with --out"
    )
    refuses(PermissionError, lambda: train(SMALL, tmp_path, Quiet()), "Permission denied", CHECKPOINT_FILE)


def test_nothing_is_overwritten(finished: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    refuses(ValueError, lambda: train(SMALL, finished, Quiet()), f"out is '{finished}'", "--out", "--resume")
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    refuses(ValueError, lambda: train(SMALL, tmp_path / "file", Quiet()), "exists already")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    train(replace(SMALL, recipe=replace(RECIPE, epochs=1)), tmp_path, Quiet())
    assert (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize(
    "what", ["features.conv.conv.weight", "classifier.linear.bias", "features.conv.norm.running_var"]
)
@pytest.mark.parametrize("save_every", [300.0, 0.0])
@pytest.mark.slow
def test_a_loss_or_weight_that_is_no_number_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, save_every: float
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", save_every)
    before_step(monkeypatch, poison(what))
    out = tmp_path / "run"
    refuses(
        TrainingDiverged, lambda: train(SMALL, out, Quiet()), "diverged in epoch 2", "lower --learning-rate than 0.001"
    )
    _, progress, tensors = read_checkpoint(out)
    assert (progress.epoch, progress.step) == ((1, 2) if save_every == 0 else (1, 0))
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert sorted(path.name for path in out.iterdir()) == [CHECKPOINT_FILE, "metrics.jsonl", "split.json"]


def test_divergence_in_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_step(monkeypatch, poison("features.conv.conv.weight"))
    arguments = ["train", "digits", *OPTIONS, "--batch-size", "256", "--out", str(tmp_path / "run"), "--json"]
    result = CliRunner().invoke(cli.app, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: training diverged in epoch 2")
    assert result.stderr.count("\n") == 1


def test_a_finished_run_is_not_resumed(finished: Path) -> None:
    refuses(CheckpointError, lambda: resume(finished, Quiet()), "is finished", "evaluation.json", "--out")


def image_folder(root: Path, per_class: int, classes: int = 2) -> Path:
    for label in range(classes):
        folder = root / f"class {label}"
        folder.mkdir(parents=True)
        for index in range(per_class):
            Image.new("RGB", (8, 8), (255 * label, 10 * index, 0)).save(folder / f"{index}.png")
    return root


@pytest.mark.parametrize("validation", [0.0, 0.1])
@pytest.mark.parametrize("per_class", [1, 2, 3, 5])
@pytest.mark.slow
def test_tiny_data(tmp_path: Path, per_class: int, validation: float) -> None:
    data = image_folder(tmp_path / "data", per_class)
    setup = replace(SMALL, data=str(data), channels=3, validation=validation, recipe=replace(RECIPE, epochs=1))
    if per_class == 1 or (per_class == 2 and validation):
        refuses(ValueError, lambda: train(setup, tmp_path / "run", Quiet()), "split", "images")
        assert not (tmp_path / "run").exists()
    else:
        monitor = Quiet()
        evaluation = train(setup, tmp_path / "run", monitor)
        assert evaluation.images >= 2
        assert monitor.epochs[0]["loss"] > 0


def test_one_image(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", 1, classes=1)
    refuses(ValueError, lambda: train(replace(SMALL, data=str(data)), tmp_path / "run", Quiet()), "one class only")


def test_data_that_changed(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", 6)
    setup = replace(SMALL, data=str(data), recipe=Recipe(epochs=2, batch_size=2))
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, lambda taken, _model, _optimizer: kill() if taken == 1 else None)
        with pytest.raises(Killed):
            train(setup, tmp_path / "run", Quiet())
    for index, image in enumerate((data / "class 0").iterdir()):
        Image.new("RGB", (8, 8), (0, index, 99)).save(image)
    refuses(CheckpointError, lambda: resume(tmp_path / "run", Quiet()), "has changed", "start a new run")
    shutil.rmtree(data)
    refuses(ValueError, lambda: resume(tmp_path / "run", Quiet()), str(data))
