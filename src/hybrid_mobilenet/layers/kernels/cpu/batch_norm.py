"""Batch normalisation with an optional ReLU, in training on the CPU, compiled by numba.

Forward and backward each read the maps twice: once for the sums over all pixels, once for the result. torch reads them
more often, and its ReLU once more in each direction. Here, backward recomputes from the input which results the ReLU
set to zero.

Maps are in channels-last order: an array of pixels of C numbers. With few channels, a loop runs over several pixels at
once, a tile, for which the values of the channels are repeated. To avoid cancellation, the differences to the first
pixel are summed. A few tiles are summed in the precision of the maps, and these sums in float64.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .threads import array, compiled, number, numbers, run, share, team

#: Input size, in numbers, from which a second thread pays off.
PARALLEL_FROM = 1 << 16

#: Smallest size of a tile, in numbers, and the number of tiles summed before they are added in float64.
TILE, TILES = 512, 64

index = np.uint64  # with signed indices, every loop would test for negative ones


class Norm(NamedTuple):
    """A batch normalisation layer of C channels in training.

    Attributes:
        weight: (C,), as are the following tensors.
        bias: added last.
        running_mean: updated in place.
        running_var: updated in place.
        momentum: weight of the batch in the running statistics.
        epsilon: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float
    epsilon: float

    @classmethod
    def of(cls, layer: nn.BatchNorm2d) -> Norm:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        assert layer.momentum is not None
        return cls(layer.weight, layer.bias, layer.running_mean, layer.running_var, layer.momentum, layer.eps)


def forward(x: Tensor, norm: nn.BatchNorm2d, relu: bool) -> tuple[Tensor, Tensor]:
    """Normalise by the batch statistics, and update the running statistics.

    Args:
        x: (N, C, H, W), float32 or float64, channels-last, with two pixels or more.
        norm: the layer.
        relu: whether to apply a ReLU.

    Returns:
        The result, and the (4, C) tensor that `backward` needs: mean, 1 / standard deviation, scale and offset of each
        channel.
    """
    return normalise(x, sum_maps(x, _threads(x)), Norm.of(norm), relu)


def backward(gradient: Tensor, x: Tensor, saved: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of the input, and of bias and weight, (2, C).

    Args:
        gradient: of the result; channels-last.
        x: as given to `forward`.
        saved: as returned by `forward`.
        relu: as given to `forward`.
    """
    shares, dx, dparameters = sum_gradient(gradient, x, saved, relu), torch.empty_like(x), torch.empty_like(saved[:2])
    sizes = (x.numel() // x.shape[1], x.shape[1], len(shares), int(relu))
    run(_input_gradient, (x, shares, gradient, saved, dx, dparameters), sizes, len(shares))
    return dx, dparameters


def sum_maps(x: Tensor, threads: int) -> Tensor:
    """Each thread's sums over the differences to the first pixel, and over their squares: float64 (threads, 2, C)."""
    shares = torch.zeros(threads, 2, x.shape[1], dtype=torch.float64)
    run(_sum, (x, shares), (x.numel() // x.shape[1], x.shape[1]), threads)
    return shares


def normalise(x: Tensor, shares: Tensor, norm: Norm, relu: bool) -> tuple[Tensor, Tensor]:
    """The second part of `forward`, given the sums of `sum_maps`."""
    y, saved = torch.empty_like(x), x.new_empty(4, x.shape[1])
    sizes = (x.numel() // x.shape[1], x.shape[1], len(shares), int(relu))
    run(_normalise, layer_arrays(x, shares, y, saved, norm), sizes, len(shares))
    return y, saved


def layer_arrays(x: Tensor, shares: Tensor, y: Tensor, saved: Tensor, norm: Norm) -> tuple[Tensor, ...]:
    """The arrays with which a call of a kernel that uses `scale_and_offset` begins."""
    *tensors, momentum, epsilon = norm
    return x, shares, y, saved, *tensors, _settings(momentum, epsilon)


def sum_gradient(gradient: Tensor, x: Tensor, saved: Tensor, relu: bool) -> Tensor:
    """Each thread's sums over the gradient before the ReLU, and over its products with x - mean.

    Returns:
        float64 (threads, 2, C).
    """
    threads = _threads(x)
    shares = torch.zeros(threads, 2, x.shape[1], dtype=torch.float64)
    sizes = (x.numel() // x.shape[1], x.shape[1], threads, int(relu))
    run(_sum_gradient, (x, shares, gradient, saved), sizes, threads)
    return shares


def backward_in_place(gradient: Tensor, x: Tensor, saved: Tensor, shares: Tensor) -> Tensor:
    """The second part of `backward`, with a ReLU, in the memory of the gradient.

    Args:
        gradient: of the result; replaced by the gradient of the input.
        x: as for `backward`.
        saved: as for `backward`.
        shares: as returned by `sum_gradient`.

    Returns:
        Gradients of bias and weight, (2, C).
    """
    dparameters = torch.empty_like(saved[:2])
    sizes = (x.numel() // x.shape[1], x.shape[1], len(shares))
    run(_input_gradient_in_place, (x, shares, gradient, saved, gradient, dparameters), sizes, len(shares))
    return dparameters


def _threads(x: Tensor) -> int:
    return torch.get_num_threads() if x.numel() >= PARALLEL_FROM else 1


@cache
def _settings(momentum: float, epsilon: float) -> Tensor:
    return torch.tensor([momentum, epsilon], dtype=torch.float64)


@compiled
def _sum(call):  # type: ignore[no-untyped-def]
    """A thread's sums over the differences to the first pixel, and over their squares, per channel."""
    x, shares = numbers(call, 0), array(call, 1, np.float64)
    pixels, channels = number(call, 0), number(call, 1)
    shift = _tile(x, 0, channels)
    sums, squares = np.zeros_like(shift), np.zeros_like(shift)
    first, last = share(call, pixels)
    start = first * channels
    while start < last * channels:
        for _ in range(TILES):
            o, length = index(start), index(min(len(shift), last * channels - start))
            for p in range(length):
                difference = x[o + p] - shift[p]
                sums[p] += difference
                squares[p] += difference * difference
            start += len(shift)
            if start >= last * channels:
                break
        _flush(sums, squares, shares, team(call)[0], channels)


@compiled
def scale_and_offset(call):  # type: ignore[no-untyped-def]
    """Scale and offset of each channel, from the sums over the maps. The call begins with `layer_arrays`."""
    x, shares, saved = numbers(call, 0), array(call, 1, np.float64), numbers(call, 3)
    weight, bias, running_mean, running_var = numbers(call, 4), numbers(call, 5), numbers(call, 6), numbers(call, 7)
    pixels, channels, threads = number(call, 0), number(call, 1), number(call, 2)
    momentum, epsilon = array(call, 8, np.float64)
    # Each thread computes all channels; the first one writes them to memory.
    values = np.empty((4, channels), x.dtype)
    for c in range(channels):
        difference = _total(shares, 0, c, channels, threads) / pixels
        variance = max(_total(shares, 1, c, channels, threads) / pixels - difference * difference, 0.0)
        mean, inverse = difference + x[c], 1 / np.sqrt(variance + epsilon)
        values[0, c], values[1, c] = mean, inverse
        values[2, c], values[3, c] = weight[c] * inverse, bias[c] - mean * weight[c] * inverse
        if team(call)[0] == 0:
            running_mean[c] += momentum * (mean - running_mean[c])
            running_var[c] += momentum * (variance * pixels / (pixels - 1) - running_var[c])
            for value in range(4):
                saved[value * channels + c] = values[value, c]
    return values[2], values[3]


@compiled
def _normalise(call):  # type: ignore[no-untyped-def]
    x, y, pixels, channels, relu = numbers(call, 0), numbers(call, 2), number(call, 0), number(call, 1), number(call, 3)
    scales, offsets = scale_and_offset(call)
    scale, offset = _tile(scales, 0, channels), _tile(offsets, 0, channels)
    first, last = share(call, pixels)
    for start in range(first * channels, last * channels, len(scale)):
        o, length = index(start), index(min(len(scale), last * channels - start))
        if relu:
            for p in range(length):
                result = x[o + p] * scale[p] + offset[p]
                y[o + p] = x.dtype.type(0) if result <= 0 else result  # NaN stays NaN
        else:
            for p in range(length):
                y[o + p] = x[o + p] * scale[p] + offset[p]


@compiled
def _sum_gradient(call):  # type: ignore[no-untyped-def]
    """A thread's sums over the gradient before the ReLU, and over its products with x - mean, per channel."""
    x, shares, gradient, saved = numbers(call, 0), array(call, 1, np.float64), numbers(call, 2), numbers(call, 3)
    pixels, channels, relu = number(call, 0), number(call, 1), number(call, 3) != 0
    mean, scale = _tile(saved, 0, channels), _tile(saved, 2 * channels, channels)
    offset = _tile(saved, 3 * channels, channels)
    sums, products = np.zeros_like(mean), np.zeros_like(mean)
    first, last = share(call, pixels)
    start = first * channels
    while start < last * channels:
        for _ in range(TILES):
            o, length = index(start), index(min(len(mean), last * channels - start))
            for p in range(length):
                is_zero = relu & (x[o + p] * scale[p] + offset[p] <= 0)
                g = x.dtype.type(0) if is_zero else gradient[o + p]
                sums[p] += g
                products[p] += g * (x[o + p] - mean[p])
            start += len(mean)
            if start >= last * channels:
                break
        _flush(sums, products, shares, team(call)[0], channels)


@compiled
def _input_gradient(call):  # type: ignore[no-untyped-def]
    x, gradient, dx = numbers(call, 0), numbers(call, 2), numbers(call, 4)
    pixels, channels, relu = number(call, 0), number(call, 1), number(call, 3) != 0
    scale, offset, slope, constant = _gradient_tiles(call)
    first, last = share(call, pixels)
    for start in range(first * channels, last * channels, len(scale)):
        o, length = index(start), index(min(len(scale), last * channels - start))
        for p in range(length):
            is_zero = relu & (x[o + p] * scale[p] + offset[p] <= 0)
            g = x.dtype.type(0) if is_zero else gradient[o + p]
            dx[o + p] = scale[p] * g + (x[o + p] * slope[p] + constant[p])


@compiled
def _input_gradient_in_place(call):  # type: ignore[no-untyped-def]
    """The same with a ReLU, from the gradient in dx.

    In the loop above, two names for one array would prevent vectorisation.
    """
    x, dx, pixels, channels = numbers(call, 0), numbers(call, 4), number(call, 0), number(call, 1)
    scale, offset, slope, constant = _gradient_tiles(call)
    first, last = share(call, pixels)
    for start in range(first * channels, last * channels, len(scale)):
        o, length = index(start), index(min(len(scale), last * channels - start))
        for p in range(length):
            g = x.dtype.type(0) if x[o + p] * scale[p] + offset[p] <= 0 else dx[o + p]
            dx[o + p] = scale[p] * g + (x[o + p] * slope[p] + constant[p])


@compiled
def _gradient_tiles(call):  # type: ignore[no-untyped-def]
    """Tiles of scale, offset, slope and constant: see `gradient_coefficients`."""
    x, shares, saved, dparameters = numbers(call, 0), array(call, 1, np.float64), numbers(call, 3), numbers(call, 5)
    pixels, channels, threads = number(call, 0), number(call, 1), number(call, 2)
    result = np.empty((2, channels), x.dtype)
    gradient_coefficients(shares, saved, dparameters, pixels, channels, threads, team(call)[0], result)
    scale, offset = _tile(saved, 2 * channels, channels), _tile(saved, 3 * channels, channels)
    return scale, offset, _tile(result[0], 0, channels), _tile(result[1], 0, channels)


@compiled
def gradient_coefficients(shares, saved, dparameters, pixels, channels, threads, thread, result):  # type: ignore[no-untyped-def]
    """Slope and constant of each channel, (2, C): the input's gradient is scale * g + slope * x + constant.

    dx = scale * (g - mean(g) - (x - mean) / variance * mean(g * (x - mean))), where g is the gradient before the ReLU.
    The first thread writes the gradients of bias and weight to memory.
    """
    for c in range(channels):
        mean, inverse, scale = saved[c], saved[channels + c], saved[2 * channels + c]
        total, product = _total(shares, 0, c, channels, threads), _total(shares, 1, c, channels, threads)
        slope = -scale * inverse * inverse * product / pixels
        result[0, c], result[1, c] = slope, -scale * total / pixels - slope * mean
        if thread == 0:
            dparameters[c], dparameters[channels + c] = total, product * inverse


@compiled
def _tile(values, start, channels):  # type: ignore[no-untyped-def]
    """The values of the channels, from `start` on, repeated for each pixel of a tile."""
    tile = np.empty(channels * max(TILE // channels, 1), values.dtype)
    for p in range(len(tile)):
        tile[p] = values[start + p % channels]
    return tile


@compiled
def _flush(sums, products, shares, thread, channels):  # type: ignore[no-untyped-def]
    """Add a tile's sums to the thread's sums of each channel, and reset them to zero."""
    o = 2 * thread * channels
    for p in range(len(sums)):
        shares[o + p % channels] += sums[p]
        shares[o + channels + p % channels] += products[p]
        sums[p] = products[p] = 0


@compiled
def _total(shares, which, channel, channels, threads):  # type: ignore[no-untyped-def]
    total = 0.0
    for thread in range(threads):
        total += shares[(2 * thread + which) * channels + channel]
    return total
