"""Vectors of eight numbers as values in functions that numba compiles: the processor's vector registers, explicitly.

numba vectorises a loop over channels by itself, but entering such a loop is expensive with few channels. `load`,
`store` and the operators +, - and * on vectors are single instructions if the processor's vectors are as wide. Eight
float32 fill a register of most processors. On processors whose registers hold sixteen, wider vectors pay off in matrix
products only, and `pointwise` writes those itself.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from llvmlite.binding import get_host_cpu_features  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model

codegen: Any = cgutils  # these have no type annotations
numba_types: Any = types
written: Any = intrinsic
model: Any = models
registered: Any = register_model

WIDTH = 8

#: Whether a vector register holds sixteen float32, and there are 32 of them.
HAS_AVX512 = bool(get_host_cpu_features().get("avx512f"))


class Vector(numba_types.Type):  # type: ignore[misc]
    """numba's type for a vector of WIDTH numbers."""

    def __init__(self, number: Any) -> None:
        self.number = number
        super().__init__(name=f"Vector({number})")


@registered(Vector)
class _VectorModel(model.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, ir.VectorType(manager.lookup(kind.number).get_value_type(), WIDTH))


@written
def zeros(_typing, array):  # type: ignore[no-untyped-def]
    """A vector of zeros of an array's dtype."""
    kind = Vector(array.dtype)

    def write(context: Any, _builder: Any, _signature: Any, _values: Any) -> Any:
        return context.get_value_type(kind)(None)

    return kind(array), write


@written
def load(_typing, array, offset):  # type: ignore[no-untyped-def]
    """Read a vector from a flat array, from `offset` on."""
    kind = Vector(array.dtype)

    def write(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        place = _place(context, builder, kind, array, *values)
        return builder.load(place, align=kind.number.bitwidth // 8)

    return kind(array, offset), write


@written
def store(_typing, vector, array, offset):  # type: ignore[no-untyped-def]
    """Write a vector to a flat array, from `offset` on."""

    def write(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        place = _place(context, builder, vector, array, *values[1:])
        builder.store(values[0], place, align=vector.number.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(vector, array, offset), write


def _place(context: Any, builder: Any, vector: Vector, kind: Any, array: Any, offset: Any) -> Any:
    start = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(start, [offset]), context.get_value_type(vector).as_pointer())


def _operator(instruction: str) -> Any:
    @written
    def operation(_typing, a, b):  # type: ignore[no-untyped-def]
        def write(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            return getattr(builder, instruction)(*values)

        return a(a, b), write

    return operation


_add, _subtract, _multiply = _operator("fadd"), _operator("fsub"), _operator("fmul")


@written
def multiply_add(_typing, a, b, c):  # type: ignore[no-untyped-def]
    """``a * b + c``, rounded once if the processor has fused multiply-add.

    If fusing were left to the compiler, it would fuse in one copy of a function and not in another, and a kernel that
    is compiled again could give other bits than the cached one.
    """

    def write(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return add_product(builder, *values)

    return a(a, b, c), write


def add_product(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """The instruction of `multiply_add`, for functions that write instructions."""
    bits = 32 if isinstance(a.type.element, ir.FloatType) else 64
    kind = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(
        codegen.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{a.type.count}f{bits}"), [a, b, c]
    )


@written
def relu_mask(_typing, value, kept):  # type: ignore[no-untyped-def]
    """`kept`, but zero where `value` is at most zero; where `value` is NaN, `kept` stays."""

    def write(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        zero = values[0].type(None)
        return builder.select(builder.fcmp_ordered("<=", values[0], zero), zero, values[1])

    return value(value, kept), write


# `overload` needs functions: an intrinsic is refused.


@overload(operator.add)
def _plus(a, b):  # type: ignore[no-untyped-def]
    return (lambda a, b: _add(a, b)) if isinstance(a, Vector) and a == b else None  # noqa: PLW0108


@overload(operator.sub)
def _minus(a, b):  # type: ignore[no-untyped-def]
    return (lambda a, b: _subtract(a, b)) if isinstance(a, Vector) and a == b else None  # noqa: PLW0108


@overload(operator.mul)
def _times(a, b):  # type: ignore[no-untyped-def]
    return (lambda a, b: _multiply(a, b)) if isinstance(a, Vector) and a == b else None  # noqa: PLW0108
