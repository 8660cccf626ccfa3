"""How long runs will take on this machine, measured by a few training steps and evaluations of each network."""

from __future__ import annotations

import heapq
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.synchronize import Barrier
from statistics import mean
from typing import Any

import torch

from ..common.memory import keep_freed_memory
from ..data.dataset import load_test
from ..network.architecture import Network
from ..network.model import HybridMobileNet
from ..training.checkpoint import CHECKPOINT_FILE, read_checkpoint
from ..training.cuda_graph import CapturedSteps
from ..training.evaluate import BATCH_SIZE, probabilities
from ..training.processes import Processes
from ..training.recipe import Recipe
from ..training.run import EVALUATION_FILE, adam, engine, train_step, training_settings
from .grid import DATA_SETS, Run
from .reproduce import PASSES, Folders

#: The first step compiles, the second still fills caches; then so many seconds are timed, but at least so many steps.
WARM_UP, SECONDS, AT_LEAST = 2, 2.0, 3


@dataclass(frozen=True)
class Speed:
    """What was measured of a network: seconds of one training step, and of one evaluated image in one pass."""

    step: float
    image: float


@dataclass(frozen=True)
class Estimate:
    """Seconds that are left of a run, images per second of its training, and whether it was begun before."""

    run: Run
    seconds: float
    images_per_second: float
    is_begun: bool

    def record(self) -> dict[str, Any]:
        """It as JSON."""
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
    """Measure how long each run will take.

    Every network takes a few steps with its recipe's batch size and evaluates one batch; the test images are read. With
    several jobs as many processes measure the same network side by side, since they share caches, memory and cores.

    Args:
        runs: what is to be run.
        folders: where unfinished runs are, whose epochs so far are counted as done.
        jobs: processes at once.
        on_measured: called after each network.
        device: as `choose_device` takes it.

    Raises:
        ValueError, OSError: where the data cannot be read.
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
    """When the last run ends, if each of `jobs` takes the next one whenever it is free."""
    free = [0.0] * jobs
    for each in estimates:
        heapq.heapreplace(free, free[0] + each.seconds)
    return max(free)


def measure(run: Run, device: str = "auto") -> Speed:
    """Train a few steps of a run's network and evaluate a batch, both on noise: what images show takes no time."""
    with training_settings():
        return _measured(run, device)


def _measured(run: Run, device: str) -> Speed:
    recipe, network = run.recipe, run.network
    fabric = engine(recipe.precision, Processes(), device)
    model = HybridMobileNet(
        network,
        class_names=[str(label) for label in range(network.classes)],
        activation=recipe.activation,
        dropout=recipe.dropout,
        sequence=recipe.sequence,
        overlapping=recipe.overlapping,
    )
    optimizer = adam(model, recipe)
    module, fabric_optimizer = fabric.setup(model, optimizer)
    train = partial(train_step, fabric, module, fabric_optimizer)

    def noise(count: int) -> torch.Tensor:
        images = torch.randint(256, (count, network.in_channels, *network.image_size), dtype=torch.uint8)
        return fabric.to_device(images.contiguous(memory_format=torch.channels_last))

    data = DATA_SETS[run.data]
    batch = noise(min(recipe.batch_size, data.train_images))
    labels = fabric.to_device(torch.randint(network.classes, (len(batch),)))

    take: Callable[[], tuple[torch.Tensor, torch.Tensor]] = partial(train, batch, labels)
    if batch.is_cuda:  # as training takes them there
        captured = CapturedSteps(model, optimizer, lambda _: (batch, labels), train, 1, len(batch))
        captured.schedule(torch.zeros(1, len(batch), dtype=torch.int64), [recipe.learning_rate])
        captured.capture()
        take = captured.take

    def step() -> None:
        take()[0].item()  # waits for the device

    tested = noise(min(BATCH_SIZE, data.test_images))

    def evaluate() -> None:
        probabilities(model, tested).sum().item()

    return Speed(_mean_seconds(step), _mean_seconds(evaluate) / len(tested))


def _mean_seconds(act: Callable[[], None]) -> float:
    """The mean, not the median: what other programs take is a part of how long it will be."""
    for _ in range(WARM_UP):
        act()
    count, started = 0, time.perf_counter()
    while count < AT_LEAST or time.perf_counter() - started < SECONDS:
        act()
        count += 1
    return (time.perf_counter() - started) / count


@contextmanager
def _side_by_side(jobs: int, device: str) -> Iterator[Callable[[Run], list[Speed]]]:
    """A function that measures in each of `jobs` processes at once; with one job, in this."""
    if jobs == 1:
        yield lambda run: [measure(run, device)]
        return
    context = multiprocessing.get_context("spawn")
    arguments = (context.Barrier(jobs), max(1, torch.get_num_threads() // jobs))
    with ProcessPoolExecutor(jobs, context, _share, arguments) as pool:
        yield lambda run: list(pool.map(_measure_together, [run] * jobs, [device] * jobs))


def _share(barrier: Barrier, threads: int) -> None:
    global _together  # noqa: PLW0603  a barrier can only be handed over when a process starts
    _together = barrier
    torch.set_num_threads(threads)
    keep_freed_memory()


_together: Barrier


def _measure_together(run: Run, device: str) -> Speed:
    _together.wait()  # so that no process does another's measurement
    return measure(run, device)


def _kind(run: Run) -> tuple[Network, Recipe]:
    """Runs of one kind take equally long."""
    return run.network, run.recipe


def _reading(data: str) -> float:
    """Seconds that a run takes to read its data, by the test images."""
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
