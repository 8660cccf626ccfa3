"""Fractional max pooling on CUDA devices, in triton.

Maps are read in channels-last order (N, H, W, C), one number per lane. As in `reference`, winners are encoded in a byte
and backward is a gather, without atomic additions.
"""

# ruff: noqa: N803  compile-time constants are in capitals, as is usual in triton

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .maps import on_device_of, position, triton_wide

BLOCK = 512


def forward(x: Tensor, rows: Tensor, columns: Tensor, overlapping: bool) -> tuple[Tensor, Tensor]:
    """Maxima over regions, and their winners: (N, C, H, W) to two of (N, C, H_out, W_out), x's dtype and uint8."""
    x = x.contiguous(memory_format=torch.channels_last)
    shape = (*x.shape[:2], len(rows) - 1, len(columns) - 1)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    winners = torch.empty_like(y, dtype=torch.uint8)
    _launch(_forward, y.numel(), (x, y, winners, rows, columns), x, y, overlapping)
    return y, winners


def backward(
    gradient: Tensor, winners: Tensor, rows: Tensor, columns: Tensor, overlapping: bool, height: int, width: int
) -> Tensor:
    """Gradient of the input, (N, C, height, width): the gradient of each region goes to its winner."""
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    dx = torch.empty(
        (*winners.shape[:2], height, width),
        dtype=gradient.dtype,
        device=gradient.device,
        memory_format=torch.channels_last,
    )
    row_of, column_of = rows.new_empty(height), columns.new_empty(width)
    block = triton.next_power_of_2(max(len(rows), len(columns)))
    with on_device_of(gradient):
        _invert[(2,)](rows, columns, row_of, column_of, len(rows) - 1, len(columns) - 1, BLOCK=block)
    tensors = (gradient, winners, dx, rows, columns, row_of, column_of)
    _launch(_backward, dx.numel(), tensors, dx, gradient, overlapping)
    return dx


def _launch(kernel: Any, total: int, tensors: tuple[Tensor, ...], x: Tensor, y: Tensor, overlapping: bool) -> None:
    if total:  # an empty grid cannot be launched
        grid = (triton.cdiv(total, BLOCK),)
        with on_device_of(x):
            kernel[grid](
                *tensors, total, *x.shape[1:], *y.shape[2:], OVERLAPPING=overlapping, WIDE=triton_wide(x), BLOCK=BLOCK
            )


@triton.jit
def _invert(rows, columns, row_of, column_of, out_height, out_width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Find the region of each pixel of an axis: the first program for rows, the second for columns."""
    if tl.program_id(0) == 0:
        _invert_axis(rows, row_of, out_height, BLOCK)
    else:
        _invert_axis(columns, column_of, out_width, BLOCK)


@triton.jit
def _invert_axis(sequence, region_of, regions, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    region = tl.arange(0, BLOCK)
    live = region < regions
    first = tl.load(sequence + region, mask=live, other=0)
    following = tl.load(sequence + region + 1, mask=live, other=0)
    tl.store(region_of + first, region.to(tl.int64), mask=live)
    tl.store(region_of + following - 1, region.to(tl.int64), mask=live)


@triton.jit
def _places(sequence, region, size, live, OVERLAPPING: tl.constexpr):  # type: ignore[no-untyped-def]
    """First, second and third pixel of a region; a narrower region repeats its last pixel."""
    first = tl.load(sequence + region, mask=live, other=0)
    last = tl.load(sequence + region + 1, mask=live, other=1) - 1
    if OVERLAPPING:
        last = tl.minimum(last + 1, size - 1)
    return first, tl.minimum(first + 1, last), last


@triton.jit
def _maximum(x, base, top, middle, bottom, pitch, live, OVERLAPPING: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The maximum of one column of a region, and which of its rows won."""
    best = tl.load(x + base + top * pitch, mask=live, other=0.0).to(WIDE)
    value = tl.load(x + base + middle * pitch, mask=live, other=0.0).to(WIDE)
    row = tl.where(value > best, 1, 0)
    best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    if OVERLAPPING:
        value = tl.load(x + base + bottom * pitch, mask=live, other=0.0).to(WIDE)
        row = tl.where(value > best, 2, row)
        best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    return best, row


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x, y, winners, rows, columns, total, channels, height, width, out_height, out_width,
    OVERLAPPING: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = o < total
    c = o % channels
    n, i, j = position(o // channels, out_height, out_width)
    top, middle, bottom = _places(rows, i, height, live, OVERLAPPING)
    left, centre, right = _places(columns, j, width, live, OVERLAPPING)
    pitch = width * channels
    base = n * height * pitch + c
    best, winner = _maximum(x, base + left * channels, top, middle, bottom, pitch, live, OVERLAPPING, WIDE)
    value, row = _maximum(x, base + centre * channels, top, middle, bottom, pitch, live, OVERLAPPING, WIDE)
    winner = tl.where(value > best, 3 + row, winner)
    best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    if OVERLAPPING:
        value, row = _maximum(x, base + right * channels, top, middle, bottom, pitch, live, OVERLAPPING, WIDE)
        winner = tl.where(value > best, 6 + row, winner)
        best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y + o, best.to(y.dtype.element_ty), mask=live)
    tl.store(winners + o, winner.to(tl.uint8), mask=live)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    g, winners, dx, rows, columns, row_of, column_of, total, channels, height, width, out_height, out_width,
    OVERLAPPING: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = p < total
    c = p % channels
    n, h, w = position(p // channels, height, width)
    region_row, region_column = tl.load(row_of + h, mask=live, other=0), tl.load(column_of + w, mask=live, other=0)
    # If regions overlap, the first pixel of a region also belongs to the previous one.
    above = live & (h == tl.load(rows + region_row, mask=live, other=-1)) & (region_row > 0)
    before = live & (w == tl.load(columns + region_column, mask=live, other=-1)) & (region_column > 0)
    total_gradient = tl.zeros([BLOCK], WIDE)
    for up in tl.static_range(2 if OVERLAPPING else 1):
        for back in tl.static_range(2 if OVERLAPPING else 1):
            i, j = region_row - up, region_column - back
            inside = live
            if up:
                inside = inside & above
            if back:
                inside = inside & before
            row, column = h - tl.load(rows + i, mask=inside, other=0), w - tl.load(columns + j, mask=inside, other=0)
            place = ((n * out_height + i) * out_width + j) * channels + c
            won = inside & (tl.load(winners + place, mask=inside, other=0) == 3 * column + row)
            total_gradient += tl.load(g + place, mask=won, other=0.0).to(WIDE)
    tl.store(dx + p, total_gradient.to(dx.dtype.element_ty), mask=live)
