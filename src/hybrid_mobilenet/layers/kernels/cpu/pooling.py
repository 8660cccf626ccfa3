"""Fractional max pooling on the CPU, compiled by numba.

Maps are read in channels-last order (N, H, W, C). The loop over the channels of a region is written in LLVM's vectors:
compiled from Python it costs more to enter than to run. A narrow region reads its last pixel twice instead of
branching; "greater than" never lets the second reading win. Winners are coded as in `reference`: backward then reads a
byte per region instead of the whole input, which has left the cache by that time.

The rest is memory traffic. Both passes fetch ahead what they read: the hardware follows the jumps from row to row
badly, and stops at every page. Large results are stored past the cache: a store into it first reads the line that it is
going to replace.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from .threads import array, compiled, number, numbers, run, share

#: Numbers below which a second thread costs more than it saves.
PARALLEL_FROM = 1 << 16

#: Bytes from which a result is stored past the cache: below, whoever reads it next finds it in the second level.
STREAM_FROM = 1 << 20

#: Channels to a vector: as many of the first kind as fit, then of the second, then of the third.
LANES = (16, 8, 1)

#: The same for what is stored past the cache: eight numbers are aligned where there are a multiple of eight.
LANES_STREAMED = (8,)

#: Bytes that are fetched ahead: a few rows.
AHEAD = 8192

offset = np.uint64
codegen: Any = cgutils  # has no types
written: Any = intrinsic
BYTE = ir.IntType(8)


def forward(x: Tensor, rows: Tensor, columns: Tensor, overlapping: bool) -> tuple[Tensor, Tensor]:
    """Maxima over regions, and their winners: (N, C, H, W) to two of (N, C, H_out, W_out), x's dtype and uint8."""
    batch, channels, height, width = x.shape
    for name, sequence, size in (("rows", rows, height), ("columns", columns, width)):
        check_sequence(sequence, size, name)  # the kernel reads where it points, so a wrong one must not reach it
    maps = _maps(x)
    shape = (batch, channels, len(rows) - 1, len(columns) - 1)
    pooled = torch.empty(shape, dtype=maps.dtype, memory_format=torch.channels_last)
    winners = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    sizes = (batch, height, width, channels, overlapping, _streams(pooled))
    run(_forward, (maps, pooled, winners, rows.contiguous(), columns.contiguous()), sizes, _threads(maps))
    return pooled.to(x.dtype), winners


def backward(
    gradient: Tensor, winners: Tensor, rows: Tensor, columns: Tensor, overlapping: bool, height: int, width: int
) -> Tensor:
    """Gradient of the input, (N, C, height, width), from that of the output, each region's going to its winner."""
    batch, channels = winners.shape[:2]
    maps = _maps(gradient)
    spread = torch.empty((batch, channels, height, width), dtype=maps.dtype, memory_format=torch.channels_last)
    if overlapping:
        spread.zero_()
    sizes = (batch, height, width, channels, overlapping, _streams(spread))
    run(_backward, (spread, maps, _maps(winners), rows.contiguous(), columns.contiguous()), sizes, _threads(spread))
    return spread.to(gradient.dtype)


def _maps(x: Tensor) -> Tensor:
    # Neither has arithmetic here. Going through float32 is exact: a maximum is one of its inputs.
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return x.contiguous(memory_format=torch.channels_last)


def _streams(result: Tensor) -> bool:
    """Whether to store past the cache, which vectors must be aligned for."""
    return result.nbytes >= STREAM_FROM and result.shape[1] % 8 == 0 and result.data_ptr() % 64 == 0


def _threads(maps: Tensor) -> int:
    return max(min(torch.get_num_threads(), len(maps)), 1) if maps.numel() >= PARALLEL_FROM else 1


def _vectors(context: Any, builder: Any, kinds: Any, values: Any) -> Iterator[Any]:
    """Write the loops over the channels of a region; the caller writes what each of them does.

    Yields the pixels as a list of (code, address), first row first, for each column; the addresses of the region's
    number and of its winner; and a function that stores a vector of results.
    """
    maps, rows, columns, regions, winners, region, channels, streaming = (
        context.make_array(kind)(context, builder, value).data if isinstance(kind, numba.types.Array) else value
        for kind, value in zip(kinds, values, strict=True)
    )
    number = context.get_data_type(kinds[0].dtype)
    size = kinds[0].dtype.bitwidth // 8

    def loops(kinds_of_lanes: tuple[int, ...], streamed: bool) -> Iterator[Any]:
        start = channels.type(0)
        for lanes in kinds_of_lanes:
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

    with builder.if_else(streaming) as (then, otherwise):
        with then:
            yield from loops(LANES_STREAMED, True)
        with otherwise:
            yield from loops(LANES, False)


def _fetch(builder: Any, place: Any) -> None:
    integer, pointer = ir.IntType(32), BYTE.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, integer, integer, integer])
    prefetch = codegen.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    ahead = builder.gep(builder.bitcast(place, pointer), [ir.IntType(64)(AHEAD)])
    builder.call(prefetch, [ahead, integer(0), integer(3), integer(1)])  # to read; keep in all caches; data


@written
def _pool_region(_typing, x, rows, columns, y, winners, region, channels, streaming):  # type: ignore[no-untyped-def]
    size = x.dtype.bitwidth // 8

    def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        def better(best: Any, other: Any) -> Any:
            greater = builder.fcmp_ordered(">", other[0], best[0])
            taken = builder.or_(greater, builder.fcmp_unordered("uno", other[0], other[0]))  # NaN is taken too
            return builder.select(taken, other[0], best[0]), builder.select(greater, other[1], best[1])

        for pixels, maximum, winner, store in _vectors(context, builder, signature.args, values):
            for _, place in chain(*pixels):
                _fetch(builder, place)
            read = [[(builder.load(place, align=size), code) for code, place in column] for column in pixels]
            number, code = reduce(better, [reduce(better, column) for column in read])
            store(number, maximum)
            builder.store(code, winner, align=1)
        return context.get_dummy_value()

    return numba.types.void(x, rows, columns, y, winners, region, channels, streaming), write


@written
def _spread_region(_typing, dx, rows, columns, g, winners, region, channels, streaming):  # type: ignore[no-untyped-def]
    size = dx.dtype.bitwidth // 8

    def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        for pixels, gradient, winner, store in _vectors(context, builder, signature.args, values):
            _fetch(builder, gradient)
            number, won = builder.load(gradient, align=size), builder.load(winner, align=1)
            for code, place in chain(*pixels):
                share = builder.select(builder.icmp_unsigned("==", won, code), number, number.type(None))
                if len(rows) == 3:  # overlapping
                    share = builder.fadd(share, builder.load(place, align=size))
                store(share, place)
        return context.get_dummy_value()

    return numba.types.void(dx, rows, columns, g, winners, region, channels, streaming), write


# A loop over the regions of a row for each kind of region and of store: in one loop with branches the registers do not
# suffice, and narrow maps take half as long again.


@compiled
def _forward(call):  # type: ignore[no-untyped-def]
    x, y, winners = numbers(call, 0), numbers(call, 1), array(call, 2, np.uint8)
    rows, columns = array(call, 3, np.int64), array(call, 4, np.int64)
    height, width, channels = number(call, 1), number(call, 2), number(call, 3)
    overlapping, streaming = number(call, 4) != 0, number(call, 5) != 0
    first, last = share(call, number(call, 0))
    pitch, step = offset(width * channels), offset(channels)
    o = offset(first * (len(rows) - 1) * (len(columns) - 1)) * step
    for n in range(first, last):
        for i in range(len(rows) - 1):
            a, b = offset(n * height + rows[i]) * pitch, offset(n * height + rows[i + 1] - 1) * pitch
            if overlapping:
                c = offset(n * height + min(rows[i + 1], height - 1)) * pitch
                for j in range(len(columns) - 1):
                    d, f = offset(columns[j]) * step, offset(min(columns[j + 1], width - 1)) * step
                    three_rows, three_columns = (a, min(a + pitch, c), c), (d, min(d + step, f), f)
                    _pool_region(x, three_rows, three_columns, y, winners, o, step, False)
                    o += step
            elif streaming:
                for j in range(len(columns) - 1):
                    d, e = offset(columns[j]) * step, offset(columns[j + 1] - 1) * step
                    _pool_region(x, (a, b), (d, e), y, winners, o, step, True)
                    o += step
            else:
                for j in range(len(columns) - 1):
                    d, e = offset(columns[j]) * step, offset(columns[j + 1] - 1) * step
                    _pool_region(x, (a, b), (d, e), y, winners, o, step, False)
                    o += step


@compiled
def _backward(call):  # type: ignore[no-untyped-def]
    dx, g, winners = numbers(call, 0), numbers(call, 1), array(call, 2, np.uint8)
    rows, columns = array(call, 3, np.int64), array(call, 4, np.int64)
    height, width, channels = number(call, 1), number(call, 2), number(call, 3)
    overlapping, streaming = number(call, 4) != 0, number(call, 5) != 0
    first, last = share(call, number(call, 0))
    pitch, step = offset(width * channels), offset(channels)
    o = offset(first * (len(rows) - 1) * (len(columns) - 1)) * step
    for n in range(first, last):
        for i in range(len(rows) - 1):
            a, b = offset(n * height + rows[i]) * pitch, offset(n * height + rows[i + 1] - 1) * pitch
            if overlapping:
                c = offset(n * height + min(rows[i + 1], height - 1)) * pitch
                for j in range(len(columns) - 1):
                    d, f = offset(columns[j]) * step, offset(min(columns[j + 1], width - 1)) * step
                    three_rows, three_columns = (a, min(a + pitch, c), c), (d, min(d + step, f), f)
                    _spread_region(dx, three_rows, three_columns, g, winners, o, step, False)
                    o += step
            elif a < b:
                o = _spread_row(dx, (a, b), columns, g, winners, o, step, streaming)
            else:
                o = _spread_row(dx, (a,), columns, g, winners, o, step, streaming)


@compiled
def _spread_row(dx, rows, columns, g, winners, o, step, streaming):  # type: ignore[no-untyped-def]
    """Spread the gradients of the disjoint regions of a row, from number `o` on; the number behind the last.

    They name every pixel once: what is stored past the cache must be stored once.
    """
    if streaming:
        for j in range(len(columns) - 1):
            d, e = offset(columns[j]) * step, offset(columns[j + 1] - 1) * step
            if d < e:
                _spread_region(dx, rows, (d, e), g, winners, o, step, True)
            else:
                _spread_region(dx, rows, (d,), g, winners, o, step, True)
            o += step
    else:
        for j in range(len(columns) - 1):
            d, e = offset(columns[j]) * step, offset(columns[j + 1] - 1) * step
            if d < e:
                _spread_region(dx, rows, (d, e), g, winners, o, step, False)
            else:
                _spread_region(dx, rows, (d,), g, winners, o, step, False)
            o += step
    return o
