"""A small run, monitors and interruptions, for the tests of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_mobilenet.network.model import HybridMobileNet
from hybrid_mobilenet.training import fit
from hybrid_mobilenet.training.recipe import Recipe
from hybrid_mobilenet.training.run import train
from hybrid_mobilenet.training.setup import Setup
from hybrid_mobilenet.training.step import train_step

#: The smallest network with random regions; 3 epochs of 5 steps.
RECIPE = Recipe(epochs=3, batch_size=256, learning_rate=0.001)
SMALL = Setup("digits", "fmp", 0.25, 1, (8, 8), 1, recipe=RECIPE)
OPTIONS = ["--family", "fmp", "--alpha", "0.25", "--delta", "1", "--image-size", "8", "--in-channels", "1"]
OPTIONS += ["--epochs", "3", "--learning-rate", "0.001", "--fixed-epochs", "0"]
STEPS = 5
FINISHED = ["config.json", "curves.png", "evaluation.json", "metrics.jsonl", "model.safetensors", "split.json"]


class Quiet:
    """A monitor that records what it is given."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, Any]] = []
        self.starts: list[tuple[int, int]] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def on_data(self, what: str, done: int, total: int) -> None: ...

    def on_start(self, epoch: int, epochs: int, step: int, steps: int, batch_size: int) -> None:  # noqa: ARG002
        self.starts.append((epoch, step))

    def on_step(self, loss: float, step: int) -> None: ...

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.epochs.append(record)

    def on_note(self, note: str) -> None:
        self.notes.append(note)

    def on_warning(self, warning: str) -> None:
        self.warnings.append(warning)


class Killed(BaseException):
    """Simulates a kill: no code of the package handles it."""


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def before_step(monkeypatch: pytest.MonkeyPatch, act: Callable[[int, Any, torch.optim.Optimizer], None]) -> None:
    """Call `act` with the number of steps taken, the model and the optimiser, before each step."""
    taken = 0

    def step(model: Any, optimizer: Any, *batch: Any, **options: Any) -> Any:
        nonlocal taken
        act(taken, getattr(model, "module", model), optimizer)  # DistributedDataParallel has the model in `module`
        taken += 1
        return train_step(model, optimizer, *batch, **options)

    monkeypatch.setattr(fit, "train_step", step)


def stopped(out: Path, at: int, how: Callable[[], None], kind: type[BaseException], setup: Setup = SMALL) -> Path:
    """A run that was stopped before step `at` by calling `how`, which ends in an error of this kind."""
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, lambda taken, _model, _optimizer: how() if taken == at else None)
        with pytest.raises(kind):
            train(setup, out, Quiet())
    return out


def kill() -> None:
    raise Killed


def refuses(kind: type[Exception], act: Callable[[], object], *parts: str) -> None:
    """Check that `act` raises an error of one line with these parts."""
    with pytest.raises(kind) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def poison(what: str) -> Callable[[int, HybridMobileNet, object], None]:
    """For `before_step`: sets a parameter or buffer to NaN in the second epoch."""

    def act(taken: int, model: HybridMobileNet, _optimizer: object) -> None:
        if taken == STEPS + 2:
            tensors = dict(model.named_parameters()) | dict(model.named_buffers())
            with torch.no_grad():
                tensors[what].fill_(float("nan"))

    return act
