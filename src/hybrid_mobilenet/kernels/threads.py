"""Compiling kernels with numba and running them on torch's own threads.

Two pools of threads on the same cores get in each other's way: OpenMP's threads, on which torch runs, spin for a while
when their work is done, and a second pool waits for the cores that they hold. Where torch's OpenMP library is GNU's
(Linux), a kernel is therefore handed to its pool, through the entry point that compilers use. Elsewhere plain threads
serve.

A kernel is a function of one argument, its call: the addresses of its arrays, its numbers and its thread, which it
reads with the functions below. That is what OpenMP can hand on, and calling it takes a few microseconds.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numba
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types as numba_types
from numba.extending import intrinsic
from torch import Tensor

types: Any = numba_types  # these have no types
written: Any = intrinsic
carray: Any = numba.carray  # type: ignore[attr-defined]

#: A call begins with the OpenMP functions that tell a thread's number and how many there are, or with two zeros and the
#: two numbers themselves; its arrays follow, an address and a length each, and its numbers from FIRST_NUMBER on.
FIRST_ARRAY, MOST_ARRAYS, MOST_NUMBERS = 4, 12, 12
FIRST_NUMBER = FIRST_ARRAY + 2 * MOST_ARRAYS
CALL = struct.Struct(f"{FIRST_NUMBER + MOST_NUMBERS}q")

Compiled = Callable[..., Any]
NUMBER = {torch.float32: types.float32, torch.float64: types.float64}


def compiled(function: Compiled) -> Compiled:
    """A function that kernels call, or a kernel itself: compiled when first used, and kept on disk."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        result: Compiled = numba.njit(function, cache=True, **options)  # type: ignore[call-overload]
    except RuntimeError:  # no folder to cache in can be written to: compile anew in every process
        result = numba.njit(function, **options)  # type: ignore[call-overload]
    return result


def run(kernel: Compiled, tensors: tuple[Tensor, ...], numbers: tuple[int, ...], threads: int) -> None:
    """Run a kernel once on each of `threads` threads, and wait for all of them.

    Args:
        kernel: see the top of this file; its numbers are of the first tensor's dtype, float32 or float64.
        tensors: its arrays, each without gaps in memory; it sees them with one dimension, in the order of memory.
        numbers: its integers.
        threads: 1 or more.
    """
    address, function = _address(kernel, tensors[0].dtype)
    arrays = [number for tensor in tensors for number in (tensor.data_ptr(), tensor.numel())]
    rest = *arrays, *[0] * (2 * MOST_ARRAYS - len(arrays)), *numbers, *[0] * (MOST_NUMBERS - len(numbers))
    if threads == 1:
        function(CALL.pack(0, 0, 0, 1, *rest))
    elif (openmp := _gnu_openmp()) is not None:
        openmp.parallel(address, CALL.pack(openmp.thread_number, openmp.thread_count, 0, 0, *rest), threads, 0)
    else:
        calls = [CALL.pack(0, 0, thread, threads, *rest) for thread in range(threads)]
        parts = [_plain_threads().submit(function, call) for call in calls[1:]]
        function(calls[0])
        for part in parts:
            part.result()


@compiled
def share(call, items):  # type: ignore[no-untyped-def]
    """The first of a thread's items, and the one behind its last: equal shares, in order."""
    thread, threads = team(call)
    return items * thread // threads, items * (thread + 1) // threads


@compiled
def team(call):  # type: ignore[no-untyped-def]
    """The thread's number, from 0, and how many threads there are."""
    if word(call, 0) != 0:
        return _called(word(call, 0)), _called(word(call, 1))
    return word(call, 2), word(call, 3)


@compiled
def number(call, place):  # type: ignore[no-untyped-def]
    """An integer of the call."""
    return word(call, FIRST_NUMBER + place)


@compiled
def numbers(call, place):  # type: ignore[no-untyped-def]
    """An array of the kernel's kind of number, by its place among the call's tensors."""
    slot = FIRST_ARRAY + 2 * place
    return carray(_own_pointer(call, word(call, slot)), word(call, slot + 1))


@compiled
def array(call, place, dtype):  # type: ignore[no-untyped-def]
    """An array of another kind, such as np.int64."""
    slot = FIRST_ARRAY + 2 * place
    return carray(_pointer(word(call, slot), dtype), word(call, slot + 1))


@written
def word(_typing, call, place):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """One of a call's integers, whatever it stands for."""

    def write(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        words = builder.bitcast(values[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(words, [values[1]]))

    return types.int64(call, types.int64), write


@written
def _own_pointer(_typing, call, address):  # type: ignore[no-untyped-def]
    def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[1], context.get_value_type(signature.return_type))

    return call(call, address), write


@written
def _pointer(_typing, address, dtype):  # type: ignore[no-untyped-def]
    def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return types.CPointer(dtype.instance_type)(address, dtype), write


@written
def _called(_typing, address):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """What the C function ``int f(void)`` at an address returns."""

    def write(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        function = ir.FunctionType(ir.IntType(32), []).as_pointer()
        return builder.sext(builder.call(builder.inttoptr(values[0], function), []), ir.IntType(64))

    return types.int64(types.int64), write


@cache
def _address(kernel: Any, dtype: torch.dtype) -> tuple[int, Any]:
    """A kernel's machine code for a kind of number: where it is, and as a function to call, which holds no GIL."""
    # The kind of pointer tells the kind of number; what it points to is a call.
    signature = (types.CPointer(NUMBER[dtype]),)
    kernel.compile(signature)
    result = kernel.overloads[signature]
    address = result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name)
    return address, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)


class _Openmp:
    def __init__(self, library: ctypes.CDLL) -> None:
        self.parallel = library.GOMP_parallel
        self.parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self.parallel.restype = None
        self.thread_number, self.thread_count = (
            ctypes.cast(function, ctypes.c_void_p).value or 0
            for function in (library.omp_get_thread_num, library.omp_get_num_threads)
        )


@cache
def _gnu_openmp() -> _Openmp | None:
    """The GNU OpenMP library that torch has loaded, not another copy of it: that would be a pool of its own."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*")):
        try:
            return _Openmp(ctypes.CDLL(str(path)))
        except (OSError, AttributeError):
            continue
    return None


@cache
def _plain_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="hybrid-mobilenet")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_plain_threads.cache_clear)  # threads do not survive a fork
