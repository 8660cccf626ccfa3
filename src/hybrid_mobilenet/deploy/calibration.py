"""Calibration of int8 exports: which training images, and the ranges of the feature maps on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.dataset import ImageDataset
from .deployed import Deployed, ExportError

#: Number of training images for calibration, and the minimum.
CALIBRATION_IMAGES, FEWEST_CALIBRATION_IMAGES = 512, 100


def calibration_images(dataset: ImageDataset) -> Tensor:
    """Evenly spaced training images: uint8 (n, C, H, W), n at most `CALIBRATION_IMAGES`.

    Raises:
        ExportError: if the data set has fewer than `FEWEST_CALIBRATION_IMAGES` images.
    """
    if len(dataset) < FEWEST_CALIBRATION_IMAGES:
        raise ExportError(
            f"there are {len(dataset)} training images, but int8 is calibrated on {FEWEST_CALIBRATION_IMAGES} or more: "
            "name a larger data set with --data"
        )
    count = min(CALIBRATION_IMAGES, len(dataset))
    return dataset.batch(torch.arange(count) * len(dataset) // count)


@torch.no_grad()
def activation_maxima(deployed: Deployed, images: Tensor) -> dict[str, float]:
    """The largest output of each activation, by its name.

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
