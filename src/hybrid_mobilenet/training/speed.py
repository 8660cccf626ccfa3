"""How fast a network trains and evaluates on this machine, measured on noise, which takes as long as images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ..network.architecture import Network
from .cuda_graph import CapturedSteps
from .evaluate import BATCH_SIZE, probabilities
from .recipe import Recipe
from .setup import build_model
from .step import make_optimizer, train_step, training_settings

#: Untimed calls: the first compiles, the second still fills caches.
WARM_UP = 2
#: Calls are timed at least this often.
AT_LEAST = 3


@dataclass(frozen=True)
class Speed:
    """The measured speed of a network.

    Attributes:
        step: seconds of a training step.
        image: seconds to evaluate an image in one pass.
    """

    step: float
    image: float


def measure_speed(
    network: Network, recipe: Recipe, batch_size: int, evaluated: int, device: torch.device, seconds: float
) -> Speed:
    """Train a few steps and evaluate a batch. The random states of the process are restored.

    Args:
        network: the layers.
        recipe: how it is trained.
        batch_size: images of a step.
        evaluated: number of images to evaluate: with few, the measured batch is as small.
        device: where to compute.
        seconds: steps are timed for this long, and evaluations too.
    """
    with training_settings(device):
        model = build_model(network, recipe).to(device)
        optimizer = make_optimizer(model, recipe)
        train = partial(train_step, model, optimizer, precision=recipe.precision)

        def noise(count: int) -> torch.Tensor:
            images = torch.randint(256, (count, network.in_channels, *network.image_size), dtype=torch.uint8)
            return images.to(device, memory_format=torch.channels_last)

        batch = noise(batch_size)
        labels = torch.randint(network.classes, (len(batch),)).to(device)

        take: Callable[[], tuple[torch.Tensor, torch.Tensor]] = partial(train, batch, labels)
        if batch.is_cuda:  # as in training
            captured = CapturedSteps(
                model,
                optimizer,
                lambda _: (batch, labels),
                lambda images, labels, _: train(images, labels),
                1,
                len(batch),
            )
            captured.schedule(torch.zeros(1, len(batch), dtype=torch.int64), [recipe.learning_rate])
            captured.capture()
            take = captured.take

        def step() -> None:
            take()[0].item()  # waits for the device

        test_batch = noise(min(BATCH_SIZE, evaluated))

        def evaluate() -> None:
            probabilities(model, test_batch).sum().item()

        return Speed(_mean_seconds(step, seconds), _mean_seconds(evaluate, seconds) / len(test_batch))


def _mean_seconds(act: Callable[[], None], seconds: float) -> float:
    """The mean, not the median: time lost to other programs is part of an estimate."""
    for _ in range(WARM_UP):
        act()
    count, started = 0, time.perf_counter()
    while count < AT_LEAST or time.perf_counter() - started < seconds:
        act()
        count += 1
    return (time.perf_counter() - started) / count
