"""Batch normalisation, ReLU, pointwise convolution, batch normalisation and ReLU in training, on the CPU, by numba.

A training step is limited by memory more than by arithmetic: the maps of a batch are larger than the cache, and every
single operation reads and writes all of them. Here, a block of pixels is normalised, rectified, convolved and summed
for the second normalisation while it is in the cache. The maps between the first normalisation and the convolution are
never written to memory: backward recomputes them from what it reads anyway. The gradients between the convolution and
the second normalisation are not written either.

A convolution with 1x1 kernels is a matrix product: pixels x weights in forward; in backward, gradients x weights for
the input and gradients x pixels for the weights. All three are computed in tiles of a few rows and 16 columns, whose
sums stay in registers. The matrices are stored in panels of 16 columns, (columns / 16, rows, 16) in memory, so that a
tile reads contiguous memory.
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
    backward_in_place,
    gradient_coefficients,
    layer_arrays,
    normalise,
    scale_and_offset,
    sum_gradient,
    sum_maps,
)
from .threads import array, compiled, number, numbers, run, share, team
from .vectors import HAS_AVX512, WIDTH, add_product, load, multiply_add, relu_mask, store, zeros

#: Columns of a panel. Input and output channels are multiples of it.
PANEL = 2 * WIDTH

#: Rows of a tile of pixels, and of one of weights: enough that a sum need not wait for its previous product, and few
#: enough that the sums fit in registers. PANEL is a multiple of WEIGHT_ROWS.
PIXEL_ROWS, WEIGHT_ROWS = (12, 16) if HAS_AVX512 else (6, 4)

#: Pixels of a block, which stays in the cache: a multiple of PIXEL_ROWS.
BLOCK = 96

#: Multiplications from which a second thread pays off.
PARALLEL_FROM = 1 << 18

#: Size of a matrix, in numbers, from which a second thread pays off in copying it to panels.
PARALLEL_PANELS_FROM = 1 << 15

codegen: Any = cgutils  # these have no type annotations
numba_types: Any = types
written: Any = intrinsic
index = np.uint64  # with signed indices, every loop would test for negative ones

ONE, ROW = index(1), index(PANEL)


class Pass(NamedTuple):
    """The result of a forward pass, and what `backward` needs.

    Attributes:
        y: the result, (N, C_out, H, W), channels-last.
        convolved: the result of the convolution, of the same shape.
        before: (4, C), saved by the first normalisation, as in `batch_norm.forward`.
        after: (4, C_out), the same for the second one.
    """

    y: Tensor
    convolved: Tensor
    before: Tensor
    after: Tensor


def forward(x: Tensor, before: Norm, weight: Tensor, after: Norm) -> Pass:
    """Batch normalisation, ReLU, pointwise convolution, batch normalisation, ReLU.

    Args:
        x: (N, C, H, W), float32 or float64, channels-last, with two pixels or more; C is a multiple of 16.
        before: the normalisation before the convolution.
        weight: (C_out, C); C_out is a multiple of 16.
        after: the normalisation after the convolution.
    """
    batch, channels, height, width = x.shape
    out_channels, pixels = len(weight), batch * height * width
    convolved = torch.empty((batch, out_channels, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    threads = _threads(pixels, weight)
    sums, saved = sum_maps(x, threads), x.new_empty(4, channels)
    convolved_sums = torch.zeros(threads, 2, out_channels, dtype=torch.float64)
    tensors = (*layer_arrays(x, sums, convolved, saved, before), _panels(weight.t()), convolved_sums)
    run(_forward, tensors, (pixels, channels, threads, out_channels), threads)
    y, saved_after = normalise(convolved, convolved_sums, after, relu=True)
    return Pass(y, convolved, saved, saved_after)


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, convolved: Tensor, before: Tensor, after: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the input and of all parameters.

    Args:
        gradient: of the result; channels-last.
        x: as given to `forward`.
        weight: as given to `forward`.
        convolved: as returned by `forward`.
        before: as returned by `forward`.
        after: as returned by `forward`.

    Returns:
        The gradients of the input; of bias and weight of the first normalisation, (2, C); of the convolution,
        (C_out, C); and of bias and weight of the second normalisation, (2, C_out).
    """
    batch, channels, height, width = x.shape
    pixels, dx = batch * height * width, torch.empty_like(x)
    threads = _threads(pixels, weight)
    dafter, sums_after = torch.empty_like(after[:2]), sum_gradient(gradient, convolved, after, relu=True)
    sums_before = torch.zeros(threads, 2, channels, dtype=torch.float64)
    dweight = weight.new_empty((threads, *weight.shape))
    tensors = (
        x, sums_before, gradient, before, dx, dweight, _panels(weight), convolved, sums_after, after, dafter
    )  # fmt: skip
    run(_backward, tensors, (pixels, channels, threads, len(weight), len(sums_after)), threads)
    dbefore = backward_in_place(dx, x, before, sums_before)
    return dx, dbefore, dweight.sum(0) if threads > 1 else dweight[0], dafter


def _panels(matrix: Tensor) -> Tensor:
    """A (rows, columns) matrix as panels, (columns / 16, rows, 16); torch takes several times as long."""
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
    # The differences to the first pixel are summed: every thread computes that pixel.
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
    x, sums_before, gradient, before = numbers(call, 0), array(call, 1, np.float64), numbers(call, 2), numbers(call, 3)
    dx, dweight, panels, convolved = numbers(call, 4), numbers(call, 5), numbers(call, 6), numbers(call, 7)
    sums_after, after, dafter = array(call, 8, np.float64), numbers(call, 9), numbers(call, 10)
    total, channels, out_channels, thread = number(call, 0), number(call, 1), number(call, 3), team(call)[0]
    coefficients = np.empty((2, out_channels), x.dtype)
    gradient_coefficients(sums_after, after, dafter, total, out_channels, number(call, 4), thread, coefficients)
    mean, scale, offset = before[:channels], before[2 * channels : 3 * channels], before[3 * channels :]
    maps, gradients = np.empty(BLOCK * channels, x.dtype), np.empty(BLOCK * out_channels, x.dtype)
    first, last = share(call, total)
    place = thread * channels * out_channels
    if first == last:
        dweight[place : place + channels * out_channels] = 0
    for start in range(first, last, BLOCK):
        pixels, o = min(BLOCK, last - start), start * channels
        _normalise(x, o, pixels, channels, scale, offset, maps)
        _norm_gradient(convolved, gradient, start * out_channels, pixels, out_channels, after, coefficients, gradients)
        _sum_outer_products(gradients, out_channels, maps, channels, pixels, dweight, place, start > first)
        _multiply(gradients, pixels, out_channels, panels, dx, o, channels)
        _sum_gradient(x, dx, o, pixels, channels, mean, scale, offset, sums_before, thread)


@compiled
def _normalise(x, start, pixels, channels, scale, offset, panels):  # type: ignore[no-untyped-def]
    """Normalise and rectify pixels, from offset `start` on: (pixels, channels) to panels."""
    o = index(start)
    for p in range(pixels):
        to = index(p) * ROW
        for c in range(0, channels, WIDTH):
            value = multiply_add(load(x, o), load(scale, index(c)), load(offset, index(c)))
            store(relu_mask(value, value), panels, to + index(c % PANEL))
            o += index(WIDTH)
            if c % PANEL == WIDTH:
                to += index(pixels) * ROW


@compiled
def _norm_gradient(x, gradient, start, pixels, channels, saved, coefficients, panels):  # type: ignore[no-untyped-def]
    """The gradient of the input of a normalisation with ReLU, for pixels from offset `start` on: to panels."""
    scale, offset = saved[2 * channels : 3 * channels], saved[3 * channels :]
    slope, constant = coefficients[0], coefficients[1]
    o = index(start)
    for p in range(pixels):
        to = index(p) * ROW
        for c in range(0, channels, WIDTH):
            i, value = index(c), load(x, o)
            factor = load(scale, i)
            g = relu_mask(multiply_add(value, factor, load(offset, i)), load(gradient, o))
            rest = multiply_add(value, load(slope, i), load(constant, i))
            store(multiply_add(factor, g, rest), panels, to + index(c % PANEL))
            o += index(WIDTH)
            if c % PANEL == WIDTH:
                to += index(pixels) * ROW


@compiled
def _multiply(maps, pixels, depth, weights, y, start, width):  # type: ignore[no-untyped-def]
    """Multiply panels of (pixels, depth) by panels of (depth, width): (pixels, width), from offset `start` of y on."""
    skip = index(pixels - 1) * ROW  # from the end of a pixel's row in a panel to its start in the next panel
    for n in range(0, width, PANEL):
        column, down = index(n * depth), index(width)
        for p in range(0, pixels, PIXEL_ROWS):
            row, last, to = index(p) * ROW, pixels - 1 - p, index(start + p * width + n)
            _pixel_tile(maps, row, ROW, last, ONE, skip, weights, column, depth // PANEL, PANEL, y, to, down, False)


@compiled
def _sum_outer_products(gradients, out_channels, maps, channels, pixels, sums, start, add):  # type: ignore[no-untyped-def]
    """Sum products of gradients and maps, both in panels, over the pixels: (out_channels, channels), from `start` on.

    With `add`, the result is added to `sums`; otherwise it is written there.
    """
    for c in range(0, channels, PANEL):
        column, down = index(c * pixels), index(channels)
        for n in range(0, out_channels, WEIGHT_ROWS):
            row, to = index((n - n % PANEL) * pixels + n % PANEL), index(start + n * channels + c)
            _weight_tile(gradients, row, ONE, WEIGHT_ROWS, ROW, index(0), maps, column, 1, pixels, sums, to, down, add)


@compiled
def _sum(x, start, pixels, channels, shift, shares, thread):  # type: ignore[no-untyped-def]
    """Add the differences to `shift` and their squares to a thread's sums, per channel."""
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
    """Add the gradient before the ReLU and its products with x - mean to a thread's sums, per channel."""
    step, sums = index(channels), np.empty(2 * WIDTH, x.dtype)
    for c in range(0, channels, WIDTH):
        o = index(start + c)
        totals = products = zeros(x)
        middle, factor, shift = load(mean, index(c)), load(scale, index(c)), load(offset, index(c))
        for _ in range(pixels):
            value = load(x, o)
            g = relu_mask(multiply_add(value, factor, shift), load(gradient, o))
            totals = totals + g
            products = multiply_add(g, value - middle, products)
            o += step
        _flush(totals, products, sums, shares, 2 * thread * channels + c, channels)


@compiled
def _flush(totals, products, sums, shares, start, channels):  # type: ignore[no-untyped-def]
    """Add two vectors of sums to a thread's sums of their channels."""
    store(totals, sums, index(0))
    store(products, sums, index(WIDTH))
    for lane in range(WIDTH):
        shares[start + lane] += sums[lane]
        shares[start + channels + lane] += sums[WIDTH + lane]


def _tile(rows: int) -> Any:
    """The function that computes a tile of a matrix product, for a number of rows."""

    @written
    def tile(_typing, a, row, below, last, step, skip, b, column, outer, inner, y, to, down, add):  # type: ignore[no-untyped-def]
        """Multiply rows of a by the 16 columns of a panel of b; write the sums to y, or add them.

        Args:
            a: holds the rows.
            row: offset of the first row in a.
            below: distance from a row to the next one.
            last: number of the last row that exists; rows after it repeat it.
            step: distance of the numbers of a row.
            skip: additional distance after every `inner` numbers.
            b: holds the panel.
            column: offset of the panel in b.
            outer: number of groups of `inner` numbers in a row.
            inner: numbers in a group.
            y: receives the sums.
            to: offset of the first row of sums in y.
            down: distance from a row of sums to the next one.
            add: whether to add the sums to what is in y.
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
    """A vector that repeats a number."""
    integer = ir.IntType(32)
    first = builder.insert_element(vector(ir.Undefined), value, integer(0))
    return builder.shuffle_vector(first, vector(ir.Undefined), ir.VectorType(integer, vector.count)([0] * vector.count))
