"""TensorBoard event files, read back by TensorBoard, also of a run that was killed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from command_line import NETWORK
from hybrid_mobilenet.training import event_files
from hybrid_mobilenet.training import run as training
from hybrid_mobilenet.training.event_files import TAGS
from hybrid_mobilenet.training.run import resume, train
from processes import run_command
from runs import RECIPE, SMALL, STEPS, Killed, Quiet, kill, refuses, stopped

needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs tensorboard")
# protobuf's C extension, which tensorboard imports.
imports = pytest.mark.filterwarnings("ignore:Type google._upb:DeprecationWarning")

LOGGED = replace(SMALL, log="tensorboard", recipe=replace(RECIPE, balance="sampling"))


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """By tag, the steps and values that TensorBoard shows for a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(run))
    events.Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def check(run: Path) -> None:
    """Compare the events with metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected: dict[str, Any] = {
        tag: [(line["epoch"], pytest.approx(line[name], rel=1e-6)) for line in lines] for name, tag in TAGS.items()
    }
    assert scalars(run) == expected


@needs_tensorboard
@imports
def test_events_are_the_metrics(tmp_path: Path) -> None:
    train(LOGGED, tmp_path / "run", Quiet())
    check(tmp_path / "run")
    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 1


@needs_tensorboard
@imports
def test_without_validation(tmp_path: Path) -> None:
    train(replace(LOGGED, validation=0, recipe=replace(RECIPE, epochs=1)), tmp_path / "run", Quiet())
    assert scalars(tmp_path / "run").keys() == {tag for name, tag in TAGS.items() if "validation" not in name}


@needs_tensorboard
@imports
def test_an_epoch_that_is_repeated_is_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the third epoch, then between the events of the third epoch and its checkpoint."""
    out = stopped(tmp_path / "run", 2 * STEPS + 1, kill, Killed, LOGGED)
    assert [step for step, _ in scalars(out)["loss/training"]] == [1, 2]
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "save", lambda _run: kill())
        with pytest.raises(Killed):
            resume(out, Quiet())
    assert [step for step, _ in scalars(out)["loss/training"]] == [1, 2, 3]
    resume(out, Quiet())
    check(out)


def test_a_missing_tensorboard_is_named_before_the_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_files, "find_spec", lambda _name: None)
    remedy = "pip install hybrid-mobilenet[tensorboard]"
    refuses(ValueError, lambda: train(replace(LOGGED, data="nowhere"), tmp_path / "run", Quiet()), "log is", remedy)
    assert not (tmp_path / "run").exists()


@needs_tensorboard
def test_the_command_logs_and_imports_the_writer_only_then(tmp_path: Path) -> None:
    options = [*NETWORK, "--epochs", "1", "--batch-size", "500", "--log"]
    done = run_command("train", "digits", *options, "tensorboard", "--out", tmp_path / "run", environment=installed())
    assert done.returncode == 0, done.stderr
    assert "rror" not in done.stderr
    check(tmp_path / "run")


def installed() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(sys.path)}
