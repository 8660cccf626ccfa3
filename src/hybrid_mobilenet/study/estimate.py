"""Estimates how long runs will take, by measuring a few training steps and evaluations of each network."""

from __future__ import annotations

import heapq
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from statistics import mean
from typing import Any

import torch

from ..common.devices import choose_device
from ..common.memory import keep_freed_memory
from ..data.splits import load_test
from ..network.architecture import Network
from ..network.model import CHECKPOINT_FILE
from ..training.checkpoint import read_checkpoint
from ..training.recipe import Recipe
from ..training.run import EVALUATION_FILE
from ..training.speed import Speed, measure_speed
from .grid import DATA_SETS, Run
from .reproduce import PASSES, Folders

#: Steps and evaluations of a network are timed for this many seconds each.
SECONDS = 2.0


@dataclass(frozen=True)
class Estimate:
    """The estimate of a run.

    Attributes:
        run: the run.
        seconds: time that is left.
        images_per_second: speed of training.
        is_begun: whether a part of it is done.
    """

    run: Run
    seconds: float
    images_per_second: float
    is_begun: bool

    def record(self) -> dict[str, Any]:
        """The estimate as JSON."""
        run = self.run
        return {
            "run": run.name,
            "data": run.data,
            "family": run.family,
            "delta": run.delta,
            "alpha": run.alpha,
            "seed": run.seed,
            "epochs": run.recipe.epochs,
            "images_per_second": self.images_per_second,
            "is_begun": self.is_begun,
            "seconds": self.seconds,
        }


def estimate(
    runs: Sequence[Run],
    folders: Folders,
    jobs: int,
    on_measured: Callable[[], None] | None = None,
    device: str = "auto",
) -> list[Estimate]:
    """Estimate how long each run will take.

    Each network takes a few steps with the batch size of its recipe, and evaluates one batch. The time to read the test
    images is measured too. With several jobs, as many processes measure a network at the same time, since they share
    caches, memory and cores.

    Args:
        runs: the runs.
        folders: folders of unfinished runs, whose finished epochs are subtracted.
        jobs: number of processes that will work at once.
        on_measured: called after each network.
        device: as for `choose_device`.

    Raises:
        ValueError, OSError: if the data cannot be read.
    """
    reading = {name: _reading(name) for name in {run.data: None for run in runs}}
    kinds = list({_kind(run): run for run in runs}.values())
    speeds = {}
    with _side_by_side(jobs, device) as measure_all:
        for run in kinds:
            measured = measure_all(run)
            speeds[_kind(run)] = Speed(mean(each.step for each in measured), mean(each.image for each in measured))
            if on_measured:
                on_measured()
    return [_estimate(run, speeds[_kind(run)], reading[run.data], folders) for run in runs]


def seconds_in_all(estimates: Sequence[Estimate], jobs: int) -> float:
    """Seconds until the last run ends, if each of `jobs` processes takes the next run when it is free."""
    free = [0.0] * jobs
    for each in estimates:
        heapq.heapreplace(free, free[0] + each.seconds)
    return max(free)


def measure(run: Run, device: str = "auto") -> Speed:
    """Train a few steps of a run's network and evaluate a batch, both on noise."""
    data = DATA_SETS[run.data]
    batch_size = min(run.recipe.batch_size, data.train_images)
    return measure_speed(run.network, run.recipe, batch_size, data.test_images, choose_device(device), SECONDS)


@contextmanager
def _side_by_side(jobs: int, device: str) -> Iterator[Callable[[Run], list[Speed]]]:
    """Yields a function that measures a run in `jobs` processes at once; with one job, in this process."""
    if jobs == 1:
        yield lambda run: [measure(run, device)]
        return
    context = multiprocessing.get_context("spawn")
    arguments = (context.Barrier(jobs), max(1, torch.get_num_threads() // jobs))
    with ProcessPoolExecutor(jobs, context, _share, arguments) as pool:
        yield lambda run: list(pool.map(_measure_together, [run] * jobs, [device] * jobs))


def _share(barrier: Barrier, threads: int) -> None:
    global _together  # noqa: PLW0603  a barrier can only be passed to a process when it starts
    _together = barrier
    torch.set_num_threads(threads)
    keep_freed_memory()


_together: Barrier


def _measure_together(run: Run, device: str) -> Speed:
    _together.wait()  # so that each process takes one measurement
    return measure(run, device)


def _kind(run: Run) -> tuple[Network, Recipe]:
    """Runs of the same kind take equally long."""
    return run.network, run.recipe


def _reading(data: str) -> float:
    """Seconds to read the data of a run, extrapolated from the test images."""
    shape = DATA_SETS[data]
    seconds = []
    for _ in range(2):  # the first imports modules
        started = time.perf_counter()
        load_test(data, image_size=shape.image_size, channels=shape.channels)
        seconds.append(time.perf_counter() - started)
    return seconds[-1] * (1 + shape.train_images / shape.test_images)


def _estimate(run: Run, speed: Speed, reading: float, folders: Folders) -> Estimate:
    data, folder = DATA_SETS[run.data], folders.run_folder(run)
    steps = max(1, data.train_images // run.recipe.batch_size)
    done = 0.0
    is_trained = (folder / EVALUATION_FILE).is_file() and not (folder / CHECKPOINT_FILE).is_file()
    if is_trained:
        done = run.recipe.epochs
    elif (folder / CHECKPOINT_FILE).is_file():
        _, progress, _ = read_checkpoint(folder)
        done = progress.epoch + progress.step / steps
    passes = (0 if is_trained else 1) + (PASSES if run.family == "fmp" else 0)
    seconds = (run.recipe.epochs - done) * steps * speed.step + passes * data.test_images * speed.image + reading
    batch_size = min(run.recipe.batch_size, data.train_images)
    return Estimate(run, seconds, batch_size / speed.step, done > 0)
