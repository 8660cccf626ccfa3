"""A pointwise convolution between two batch normalisations with ReLU, in a training step on the CPU, compiled by numba.

A step waits for memory more than for arithmetic: maps of a batch are larger than the cache, and an operation at a time
goes over each of them again and again. Here a block of pixels is normalised, cut off, multiplied and summed for the
second normalisation while it is in the cache. The maps between the first normalisation and the convolution are never
written to memory, backward works them out anew from what it reads anyway; nor are the gradients between the convolution
and the second normalisation.

A convolution with 1x1 kernels is a matrix product: forward pixels x weights, backward gradients x weights for the maps
and gradients x pixels for the weights. All three are tiles of a few rows and 16 columns whose sums stay in registers.
The matrices are read from panels of 16 columns, (columns / 16, rows, 16) in memory, so that what a tile reads lies side
by side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from .batch_norm import (
    Norm,
    gradient_line,
    layer_arrays,
    normalise,
    scale_and_offset,
    spread_in_place,
    sum_gradient,
    sum_maps,
)
from .threads import array, compiled, number, numbers, run, share, team
from .vectors import HAS_AVX512, WIDTH, add_product, cut, load, multiply_add, store, zeros

#: Channels, in and out, that the kernel takes at a time.
PANEL = 2 * WIDTH

#: Rows of a tile, where they are pixels and where they are weights: enough that no sum waits for the product before it,
#: and no more than have their sums in registers. PANEL is a multiple of WEIGHT_ROWS.
PIXEL_ROWS, WEIGHT_ROWS = (12, 16) if HAS_AVX512 else (6, 4)

#: Pixels that are in the cache at a time: a multiple of PIXEL_ROWS.
BLOCK = 96

#: Multiplications below which a second thread costs more than it saves.
PARALLEL_FROM = 1 << 18

#: Numbers of a matrix below which a second thread costs more than it saves.
PARALLEL_PANELS_FROM = 1 << 15

codegen: Any = cgutils  # these have no types
numba_types: Any = types
written: Any = intrinsic
index = np.uint64  # signed offsets would be tested for negative ones in every loop

ONE, ROW = index(1), index(PANEL)


class Pass(NamedTuple):
    """A forward pass: its result, and what `backward` needs.

    Attributes:
        y: (N, C_out, H, W), channels-last.
        convolved: the convolution's own result, of the same shape.
        before, behind: (4, C) and (4, C_out), as from `batch_norm.forward`.
    """

    y: Tensor
    convolved: Tensor
    before: Tensor
    behind: Tensor


def forward(x: Tensor, before: Norm, weight: Tensor, behind: Norm) -> Pass:
    """Normalise by the batch's statistics, cut off at zero, convolve; again normalise, and cut off.

    Args:
        x: (N, C, H, W), float32 or float64, channels-last, of two pixels or more; C is a multiple of 16.
        before: the first normalisation.
        weight: (C_out, C); C_out is a multiple of 16.
        behind: the second normalisation.
    """
    batch, channels, height, width = x.shape
    out_channels, pixels = len(weight), batch * height * width
    convolved = torch.empty((batch, out_channels, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    threads = _threads(pixels, weight)
    shares, saved = sum_maps(x, threads), x.new_empty(4, channels)
    of_convolved = torch.zeros(threads, 2, out_channels, dtype=torch.float64)
    tensors = (*layer_arrays(x, shares, convolved, saved, before), _panels(weight.t()), of_convolved)
    run(_forward, tensors, (pixels, channels, threads, out_channels), threads)
    y, saved_behind = normalise(convolved, of_convolved, behind, relu=True)
    return Pass(y, convolved, saved, saved_behind)


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, convolved: Tensor, before: Tensor, behind: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the maps; of the first normalisation's bias and weight, (2, C); of the convolution, (C_out, C); and
    of the second normalisation, (2, C_out).

    Args:
        gradient: of the result; channels-last.
        x: as given to `forward`.
        weight: as given to it.
        convolved: as returned by it.
        before: as returned by it.
        behind: as returned by it.
    """
    batch, channels, height, width = x.shape
    pixels, dx = batch * height * width, torch.empty_like(x)
    threads = _threads(pixels, weight)
    of_behind, shares = torch.empty_like(behind[:2]), sum_gradient(gradient, convolved, behind, relu=True)
    sums = torch.zeros(threads, 2, channels, dtype=torch.float64)
    products = weight.new_empty((threads, *weight.shape))
    tensors = (x, sums, gradient, before, dx, products, _panels(weight), convolved, shares, behind, of_behind)
    run(_backward, tensors, (pixels, channels, threads, len(weight), len(shares)), threads)
    of_before = spread_in_place(dx, x, before, sums)
    return dx, of_before, products.sum(0) if threads > 1 else products[0], of_behind


def _panels(matrix: Tensor) -> Tensor:
    """(rows, columns) as (columns / 16, rows, 16); torch copies in such an order several times slower."""
    rows, columns = matrix.shape
    panels = matrix.new_empty(columns // PANEL, rows, PANEL)
    threads = torch.get_num_threads() if matrix.numel() >= PARALLEL_PANELS_FROM else 1
    run(_fill_panels, (matrix, panels), (rows, columns, *matrix.stride()), threads)
    return panels


def _threads(pixels: int, weight: Tensor) -> int:
    return torch.get_num_threads() if pixels * weight.numel() >= PARALLEL_FROM else 1


@compiled
def _fill_panels(call):  # type: ignore[no-untyped-def]
    matrix, panels = numbers(call, 0), numbers(call, 1)
    rows, columns, down, right = number(call, 0), number(call, 1), number(call, 2), number(call, 3)
    first, last = share(call, columns // PANEL)
    to = index(first * rows) * ROW
    for start in range(first * PANEL, last * PANEL, PANEL):
        for row in range(rows):
            from_ = index(row * down + start * right)
            if right == 1:
                store(load(matrix, from_), panels, to)
                store(load(matrix, from_ + index(WIDTH)), panels, to + index(WIDTH))
            else:
                for column in range(PANEL):
                    panels[to + index(column)] = matrix[from_ + index(column * right)]
            to += ROW


@compiled
def _forward(call):  # type: ignore[no-untyped-def]
    x, y, panels, shares = numbers(call, 0), numbers(call, 2), numbers(call, 9), array(call, 10, np.float64)
    channels, out_channels, thread = number(call, 1), number(call, 3), team(call)[0]
    scale, offset = scale_and_offset(call)
    maps, shift = np.empty(BLOCK * channels, x.dtype), np.empty(out_channels, x.dtype)
    # Sums are of differences to the first pixel: every thread works it out.
    _normalise(x, 0, 1, channels, scale, offset, maps)
    _multiply(maps, 1, channels, panels, shift, 0, out_channels)
    first, last = share(call, number(call, 0))
    for start in range(first, last, BLOCK):
        pixels, o = min(BLOCK, last - start), start * out_channels
        _normalise(x, start * channels, pixels, channels, scale, offset, maps)
        _multiply(maps, pixels, channels, panels, y, o, out_channels)
        _sum(y, o, pixels, out_channels, shift, shares, thread)


@compiled
def _backward(call):  # type: ignore[no-untyped-def]
    x, sums, gradient, before = numbers(call, 0), array(call, 1, np.float64), numbers(call, 2), numbers(call, 3)
    dx, products, panels, convolved = numbers(call, 4), numbers(call, 5), numbers(call, 6), numbers(call, 7)
    shares, behind, of_behind = array(call, 8, np.float64), numbers(call, 9), numbers(call, 10)
    total, channels, out_channels, thread = number(call, 0), number(call, 1), number(call, 3), team(call)[0]
    line = np.empty((2, out_channels), x.dtype)
    gradient_line(shares, behind, of_behind, total, out_channels, number(call, 4), thread, line)
    mean, scale, offset = before[:channels], before[2 * channels : 3 * channels], before[3 * channels :]
    maps, gradients = np.empty(BLOCK * channels, x.dtype), np.empty(BLOCK * out_channels, x.dtype)
    first, last = share(call, total)
    place = thread * channels * out_channels
    if first == last:
        products[place : place + channels * out_channels] = 0
    for start in range(first, last, BLOCK):
        pixels, o = min(BLOCK, last - start), start * channels
        _normalise(x, o, pixels, channels, scale, offset, maps)
        _spread(convolved, gradient, start * out_channels, pixels, out_channels, behind, line, gradients)
        _sum_outer_products(gradients, out_channels, maps, channels, pixels, products, place, start > first)
        _multiply(gradients, pixels, out_channels, panels, dx, o, channels)
        _sum_gradient(x, dx, o, pixels, channels, mean, scale, offset, sums, thread)


@compiled
def _normalise(x, start, pixels, channels, scale, offset, panels):  # type: ignore[no-untyped-def]
    """Normalise pixels from the number `start` on, and cut them off at zero: (pixels, channels) to panels."""
    o = index(start)
    for p in range(pixels):
        to = index(p) * ROW
        for c in range(0, channels, WIDTH):
            value = multiply_add(load(x, o), load(scale, index(c)), load(offset, index(c)))
            store(cut(value, value), panels, to + index(c % PANEL))
            o += index(WIDTH)
            if c % PANEL == WIDTH:
                to += index(pixels) * ROW


@compiled
def _spread(x, gradient, start, pixels, channels, saved, line, panels):  # type: ignore[no-untyped-def]
    """From the gradient behind a normalisation, of pixels from the number `start` on, that before it: to panels."""
    scale, offset, slope, height = saved[2 * channels : 3 * channels], saved[3 * channels :], line[0], line[1]
    o = index(start)
    for p in range(pixels):
        to = index(p) * ROW
        for c in range(0, channels, WIDTH):
            i, value = index(c), load(x, o)
            factor = load(scale, i)
            g = cut(multiply_add(value, factor, load(offset, i)), load(gradient, o))
            of_all = multiply_add(value, load(slope, i), load(height, i))
            store(multiply_add(factor, g, of_all), panels, to + index(c % PANEL))
            o += index(WIDTH)
            if c % PANEL == WIDTH:
                to += index(pixels) * ROW


@compiled
def _multiply(maps, pixels, depth, weights, y, start, width):  # type: ignore[no-untyped-def]
    """Panels of (pixels, depth) times panels of (depth, width): (pixels, width), from y's number `start` on."""
    skip = index(pixels - 1) * ROW  # from the end of a pixel's numbers in a panel to their begin in the next
    for n in range(0, width, PANEL):
        column, down = index(n * depth), index(width)
        for p in range(0, pixels, PIXEL_ROWS):
            row, last, to = index(p) * ROW, pixels - 1 - p, index(start + p * width + n)
            _pixel_tile(maps, row, ROW, last, ONE, skip, weights, column, depth // PANEL, PANEL, y, to, down, False)


@compiled
def _sum_outer_products(gradients, out_channels, maps, channels, pixels, sums, start, add):  # type: ignore[no-untyped-def]
    """Products of gradients and maps, both panels, summed over the pixels: (out_channels, channels), from `start` on.

    They are added to what is there, or take its place.
    """
    for c in range(0, channels, PANEL):
        column, down = index(c * pixels), index(channels)
        for n in range(0, out_channels, WEIGHT_ROWS):
            row, to = index((n - n % PANEL) * pixels + n % PANEL), index(start + n * channels + c)
            _weight_tile(gradients, row, ONE, WEIGHT_ROWS, ROW, index(0), maps, column, 1, pixels, sums, to, down, add)


@compiled
def _sum(x, start, pixels, channels, shift, shares, thread):  # type: ignore[no-untyped-def]
    """Add to a thread's sums, per channel: differences to `shift`, and their squares."""
    step, sums = index(channels), np.empty(2 * WIDTH, x.dtype)
    for c in range(0, channels, WIDTH):
        o = index(start + c)
        totals = squares = zeros(x)
        middle = load(shift, index(c))
        for _ in range(pixels):
            difference = load(x, o) - middle
            totals = totals + difference
            squares = multiply_add(difference, difference, squares)
            o += step
        _flush(totals, squares, sums, shares, 2 * thread * channels + c, channels)


@compiled
def _sum_gradient(x, gradient, start, pixels, channels, mean, scale, offset, shares, thread):  # type: ignore[no-untyped-def]
    """Add to a thread's sums, per channel: the gradient where the ReLU let it pass, and that times what it passed."""
    step, sums = index(channels), np.empty(2 * WIDTH, x.dtype)
    for c in range(0, channels, WIDTH):
        o = index(start + c)
        totals = products = zeros(x)
        middle, factor, height = load(mean, index(c)), load(scale, index(c)), load(offset, index(c))
        for _ in range(pixels):
            value = load(x, o)
            g = cut(multiply_add(value, factor, height), load(gradient, o))
            totals = totals + g
            products = multiply_add(g, value - middle, products)
            o += step
        _flush(totals, products, sums, shares, 2 * thread * channels + c, channels)


@compiled
def _flush(totals, products, sums, shares, start, channels):  # type: ignore[no-untyped-def]
    """Add two vectors of sums to a thread's shares of their channels."""
    store(totals, sums, index(0))
    store(products, sums, index(WIDTH))
    for lane in range(WIDTH):
        shares[start + lane] += sums[lane]
        shares[start + channels + lane] += sums[WIDTH + lane]


def _tile(rows: int) -> Any:
    """A tile of so many rows."""

    @written
    def tile(_typing, a, row, below, last, step, skip, b, column, outer, inner, y, to, down, add):  # type: ignore[no-untyped-def]
        """Sums of products of rows of numbers and 16 columns, put into (or added to) y, 16 to a row.

        The first row begins at a's number `row`, the others `below` one another; those behind row `last` are that one
        again. A row's numbers lie `step` apart, `inner` of them, and the next `inner` then begin `skip` further on. The
        columns are a panel that begins at b's number `column`. The sums begin at y's number `to`, each row's `down`
        behind those of the row before.
        """

        def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            _, row_, below_, last_, step_, skip_, _, column_, outer_, inner_, _, to_, down_, add_ = values
            numbers_, panel, result = (
                context.make_array(signature.args[place])(context, builder, values[place]).data for place in (0, 6, 10)
            )
            vector = ir.VectorType(context.get_data_type(a.dtype), PANEL)
            size = a.dtype.bitwidth // 8

            def address(base: Any, place: Any) -> Any:
                return builder.bitcast(builder.gep(base, [place]), vector.as_pointer())

            bases, targets, sums = [], [], []
            for count in range(rows):
                place = last_.type(count)
                place = builder.select(builder.icmp_signed("<", last_, place), last_, place)
                bases.append(builder.gep(numbers_, [builder.add(row_, builder.mul(place, below_))]))
                targets.append(address(result, builder.add(to_, builder.mul(place, down_))))
                old = builder.load(targets[-1], align=size)
                sums.append(codegen.alloca_once(builder, vector))
                builder.store(builder.select(add_, old, vector(None)), sums[-1])
            offset = codegen.alloca_once_value(builder, step_.type(0))
            columns = codegen.alloca_once_value(builder, column_)
            with codegen.for_range(builder, outer_):
                with codegen.for_range(builder, inner_):
                    o, q = builder.load(offset), builder.load(columns)
                    factors = builder.load(address(panel, q), align=size)
                    for base, total in zip(bases, sums, strict=True):
                        factor = _splat(builder, builder.load(builder.gep(base, [o])), vector)
                        builder.store(add_product(builder, factor, factors, builder.load(total)), total)
                    builder.store(builder.add(o, step_), offset)
                    builder.store(builder.add(q, q.type(PANEL)), columns)
                builder.store(builder.add(builder.load(offset), skip_), offset)
            for total, target in zip(sums, targets, strict=True):
                builder.store(builder.load(total), target, align=size)
            return context.get_dummy_value()

        return numba_types.void(a, row, below, last, step, skip, b, column, outer, inner, y, to, down, add), write

    return tile


_pixel_tile, _weight_tile = _tile(PIXEL_ROWS), _tile(WEIGHT_ROWS)


def _splat(builder: Any, value: Any, vector: Any) -> Any:
    """A vector of one number."""
    integer = ir.IntType(32)
    first = builder.insert_element(vector(ir.Undefined), value, integer(0))
    return builder.shuffle_vector(first, vector(ir.Undefined), ir.VectorType(integer, vector.count)([0] * vector.count))
