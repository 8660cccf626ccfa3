"""Batch normalisation of a training step on CUDA devices, with the ReLU behind it, in triton.

Forward and backward each go over the maps twice: once for sums over all pixels, once for the result. Few pixels are
left to programs of a few channels each, which find them in the cache the second time: one launch. Of many pixels,
programs sum shares, a second launch puts the shares together, and a third one goes over the maps again.

Maps are in channels-last order, so that an array is pixels of C numbers. Squares are summed of differences to the mean
of some pixels, and shares are merged by Chan's formula, so that little cancels. The backward computes anew from the
input which results the ReLU cut off. Nothing is added atomically, and the same input gives the same bits.
"""

# ruff: noqa: N803  triton's custom: compile-time constants in capitals

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from .maps import on_device_of, pixels_of, triton_wide, wide

#: Pixels up to which a program sees all of them: a launch takes as long as reading these. Measured on an H200.
ALL_AT_ONCE = 1024

#: Numbers of a tile where a program sees all pixels, and channels of it, where there are enough for all processors.
LONG_TILE, FEW, MORE, ENOUGH = 8192, 8, 16, 2048

#: Numbers of a tile where it does not, and channels of it, at most.
TILE, CHANNELS = 2048, 64

#: Programs that are to sum, and shares of it per channel, at most.
PROGRAMS, SHARES = 1024, 512


def forward(x: Tensor, norm: nn.BatchNorm2d, relu: bool) -> tuple[Tensor, Tensor]:
    """Normalise by the batch's statistics, and move the running ones towards them.

    Args:
        x: (N, C, H, W), floating point, of two pixels or more.
        norm: the layer, with weight, bias, running statistics and a momentum.
        relu: whether the result is cut off at zero.

    Returns:
        The result, channels-last, and what `backward` needs: (4, C), each channel's mean, 1 / standard deviation, scale
        and offset; in float64 if x is, else in float32.
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
        constants = settings | {"LENGTH": steps * _tile(x)[0], "WIDE": _known(x)["WIDE"]}
        _launch_over_shares(_merge, (partial, *layer, pixels_of(x)), x, shares, **constants)
        _launch(_normalise, _tiles(x), (x, y, saved), x, RELU=relu)
    return y, saved


def backward(gradient: Tensor, x: Tensor, saved: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of the maps, and, (2, C), of bias and weight.

    Args:
        gradient: of the result.
        x: as given to `forward`.
        saved: as returned by it.
        relu: as given to it.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    dx, of_parameters = torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(saved[:2])
    if pixels_of(x) <= ALL_AT_ONCE:
        _launch_at_once(_backward, (gradient, x, saved, dx, of_parameters), x, RELU=relu)
    else:
        shares, steps = _shares(x)
        partial = torch.empty((2, shares, x.shape[1]), dtype=saved.dtype, device=x.device)
        _launch(_sum_gradient, shares, (gradient, x, saved, partial), x, STEPS=steps, RELU=relu)
        _launch_over_shares(_merge_gradient, (partial, saved, of_parameters), x, shares)
        _launch(_spread_gradient, _tiles(x), (gradient, x, saved, of_parameters, dx), x, RELU=relu)
    return dx, of_parameters


def _tile(x: Tensor) -> tuple[int, int]:
    """Pixels and channels of a tile."""
    channels = min(triton.next_power_of_2(x.shape[1]), CHANNELS)
    return TILE // channels, channels


def _tiles(x: Tensor) -> int:
    """Tiles, one behind the other, that hold all pixels of x."""
    return int(triton.cdiv(pixels_of(x), _tile(x)[0]))


def _shares(x: Tensor) -> tuple[int, int]:
    """How many programs sum a channel, and over how many tiles each: a power of two, as every number is compiled."""
    wanted = min(max(PROGRAMS // triton.cdiv(x.shape[1], _tile(x)[1]), 1), SHARES)
    steps = triton.next_power_of_2(triton.cdiv(_tiles(x), wanted))
    return int(triton.cdiv(_tiles(x), steps)), steps


def _launch(kernel: Any, along: int, tensors: tuple[Tensor | None, ...], x: Tensor, **constants: Any) -> None:
    """Run `kernel` on all channels of x in tiles side by side, `along` times."""
    pixels, channels = _tile(x)
    blocks = triton.cdiv(x.shape[1], channels)
    with on_device_of(x):
        kernel[(along * blocks,)](
            *tensors, *_sizes(x), blocks, **_known(x), **constants, PIXELS=pixels, CHANNELS=channels
        )


def _launch_at_once(kernel: Any, tensors: tuple[Tensor | None, ...], x: Tensor, **constants: Any) -> None:
    """Run `kernel` on a few channels and all pixels per program."""
    channels = min(triton.next_power_of_2(x.shape[1]), FEW if x.shape[1] < ENOUGH else MORE)
    pixels = min(triton.next_power_of_2(pixels_of(x)), LONG_TILE // channels)
    warps = min(max(pixels * channels // 512, 4), 16)
    with on_device_of(x):
        kernel[(triton.cdiv(x.shape[1], channels),)](
            *tensors, *_sizes(x), **_known(x), **constants,
            STEPS=triton.cdiv(pixels_of(x), pixels), PIXELS=pixels, CHANNELS=channels, num_warps=warps,
        )  # fmt: skip


def _launch_over_shares(
    kernel: Any, arguments: tuple[Tensor | int | None, ...], x: Tensor, shares: int, **constants: Any
) -> None:
    """Run `kernel` on a few channels and all shares per program."""
    with on_device_of(x):
        kernel[(triton.cdiv(x.shape[1], FEW),)](
            *arguments, _sizes(x)[1], shares, **constants,
            ALIGNED=_known(x)["ALIGNED"], SHARES=triton.next_power_of_2(shares), CHANNELS=FEW,
        )  # fmt: skip


def _sizes(x: Tensor) -> tuple[int, int]:
    """Pixels, and channels in units of ALIGNED: so the compiler knows that as many can be read at once."""
    return pixels_of(x), x.shape[1] // math.gcd(x.shape[1], 16)


def _known(x: Tensor) -> dict[str, Any]:
    return {"ALIGNED": math.gcd(x.shape[1], 16), "WIDE": triton_wide(x)}


@triton.jit
def _place(first, step, c, pixels, channels, PIXELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where a tile's numbers lie, the step-th after pixel `first`, and which of them there are."""
    p = first + step * PIXELS + tl.arange(0, PIXELS)[:, None]
    return p.to(tl.int64) * channels + c, (p < pixels) & (c < channels)


@triton.jit
def _moments(  # type: ignore[no-untyped-def]
    x, first, c, pixels, channels,
    STEPS: tl.constexpr, WIDE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Each channel's mean over some tiles, and the sum of the squared differences to it."""
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
    """Move the running statistics, and save what normalises each channel; scale and offset."""
    here = c < channels
    squares = tl.where(squares < 0, 0.0, squares)  # NaN stays
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
        result = tl.where(result <= 0, 0.0, result)  # NaN stays
    tl.store(y + at, result.to(y.dtype.element_ty), mask=live)


@triton.jit
def _saved(saved, which, c, channels):  # type: ignore[no-untyped-def]
    return tl.load(saved + which * channels + c, mask=c < channels, other=0.0)


@triton.jit
def _passed(gradient, x, saved, at, live, c, channels, RELU: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of the gradient that the ReLU let pass, and of the distance from the mean."""
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
    """Each channel's sums over some tiles: of the gradient, and of its products with the distance from the mean."""
    sums = tl.zeros([PIXELS, CHANNELS], WIDE)
    products = tl.zeros([PIXELS, CHANNELS], WIDE)
    for step in range(STEPS):
        at, live = _place(first, step, c, pixels, channels, PIXELS)
        g, distance = _passed(gradient, x, saved, at, live, c, channels, RELU, WIDE)
        sums += g
        products += g * distance
    return tl.sum(sums, 0, keep_dims=True), tl.sum(products, 0, keep_dims=True)


@triton.jit
def _spread_tile(  # type: ignore[no-untyped-def]
    gradient, x, saved, dx, total, of_weight, at, live, c, pixels, channels, RELU: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """The input's gradient: scale * (g - mean(g) - z * mean(g * z)), z being x normalised, g what the ReLU let pass."""
    g, distance = _passed(gradient, x, saved, at, live, c, channels, RELU, WIDE)
    count = pixels.to(WIDE)
    slope = of_weight * _saved(saved, 1, c, channels) / count
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
    gradient, x, saved, dx, of_parameters, pixels, units,
    RELU: tl.constexpr, STEPS: tl.constexpr,
    ALIGNED: tl.constexpr, WIDE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channels = units * ALIGNED
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    total, product = _gradient_sums(gradient, x, saved, 0, c, pixels, channels, STEPS, RELU, WIDE, PIXELS, CHANNELS)
    of_weight = product * _saved(saved, 1, c, channels)
    tl.store(of_parameters + c, total, mask=c < channels)
    tl.store(of_parameters + channels + c, of_weight, mask=c < channels)
    for step in range(STEPS):
        at, live = _place(0, step, c, pixels, channels, PIXELS)
        _spread_tile(gradient, x, saved, dx, total, of_weight, at, live, c, pixels, channels, RELU, WIDE)


@triton.jit
def _sum(  # type: ignore[no-untyped-def]
    x, partial, pixels, units, blocks,
    STEPS: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A share of the statistics; `partial` is (2, shares, C)."""
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
    # The last share is of fewer pixels than LENGTH, those that are not there of none.
    left = tl.maximum(pixels - tl.arange(0, SHARES)[:, None] * LENGTH, 0)
    counts = tl.minimum(left, LENGTH).to(WIDE)
    first = _saved(partial, 0, c, channels)  # again, sums are of differences: division is inexact
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
    """A share of the sums; `partial` is (2, shares, C)."""
    channels = units * ALIGNED
    c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    share, shares = tl.program_id(0) // blocks, tl.num_programs(0) // blocks
    first = share * (STEPS * PIXELS)
    total, product = _gradient_sums(gradient, x, saved, first, c, pixels, channels, STEPS, RELU, WIDE, PIXELS, CHANNELS)
    tl.store(partial + share * channels + c, total, mask=c < channels)
    tl.store(partial + (shares + share) * channels + c, product, mask=c < channels)


@triton.jit
def _merge_gradient(  # type: ignore[no-untyped-def]
    partial, saved, of_parameters, units, shares,
    ALIGNED: tl.constexpr, SHARES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channels = units * ALIGNED
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    total = tl.sum(_shared(partial, 0, c, shares, channels, SHARES), 0, keep_dims=True)
    product = tl.sum(_shared(partial, 1, c, shares, channels, SHARES), 0, keep_dims=True)
    tl.store(of_parameters + c, total, mask=c < channels)
    tl.store(of_parameters + channels + c, product * _saved(saved, 1, c, channels), mask=c < channels)


@triton.jit
def _spread_gradient(  # type: ignore[no-untyped-def]
    gradient, x, saved, of_parameters, dx, pixels, units, blocks,
    RELU: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channels = units * ALIGNED
    c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    at, live = _place(0, tl.program_id(0) // blocks, c, pixels, channels, PIXELS)
    total, of_weight = _saved(of_parameters, 0, c, channels), _saved(of_parameters, 1, c, channels)
    _spread_tile(gradient, x, saved, dx, total, of_weight, at, live, c, pixels, channels, RELU, WIDE)
