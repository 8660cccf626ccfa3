"""Depthwise 3x3 convolution with a depth multiplier on CUDA devices, in triton.

Maps are in channels-last order (N, H, W, C). A program takes a tile of some pixels times neighbouring channels: where a
pixel lies is worked out once per pixel, and a thread reads as many channels at once as fit into 16 bytes. Input channel
c feeds the outputs c, C + c, 2 * C + c, ...: channels are never copied in memory.

The gradient of the maps is a gather, and that of the weights a sum of the shares of a fixed number of programs: nothing
is added atomically, and the same input gives the same bits.
"""

# ruff: noqa: N803  triton's custom: compile-time constants in capitals

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .maps import on_device_of, pixels_of, triton_wide, wide

#: Numbers of a tile, and channels of it, at most: a thread has eight numbers, in bfloat16 as many as it reads at once.
TILE, CHANNELS = 1024, 64

#: Programs that are to sum the gradient of the weights, and shares of it per channel, at most.
PROGRAMS, SHARES = 1024, 512


def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The convolution, padded by one pixel on every side.

    Args:
        x: (N, C, H, W), floating point.
        weight: (9, C * multiplier): a row per place of the kernel, row by row of it; of any strides and precision.
        stride: 1 or more.

    Returns:
        (N, C * multiplier, ceil(H / stride), ceil(W / stride)), channels-last, of x's dtype.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    batch, _, height, width = x.shape
    shape = (batch, weight.shape[1], -(-height // stride), -(-width // stride))
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    tiles = triton.cdiv(pixels_of(y), _tile(x)[0])
    programs = tiles * (weight.shape[1] // x.shape[1])
    _launch(_forward, programs, (x, weight, y, *weight.stride()), pixels_of(y), x, y, stride)
    return y


def backward(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, of_maps: bool) -> tuple[Tensor | None, Tensor]:
    """Gradients of the maps, if wanted, and of the weights, (9, C * multiplier).

    Args:
        gradient: of the output.
        x: as for `forward`.
        weight: as for `forward`.
        stride: as for `forward`.
        of_maps: whether the gradient of the maps is wanted.

    Returns:
        The second one transposed in memory, so that autograd, which wants it (C * multiplier, 9), need not copy it.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    dx = None
    if of_maps:
        dx = torch.empty_like(x)
        tiles = triton.cdiv(pixels_of(x), _tile(x)[0])
        _launch(_of_maps, tiles, (gradient, weight, dx, *weight.stride()), pixels_of(x), x, gradient, stride)
    # Each program goes over some tiles, so that there are few shares to add up; a power of two, because every number is
    # compiled for itself.
    multiplier = weight.shape[1] // x.shape[1]
    tiles = max(triton.cdiv(pixels_of(gradient), _tile(x)[0]), 1)
    wanted = min(max(PROGRAMS // (multiplier * _blocks(x)), 1), SHARES)
    steps = triton.next_power_of_2(triton.cdiv(tiles, wanted))
    shares = triton.cdiv(tiles, steps)
    sums = torch.empty((shares, weight.shape[1], 9), dtype=wide(x), device=x.device)
    if gradient.numel():
        programs = shares * multiplier
        _launch(_of_weights, programs, (gradient, x, sums), pixels_of(gradient), x, gradient, stride, STEPS=steps)
    else:
        sums.zero_()
    total = sums.sum(0) if shares > 1 else sums[0]
    return dx, total.to(weight.dtype).t()


def _tile(x: Tensor) -> tuple[int, int]:
    """Pixels and channels of a tile."""
    channels = min(triton.next_power_of_2(x.shape[1]), CHANNELS)
    return TILE // channels, channels


def _blocks(x: Tensor) -> int:
    """Tiles side by side that hold all channels of x."""
    return int(triton.cdiv(x.shape[1], _tile(x)[1]))


def _launch(
    kernel: Any,
    programs: int,
    arguments: tuple[Tensor | int, ...],
    pixels: int,
    x: Tensor,
    y: Tensor,
    stride: int,
    **more: int,
) -> None:
    """Run `kernel` on `programs` tiles per block of input channels; x are the maps convolved, y what comes of them."""
    if not programs:  # CUDA launches no empty grid
        return
    channels = x.shape[1]
    aligned = math.gcd(channels, 16)  # known when compiling, so that several channels are read at once
    with on_device_of(x):
        kernel[(programs * _blocks(x),)](
            *arguments, pixels, channels // aligned, _blocks(x), *x.shape[2:], *y.shape[2:], **more,
            STRIDE=stride, MULTIPLIER=y.shape[1] // channels, ALIGNED=aligned,
            WIDE=triton_wide(x),
            PIXELS=_tile(x)[0], CHANNELS=_tile(x)[1],
        )  # fmt: skip


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x, weight, y, place_step, channel_step, pixels, units, blocks, height, width, out_height, out_width,
    STRIDE: tl.constexpr, MULTIPLIER: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One tile of the output; the tiles of a pixel follow each other, and find its neighbours in the cache."""
    program, channels = tl.program_id(0), units * ALIGNED
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    out = program // blocks % MULTIPLIER * channels + c
    p = program // (blocks * MULTIPLIER) * PIXELS + tl.arange(0, PIXELS)[:, None]
    here, inside = c < channels, p < pixels
    j, i, n = p % out_width, p // out_width % out_height, p // out_width // out_height
    top, left = i * STRIDE - 1, j * STRIDE - 1
    corner = ((n * height + top) * width + left).to(tl.int64) * channels
    total = tl.zeros([PIXELS, CHANNELS], WIDE)
    for row in tl.static_range(3):
        for column in tl.static_range(3):
            met = inside & (top + row >= 0) & (top + row < height) & (left + column >= 0) & (left + column < width)
            value = tl.load(x + (corner + (row * width + column) * channels) + c, mask=met & here, other=0.0)
            w = tl.load(weight + (3 * row + column) * place_step + out * channel_step, mask=here, other=0.0)
            total += value.to(WIDE) * w.to(WIDE)
    to = p.to(tl.int64) * (channels * MULTIPLIER)
    tl.store(y + to + out, total.to(y.dtype.element_ty), mask=inside & here)


@triton.jit
def _of_maps(  # type: ignore[no-untyped-def]
    gradient, weight, dx, place_step, channel_step, pixels, units, blocks, height, width, out_height, out_width,
    STRIDE: tl.constexpr, MULTIPLIER: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One tile of the maps' gradient, from all outputs that its pixels met."""
    program, channels = tl.program_id(0), units * ALIGNED
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    p = program // blocks * PIXELS + tl.arange(0, PIXELS)[:, None]
    here, inside = c < channels, p < pixels
    w, h, n = p % width, p // width % height, p // width // height
    total = tl.zeros([PIXELS, CHANNELS], WIDE)
    for row in tl.static_range(3):
        for column in tl.static_range(3):
            # The output pixel that met this one at this place of the kernel, times the stride.
            down, right = h + 1 - row, w + 1 - column
            i, j = down // STRIDE, right // STRIDE
            met = inside & (down >= 0) & (right >= 0) & (i < out_height) & (j < out_width)
            met = met & (down % STRIDE == 0) & (right % STRIDE == 0)
            at = ((n * out_height + i) * out_width + j).to(tl.int64) * (channels * MULTIPLIER)
            for m in tl.static_range(MULTIPLIER):
                out = m * channels + c
                value = tl.load(gradient + at + out, mask=met & here, other=0.0)
                factor = tl.load(weight + (3 * row + column) * place_step + out * channel_step, mask=here, other=0.0)
                total += value.to(WIDE) * factor.to(WIDE)
    tl.store(dx + p.to(tl.int64) * channels + c, total.to(dx.dtype.element_ty), mask=inside & here)


@triton.jit
def _products(x, at, live, g, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(x + at, mask=live, other=0.0).to(WIDE) * g


@triton.jit
def _of_weights(  # type: ignore[no-untyped-def]
    gradient, x, sums, pixels, units, blocks, height, width, out_height, out_width,
    STEPS: tl.constexpr, STRIDE: tl.constexpr, MULTIPLIER: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A share of the weights' gradient: of some channels, summed over STEPS tiles of output pixels."""
    program, channels = tl.program_id(0), units * ALIGNED
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    out = program // blocks % MULTIPLIER * channels + c
    share = program // (blocks * MULTIPLIER)
    here = c < channels
    pitch = width * channels
    # The nine are summed per thread; adding up threads is left to the end.
    a0 = tl.zeros([PIXELS, CHANNELS], WIDE)
    a1 = tl.zeros([PIXELS, CHANNELS], WIDE)
    a2 = tl.zeros([PIXELS, CHANNELS], WIDE)
    b0 = tl.zeros([PIXELS, CHANNELS], WIDE)
    b1 = tl.zeros([PIXELS, CHANNELS], WIDE)
    b2 = tl.zeros([PIXELS, CHANNELS], WIDE)
    c0 = tl.zeros([PIXELS, CHANNELS], WIDE)
    c1 = tl.zeros([PIXELS, CHANNELS], WIDE)
    c2 = tl.zeros([PIXELS, CHANNELS], WIDE)
    for step in range(STEPS):
        p = (share * STEPS + step) * PIXELS + tl.arange(0, PIXELS)[:, None]
        inside = p < pixels
        j, i, n = p % out_width, p // out_width % out_height, p // out_width // out_height
        h, w = i * STRIDE, j * STRIDE  # the middle, which is always inside the maps
        above, below = inside & (h > 0), inside & (h + 1 < height)
        left, right = w > 0, w + 1 < width
        g = tl.load(gradient + p.to(tl.int64) * (channels * MULTIPLIER) + out, mask=inside & here, other=0.0).to(WIDE)
        at = ((n * height + h) * width + w).to(tl.int64) * channels + c
        a0 += _products(x, at - pitch - channels, above & left & here, g, WIDE)
        a1 += _products(x, at - pitch, above & here, g, WIDE)
        a2 += _products(x, at - pitch + channels, above & right & here, g, WIDE)
        b0 += _products(x, at - channels, inside & left & here, g, WIDE)
        b1 += _products(x, at, inside & here, g, WIDE)
        b2 += _products(x, at + channels, inside & right & here, g, WIDE)
        c0 += _products(x, at + pitch - channels, below & left & here, g, WIDE)
        c1 += _products(x, at + pitch, below & here, g, WIDE)
        c2 += _products(x, at + pitch + channels, below & right & here, g, WIDE)
    to = sums + (share * (channels * MULTIPLIER) + out) * 9
    tl.store(to, tl.sum(a0, 0, keep_dims=True), mask=here)
    tl.store(to + 1, tl.sum(a1, 0, keep_dims=True), mask=here)
    tl.store(to + 2, tl.sum(a2, 0, keep_dims=True), mask=here)
    tl.store(to + 3, tl.sum(b0, 0, keep_dims=True), mask=here)
    tl.store(to + 4, tl.sum(b1, 0, keep_dims=True), mask=here)
    tl.store(to + 5, tl.sum(b2, 0, keep_dims=True), mask=here)
    tl.store(to + 6, tl.sum(c0, 0, keep_dims=True), mask=here)
    tl.store(to + 7, tl.sum(c1, 0, keep_dims=True), mask=here)
    tl.store(to + 8, tl.sum(c2, 0, keep_dims=True), mask=here)
