"""Fractional max pooling in plain torch, for devices without a kernel of their own.

Forward is separable: rows first, then columns. It also records the winner of each region, the pixel that is its
maximum, in a byte: 3 * c + r for column c and row r of the region. Backward is a gather: each pixel adds up the
gradients of the regions in which it won. It is in one region, or in up to four if regions overlap.
"""

from __future__ import annotations

from operator import sub

import torch
from torch import Tensor


def forward(x: Tensor, rows: Tensor, columns: Tensor, overlapping: bool) -> tuple[Tensor, Tensor]:
    """Maxima over regions, and their winners: (N, C, H, W) to two of (N, C, H_out, W_out), x's dtype and uint8."""
    first, second, third = (x.index_select(2, place) for place in places(rows, overlapping))
    pooled = torch.maximum(first, second)
    row = torch.where(third > pooled, 2, (second > first).to(torch.uint8))
    pooled = torch.maximum(pooled, third)

    at = places(columns, overlapping)
    first, second, third = (pooled.index_select(3, place) for place in at)
    winning_rows = [row.index_select(3, place) for place in at]
    pooled = torch.maximum(first, second)
    winners = torch.where(second > first, 3 + winning_rows[1], winning_rows[0])
    winners = torch.where(third > pooled, 6 + winning_rows[2], winners)
    pooled = torch.maximum(pooled, third)
    return _channels_last(pooled), _channels_last(winners.to(torch.uint8))


def backward(
    gradient: Tensor, winners: Tensor, rows: Tensor, columns: Tensor, overlapping: bool, height: int, width: int
) -> Tensor:
    """Gradient of the input, (N, C, height, width): the gradient of each region goes to its winner."""
    dx = None
    for row_region, row_offset in _regions_of_pixels(rows, height, overlapping):
        for column_region, column_offset in _regions_of_pixels(columns, width, overlapping):
            at = (..., row_region[:, None], column_region)
            won = winners[at] == 3 * column_offset + row_offset[:, None]
            received = torch.where(won, gradient[at], 0)
            dx = received if dx is None else dx + received
    assert dx is not None
    return _channels_last(dx)


def check_sequence(sequence: Tensor, size: int, name: str) -> None:
    """Check that a pooling sequence fits an axis of `size` pixels. This waits for the device that holds it.

    Raises:
        ValueError: if it does not fit; the message calls it `name`.
    """
    values = sequence.tolist()
    fits = sequence.dtype == torch.int64 and sequence.dim() == 1 and len(values) >= 2
    if not fits or values[0] != 0 or values[-1] != size or not set(map(sub, values[1:], values)) <= {1, 2}:
        raise ValueError(
            f"{name} is {sequence.dtype} {values}, but must be int64 and rise from 0 to {size} in steps of 1 "
            "or 2: make it with random_sequence or pseudorandom_sequence"
        )


def places(sequence: Tensor, overlapping: bool) -> tuple[Tensor, Tensor, Tensor]:
    """First, second and third pixel of each region; a narrower region repeats its last pixel."""
    first, last = sequence[:-1], sequence[1:] - 1
    third = (last + 1).clamp(max=sequence[-1] - 1) if overlapping else last
    return first, torch.minimum(first + 1, third), third


def _regions_of_pixels(sequence: Tensor, size: int, overlapping: bool) -> list[tuple[Tensor, Tensor]]:
    """The region of each pixel of an axis and the pixel's place in it; if regions overlap, also the previous region."""
    pixel = torch.arange(size, device=sequence.device)
    region = torch.searchsorted(sequence, pixel, right=True) - 1
    result = [(region, pixel - sequence[region])]
    if overlapping:
        previous = (region - 1).clamp(min=0)
        # Only the first pixel of a region is also in the previous one. For all others, -9 is never part of a winner.
        shared = (pixel == sequence[region]) & (region > 0)
        result.append((previous, torch.where(shared, pixel - sequence[previous], -9)))
    return result


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
