"""Training images per second against plain PyTorch and Keras, on one thread and on two."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

import matrix_product
from hybrid_mobilenet.architecture import Family, resolve
from hybrid_mobilenet.cost import network_mult_adds
from report import Cell, Figure, Section
from timing import interleave, speed_up
from workers import Worker

BATCH = 128
THREADS = (1, 2)
#: Forward, and backward to the weights and to the maps: each as many Mult-Adds as the network has.
PASSES = 3


@dataclass(frozen=True, eq=False)
class Comparison:
    """A network, and how many times faster it should train than plain PyTorch and than Keras."""

    name: str
    family: Family
    alpha: float
    delta: int
    plain_targets: dict[int, float]  # by threads
    keras_target: float


COMPARISONS = (
    Comparison("MobileNet d1 a1", "mobilenet", 1.0, 1, {1: 1.6, 2: 1.6}, 1.5),
    Comparison("MP3 d2 a0.5", "mp3", 0.5, 2, {1: 4.0, 2: 3.5}, 2.0),
    Comparison("FMP d2 a0.25", "fmp", 0.25, 2, {1: 3.5, 2: 3.0}, 2.5),
)


def measure(
    rounds: int, steps: int, keras_python: str | None, versions: set[str], advance: Callable[[], None]
) -> list[Section]:
    """Whole steps: forward, loss, backward, Adam.

    Args:
        rounds: how often the sides take turns.
        steps: training steps of each side in a round.
        keras_python: an interpreter that has TensorFlow; Keras is left out if None.
        versions: filled with the sides' versions.
        advance: told after every round.
    """
    results = {
        comparison: _seconds(comparison, rounds, steps, keras_python, versions, advance) for comparison in COMPARISONS
    }
    sections = [
        Section(
            f"Training, images/s, batch {BATCH}, {threads} thread{'s' * (threads > 1)}",
            [_row(comparison, seconds, threads) for comparison, seconds in results.items()],
        )
        for threads in THREADS
    ]
    scaling: list[dict[str, Cell]] = [
        {
            "network": comparison.name,
            "two threads over one": Figure(speed_up(seconds["ours", 1], seconds["ours", 2]), 1.5),
        }
        for comparison, seconds in results.items()
    ]
    return [*sections, Section("Training on two threads over one", scaling)]


Seconds = dict[tuple[str, int], list[float]]
"""Of one step in every round, by side and threads."""


def _seconds(
    comparison: Comparison,
    rounds: int,
    steps: int,
    keras_python: str | None,
    versions: set[str],
    advance: Callable[[], None],
) -> Seconds:
    pythons = {"ours": sys.executable, "plain_pytorch": sys.executable, "matrix_product": sys.executable}
    if keras_python:
        pythons["keras_networks"] = keras_python
    arguments = (comparison.family, comparison.alpha, comparison.delta, BATCH)
    with ExitStack() as stack:
        workers: dict[tuple[str, int], Worker] = {}
        for threads in THREADS:
            for side, python in pythons.items():
                worker = stack.enter_context(Worker(side, arguments, threads, python))
                versions.add(worker.version())  # one after the other: they would starve each other while warming up
                workers[side, threads] = worker
        return interleave(workers, dict.fromkeys(workers, steps), rounds, advance)


def _row(comparison: Comparison, seconds: Seconds, threads: int) -> dict[str, Cell]:
    ours, plain = seconds["ours", threads], seconds["plain_pytorch", threads]
    product, keras = seconds["matrix_product", threads], seconds.get(("keras_networks", threads))
    mult_adds = PASSES * BATCH * network_mult_adds(resolve(comparison.family, comparison.alpha, comparison.delta))
    limit = [time * mult_adds / matrix_product.MULT_ADDS for time in product]  # seconds of a step of products alone
    return {
        "network": comparison.name,
        "ours": BATCH / median(ours),
        "plain PyTorch": BATCH / median(plain),
        "Keras": BATCH / median(keras) if keras else None,
        "over plain PyTorch": Figure(speed_up(plain, ours), comparison.plain_targets[threads]),
        "over Keras": Figure(speed_up(keras, ours), comparison.keras_target) if keras else None,
        "of the sgemm limit": Figure(100 * speed_up(limit, ours), 50, "%", aim=True),
    }
