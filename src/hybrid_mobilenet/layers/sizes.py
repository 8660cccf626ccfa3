"""Sizes of maps before and after a layer. Standard library only: the command line counts costs without torch."""

from __future__ import annotations

from typing import Literal

#: Height and width of a map, in pixels.
Size = tuple[int, int]

#: How fractional max pooling draws its regions.
PoolingSequence = Literal["random", "pseudorandom"]


def strided_size(size: int, stride: int) -> int:
    """Length of an axis of `size` pixels after a stride: ceil(size / stride), TensorFlow's "same" padding."""
    return -(-size // stride)


def fractional_size(size: int, ratio: float) -> int:
    """Length of an axis of `size` pixels after fractional max pooling: floor(size / ratio), but at least half of it.

    Half (rounded up) is the least that regions one or two pixels wide can cover; for the paper's ratio it is only ever
    reached as max(1, ...), on an axis of one pixel.
    """
    return max(int(size / ratio), strided_size(size, 2))
