"""Fractional max pooling on the CPU, compiled by numba.

Maps are read in channels-last order (N, H, W, C). The loop over the channels of a region is written as LLVM vector
instructions: compiled from Python, entering the loop costs more than running it. Forward reads the last pixel of a
narrow region twice instead of branching; comparing with "greater than" never lets the second reading win. Winners are
encoded as in `reference`. Backward thus reads a byte per region instead of the whole input, which has left the cache by
then.

The rest is memory traffic. Both passes prefetch what they read: the hardware prefetcher follows the jumps from row to
row badly, and stops at every page. Large results are written with non-temporal stores, past the cache: an ordinary
store first reads the cache line that it is going to overwrite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import chain
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from ..reference import check_sequence
from .threads import array, compiled, inlined, number, numbers, run, share

#: Input size, in numbers, from which a second thread pays off.
PARALLEL_FROM = 1 << 16

#: Size of a result, in bytes, from which non-temporal stores are used. A smaller one is found in the second-level cache
#: by the next operation.
STREAM_FROM = 1 << 20

#: Channels per vector: as many vectors of the first length as fit, then of the second, then of the third.
LANES = (16, 8, 1)

#: The same for non-temporal stores, which must be aligned: with a multiple of eight channels, eight numbers are.
LANES_STREAMED = (8,)

#: Prefetch distance in bytes: a few rows.
PREFETCH_DISTANCE = 8192

index = np.uint64  # with signed indices, every loop would test for negative ones
literally: Any = numba.literally  # type: ignore[attr-defined]
codegen: Any = cgutils  # has no types
written: Any = intrinsic
BYTE = ir.IntType(8)


def forward(x: Tensor, rows: Tensor, columns: Tensor, overlapping: bool) -> tuple[Tensor, Tensor]:
    """Maxima over regions, and their winners: (N, C, H, W) to two of (N, C, H_out, W_out), x's dtype and uint8."""
    batch, channels, height, width = x.shape
    for name, sequence, size in (("rows", rows, height), ("columns", columns, width)):
        check_sequence(sequence, size, name)  # the kernel reads where it points: a wrong one would read past the maps
    maps = _channels_last(x)
    shape = (batch, channels, len(rows) - 1, len(columns) - 1)
    y = torch.empty(shape, dtype=maps.dtype, memory_format=torch.channels_last)
    winners = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    sizes = (batch, height, width, channels, overlapping, _streams(y))
    run(_forward, (maps, y, winners, rows.contiguous(), columns.contiguous()), sizes, _threads(maps))
    return y.to(x.dtype), winners


def backward(
    gradient: Tensor, winners: Tensor, rows: Tensor, columns: Tensor, overlapping: bool, height: int, width: int
) -> Tensor:
    """Gradient of the input, (N, C, height, width): the gradient of each region goes to its winner."""
    batch, channels = winners.shape[:2]
    gradients = _channels_last(gradient)
    dx = torch.empty((batch, channels, height, width), dtype=gradients.dtype, memory_format=torch.channels_last)
    if overlapping:
        dx.zero_()
    sizes = (batch, height, width, channels, overlapping, _streams(dx))
    tensors = (dx, gradients, _channels_last(winners), rows.contiguous(), columns.contiguous())
    run(_backward, tensors, sizes, _threads(dx))
    return dx.to(gradient.dtype)


def _channels_last(x: Tensor) -> Tensor:
    # The CPU has no arithmetic for half precisions. Float32 is exact: a maximum is one of its inputs.
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return x.contiguous(memory_format=torch.channels_last)


def _streams(result: Tensor) -> bool:
    """Whether to use non-temporal stores, for which vectors must be aligned."""
    return result.nbytes >= STREAM_FROM and result.shape[1] % 8 == 0 and result.data_ptr() % 64 == 0


def _threads(maps: Tensor) -> int:
    return max(min(torch.get_num_threads(), len(maps)), 1) if maps.numel() >= PARALLEL_FROM else 1


@written(prefer_literal=True)
def _region(_typing, spread, maps, rows, columns, regions, winners, region, channels, streaming):  # type: ignore[no-untyped-def]
    """Pool a region, or spread its gradient.

    Args:
        spread: literal: True in backward, False in forward.
        maps: input, or its gradient.
        rows: tuple with the offset of each row of the region.
        columns: tuple with the offset of each column from the start of a row.
        regions: output, or its gradient.
        winners: encoded as in `reference`.
        region: offset of the region in `regions` and `winners`.
        channels: number of channels.
        streaming: literal: whether to use non-temporal stores.
    """
    write_vector = _spread_vector if spread.literal_value else _pool_vector
    lengths = LANES_STREAMED if streaming.literal_value else LANES

    def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        for pixels, value, winner, store in _vectors(context, builder, signature.args, values, lengths):
            write_vector(builder, pixels, value, winner, store)
        return context.get_dummy_value()

    return numba.types.void(spread, maps, rows, columns, regions, winners, region, channels, streaming), write


def _pool_vector(builder: Any, pixels: Any, maximum: Any, winner: Any, store: Callable[[Any, Any], None]) -> None:
    """Write the instructions that pool a vector of channels."""

    def better(best: Any, other: Any) -> Any:
        greater = builder.fcmp_ordered(">", other[0], best[0])
        chosen = builder.or_(greater, builder.fcmp_unordered("uno", other[0], other[0]))  # NaN is chosen too
        return builder.select(chosen, other[0], best[0]), builder.select(greater, other[1], best[1])

    for _, place in chain(*pixels):
        _prefetch(builder, place)
    read = [[(_load(builder, place), code) for code, place in column] for column in pixels]
    value, code = reduce(better, [reduce(better, column) for column in read])
    store(value, maximum)
    builder.store(code, winner, align=1)


def _spread_vector(builder: Any, pixels: Any, gradient: Any, winner: Any, store: Callable[[Any, Any], None]) -> None:
    """Write the instructions that give a vector of gradients to the pixels that won."""
    _prefetch(builder, gradient)
    value, won = _load(builder, gradient), builder.load(winner, align=1)
    for code, place in chain(*pixels):
        received = builder.select(builder.icmp_unsigned("==", won, code), value, value.type(None))
        if len(pixels) == 3:  # overlapping: a pixel receives gradients from several regions
            received = builder.fadd(received, _load(builder, place))
        store(received, place)


def _vectors(context: Any, builder: Any, kinds: Any, values: Any, lengths: tuple[int, ...]) -> Iterator[Any]:
    """Write the loops over the channels of a region, in vectors of these lengths; the caller writes their bodies.

    Yields for each loop the pixels of the region as a list of (code, address) per column, first row first; the
    addresses of the region's number and of its winner; and a function that stores a vector of numbers.
    """
    _, maps, rows, columns, regions, winners, region, channels, _ = (
        context.make_array(kind)(context, builder, value).data if isinstance(kind, numba.types.Array) else value
        for kind, value in zip(kinds, values, strict=True)
    )
    streamed = lengths is LANES_STREAMED
    number = context.get_data_type(kinds[1].dtype)
    size = kinds[1].dtype.bitwidth // 8
    start = channels.type(0)
    for lanes in lengths:
        stop = builder.sub(channels, builder.urem(channels, channels.type(lanes)))
        with codegen.for_range_slice(builder, start, stop, channels.type(lanes), channels.type) as (channel, _):

            def address(base: Any, place: Any, kind: Any, lanes: int = lanes, channel: Any = channel) -> Any:
                vector = ir.VectorType(kind, lanes).as_pointer()
                return builder.bitcast(builder.gep(base, [builder.add(place, channel)]), vector)

            def store(result: Any, place: Any, lanes: int = lanes) -> None:
                stored = builder.store(result, place, align=lanes * size if streamed else size)
                if streamed:
                    stored.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))

            codes = ir.VectorType(BYTE, lanes)
            pixels = [
                [
                    (codes([3 * c + r] * lanes), address(maps, builder.add(row, column), number))
                    for r, row in enumerate(codegen.unpack_tuple(builder, rows))
                ]
                for c, column in enumerate(codegen.unpack_tuple(builder, columns))
            ]
            yield pixels, address(regions, region, number), address(winners, region, BYTE), store
        start = stop


def _load(builder: Any, place: Any) -> Any:
    """Read a vector that is aligned as its numbers are."""
    number = place.type.pointee.element
    return builder.load(place, align=4 if isinstance(number, ir.FloatType) else 8)


def _prefetch(builder: Any, place: Any) -> None:
    integer, pointer = ir.IntType(32), BYTE.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, integer, integer, integer])
    prefetch = codegen.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    ahead = builder.gep(builder.bitcast(place, pointer), [ir.IntType(64)(PREFETCH_DISTANCE)])
    builder.call(prefetch, [ahead, integer(0), integer(3), integer(1)])  # for reading; keep in all caches; data


@compiled
def _forward(call):  # type: ignore[no-untyped-def]
    if number(call, 5) != 0:
        _for_each_region(call, False, True)
    else:
        _for_each_region(call, False, False)


@compiled
def _backward(call):  # type: ignore[no-untyped-def]
    if number(call, 5) != 0:
        _for_each_region(call, True, True)
    else:
        _for_each_region(call, True, False)


# `spread` and `streaming` are compile-time constants, as in `_region`: with branches inside one loop there are too few
# registers, and narrow maps take half as long again.


@compiled
def _for_each_region(call, spread, streaming):  # type: ignore[no-untyped-def]
    """Pool the regions of a thread's images, or spread their gradients."""
    literally(spread)
    literally(streaming)
    maps, regions, winners = numbers(call, 0), numbers(call, 1), array(call, 2, np.uint8)
    rows, columns = array(call, 3, np.int64), array(call, 4, np.int64)
    height, width, channels, overlapping = number(call, 1), number(call, 2), number(call, 3), number(call, 4) != 0
    first, last = share(call, number(call, 0))
    pitch, step = index(width * channels), index(channels)
    o = index(first * (len(rows) - 1) * (len(columns) - 1)) * step
    for n in range(first, last):
        for i in range(len(rows) - 1):
            a, b = index(n * height + rows[i]) * pitch, index(n * height + rows[i + 1] - 1) * pitch
            if overlapping:
                c = index(n * height + min(rows[i + 1], height - 1)) * pitch
                for j in range(len(columns) - 1):
                    d, f = index(columns[j]) * step, index(min(columns[j + 1], width - 1)) * step
                    three_rows, three_columns = (a, min(a + pitch, c), c), (d, min(d + step, f), f)
                    _region(spread, maps, three_rows, three_columns, regions, winners, o, step, False)
                    o += step
            # Backward names every pixel once: a non-temporal store must not be repeated.
            elif spread and a == b:
                o = _for_each_column(spread, maps, (a,), columns, regions, winners, o, step, streaming)
            else:
                o = _for_each_column(spread, maps, (a, b), columns, regions, winners, o, step, streaming)


@inlined
def _for_each_column(spread, maps, rows, columns, regions, winners, o, step, streaming):  # type: ignore[no-untyped-def]
    """The disjoint regions of a row, from offset `o` on; returns the offset of the next row's."""
    literally(spread)
    literally(streaming)
    for j in range(len(columns) - 1):
        d, e = index(columns[j]) * step, index(columns[j + 1] - 1) * step
        if spread and d == e:
            _region(spread, maps, rows, (d,), regions, winners, o, step, streaming)
        else:
            _region(spread, maps, rows, (d, e), regions, winners, o, step, streaming)
        o += step
    return o
