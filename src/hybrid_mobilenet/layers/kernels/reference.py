"""Fractional max pooling in plain torch, for every device without a kernel of its own.

Forward is separable: rows first, then columns. It also keeps, for each region, which of its pixels won: 3 * c + r for
the pixel in the region's column c and row r, a byte. Backward is a gather: each pixel asks the regions that hold it,
one, or up to four where they overlap, whether it won, so that no two regions ever add to the same place.
"""

from __future__ import annotations

from operator import sub

import torch
from torch import Tensor


def forward(x: Tensor, rows: Tensor, columns: Tensor, overlapping: bool) -> tuple[Tensor, Tensor]:
    """Maxima over regions, and their winners: (N, C, H, W) to two of (N, C, H_out, W_out), x's dtype and uint8."""
    first, second, third = (x.index_select(2, place) for place in _places(rows, overlapping))
    pooled = torch.maximum(first, second)
    row = torch.where(third > pooled, 2, (second > first).to(torch.uint8))
    pooled = torch.maximum(pooled, third)

    places = _places(columns, overlapping)
    first, second, third = (pooled.index_select(3, place) for place in places)
    rows_of = [row.index_select(3, place) for place in places]
    pooled = torch.maximum(first, second)
    winners = torch.where(second > first, 3 + rows_of[1], rows_of[0])
    winners = torch.where(third > pooled, 6 + rows_of[2], winners)
    pooled = torch.maximum(pooled, third)
    return _channels_last(pooled), _channels_last(winners.to(torch.uint8))


def backward(
    gradient: Tensor, winners: Tensor, rows: Tensor, columns: Tensor, overlapping: bool, height: int, width: int
) -> Tensor:
    """Gradient of the input, (N, C, height, width), from that of the output, each region's going to its winner."""
    spread = None
    for row_region, row_offset in _held_by(rows, height, overlapping):
        for column_region, column_offset in _held_by(columns, width, overlapping):
            at = (..., row_region[:, None], column_region)
            won = winners[at] == 3 * column_offset + row_offset[:, None]
            share = torch.where(won, gradient[at], 0)
            spread = share if spread is None else spread + share
    assert spread is not None
    return _channels_last(spread)


def check_sequence(sequence: Tensor, size: int, name: str) -> None:
    """Check that a pooling sequence cuts an axis of `size` pixels; a device that holds it is waited for.

    Raises:
        ValueError: where it does not.
    """
    values = sequence.tolist()
    fits = sequence.dtype == torch.int64 and sequence.dim() == 1 and len(values) >= 2
    if not fits or values[0] != 0 or values[-1] != size or not set(map(sub, values[1:], values)) <= {1, 2}:
        raise ValueError(
            f"{name} is {sequence.dtype} {values}, but must be int64 and rise from 0 to {size} in steps of 1 "
            "or 2: make it with random_sequence or pseudorandom_sequence"
        )


def _places(sequence: Tensor, overlapping: bool) -> tuple[Tensor, Tensor, Tensor]:
    """First, second and third pixel of each region; in a narrower region the last pixel stands again."""
    first, last = sequence[:-1], sequence[1:] - 1
    third = (last + 1).clamp(max=sequence[-1] - 1) if overlapping else last
    return first, torch.minimum(first + 1, third), third


def _held_by(sequence: Tensor, size: int, overlapping: bool) -> list[tuple[Tensor, Tensor]]:
    """For each pixel of an axis, the region it is in and its place there; then, overlapping, the region before."""
    pixel = torch.arange(size, device=sequence.device)
    region = torch.searchsorted(sequence, pixel, right=True) - 1
    held = [(region, pixel - sequence[region])]
    if overlapping:
        before = (region - 1).clamp(min=0)
        # Only the first pixel of a region is in the region before too; -9 is no place, nor is 3 * -9 plus one.
        shared = (pixel == sequence[region]) & (region > 0)
        held.append((before, torch.where(shared, pixel - sequence[before], -9)))
    return held


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
