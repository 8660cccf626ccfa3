"""Sizes of maps before and after a layer. Standard library only: the command line computes costs without torch."""

from __future__ import annotations

from typing import Literal

#: Height and width of a map, in pixels.
Size = tuple[int, int]

#: How fractional max pooling draws its regions: see `layers.pooling`.
PoolingSequence = Literal["random", "pseudorandom"]


def strided_size(size: int, stride: int) -> int:
    """Length of an axis of `size` pixels after a stride with "same" padding, as in TensorFlow: ceil(size / stride)."""
    return -(-size // stride)


def fractional_size(size: int, ratio: float) -> int:
    """Length of an axis of `size` pixels after fractional max pooling: max(floor(size / ratio), ceil(size / 2)).

    Regions of one or two pixels cannot be fewer than ceil(size / 2). With the paper's ratio, 1.44, this matters only
    for an axis of one pixel.
    """
    return max(int(size / ratio), strided_size(size, 2))
