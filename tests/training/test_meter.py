"""The meter: when losses are read, what is made of them, and that a loss which is not finite stops training."""

from __future__ import annotations

import pytest
import torch

from hybrid_mobilenet.training.checkpoint import Progress
from hybrid_mobilenet.training.meter import READ_EVERY, Meter
from hybrid_mobilenet.training.recipe import Recipe
from hybrid_mobilenet.training.setup import TrainingDiverged
from runs import Quiet

RECIPE = Recipe(learning_rate=0.003)


class Losses(Quiet):
    """A monitor that records losses."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[tuple[int, float]] = []

    def on_step(self, loss: float, step: int) -> None:
        self.losses.append((step, loss))


def meter(steps: int, monitor: Quiet) -> Meter:
    return Meter(Progress(epoch=1), RECIPE, steps, 4, torch.device("cpu"), monitor)


def take(meter: Meter, loss: float, hits: int = 1) -> None:
    meter.start_step()
    meter.end_step(torch.tensor(loss), torch.tensor(hits))


def test_losses_are_read_now_and_then_and_at_the_end() -> None:
    monitor, steps = Losses(), 2 * READ_EVERY + 3
    measured = meter(steps, monitor)
    for step in range(steps):
        take(measured, float(step), step % 5)
    assert monitor.losses == [(step, step - 1.0) for step in (READ_EVERY, 2 * READ_EVERY, steps)]
    record = measured.record(0.25)
    assert record["epoch"] == 2
    assert record["learning_rate"] == 0.25
    assert record["loss"] == (steps - 1) / 2
    assert record["accuracy"] == sum(step % 5 for step in range(steps)) / (4 * steps)
    assert record["images_per_second"] == pytest.approx(4 * steps / record["step_seconds"])


def test_the_sum_does_not_depend_on_when_losses_are_read() -> None:
    torch.manual_seed(0)
    losses = torch.rand(READ_EVERY - 1).tolist()
    often, once = meter(100, Losses()), meter(100, Losses())
    for loss in losses:
        take(often, loss)
        often.read()
        take(once, loss)
    once.read()
    assert often.progress.loss_sum == once.progress.loss_sum > 0


def test_a_result_that_the_next_step_overwrites_is_kept() -> None:
    measured, loss, hits = meter(2, Losses()), torch.tensor(1.0), torch.tensor(2)
    measured.start_step()
    measured.end_step(loss, hits)
    loss.fill_(3.0)
    hits.fill_(4)
    measured.end_step(loss, hits)
    assert (measured.progress.loss_sum, measured.progress.correct) == (4.0, 6)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_training(loss: float) -> None:
    measured = meter(100, Losses())
    take(measured, loss)
    for _ in range(READ_EVERY - 2):
        take(measured, 1.0)
    with pytest.raises(TrainingDiverged, match=r"in epoch 2, before step 20: .* lower --learning-rate than 0\.003$"):
        take(measured, 1.0)
