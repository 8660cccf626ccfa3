"""Batch normalisation of a training step on the CPU, with the ReLU behind it, compiled by numba.

Forward and backward each go over the maps twice: once for sums over all pixels, once for the result. torch's go over
them more often, and its ReLU once more each way; here the backward computes anew from the input which results the ReLU
cut off.

Maps are in channels-last order, so that an array is pixels of C numbers. The loops run over several pixels at once
where there are few channels: what belongs to a channel is repeated to a tile. Sums are of differences to the first
pixel, so that little cancels; a few tiles are summed in the maps' own precision, all these sums in float64.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .threads import array, compiled, number, numbers, run, share, team

#: Numbers below which a second thread costs more than it saves.
PARALLEL_FROM = 1 << 16

#: Numbers of a tile, at least, and how many tiles are summed before float64 takes over.
TILE, TILES = 512, 64

index = np.uint64  # signed offsets would be tested for negative ones in every loop


class Norm(NamedTuple):
    """A layer of C channels, in training.

    Attributes:
        weight: (C,), as the tensors that follow.
        bias: added last.
        running_mean: changed in place.
        running_var: changed in place.
        momentum: share of the batch in the running statistics.
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
    """Normalise by the batch's statistics, and move the running ones towards them.

    Args:
        x: (N, C, H, W), float32 or float64, channels-last, of two pixels or more.
        norm: the layer.
        relu: whether the result is cut off at zero.

    Returns:
        The result, and what `backward` needs: (4, C), each channel's mean, 1 / standard deviation, scale and offset.
    """
    return normalise(x, sum_maps(x, _threads(x)), Norm.of(norm), relu)


def backward(gradient: Tensor, x: Tensor, saved: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of the maps, and, (2, C), of bias and weight.

    Args:
        gradient: of the result; channels-last.
        x: as given to `forward`.
        saved: as returned by it.
        relu: as given to it.
    """
    shares, dx, of_parameters = sum_gradient(gradient, x, saved, relu), torch.empty_like(x), torch.empty_like(saved[:2])
    sizes = (x.numel() // x.shape[1], x.shape[1], len(shares), int(relu))
    run(_spread_gradient, (x, shares, gradient, saved, dx, of_parameters), sizes, len(shares))
    return dx, of_parameters


def sum_maps(x: Tensor, threads: int) -> Tensor:
    """Each thread's sums per channel: differences to the first pixel, and their squares; float64 (threads, 2, C)."""
    shares = torch.zeros(threads, 2, x.shape[1], dtype=torch.float64)
    run(_sum, (x, shares), (x.numel() // x.shape[1], x.shape[1]), threads)
    return shares


def normalise(x: Tensor, shares: Tensor, norm: Norm, relu: bool) -> tuple[Tensor, Tensor]:
    """What is left of `forward` when the sums over the maps are known, as `sum_maps` gives them."""
    y, saved = torch.empty_like(x), x.new_empty(4, x.shape[1])
    sizes = (x.numel() // x.shape[1], x.shape[1], len(shares), int(relu))
    run(_normalise, layer_arrays(x, shares, y, saved, norm), sizes, len(shares))
    return y, saved


def layer_arrays(x: Tensor, shares: Tensor, y: Tensor, saved: Tensor, norm: Norm) -> tuple[Tensor, ...]:
    """What a call of `scale_and_offset` begins with."""
    *tensors, momentum, epsilon = norm
    return x, shares, y, saved, *tensors, _settings(momentum, epsilon)


def sum_gradient(gradient: Tensor, x: Tensor, saved: Tensor, relu: bool) -> Tensor:
    """Each thread's sums per channel, float64 (threads, 2, C).

    They are of the gradient that the ReLU let pass, and of its products with the distance from the mean.
    """
    threads = _threads(x)
    shares = torch.zeros(threads, 2, x.shape[1], dtype=torch.float64)
    sizes = (x.numel() // x.shape[1], x.shape[1], threads, int(relu))
    run(_sum_gradient, (x, shares, gradient, saved), sizes, threads)
    return shares


def spread_in_place(gradient: Tensor, x: Tensor, saved: Tensor, shares: Tensor) -> Tensor:
    """Make the gradient of the result that of the input, where a ReLU follows; gradients of bias and weight, (2, C).

    Args:
        gradient: of the result; changed.
        x: as for `backward`.
        saved: as for `backward`.
        shares: as from `sum_gradient`.
    """
    of_parameters = torch.empty_like(saved[:2])
    sizes = (x.numel() // x.shape[1], x.shape[1], len(shares))
    run(_spread_in_place, (x, shares, gradient, saved, gradient, of_parameters), sizes, len(shares))
    return of_parameters


def _threads(x: Tensor) -> int:
    return torch.get_num_threads() if x.numel() >= PARALLEL_FROM else 1


@cache
def _settings(momentum: float, epsilon: float) -> Tensor:
    return torch.tensor([momentum, epsilon], dtype=torch.float64)


@compiled
def _sum(call):  # type: ignore[no-untyped-def]
    """A thread's sums, per channel: of the differences to the first pixel, and of their squares."""
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
    """What normalises each channel, from the sums over the maps. The call begins as that of `_normalise`."""
    x, shares, saved = numbers(call, 0), array(call, 1, np.float64), numbers(call, 3)
    weight, bias, running_mean, running_var = numbers(call, 4), numbers(call, 5), numbers(call, 6), numbers(call, 7)
    pixels, channels, threads = number(call, 0), number(call, 1), number(call, 2)
    momentum, epsilon = array(call, 8, np.float64)
    # Each thread works out all channels for itself; the first one writes them down.
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
                y[o + p] = x.dtype.type(0) if result <= 0 else result  # NaN stays
        else:
            for p in range(length):
                y[o + p] = x[o + p] * scale[p] + offset[p]


@compiled
def _sum_gradient(call):  # type: ignore[no-untyped-def]
    """A thread's sums, per channel: of the gradient, and of its products with the distance from the mean."""
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
                cut = relu & (x[o + p] * scale[p] + offset[p] <= 0)
                g = x.dtype.type(0) if cut else gradient[o + p]
                sums[p] += g
                products[p] += g * (x[o + p] - mean[p])
            start += len(mean)
            if start >= last * channels:
                break
        _flush(sums, products, shares, team(call)[0], channels)


@compiled
def _spread_gradient(call):  # type: ignore[no-untyped-def]
    x, gradient, dx = numbers(call, 0), numbers(call, 2), numbers(call, 4)
    pixels, channels, relu = number(call, 0), number(call, 1), number(call, 3) != 0
    scale, offset, slopes, heights = _gradient_lines(call)
    first, last = share(call, pixels)
    for start in range(first * channels, last * channels, len(scale)):
        o, length = index(start), index(min(len(scale), last * channels - start))
        for p in range(length):
            cut = relu & (x[o + p] * scale[p] + offset[p] <= 0)
            g = x.dtype.type(0) if cut else gradient[o + p]
            dx[o + p] = scale[p] * g + (x[o + p] * slopes[p] + heights[p])


@compiled
def _spread_in_place(call):  # type: ignore[no-untyped-def]
    """The same behind a ReLU, from dx itself.

    Two names for one array would keep the loop above from being vectorised.
    """
    x, dx, pixels, channels = numbers(call, 0), numbers(call, 4), number(call, 0), number(call, 1)
    scale, offset, slopes, heights = _gradient_lines(call)
    first, last = share(call, pixels)
    for start in range(first * channels, last * channels, len(scale)):
        o, length = index(start), index(min(len(scale), last * channels - start))
        for p in range(length):
            g = x.dtype.type(0) if x[o + p] * scale[p] + offset[p] <= 0 else dx[o + p]
            dx[o + p] = scale[p] * g + (x[o + p] * slopes[p] + heights[p])


@compiled
def _gradient_lines(call):  # type: ignore[no-untyped-def]
    """Tiles of scale, offset, slope and height: see `gradient_line`."""
    x, shares, saved, of_parameters = numbers(call, 0), array(call, 1, np.float64), numbers(call, 3), numbers(call, 5)
    pixels, channels, threads = number(call, 0), number(call, 1), number(call, 2)
    line = np.empty((2, channels), x.dtype)
    gradient_line(shares, saved, of_parameters, pixels, channels, threads, team(call)[0], line)
    scales, offsets = _tile(saved, 2 * channels, channels), _tile(saved, 3 * channels, channels)
    return scales, offsets, _tile(line[0], 0, channels), _tile(line[1], 0, channels)


@compiled
def gradient_line(shares, saved, of_parameters, pixels, channels, threads, thread, line):  # type: ignore[no-untyped-def]
    """Each channel's slope and height, (2, C): the input's gradient is scale * g + slope * x + height.

    dx = scale * (g - mean(g) - (x - mean) / variance * mean(g * (x - mean))), g being what the ReLU let pass. The first
    thread writes down the gradients of bias and weight.
    """
    for c in range(channels):
        mean, inverse, scale = saved[c], saved[channels + c], saved[2 * channels + c]
        total, product = _total(shares, 0, c, channels, threads), _total(shares, 1, c, channels, threads)
        slope = -scale * inverse * inverse * product / pixels
        line[0, c], line[1, c] = slope, -scale * total / pixels - slope * mean
        if thread == 0:
            of_parameters[c], of_parameters[channels + c] = total, product * inverse


@compiled
def _tile(values, start, channels):  # type: ignore[no-untyped-def]
    """The channels' values from `start` on, repeated over as many whole pixels as fill a tile."""
    tile = np.empty(channels * max(TILE // channels, 1), values.dtype)
    for p in range(len(tile)):
        tile[p] = values[start + p % channels]
    return tile


@compiled
def _flush(sums, products, shares, thread, channels):  # type: ignore[no-untyped-def]
    """Add a tile's sums to the thread's share of each channel, and start again at zero."""
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
