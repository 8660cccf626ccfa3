"""Compiling kernels with numba and running them on torch's own threads.

Two thread pools on the same cores slow each other down: the threads of OpenMP, which torch uses, spin for a while after
their work is done, and a second pool waits for the cores they occupy. Where torch's OpenMP library is GNU's (Linux), a
kernel therefore runs on that pool, through the entry point that compilers use. Elsewhere it runs on plain threads.

A kernel is a function of one argument, its call: the addresses of its arrays, its integers, and its share of the work.
It reads them with the functions below. This is a form that OpenMP can pass on, and a call takes a few microseconds.

The work is divided into as many shares as threads were requested. OpenMP may start fewer threads (OMP_DYNAMIC,
OMP_THREAD_LIMIT), each of which then takes several shares. So every part of an array is filled, and the results depend
only on the number of threads requested. A share must not wait for another one.
"""

from __future__ import annotations

import ctypes
import hashlib
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
from numba.core import cgutils
from numba.core import types as numba_types
from numba.extending import intrinsic
from torch import Tensor

types: Any = numba_types  # these have no types
codegen: Any = cgutils
written: Any = intrinsic
carray: Any = numba.carray  # type: ignore[attr-defined]

#: A call holds, in this order: the number of its share, and the number of shares; for OpenMP the addresses of its
#: functions for a thread's number and for the number of threads, and of the kernel; an address and a length for each
#: array; from FIRST_NUMBER on, the integers.
FIRST_ARRAY, MOST_ARRAYS, MOST_NUMBERS = 5, 12, 12
FIRST_NUMBER = FIRST_ARRAY + 2 * MOST_ARRAYS
CALL_LENGTH = FIRST_NUMBER + MOST_NUMBERS
CALL = struct.Struct(f"{CALL_LENGTH}q")

Compiled = Callable[..., Any]

NUMBER = {torch.float32: types.float32, torch.float64: types.float64}


@cache
def _sources() -> str:
    """A hash of the kernels' source files, which tells versions apart."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def compiled(function: Compiled, inline: bool = False) -> Compiled:
    """Compile a kernel, or a function that kernels call, at its first use, and cache it on disk.

    Args:
        function: written in the part of Python that numba compiles.
        inline: whether to copy it into its callers.
    """
    # numba's cache would check the function's own file only.
    function.__qualname__ += f"_{_sources()}"
    options = {"nogil": True, "error_model": "numpy", "forceinline": inline}
    try:
        result: Compiled = numba.njit(function, cache=True, **options)  # type: ignore[call-overload]
    except RuntimeError:  # there is no writable folder for the cache: compile in every process
        result = numba.njit(function, **options)  # type: ignore[call-overload]
    return result


def inlined(function: Compiled) -> Compiled:
    """`compiled`, and copied into its callers."""
    return compiled(function, inline=True)


def run(kernel: Compiled, tensors: tuple[Tensor, ...], numbers: tuple[int, ...], threads: int) -> None:
    """Run a kernel once per share, on a thread of its own if there is one, and wait for all of them.

    Args:
        kernel: see the top of this file; its numbers have the first tensor's dtype, float32 or float64.
        tensors: its arrays, each dense in memory; it sees them as one-dimensional, in memory order.
        numbers: its integers.
        threads: number of shares, 1 or more.
    """
    address, function = _address(kernel, tensors[0].dtype)
    arrays = [number for tensor in tensors for number in (tensor.data_ptr(), tensor.numel())]
    rest = *arrays, *[0] * (2 * MOST_ARRAYS - len(arrays)), *numbers, *[0] * (MOST_NUMBERS - len(numbers))
    if threads == 1:
        function(CALL.pack(0, 1, 0, 0, 0, *rest))
    elif (openmp := _gnu_openmp()) is not None:
        call = CALL.pack(0, threads, openmp.thread_number, openmp.thread_count, address, *rest)
        openmp.parallel(_address(_take_shares, torch.float32)[0], call, threads, 0)
    else:
        calls = [CALL.pack(number, threads, 0, 0, 0, *rest) for number in range(threads)]
        parts = [_plain_threads().submit(function, call) for call in calls[1:]]
        function(calls[0])
        for part in parts:
            part.result()


@compiled
def share(call, items):  # type: ignore[no-untyped-def]
    """The range of items of a share, as first and last + 1: equal shares, in order."""
    thread, threads = team(call)
    return items * thread // threads, items * (thread + 1) // threads


@compiled
def team(call):  # type: ignore[no-untyped-def]
    """The number of the share, from 0, and the number of shares."""
    return word(call, 0), word(call, 1)


@compiled
def number(call, place):  # type: ignore[no-untyped-def]
    """An integer of the call."""
    return word(call, FIRST_NUMBER + place)


@compiled
def numbers(call, place):  # type: ignore[no-untyped-def]
    """An array of the kernel's dtype, by its place among the call's tensors."""
    slot = FIRST_ARRAY + 2 * place
    return carray(_own_pointer(call, word(call, slot)), word(call, slot + 1))


@compiled
def array(call, place, dtype):  # type: ignore[no-untyped-def]
    """An array of another dtype, such as np.int64."""
    slot = FIRST_ARRAY + 2 * place
    return carray(_pointer(word(call, slot), dtype), word(call, slot + 1))


@written
def word(_typing, call, place):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """A word of the call, by its place."""

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
    """Call the C function ``int f(void)`` at an address."""

    def write(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        function = ir.FunctionType(ir.IntType(32), []).as_pointer()
        return builder.sext(builder.call(builder.inttoptr(values[0], function), []), ir.IntType(64))

    return types.int64(types.int64), write


@written
def _take(_typing, call, share):  # type: ignore[no-untyped-def]
    """Run a call's kernel for one of its shares."""

    def write(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        integer = ir.IntType(64)
        # The threads share one call: the number of the share is written into a copy.
        own = codegen.alloca_once(builder, integer, CALL_LENGTH)
        codegen.raw_memcpy(builder, own, builder.bitcast(values[0], own.type), integer(CALL_LENGTH), 8)
        builder.store(values[1], own)
        kernel = builder.load(builder.gep(own, [integer(4)]))
        function = ir.FunctionType(ir.VoidType(), [own.type]).as_pointer()
        builder.call(builder.inttoptr(kernel, function), [own])
        return context.get_dummy_value()

    return types.void(call, share), write


@compiled
def _take_shares(call):  # type: ignore[no-untyped-def]
    """Run on each OpenMP thread: takes its own share, and those of threads that were not started."""
    for number in range(_called(word(call, 2)), word(call, 1), _called(word(call, 3))):
        _take(call, number)


@cache
def _address(kernel: Any, dtype: torch.dtype) -> tuple[int, Any]:
    """A kernel's machine code for a dtype: its address, and as a function that is called without the GIL."""
    # The pointer's type only tells the dtype: it points to a call.
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
    """The GNU OpenMP library that torch has loaded; another copy of it would have a pool of its own."""
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
