"""Batch normalisation with an optional ReLU, in training on CUDA devices, in triton.

Forward and backward each read the maps twice: once for the sums over all pixels, once for the result. With few pixels,
each program computes a few channels and finds them in the cache the second time: one launch. With many pixels, a first
launch sums shares of them, a second one merges the shares, and a third one reads the maps again.

Maps are in channels-last order: an array of pixels of C numbers. To avoid cancellation, squared differences to the mean
of the first tile are summed, and shares are merged by Chan's formula (Chan, Golub and LeVeque, 1979). Backward
recomputes from the input which results the ReLU set to zero. There are no atomic additions, so the same input gives the
same bits.
"""

# ruff: noqa: N803  compile-time constants are in capitals, as is usual in triton

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from .maps import on_device_of, pixels_of, shares_of, tile_of, triton_wide, wide

#: Up to this number of pixels, a program processes all of them: reading them takes no longer than a launch. Measured on
#: an H200.
ALL_AT_ONCE = 1024

#: If a program processes all pixels: numbers of a tile, and its channels, FEW or, for maps of ENOUGH channels, MORE.
LONG_TILE, FEW, MORE, ENOUGH = 8192, 8, 16, 2048

#: Otherwise: numbers of a tile, and its largest number of channels.
TILE, CHANNELS = 2048, 64

#: Number of programs to aim at in summing, and largest number of shares per channel.
PROGRAMS, SHARES = 1024, 512


def forward(x: Tensor, norm: nn.BatchNorm2d, relu: bool) -> tuple[Tensor, Tensor]:
    """Normalise by the batch statistics, and update the running statistics.

    Args:
        x: (N, C, H, W), floating point, with two pixels or more.
        norm: the layer, with weight, bias, running statistics and a momentum.
        relu: whether to apply a ReLU.

    Returns:
        The result, channels-last, and the (4, C) tensor that `backward` needs: mean, 1 / standard deviation, scale and
        offset of each channel, in float64 if x is, otherwise in float32.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    saved = torch.empty((4, x.shape[1]), dtype=wide(x), device=x.device)
    layer = (norm.weight, norm.bias, norm.running_mean, norm.running_var, saved)
    settings = {"MOMENTUM": norm.momentum, "EPSILON": norm.eps}
    if pixels_of(x) <= ALL_AT_ONCE:
        _launch_at_once(_forward, (x, y, *layer), x, RELU=relu, **settings)
    else:
        shares, steps = _shares(x)
        partial = torch.empty((2, shares, x.shape[1]), dtype=saved.dtype, device=x.device)
        _launch(_sum, shares, (x, partial), x, STEPS=steps)
        constants = settings | {"LENGTH": steps * _tile(x)[0], "WIDE": _constants(x)["WIDE"]}
        _launch_over_shares(_merge, (partial, *layer, pixels_of(x)), x, shares, **constants)
        _launch(_normalise, _tiles(x), (x, y, saved), x, RELU=relu)
    return y, saved


def backward(gradient: Tensor, x: Tensor, saved: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of the input, and of bias and weight, (2, C).

    Args:
        gradient: of the result.
        x: as given to `forward`.
        saved: as returned by `forward`.
        relu: as given to `forward`.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    dx, dparameters = torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(saved[:2])
    if pixels_of(x) <= ALL_AT_ONCE:
        _launch_at_once(_backward, (gradient, x, saved, dx, dparameters), x, RELU=relu)
    else:
        shares, steps = _shares(x)
        partial = torch.empty((2, shares, x.shape[1]), dtype=saved.dtype, device=x.device)
        _launch(_sum_gradient, shares, (gradient, x, saved, partial), x, STEPS=steps, RELU=relu)
        _launch_over_shares(_merge_gradient, (partial, saved, dparameters), x, shares)
        _launch(_input_gradient, _tiles(x), (gradient, x, saved, dparameters, dx), x, RELU=relu)
    return dx, dparameters


def _tile(x: Tensor) -> tuple[int, int]:
    return tile_of(x, TILE, CHANNELS)


def _tiles(x: Tensor) -> int:
    """Number of tiles that hold all pixels of x, for one block of channels."""
    return int(triton.cdiv(pixels_of(x), _tile(x)[0]))


def _shares(x: Tensor) -> tuple[int, int]:
    """The number of shares in which x is summed, and the tiles per share."""
    return shares_of(_tiles(x), triton.cdiv(x.shape[1], _tile(x)[1]), PROGRAMS, SHARES)


def _launch(kernel: Any, along: int, tensors: tuple[Tensor | None, ...], x: Tensor, **constants: Any) -> None:
    """Run `kernel` with `along` programs for each block of channels of x."""
    pixels, channels = _tile(x)
    blocks = triton.cdiv(x.shape[1], channels)
    with on_device_of(x):
        kernel[(along * blocks,)](
            *tensors, *_sizes(x), blocks, **_constants(x), **constants, PIXELS=pixels, CHANNELS=channels
        )


def _launch_at_once(kernel: Any, tensors: tuple[Tensor | None, ...], x: Tensor, **constants: Any) -> None:
    """Run `kernel` with a program for every few channels, which processes all pixels."""
    channels = min(triton.next_power_of_2(x.shape[1]), FEW if x.shape[1] < ENOUGH else MORE)
    pixels = min(triton.next_power_of_2(pixels_of(x)), LONG_TILE // channels)
    warps = min(max(pixels * channels // 512, 4), 16)
    with on_device_of(x):
        kernel[(triton.cdiv(x.shape[1], channels),)](
            *tensors, *_sizes(x), **_constants(x), **constants,
            STEPS=triton.cdiv(pixels_of(x), pixels), PIXELS=pixels, CHANNELS=channels, num_warps=warps,
        )  # fmt: skip


def _launch_over_shares(
    kernel: Any, arguments: tuple[Tensor | int | None, ...], x: Tensor, shares: int, **constants: Any
) -> None:
    """Run `kernel` with a program for every few channels, which merges all shares."""
    with on_device_of(x):
        kernel[(triton.cdiv(x.shape[1], FEW),)](
            *arguments, _sizes(x)[1], shares, **constants,
            ALIGNED=_constants(x)["ALIGNED"], SHARES=triton.next_power_of_2(shares), CHANNELS=FEW,
        )  # fmt: skip


def _sizes(x: Tensor) -> tuple[int, int]:
    """Pixels, and channels in units of ALIGNED: this tells the compiler how many channels can be read at once."""
    return pixels_of(x), x.shape[1] // math.gcd(x.shape[1], 16)


def _constants(x: Tensor) -> dict[str, Any]:
    return {"ALIGNED": math.gcd(x.shape[1], 16), "WIDE": triton_wide(x)}


@triton.jit
def _place(first, step, c, pixels, channels, PIXELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Offsets of the numbers of a tile, the step-th after pixel `first`, and the mask of those that exist."""
    p = first + step * PIXELS + tl.arange(0, PIXELS)[:, None]
    return p.to(tl.int64) * channels + c, (p < pixels) & (c < channels)


@triton.jit
def _moments(  # type: ignore[no-untyped-def]
    x, first, c, pixels, channels,
    STEPS: tl.constexpr, WIDE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Mean of each channel over STEPS tiles, and the sum of the squared differences to it."""
    at, live = _place(first, 0, c, pixels, channels, PIXELS)
    value = tl.load(x + at, mask=live, other=0.0).to(WIDE)
    shift = tl.sum(value, 0, keep_dims=True) / tl.minimum(pixels - first, PIXELS).to(WIDE)
    sums = tl.zeros([PIXELS, CHANNELS], WIDE)
    squares = tl.zeros([PIXELS, CHANNELS], WIDE)
    for step in range(STEPS):
        at, live = _place(first, step, c, pixels, channels, PIXELS)
        value = tl.load(x + at, mask=live, other=0.0).to(WIDE)
        difference = tl.where(live, value - shift, 0.0)
        sums += difference
        squares += difference * difference
    total = tl.sum(sums, 0, keep_dims=True)
    away = total / tl.minimum(pixels - first, STEPS * PIXELS).to(WIDE)
    return shift + away, tl.sum(squares, 0, keep_dims=True) - away * total


@triton.jit
def _settle(  # type: ignore[no-untyped-def]
    mean, squares, weight, bias, running_mean, running_var, saved, c, pixels, channels,
    MOMENTUM: tl.constexpr, EPSILON: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Update the running statistics, save what backward needs, and return scale and offset of each channel."""
    here = c < channels
    squares = tl.where(squares < 0, 0.0, squares)  # NaN stays NaN
    inverse = 1.0 / tl.sqrt(squares / pixels.to(WIDE) + EPSILON)
    scale = tl.load(weight + c, mask=here, other=0.0).to(WIDE) * inverse
    offset = tl.load(bias + c, mask=here, other=0.0).to(WIDE) - mean * scale
    tl.store(saved + c, mean, mask=here)
    tl.store(saved + channels + c, inverse, mask=here)
    tl.store(saved + 2 * channels + c, scale, mask=here)
    tl.store(saved + 3 * channels + c, offset, mask=here)
    old = tl.load(running_mean + c, mask=here, other=0.0).to(WIDE)
    new = old + (mean - old) * MOMENTUM
    tl.store(running_mean + c, new.to(running_mean.dtype.element_ty), mask=here)
    old = tl.load(running_var + c, mask=here, other=0.0).to(WIDE)
    new = old + (squares / (pixels - 1).to(WIDE) - old) * MOMENTUM
    tl.store(running_var + c, new.to(running_var.dtype.element_ty), mask=here)
    return scale, offset


@triton.jit
def _normalise_tile(x, y, at, live, scale, offset, RELU: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    result = tl.load(x + at, mask=live, other=0.0).to(WIDE) * scale + offset
    if RELU:
        result = tl.where(result <= 0, 0.0, result)  # NaN stays NaN
    tl.store(y + at, result.to(y.dtype.element_ty), mask=live)


@triton.jit
def _saved(saved, which, c, channels):  # type: ignore[no-untyped-def]
    return tl.load(saved + which * channels + c, mask=c < channels, other=0.0)


@triton.jit
def _before_relu(gradient, x, saved, at, live, c, channels, RELU: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of the gradient before the ReLU, and of x - mean."""
    g = tl.load(gradient + at, mask=live, other=0.0).to(WIDE)
    value = tl.load(x + at, mask=live, other=0.0).to(WIDE)
    if RELU:
        g = tl.where(value * _saved(saved, 2, c, channels) + _saved(saved, 3, c, channels) <= 0, 0.0, g)
    return g, value - _saved(saved, 0, c, channels)


@triton.jit
def _gradient_sums(  # type: ignore[no-untyped-def]
    gradient, x, saved, first, c, pixels, channels,
    STEPS: tl.constexpr, RELU: tl.constexpr, WIDE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums over STEPS tiles of the gradient before the ReLU, and of its products with x - mean, per channel."""
    sums = tl.zeros([PIXELS, CHANNELS], WIDE)
    products = tl.zeros([PIXELS, CHANNELS], WIDE)
    for step in range(STEPS):
        at, live = _place(first, step, c, pixels, channels, PIXELS)
        g, distance = _before_relu(gradient, x, saved, at, live, c, channels, RELU, WIDE)
        sums += g
        products += g * distance
    return tl.sum(sums, 0, keep_dims=True), tl.sum(products, 0, keep_dims=True)


@triton.jit
def _input_gradient_tile(  # type: ignore[no-untyped-def]
    gradient, x, saved, dx, total, dweight, at, live, c, pixels, channels, RELU: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """The input's gradient: scale * (g - mean(g) - z * mean(g * z)), for g before the ReLU and z, x normalised."""
    g, distance = _before_relu(gradient, x, saved, at, live, c, channels, RELU, WIDE)
    count = pixels.to(WIDE)
    slope = dweight * _saved(saved, 1, c, channels) / count
    result = (g - total / count - distance * slope) * _saved(saved, 2, c, channels)
    tl.store(dx + at, result.to(dx.dtype.element_ty), mask=live)


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x, y, weight, bias, running_mean, running_var, saved, pixels, units,
    RELU: tl.constexpr, MOMENTUM: tl.constexpr, EPSILON: tl.constexpr, STEPS: tl.constexpr,
    ALIGNED: tl.constexpr, WIDE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channels = units * ALIGNED
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    mean, squares = _moments(x, 0, c, pixels, channels, STEPS, WIDE, PIXELS, CHANNELS)
    scale, offset = _settle(
        mean, squares, weight, bias, running_mean, running_var, saved, c, pixels, channels, MOMENTUM, EPSILON, WIDE
    )
    for step in range(STEPS):
        at, live = _place(0, step, c, pixels, channels, PIXELS)
        _normalise_tile(x, y, at, live, scale, offset, RELU, WIDE)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    gradient, x, saved, dx, dparameters, pixels, units,
    RELU: tl.constexpr, STEPS: tl.constexpr,
    ALIGNED: tl.constexpr, WIDE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channels = units * ALIGNED
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    total, product = _gradient_sums(gradient, x, saved, 0, c, pixels, channels, STEPS, RELU, WIDE, PIXELS, CHANNELS)
    dweight = product * _saved(saved, 1, c, channels)
    tl.store(dparameters + c, total, mask=c < channels)
    tl.store(dparameters + channels + c, dweight, mask=c < channels)
    for step in range(STEPS):
        at, live = _place(0, step, c, pixels, channels, PIXELS)
        _input_gradient_tile(gradient, x, saved, dx, total, dweight, at, live, c, pixels, channels, RELU, WIDE)


@triton.jit
def _sum(  # type: ignore[no-untyped-def]
    x, partial, pixels, units, blocks,
    STEPS: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute a share of the statistics; `partial` is (2, shares, C)."""
    channels = units * ALIGNED
    c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    share, shares = tl.program_id(0) // blocks, tl.num_programs(0) // blocks
    mean, squares = _moments(x, share * (STEPS * PIXELS), c, pixels, channels, STEPS, WIDE, PIXELS, CHANNELS)
    tl.store(partial + share * channels + c, mean, mask=c < channels)
    tl.store(partial + (shares + share) * channels + c, squares, mask=c < channels)


@triton.jit
def _shared(partial, which, c, shares, channels, SHARES: tl.constexpr):  # type: ignore[no-untyped-def]
    share = tl.arange(0, SHARES)[:, None]
    return tl.load(partial + (which * shares + share) * channels + c, mask=(share < shares) & (c < channels), other=0.0)


@triton.jit
def _merge(  # type: ignore[no-untyped-def]
    partial, weight, bias, running_mean, running_var, saved, pixels, units, shares,
    LENGTH: tl.constexpr, MOMENTUM: tl.constexpr, EPSILON: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    SHARES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channels = units * ALIGNED
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    # The last share has fewer pixels than LENGTH, and shares after it have none.
    left = tl.maximum(pixels - tl.arange(0, SHARES)[:, None] * LENGTH, 0)
    counts = tl.minimum(left, LENGTH).to(WIDE)
    first = _saved(partial, 0, c, channels)  # differences to it are summed: a quotient of large sums would be inexact
    means = _shared(partial, 0, c, shares, channels, SHARES)
    mean = first + tl.sum((means - first) * counts, 0, keep_dims=True) / pixels.to(WIDE)
    away = means - mean
    squares = _shared(partial, 1, c, shares, channels, SHARES) + away * away * counts
    squares = tl.sum(squares, 0, keep_dims=True)
    _settle(mean, squares, weight, bias, running_mean, running_var, saved, c, pixels, channels, MOMENTUM, EPSILON, WIDE)


@triton.jit
def _normalise(  # type: ignore[no-untyped-def]
    x, y, saved, pixels, units, blocks,
    RELU: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channels = units * ALIGNED
    c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    at, live = _place(0, tl.program_id(0) // blocks, c, pixels, channels, PIXELS)
    _normalise_tile(x, y, at, live, _saved(saved, 2, c, channels), _saved(saved, 3, c, channels), RELU, WIDE)


@triton.jit
def _sum_gradient(  # type: ignore[no-untyped-def]
    gradient, x, saved, partial, pixels, units, blocks,
    STEPS: tl.constexpr, RELU: tl.constexpr,
    ALIGNED: tl.constexpr, WIDE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute a share of the sums; `partial` is (2, shares, C)."""
    channels = units * ALIGNED
    c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    share, shares = tl.program_id(0) // blocks, tl.num_programs(0) // blocks
    first = share * (STEPS * PIXELS)
    total, product = _gradient_sums(gradient, x, saved, first, c, pixels, channels, STEPS, RELU, WIDE, PIXELS, CHANNELS)
    tl.store(partial + share * channels + c, total, mask=c < channels)
    tl.store(partial + (shares + share) * channels + c, product, mask=c < channels)


@triton.jit
def _merge_gradient(  # type: ignore[no-untyped-def]
    partial, saved, dparameters, units, shares,
    ALIGNED: tl.constexpr, SHARES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channels = units * ALIGNED
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    total = tl.sum(_shared(partial, 0, c, shares, channels, SHARES), 0, keep_dims=True)
    product = tl.sum(_shared(partial, 1, c, shares, channels, SHARES), 0, keep_dims=True)
    tl.store(dparameters + c, total, mask=c < channels)
    tl.store(dparameters + channels + c, product * _saved(saved, 1, c, channels), mask=c < channels)


@triton.jit
def _input_gradient(  # type: ignore[no-untyped-def]
    gradient, x, saved, dparameters, dx, pixels, units, blocks,
    RELU: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channels = units * ALIGNED
    c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    at, live = _place(0, tl.program_id(0) // blocks, c, pixels, channels, PIXELS)
    total, dweight = _saved(dparameters, 0, c, channels), _saved(dparameters, 1, c, channels)
    _input_gradient_tile(gradient, x, saved, dx, total, dweight, at, live, c, pixels, channels, RELU, WIDE)
