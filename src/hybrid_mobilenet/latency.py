"""How long one image takes in a runtime."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from .runtimes import FileClassifier

WARM_UP_SECONDS, SECONDS, ROUNDS = 0.1, 0.4, 20


@dataclass(frozen=True)
class Latency:
    """Seconds per call: median and quartiles over rounds of calls."""

    median: float
    lower: float
    upper: float


def latency(classifier: FileClassifier, batch: int = 1) -> Latency:
    """Time a classifier on a batch of random images, after warming up."""
    shape = (batch, *classifier.image_size, classifier.in_channels)
    images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    warm_up = time.perf_counter()
    calls = 0
    while time.perf_counter() - warm_up < WARM_UP_SECONDS or calls == 0:
        classifier.run(images)
        calls += 1
    each = max(1, round(calls * SECONDS / WARM_UP_SECONDS / ROUNDS))
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(each):
            classifier.run(images)
        seconds.append((time.perf_counter() - start) / each)
    lower, median, upper = np.percentile(seconds, (25, 50, 75)).tolist()
    return Latency(median, lower, upper)
