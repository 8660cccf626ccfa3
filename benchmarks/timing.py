"""Time the sides of a comparison on a shared machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from statistics import median
from typing import TypeVar

Side = TypeVar("Side", bound=Hashable)

#: Runs a side a number of times and returns the mean seconds per run.
Timed = Callable[[int], float]


def timed(step: Callable[[], object], warm_up: int = 0) -> Timed:
    """Make a function one side of a comparison. It is called `warm_up` times before each timing."""

    def run(times: int) -> float:
        for _ in range(warm_up):
            step()
        start = time.perf_counter()
        for _ in range(times):
            step()
        return (time.perf_counter() - start) / times

    return run


def interleave(
    sides: Mapping[Side, Timed], times: Mapping[Side, int], rounds: int, advance: Callable[[], None]
) -> dict[Side, list[float]]:
    """Time the sides in turns (A B C, A B C, ...), so that other load on the machine slows all sides alike.

    Args:
        sides: the sides, by name.
        times: how often to run each side in a round.
        rounds: number of rounds.
        advance: called after every round.

    Returns:
        Seconds per run of each side, one value per round.
    """
    seconds: dict[Side, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(side(times[name]))
        advance()
    return seconds


def speed_up(slow: list[float], fast: list[float]) -> float:
    """How many times faster `fast` is: the median over the rounds of the ratio."""
    return median(a / b for a, b in zip(slow, fast, strict=True))
