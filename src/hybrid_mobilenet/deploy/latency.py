"""Latency of a model in its runtime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .runtimes import FileClassifier

#: Minimum seconds of a round of calls. The same time passes as warm-up before it: threads of another runtime may still
#: be spinning on the cores that this one needs.
ROUND_SECONDS = 0.03
ROUNDS = 20


@dataclass(frozen=True)
class Latency:
    """Seconds per call: median and quartiles over the rounds."""

    median: float
    lower: float
    upper: float


def latency(classifier: FileClassifier, batch: int = 1) -> Latency:
    """Latency of a classifier on a batch of random images."""
    images = random_images(classifier, batch)
    return spread([seconds_per_call(classifier, images) for _ in range(ROUNDS)])


def random_images(classifier: FileClassifier, count: int) -> NDArray[np.uint8]:
    """Random images of the classifier's input size: uint8 (count, H, W, C)."""
    shape = (count, *classifier.image_size, classifier.in_channels)
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def seconds_per_call(classifier: FileClassifier, images: NDArray[np.uint8]) -> float:
    """One round: `ROUND_SECONDS` of calls as warm-up, then `ROUND_SECONDS` of timed calls."""
    seconds = 0.0
    for _ in range(2):
        calls, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < ROUND_SECONDS or calls == 0:
            classifier.run(images)
            calls += 1
    return seconds / calls


def spread(seconds: Sequence[float]) -> Latency:
    """Median and quartiles of the seconds of all rounds."""
    lower, median, upper = np.percentile(seconds, (25, 50, 75)).tolist()
    return Latency(median, lower, upper)
