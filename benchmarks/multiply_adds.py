"""Multiply-adds on vectors that stay in registers: the processor's peak rate.

A matrix product also loads, stores and packs, so a library's product may stay below this rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from hybrid_mobilenet.layers.kernels.cpu.threads import compiled, number, numbers, run, team
from hybrid_mobilenet.layers.kernels.cpu.vectors import HAS_AVX512, add_product
from hybrid_mobilenet.network.architecture import Network
from matrix_product import MULT_ADDS

VERSION = f"torch {torch.__version__}"

#: Values per vector, and independent sums. There are more sums than multiply-adds in flight (a latency of four cycles
#: on two to four units), and few enough for the registers.
WIDTH, SUMS = (16, 24) if HAS_AVX512 else (8, 12)

codegen: Any = cgutils  # numba and llvmlite are not typed
numba_types: Any = types
untyped_intrinsic: Any = intrinsic


def training_step(_network: Network, _batch: int, threads: int) -> Callable[[], object]:
    """About `MULT_ADDS` Mult-Adds in place of a network's step."""
    torch.set_num_threads(threads)
    sums = torch.zeros(threads, SUMS * WIDTH)
    return lambda: multiply_adds(sums, MULT_ADDS // sums.numel())


def multiply_adds(sums: Tensor, times: int) -> None:
    """Add 1 * 1 to every sum, `times` times.

    Args:
        sums: float32 (threads, SUMS * WIDTH), one row per thread.
        times: 1 or more.
    """
    run(_multiply_adds, (sums, torch.ones(WIDTH)), (times,), len(sums))


@compiled
def _multiply_adds(call):  # type: ignore[no-untyped-def]
    _add_products(numbers(call, 0), team(call)[0] * SUMS * WIDTH, numbers(call, 1), number(call, 0))


@untyped_intrinsic
def _add_products(_typing, sums, start, factors, times):  # type: ignore[no-untyped-def]
    """Add the squares of the vector `factors`, `times` times, to each of SUMS vectors from `sums[start]` on."""

    def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = ir.VectorType(context.get_data_type(sums.dtype), WIDTH)
        first, factor = (
            context.make_array(signature.args[place])(context, builder, values[place]).data for place in (0, 2)
        )
        factor = builder.load(builder.bitcast(factor, vector.as_pointer()), align=4)
        places, totals = [], []
        for count in range(SUMS):
            place = builder.gep(first, [builder.add(values[1], values[1].type(count * WIDTH))])
            places.append(builder.bitcast(place, vector.as_pointer()))
            totals.append(codegen.alloca_once_value(builder, builder.load(places[-1], align=4)))
        with codegen.for_range(builder, values[3]):
            for total in totals:
                builder.store(add_product(builder, factor, factor, builder.load(total)), total)
        for place, total in zip(places, totals, strict=True):
            builder.store(builder.load(total), place, align=4)
        return context.get_dummy_value()

    return numba_types.void(sums, start, factors, times), write
