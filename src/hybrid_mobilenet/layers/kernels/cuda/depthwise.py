"""Depthwise 3x3 convolution with a depth multiplier on CUDA devices, in triton.

Maps are in channels-last order (N, H, W, C). A program computes a tile of several pixels times neighbouring channels:
the address of a pixel is computed once, and a thread reads as many channels at once as fit into 16 bytes. Input channel
c feeds the outputs c, C + c, 2 * C + c, ..., so that channels are never repeated in memory.

The gradient of the input is a gather, and the gradient of the weights is a sum over the shares of a fixed number of
programs. There are no atomic additions, so the same input gives the same bits.
"""

# ruff: noqa: N803  compile-time constants are in capitals, as is usual in triton

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .maps import on_device_of, pixels_of, position, shares_of, tile_of, triton_wide, wide

#: Numbers of a tile, and its largest number of channels. A thread has eight numbers, one read in bfloat16.
TILE, CHANNELS = 1024, 64

#: For the gradient of the weights: number of programs to aim at, and largest number of shares per channel.
PROGRAMS, SHARES = 1024, 512


def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The convolution with a padding of one pixel.

    Args:
        x: (N, C, H, W), floating point.
        weight: (9, C * multiplier): for each place of the kernel, row by row, the weights of all channels; of any
            strides and dtype.
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


def backward(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, needs_dx: bool) -> tuple[Tensor | None, Tensor]:
    """Gradients of the input, or None, and of the weights, (9, C * multiplier).

    Args:
        gradient: of the output.
        x: as for `forward`.
        weight: as for `forward`.
        stride: as for `forward`.
        needs_dx: whether to compute the gradient of the input.

    Returns:
        The gradient of the weights is transposed in memory: autograd needs it as (C * multiplier, 9), without a copy.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    dx = None
    if needs_dx:
        dx = torch.empty_like(x)
        tiles = triton.cdiv(pixels_of(x), _tile(x)[0])
        _launch(_input_gradient, tiles, (gradient, weight, dx, *weight.stride()), pixels_of(x), x, gradient, stride)
    multiplier = weight.shape[1] // x.shape[1]
    tiles = max(triton.cdiv(pixels_of(gradient), _tile(x)[0]), 1)
    shares, steps = shares_of(tiles, multiplier * _blocks(x), PROGRAMS, SHARES)
    sums = torch.empty((shares, weight.shape[1], 9), dtype=wide(x), device=x.device)
    if gradient.numel():
        programs = shares * multiplier
        _launch(_weight_gradient, programs, (gradient, x, sums), pixels_of(gradient), x, gradient, stride, STEPS=steps)
    else:
        sums.zero_()
    total = sums.sum(0) if shares > 1 else sums[0]
    return dx, total.to(weight.dtype).t()


def _tile(x: Tensor) -> tuple[int, int]:
    return tile_of(x, TILE, CHANNELS)


def _blocks(x: Tensor) -> int:
    """Number of tiles that hold all channels of a pixel."""
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
    """Run `kernel` with `programs` programs per block of input channels of x; y has the size of the output."""
    if not programs:  # an empty grid cannot be launched
        return
    channels = x.shape[1]
    aligned = math.gcd(channels, 16)  # a compile-time constant, so that several channels are read at once
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
    """Compute a tile of the output. The tiles of a pixel run one after another, with its neighbours in the cache."""
    program, channels = tl.program_id(0), units * ALIGNED
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    out = program // blocks % MULTIPLIER * channels + c
    p = program // (blocks * MULTIPLIER) * PIXELS + tl.arange(0, PIXELS)[:, None]
    here, inside = c < channels, p < pixels
    n, i, j = position(p, out_height, out_width)
    top, left = i * STRIDE - 1, j * STRIDE - 1
    corner = ((n * height + top) * width + left).to(tl.int64) * channels
    total = tl.zeros([PIXELS, CHANNELS], WIDE)
    for row in tl.static_range(3):
        for column in tl.static_range(3):
            valid = inside & (top + row >= 0) & (top + row < height) & (left + column >= 0) & (left + column < width)
            value = tl.load(x + (corner + (row * width + column) * channels) + c, mask=valid & here, other=0.0)
            w = tl.load(weight + (3 * row + column) * place_step + out * channel_step, mask=here, other=0.0)
            total += value.to(WIDE) * w.to(WIDE)
    to = p.to(tl.int64) * (channels * MULTIPLIER)
    tl.store(y + to + out, total.to(y.dtype.element_ty), mask=inside & here)


@triton.jit
def _input_gradient(  # type: ignore[no-untyped-def]
    gradient, weight, dx, place_step, channel_step, pixels, units, blocks, height, width, out_height, out_width,
    STRIDE: tl.constexpr, MULTIPLIER: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute a tile of the gradient of the input, from all outputs that depend on its pixels."""
    program, channels = tl.program_id(0), units * ALIGNED
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    p = program // blocks * PIXELS + tl.arange(0, PIXELS)[:, None]
    here, inside = c < channels, p < pixels
    n, h, w = position(p, height, width)
    total = tl.zeros([PIXELS, CHANNELS], WIDE)
    for row in tl.static_range(3):
        for column in tl.static_range(3):
            # The output pixel, times the stride, that reads this pixel at this place of the kernel.
            down, right = h + 1 - row, w + 1 - column
            i, j = down // STRIDE, right // STRIDE
            valid = inside & (down >= 0) & (right >= 0) & (i < out_height) & (j < out_width)
            valid = valid & (down % STRIDE == 0) & (right % STRIDE == 0)
            at = ((n * out_height + i) * out_width + j).to(tl.int64) * (channels * MULTIPLIER)
            for m in tl.static_range(MULTIPLIER):
                out = m * channels + c
                value = tl.load(gradient + at + out, mask=valid & here, other=0.0)
                factor = tl.load(weight + (3 * row + column) * place_step + out * channel_step, mask=here, other=0.0)
                total += value.to(WIDE) * factor.to(WIDE)
    tl.store(dx + p.to(tl.int64) * channels + c, total.to(dx.dtype.element_ty), mask=inside & here)


@triton.jit
def _products(x, at, live, g, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(x + at, mask=live, other=0.0).to(WIDE) * g


@triton.jit
def _weight_gradient(  # type: ignore[no-untyped-def]
    gradient, x, sums, pixels, units, blocks, height, width, out_height, out_width,
    STEPS: tl.constexpr, STRIDE: tl.constexpr, MULTIPLIER: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute a share of the gradient of the weights: a block of channels, over STEPS tiles of output pixels."""
    program, channels = tl.program_id(0), units * ALIGNED
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    out = program // blocks % MULTIPLIER * channels + c
    share = program // (blocks * MULTIPLIER)
    here = c < channels
    pitch = width * channels
    # Each thread has its own nine sums, which are added up over the threads at the end.
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
        n, i, j = position(p, out_height, out_width)
        h, w = i * STRIDE, j * STRIDE  # the centre of the kernel, which is always inside the maps
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
