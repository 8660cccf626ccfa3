"""Bookkeeping of training steps: their losses are stored, and every few steps read, checked and reported."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Progress
from .recipe import Recipe
from .setup import Monitor, TrainingDiverged

#: Steps between readings of the loss. Each reading waits for the device.
READ_EVERY = 20


class Meter:
    """Measures an epoch: loss, accuracy, and time.

    Args:
        progress: is updated. In a resumed epoch it includes the steps before the interruption.
        recipe: its learning rate is named in the error if training diverges.
        steps: of the epoch.
        batch_size: images of a step, over all processes.
        device: on which the steps are taken.
        monitor: is informed of the losses.
    """

    def __init__(
        self, progress: Progress, recipe: Recipe, steps: int, batch_size: int, device: torch.device, monitor: Monitor
    ) -> None:
        self.progress = progress
        self._recipe, self._steps, self._batch_size = recipe, steps, batch_size
        self._device, self._monitor = device, monitor
        self._unread: list[tuple[Tensor, Tensor]] = []
        self._lap_started = self._step_started = time.perf_counter()

    def start_step(self) -> None:
        """Start the clock of a step; its images are on the device."""
        self._step_started = time.perf_counter()

    def end_step(self, loss: Tensor, hits: Tensor) -> None:
        """Count a step. A GPU may still be working on it.

        Raises:
            TrainingDiverged: if the losses were read and one is not finite.
        """
        progress = self.progress
        self._unread.append((loss.clone(), hits.clone()))  # the next replay of a CUDA graph overwrites them
        progress.step += 1
        progress.images += self._batch_size
        is_reading = progress.step % READ_EVERY == 0 or progress.step == self._steps
        if is_reading:  # the seconds include waiting for all steps since the last reading
            _wait(self._device)
            last = self.read()
        progress.step_seconds += time.perf_counter() - self._step_started
        if is_reading:
            self._monitor.on_step(last, progress.step)

    def read(self) -> float:
        """Add losses and hits since the last reading to the progress; returns the last loss, or NaN if none is new.

        Raises:
            TrainingDiverged: if a loss is not finite.
        """
        if not self._unread:
            return math.nan
        losses, hits = (torch.stack(each).tolist() for each in zip(*self._unread, strict=True))
        self._unread.clear()
        self.require_finite(all(map(math.isfinite, losses)))
        for loss in losses:  # one by one, so that the sum does not depend on when they are read
            self.progress.loss_sum += loss
        self.progress.correct += sum(hits)
        return float(losses[-1])

    def require_finite(self, is_finite: bool) -> None:
        """Stop diverged training: weights that are not finite must not reach a checkpoint.

        Raises:
            TrainingDiverged: unless `is_finite`.
        """
        if not is_finite:
            raise TrainingDiverged(
                f"training diverged in epoch {self.progress.epoch + 1}, before step {self.progress.step}: a loss or a "
                f"weight is not a finite number. Train with a lower --learning-rate than {self._recipe.learning_rate:g}"
            )

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._lap_started = now - self._lap_started, now
        return seconds

    def record(self, learning_rate: float) -> dict[str, Any]:
        """The epoch's line of metrics.jsonl, without validation, after its last step was read."""
        progress = self.progress
        progress.seconds += self.lap()
        return {
            "epoch": progress.epoch + 1,
            "loss": progress.loss_sum / self._steps,
            "accuracy": progress.correct / progress.images,
            "learning_rate": learning_rate,
            "images_per_second": progress.images / progress.step_seconds,
            "seconds": progress.seconds,  # of data, steps and saving
            "step_seconds": progress.step_seconds,
        }


def _wait(device: torch.device) -> None:
    """Wait until a GPU is idle. The thread sleeps, since other runs on the same GPU need the core."""
    if device.type == "cuda":
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record()
        done.synchronize()
