"""Timing several sides of a comparison on a machine that others use too."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from statistics import median
from typing import TypeVar

Side = TypeVar("Side", bound=Hashable)

#: Runs a side a number of times and returns the seconds that one took on average.
Timed = Callable[[int], float]


def timed(step: Callable[[], object], warm_up: int = 0) -> Timed:
    """A function as one side of a comparison, called so often before the clock starts."""

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
    """Seconds of every side in every round: A B C, A B C, ..., so that what slows the machine slows all alike.

    Args:
        sides: what to time, by name.
        times: how often to run each side in a round.
        rounds: number of rounds.
        advance: told after every round.
    """
    seconds: dict[Side, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(side(times[name]))
        advance()
    return seconds


def speed_up(slow: list[float], fast: list[float]) -> float:
    """How many times faster `fast` is: the median of the ratios of the rounds."""
    return median(a / b for a, b in zip(slow, fast, strict=True))
