"""Feature maps in the kernels for CUDA: sizes, tiles and dtypes.

Maps are in channels-last order (N, H, W, C): an array of pixels of C numbers. Kernels work on tiles of several pixels
times neighbouring channels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def on_device_of(maps: Tensor) -> AbstractContextManager[None]:
    """Make the maps' GPU the current one: triton launches kernels there."""
    return torch.cuda.device_of(maps)  # type: ignore[no-untyped-call]


def pixels_of(maps: Tensor) -> int:
    """Pixels of all maps, (N, C, H, W), of one channel."""
    return len(maps) * maps.shape[2] * maps.shape[3]


def tile_of(maps: Tensor, numbers: int, most_channels: int) -> tuple[int, int]:
    """Pixels and channels of a tile.

    Args:
        maps: (N, C, H, W).
        numbers: pixels times channels of a tile, a power of two.
        most_channels: the largest number of channels of a tile, a power of two.
    """
    channels = min(triton.next_power_of_2(maps.shape[1]), most_channels)
    return numbers // channels, channels


def shares_of(tiles: int, programs_per_share: int, programs: int, most: int) -> tuple[int, int]:
    """Divide a sum over tiles into shares, one per program.

    Args:
        tiles: tiles to sum over.
        programs_per_share: programs that sum the same tiles, for different channels.
        programs: number of programs to aim at.
        most: largest number of shares.

    Returns:
        The number of shares, and the tiles per share: a power of two, as the kernel is compiled for every number.
    """
    wanted = min(max(programs // programs_per_share, 1), most)
    steps = triton.next_power_of_2(triton.cdiv(tiles, wanted))
    return int(triton.cdiv(tiles, steps)), steps


def wide(maps: Tensor) -> torch.dtype:
    """The dtype to accumulate and compare in: float32 for half precisions."""
    return torch.float64 if maps.dtype == torch.float64 else torch.float32


def triton_wide(maps: Tensor) -> Any:
    """The same as a dtype of triton."""
    return tl.float64 if wide(maps) == torch.float64 else tl.float32


@triton.jit
def position(pixel, height, width):  # type: ignore[no-untyped-def]
    """Image, row and column of a pixel, from its number among all pixels of one channel."""
    return pixel // width // height, pixel // width % height, pixel % width
