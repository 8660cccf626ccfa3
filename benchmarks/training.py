"""Training speed in images per second, compared with plain PyTorch, good PyTorch and Keras, on one and two threads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from math import nan
from statistics import median
from typing import TypeVar

import matrix_product
from hybrid_mobilenet.network.architecture import Family, Layer, Network, resolve
from hybrid_mobilenet.network.cost import layer_mult_adds
from report import Cell, Figure, Section
from timing import Timed, interleave, speed_up
from workers import Worker, WorkerError

Answer = TypeVar("Answer")

BATCH = 128
THREADS = (1, 2)
#: Sides that bound the rate of a training step. Each computes `matrix_product.MULT_ADDS` Mult-Adds in place of a step.
LIMITS = {"torch's product": "matrix_product", "multiply-adds alone": "multiply_adds"}
EAGER, COMPILED = "good_pytorch", "compiled_pytorch"


@dataclass(frozen=True, eq=False)
class Comparison:
    """A network, and its target speedups over plain PyTorch, good PyTorch and Keras."""

    name: str
    family: Family
    alpha: float
    delta: int
    plain_targets: dict[int, float]  # by number of threads
    keras_target: float
    good_target: float = 1.0


COMPARISONS = (
    Comparison("MobileNet d1 a1", "mobilenet", 1.0, 1, {1: 1.6, 2: 1.6}, 1.5),
    Comparison("MP3 d2 a0.5", "mp3", 0.5, 2, {1: 4.0, 2: 3.5}, 2.0),
    Comparison("FMP d2 a0.25", "fmp", 0.25, 2, {1: 3.5, 2: 3.0}, 2.5),
)


@dataclass(frozen=True)
class Result:
    """Measurements of a network, by side and number of threads."""

    seconds: dict[tuple[str, int], list[float]] = field(default_factory=dict)  # per step, one value per round
    first_steps: dict[tuple[str, int], float] = field(default_factory=dict)  # seconds, including compilation
    failures: dict[tuple[str, int], str] = field(default_factory=dict)  # reasons


def measure(
    rounds: int,
    steps: int,
    keras_python: str | None,
    versions: set[str],
    advance: Callable[[], None],
    *,
    compiling: bool = True,
) -> list[Section]:
    """Measure complete steps: forward, loss, backward, Adam.

    Args:
        rounds: how often the sides take turns.
        steps: training steps of each side in a round.
        keras_python: an interpreter that has TensorFlow. Keras is skipped if None.
        versions: the sides' versions are added to it.
        advance: called after every round.
        compiling: whether to include torch.compile, which takes minutes.

    Raises:
        WorkerError: if a side other than torch.compile ends early.
    """
    sides = dict.fromkeys(("ours", "plain_pytorch", EAGER, *LIMITS.values()), sys.executable)
    if compiling:
        sides[COMPILED] = sys.executable
    if keras_python:
        sides["keras_networks"] = keras_python
    return sections(
        {comparison: _measure(comparison, sides, rounds, steps, versions, advance) for comparison in COMPARISONS}
    )


def sections(results: dict[Comparison, Result]) -> list[Section]:
    """The tables of the results."""
    return [
        *(
            Section(
                f"Training, images/s, batch {BATCH}, {threads} thread{'s' * (threads > 1)}",
                [_row(comparison, result, threads) for comparison, result in results.items()],
            )
            for threads in THREADS
        ),
        Section(
            "Training on two threads over one",
            [
                {
                    "network": comparison.name,
                    "two threads over one": Figure(speed_up(result.seconds["ours", 1], result.seconds["ours", 2]), 1.5),
                }
                for comparison, result in results.items()
            ],
        ),
        Section(
            f"Good PyTorch, images/s, batch {BATCH}: channels-last, fused Adam",
            [_good_row(comparison, result, threads) for comparison, result in results.items() for threads in THREADS],
        ),
        Section(
            "The rate that no step can exceed, billions of Mult-Adds per second",
            [_limit_row(list(results.values()), threads) for threads in THREADS],
        ),
    ]


def least_mult_adds(network: Network) -> float:
    """The least Mult-Adds per image of a training step with directly computed convolutions.

    The forward pass, the gradients of the weights and the gradients of the maps each take as many as the network has.
    The gradient of the images is not needed, and products with padding are not counted.
    """
    return sum(
        (2 if layer is network.layers[0] else 3) * layer_mult_adds(layer) * _share_inside(layer)
        for layer in network.layers
    )


def _share_inside(layer: Layer) -> float:
    """The share of a convolution's products that are with pixels, not with padding."""
    share = 1.0
    for n_in, n_out in zip(layer.in_size, layer.out_size, strict=True):
        first = [place * layer.stride - layer.kernel // 2 for place in range(n_out)]
        inside = sum(0 <= start + tap < n_in for start in first for tap in range(layer.kernel))
        share *= inside / (n_out * layer.kernel)
    return share


def _measure(
    comparison: Comparison,
    sides: dict[str, str],  # side -> interpreter
    rounds: int,
    steps: int,
    versions: set[str],
    advance: Callable[[], None],
) -> Result:
    arguments = (comparison.family, comparison.alpha, comparison.delta, BATCH)
    result = Result()

    def attempt(key: tuple[str, int], act: Callable[[], Answer], otherwise: Answer) -> Answer:
        """Call a side. If torch.compile fails, record why and return `otherwise`: a user would go on without it."""
        if key not in result.failures:
            try:
                return act()
            except WorkerError as error:
                if key[0] != COMPILED:
                    raise
                result.failures[key] = error.reason
        return otherwise

    with ExitStack() as stack:
        timers: dict[tuple[str, int], Timed] = {}
        for threads in THREADS:
            for side, python in sides.items():
                key = side, threads
                worker = stack.enter_context(Worker(side, arguments, threads, python))
                warm = attempt(key, worker.warm_up, None)  # one at a time, since they compete for the cores
                if warm:
                    versions.add(warm[0])
                    result.first_steps[key] = warm[1]
                    timers[key] = partial(
                        lambda key, worker, times: attempt(key, partial(worker, times), nan), key, worker
                    )
        seconds = interleave(timers, dict.fromkeys(timers, steps), rounds, advance)
    result.seconds.update({key: values for key, values in seconds.items() if key not in result.failures})
    return result


def _row(comparison: Comparison, result: Result, threads: int) -> dict[str, Cell]:
    ours, plain, good = (result.seconds[side, threads] for side in ("ours", "plain_pytorch", _better(result, threads)))
    keras = result.seconds.get(("keras_networks", threads))
    work = BATCH * least_mult_adds(resolve(comparison.family, comparison.alpha, comparison.delta))
    fastest = map(min, *(result.seconds[side, threads] for side in LIMITS.values()))
    limit = [seconds * work / matrix_product.MULT_ADDS for seconds in fastest]  # least seconds of a step
    return {
        "network": comparison.name,
        "ours": BATCH / median(ours),
        "plain PyTorch": BATCH / median(plain),
        "good PyTorch": BATCH / median(good),
        "Keras": BATCH / median(keras) if keras else None,
        "over plain PyTorch": Figure(speed_up(plain, ours), comparison.plain_targets[threads]),
        "over good PyTorch": Figure(speed_up(good, ours), comparison.good_target),
        "over Keras": Figure(speed_up(keras, ours), comparison.keras_target) if keras else None,
        "of the limit": Figure(100 * speed_up(limit, ours), 50, "%", aim=True, limit=100),
    }


def _better(result: Result, threads: int) -> str:
    """The faster side of good PyTorch, eager or compiled, by the median."""
    return min(
        (side for side in (EAGER, COMPILED) if (side, threads) in result.seconds),
        key=lambda side: median(result.seconds[side, threads]),
    )


def _good_row(comparison: Comparison, result: Result, threads: int) -> dict[str, Cell]:
    compiled = result.seconds.get((COMPILED, threads))
    return {
        "network": comparison.name,
        "threads": str(threads),
        "eager": BATCH / median(result.seconds[EAGER, threads]),
        "compiled": BATCH / median(compiled) if compiled else None,
        "first step, compiling, s": result.first_steps.get((COMPILED, threads)),
        "counts": "compiled" if _better(result, threads) == COMPILED else "eager",
        "torch.compile failed": result.failures.get((COMPILED, threads)),
    }


def _limit_row(results: list[Result], threads: int) -> dict[str, Cell]:
    rates: dict[str, Cell] = {
        name: matrix_product.MULT_ADDS / 1e9 / median(s for result in results for s in result.seconds[side, threads])
        for name, side in LIMITS.items()
    }
    return {"threads": str(threads), **rates}
