"""Depthwise 3x3 convolution with a depth multiplier on the CPU, forward and backward, compiled by numba.

Maps are in channels-last order (N, H, W, C). For each image, a vector of eight channels is copied to a zero-padded map,
which fits into the first-level cache. Every pixel then has nine neighbours, and the nine weights stay in registers.
Input channel c feeds the outputs c, C + c, 2 * C + c, ..., so that channels are never repeated in memory.

Backward dilates the gradients of a strided convolution with zeros: the gradient of the input is then the convolution
with the kernel rotated by 180 degrees, for every stride.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .threads import compiled, number, numbers, run, share, team
from .vectors import WIDTH, load, multiply_add, store, zeros

#: Multiplications from which a second thread pays off.
PARALLEL_FROM = 1 << 18

index = np.uint64  # with signed indices, every loop would test for negative ones

ONE, TWO = index(WIDTH), index(2 * WIDTH)  # distance of one and two pixels in a padded map


def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The convolution with a padding of one pixel.

    Args:
        x: (N, C, H, W), float32 or float64, channels-last; C is a multiple of 8.
        weight: (9, C * multiplier): for each place of the kernel, row by row, the weights of all channels.
        stride: 1 or more.

    Returns:
        (N, C * multiplier, ceil(H / stride), ceil(W / stride)), channels-last.
    """
    batch, channels, height, width = x.shape
    out_channels = weight.shape[1]
    shape = (batch, out_channels, -(-height // stride), -(-width // stride))
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    sizes = (batch, height, width, channels, *shape[2:], out_channels, stride)
    run(_forward, (x, weight, y), sizes, _threads(y))
    return y


def backward(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, needs_dx: bool) -> tuple[Tensor | None, Tensor]:
    """Gradients of the input, or None, and of the weights, (9, C * multiplier).

    Args:
        gradient: of the output; channels-last.
        x: as for `forward`.
        weight: as for `forward`.
        stride: as for `forward`.
        needs_dx: whether to compute the gradient of the input.
    """
    batch, channels, height, width = x.shape
    threads = _threads(gradient)
    dx = torch.empty_like(x) if needs_dx else x.new_empty(0)
    shares = weight.new_zeros((threads, *weight.shape))
    sizes = (batch, height, width, channels, *gradient.shape[2:], weight.shape[1], stride, int(needs_dx))
    run(_backward, (x, weight, gradient, dx, shares), sizes, threads)
    return dx if needs_dx else None, shares.sum(0)


def _threads(y: Tensor) -> int:
    return max(min(torch.get_num_threads(), len(y)), 1) if 9 * y.numel() >= PARALLEL_FROM else 1


@compiled
def _forward(call):  # type: ignore[no-untyped-def]
    x, weight, y = numbers(call, 0), numbers(call, 1), numbers(call, 2)
    height, width, channels, out_height, out_width, out_channels, stride, row = _sizes(call)
    padded = np.zeros((height + 2) * row, x.dtype)
    first, last = share(call, number(call, 0))
    for n in range(first, last):
        for c in range(0, channels, WIDTH):
            _pad(x, n * height * width * channels + c, height, width, channels, 1, padded, row)
            for out in range(c, out_channels, channels):
                o = n * out_height * out_width * out_channels + out
                w = _weights(weight, out, out_channels)
                for i in range(out_height):
                    _convolve_row(padded, stride * i * row, row, stride, w, y, o, out_width, out_channels, False)
                    o += out_width * out_channels


@compiled
def _backward(call):  # type: ignore[no-untyped-def]
    x, weight, gradient = numbers(call, 0), numbers(call, 1), numbers(call, 2)
    dx, shares = numbers(call, 3), numbers(call, 4)
    height, width, channels, out_height, out_width, out_channels, stride, row = _sizes(call)
    needs_dx, thread = number(call, 8) != 0, team(call)[0]
    padded, dilated = np.zeros((height + 2) * row, x.dtype), np.zeros((height + 2) * row, x.dtype)
    first, last = share(call, number(call, 0))
    for n in range(first, last):
        for c in range(0, channels, WIDTH):
            _pad(x, n * height * width * channels + c, height, width, channels, 1, padded, row)
            for out in range(c, out_channels, channels):
                o = n * out_height * out_width * out_channels + out
                _pad(gradient, o, out_height, out_width, out_channels, stride, dilated, row)
                o = 9 * thread * out_channels + out
                _add_weight_gradient(padded, dilated, out_height, out_width, stride, row, shares, o, out_channels)
                if needs_dx:
                    w = _weights(weight, out, out_channels)
                    rotated = (w[8], w[7], w[6], w[5], w[4], w[3], w[2], w[1], w[0])
                    o = n * height * width * channels + c
                    for i in range(height):
                        _convolve_row(dilated, i * row, row, 1, rotated, dx, o, width, channels, out >= channels)
                        o += width * channels


@compiled
def _sizes(call):  # type: ignore[no-untyped-def]
    """Height, width and channels of the input, then of the output; stride; numbers in a row of a padded map."""
    height, width, channels = number(call, 1), number(call, 2), number(call, 3)
    out_height, out_width, out_channels, stride = number(call, 4), number(call, 5), number(call, 6), number(call, 7)
    return height, width, channels, out_height, out_width, out_channels, stride, (width + 2) * WIDTH


@compiled
def _pad(maps, start, height, width, channels, stride, padded, row):  # type: ignore[no-untyped-def]
    """Copy a vector of channels of an image, from offset `start` on, into the padding, `stride` pixels apart."""
    for i in range(height):
        from_, to = index(start + i * width * channels), index((1 + stride * i) * row) + ONE
        for _ in range(width):
            store(load(maps, from_), padded, to)
            from_ += index(channels)
            to += index(stride) * ONE


@compiled
def _weights(weight, out, out_channels):  # type: ignore[no-untyped-def]
    """A vector of weights for each place of the kernel."""
    o, step = index(out), index(out_channels)
    return (
        load(weight, o),
        load(weight, o + step),
        load(weight, o + index(2) * step),
        load(weight, o + index(3) * step),
        load(weight, o + index(4) * step),
        load(weight, o + index(5) * step),
        load(weight, o + index(6) * step),
        load(weight, o + index(7) * step),
        load(weight, o + index(8) * step),
    )


@compiled
def _convolve_row(padded, top, row, stride, w, y, o, out_width, out_channels, add):  # type: ignore[no-untyped-def]
    """Compute a row of output pixels from three rows of `padded`, the first at `top`; with `add`, add it to `y`."""
    step = index(stride) * ONE
    a, b, c, to = index(top), index(top + row), index(top + 2 * row), index(o)
    for _ in range(out_width):
        # Two sums, so that a multiply-add need not wait for the previous one.
        first, second = load(padded, a) * w[0], load(padded, a + ONE) * w[1]
        first = multiply_add(load(padded, a + TWO), w[2], first)
        second = multiply_add(load(padded, b), w[3], second)
        first = multiply_add(load(padded, b + ONE), w[4], first)
        second = multiply_add(load(padded, b + TWO), w[5], second)
        first = multiply_add(load(padded, c), w[6], first)
        second = multiply_add(load(padded, c + ONE), w[7], second)
        first = multiply_add(load(padded, c + TWO), w[8], first)
        if add:
            second = second + load(y, to)
        store(first + second, y, to)
        a, b, c, to = a + step, b + step, c + step, to + index(out_channels)


@compiled
def _add_weight_gradient(padded, dilated, out_height, out_width, stride, row, sums, start, out_channels):  # type: ignore[no-untyped-def]
    """Add an image's contribution to the gradients of the nine weights: sums of products of pixels and gradients."""
    step = index(stride) * ONE
    a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = zeros(padded)
    for i in range(out_height):
        a = index(stride * i * row)
        b, c = a + index(row), a + index(2 * row)
        g = b + ONE
        for _ in range(out_width):
            gradient = load(dilated, g)
            a0 = multiply_add(load(padded, a), gradient, a0)
            a1 = multiply_add(load(padded, a + ONE), gradient, a1)
            a2 = multiply_add(load(padded, a + TWO), gradient, a2)
            b0 = multiply_add(load(padded, b), gradient, b0)
            b1 = multiply_add(load(padded, b + ONE), gradient, b1)
            b2 = multiply_add(load(padded, b + TWO), gradient, b2)
            c0 = multiply_add(load(padded, c), gradient, c0)
            c1 = multiply_add(load(padded, c + ONE), gradient, c1)
            c2 = multiply_add(load(padded, c + TWO), gradient, c2)
            a, b, c, g = a + step, b + step, c + step, g + step
    o, step = index(start), index(out_channels)
    for total in (a0, a1, a2, b0, b1, b2, c0, c1, c2):
        store(load(sums, o) + total, sums, o)
        o += step
