"""What int8 exports need to know of a network: the ranges of its maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.dataset import ImageDataset
from .deployed import Deployed, ExportError

#: Training images that ranges are taken from, and the fewest that will do.
CALIBRATION_IMAGES, FEWEST_CALIBRATION_IMAGES = 512, 100


def calibration_images(dataset: ImageDataset) -> Tensor:
    """Training images, evenly spaced: uint8 (n, C, H, W).

    Raises:
        ExportError: where there are too few to tell the ranges of the maps.
    """
    if len(dataset) < FEWEST_CALIBRATION_IMAGES:
        raise ExportError(
            f"there are {len(dataset)} training images, but int8 is calibrated on {FEWEST_CALIBRATION_IMAGES} or more: "
            "name a larger data set with --data"
        )
    count = min(CALIBRATION_IMAGES, len(dataset))
    return dataset.batch(torch.arange(count) * len(dataset) // count)


@torch.no_grad()
def maxima(deployed: Deployed, images: Tensor) -> dict[str, float]:
    """The largest value after each activation, by the activation's name.

    Args:
        deployed: the network.
        images: uint8 (n, C, H, W).
    """
    largest: dict[str, float] = {}
    for batch in torch.split(images, 64):
        x = batch.permute(0, 2, 3, 1)
        for name, step in deployed.steps.named_children():
            x = step(x)
            if isinstance(step, nn.ReLU | nn.ReLU6):
                largest[name] = max(largest.get(name, 0.0), x.max().item())
    return largest
