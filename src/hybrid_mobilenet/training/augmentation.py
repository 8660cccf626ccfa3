"""Augmentation of a batch on its device: shift, scale, flips, colour, cutout and RICAP.

All random choices are read from a table of numbers that is drawn before the epoch. So an image of a step does not
depend on when it is fetched or on an interruption, and a CUDA graph can replay the operations.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .recipe import Augmentation

#: Random numbers of an image: shift (2), scale, flips (2), brightness, contrast, saturation, centre of the square (2).
#: The first image of a batch also has those of the batch: whether images are combined, and where they meet (2).
DRAWS = 13


def draw(*shape: int, generator: torch.Generator | None = None) -> Tensor:
    """The random numbers of images, uniform in [0, 1), (*shape, DRAWS), on the CPU."""
    return torch.rand(*shape, DRAWS, generator=generator)


def augment(
    images: Tensor, labels: Tensor, augmentation: Augmentation, classes: int, draws: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Augment a batch. It does not wait for the device.

    Args:
        images: (N, C, H, W), uint8 in 0..255.
        labels: int64 (N,).
        augmentation: how images are varied.
        classes: number of classes.
        draws: the random numbers, (N, DRAWS), on the device of the images. None draws them.

    Returns:
        Images, float32 (N, C, H, W) in 0..1, and labels for `train_step`: (N,) as they were or, where images may be
        combined, float32 (N, classes), the share of each class. Without augmentation, the arguments.

    Example:
        >>> import torch
        >>> from hybrid_mobilenet import Augmentation, augment
        >>> images, labels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8)
        >>> varied, shares = augment(images, labels, Augmentation(shift=0.125, combined=1), classes=8)
        >>> varied.dtype, shares.sum(1).round().tolist()
        (torch.float32, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    """
    if not augmentation or not len(images):
        return images, labels
    draws = draw(len(images)).to(images.device) if draws is None else draws
    pixels = _moved(images.permute(0, 2, 3, 1).to(torch.float32) / 255, augmentation, draws[:, :5])
    if augmentation.colour:
        pixels = _recoloured(pixels, augmentation.colour, draws[:, 5:8])
    if augmentation.cutout:
        pixels = _cut_out(pixels, augmentation.cutout, draws[:, 8:10])
    if not augmentation.combined:
        return pixels, labels
    return _combined(pixels, F.one_hot(labels, classes).float(), augmentation.combined, draws[0, 10:])


def _moved(pixels: Tensor, augmentation: Augmentation, draws: Tensor) -> Tensor:
    """Shift, scale and flip images, (N, H, W, C); returns (N, C, H, W)."""
    n, h, w, c = pixels.shape
    shifts = (2 * draws[:, :2] - 1) * augmentation.shift
    size = torch.exp((2 * draws[:, 2] - 1) * math.log1p(augmentation.scale))
    down = size.where(draws[:, 3] < 0.5, -size) if augmentation.flips in ("vertical", "both") else size
    across = size.where(draws[:, 4] < 0.5, -size) if augmentation.flips in ("horizontal", "both") else size
    # Rows and columns are moved separately, as products with small matrices. On a GPU this is deterministic, which
    # torch's grid_sample is not.
    rows = resampling(h, shifts[:, 0] * h, down)
    columns = resampling(w, shifts[:, 1] * w, across)
    moved = torch.bmm(rows, pixels.reshape(n, h, w * c)).view(n, h, w, c)
    return torch.bmm(moved.permute(0, 3, 1, 2).reshape(n, c * h, w), columns.transpose(1, 2)).view(n, c, h, w)


def resampling(side: int, shift: Tensor, size: Tensor) -> Tensor:
    """Matrices (N, side, side) that move lines of pixels, with linear interpolation, reflected at the edges.

    Args:
        side: pixels of a line.
        shift: in pixels, (N,). Where the size does not change, it is rounded, so that pixels stay sharp.
        size: factor about the middle of the line, (N,). A negative one also mirrors the line.
    """
    pixel = torch.arange(side, device=shift.device, dtype=torch.float32)
    middle = (side - 1) / 2
    whole = torch.where(size.abs() == 1, shift.round(), shift)
    source = (pixel - middle) / size[:, None] + middle + whole[:, None]
    period = max(2 * (side - 1), 1)
    source = source.remainder(period)
    source = torch.minimum(source, period - source)
    return (1 - (source[:, :, None] - pixel).abs()).clamp_min_(0)


def _recoloured(pixels: Tensor, largest: float, draws: Tensor) -> Tensor:
    """Change brightness, contrast and saturation of images, (N, C, H, W)."""
    c = pixels.shape[1]
    brightness, contrast, saturation = (1 + (2 * draws - 1) * largest).view(-1, 3, 1, 1).unbind(1)
    # The grey level of a pixel is the mean of its channels. Saturation scales the distance from it.
    grey = pixels.new_full((c, c), 1 / c)
    to_colours = contrast * (saturation * (torch.eye(c, device=pixels.device) - grey) + grey)
    flat = pixels.flatten(2)
    offset = (brightness - contrast) * flat.mean((1, 2), keepdim=True)
    return torch.baddbmm(offset, to_colours, flat).clamp_(0, 1).view_as(pixels)


def _cut_out(pixels: Tensor, share: float, draws: Tensor) -> Tensor:
    """Fill a square of images, (N, C, H, W), with their mean colour."""

    def is_in(side: int, centre: Tensor) -> Tensor:
        distance = torch.arange(side, device=pixels.device) + 0.5 - centre[:, None] * side
        return distance.abs() < share * side / 2

    h, w = pixels.shape[2:]
    square = is_in(h, draws[:, 0])[:, None, :, None] & is_in(w, draws[:, 1])[:, None, None, :]
    return torch.where(square, pixels.mean((2, 3), keepdim=True), pixels)


def _combined(pixels: Tensor, shares: Tensor, probability: float, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Combine each image with the three before it in the batch; `shares` of its classes, (N, classes), by area.

    The place where the four meet is drawn from Beta(1/2, 1/2), whose quantile function is sin^2(pi u / 2). The best of
    the paper is Beta(0.3, 0.3), which has no such simple one.
    """
    h, w = pixels.shape[2:]
    place = torch.sin(draws[1:] * (math.pi / 2)).square().where(draws[0] < probability, 1.0)
    y, x = (place[0] * h).round(), (place[1] * w).round()
    is_above = (torch.arange(h, device=pixels.device) < y)[:, None]
    is_left = torch.arange(w, device=pixels.device) < x
    above = torch.where(is_left, pixels, pixels.roll(1, 0))
    below = torch.where(is_left, pixels.roll(2, 0), pixels.roll(3, 0))
    top, left = y / h, x / w
    areas = torch.stack((top * left, top * (1 - left), (1 - top) * left, (1 - top) * (1 - left)))
    rolled = torch.stack([shares.roll(count, 0) for count in range(4)])
    return torch.where(is_above, above, below), (areas[:, None, None] * rolled).sum(0)
