"""Running a pooling kernel on torch's own threads.

Two pools of threads on the same cores get in each other's way: OpenMP's threads, on which torch runs, spin for a while
when their work is done, and a second pool waits for the cores that they hold. Where torch's OpenMP library is GNU's
(Linux), a kernel is therefore handed to its pool, through the entry point that compilers use. Elsewhere plain threads
serve.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types as numba_types
from numba.extending import intrinsic

Array = npt.NDArray[Any]
Kernel = Callable[..., Any]
written: Any = intrinsic  # these have no types
types: Any = numba_types
carray: Any = numba.carray  # type: ignore[attr-defined]


def run_over_batch(
    kernel: Kernel,
    arrays: tuple[Array, ...],
    sizes: tuple[int, int, int],
    flags: tuple[bool, bool],
    batch: int,
    threads: int,
) -> None:
    """Run ``kernel(*arrays, *sizes, *flags, first, last)`` over slices of a batch, one per thread.

    Args:
        kernel: compiled by numba to run without the GIL.
        arrays: its five arrays, contiguous; it sees them with one dimension.
        sizes: its three integers.
        flags: its two booleans.
        batch: number of images.
        threads: number of slices, 1 or more.
    """
    flat = [array.reshape(-1) for array in arrays]
    if threads == 1:
        kernel(*flat, *sizes, *flags, 0, batch)
    elif (openmp := _gnu_openmp()) is not None:
        described = [number for array in flat for number in (array.ctypes.data, array.size)]
        numbers = [openmp.thread_number, openmp.thread_count, batch, *sizes, *flags, *described]
        given = np.array(numbers, np.int64)
        entry = _entry(kernel, tuple(array.dtype for array in flat))
        openmp.parallel(entry.address, given.ctypes.data, threads, 0)
    else:
        bounds = [batch * thread // threads for thread in range(threads + 1)]
        parts = [_plain_threads().submit(kernel, *flat, *sizes, *flags, *ends) for ends in pairwise(bounds[1:])]
        kernel(*flat, *sizes, *flags, *bounds[:2])
        for part in parts:
            part.result()


class _Openmp:
    def __init__(self, library: ctypes.CDLL) -> None:
        self.parallel = library.GOMP_parallel
        self.parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self.parallel.restype = None
        self.thread_number, self.thread_count = (
            ctypes.cast(function, ctypes.c_void_p).value
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
def _entry(kernel: Kernel, dtypes: tuple[np.dtype[Any], ...]) -> Any:
    """What each OpenMP thread calls: unpacks what it is given and runs the kernel on the thread's own slice."""
    a, b, c, d, e = (_typed_pointer(numba.from_dtype(dtype)) for dtype in dtypes)
    compiled: Any = numba.cfunc(types.void(types.CPointer(types.int64)))

    @compiled
    def entry(pointer):  # type: ignore[no-untyped-def]
        given = carray(pointer, 18)
        thread, threads, batch = _called(given[0]), _called(given[1]), given[2]
        kernel(
            carray(a(given[8]), given[9]),
            carray(b(given[10]), given[11]),
            carray(c(given[12]), given[13]),
            carray(d(given[14]), given[15]),
            carray(e(given[16]), given[17]),
            given[3],
            given[4],
            given[5],
            given[6] != 0,
            given[7] != 0,
            batch * thread // threads,
            batch * (thread + 1) // threads,
        )

    return entry


@cache
def _typed_pointer(kind: Any) -> Any:
    """A function that makes an address the pointer that carray takes."""

    @written
    def pointer(_typing, address):  # type: ignore[no-untyped-def]  # noqa: ARG001
        def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), write

    return pointer


@written
def _called(_typing, address):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """What the C function ``int f(void)`` at an address returns."""

    def write(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        function = ir.FunctionType(ir.IntType(32), []).as_pointer()
        return builder.sext(builder.call(builder.inttoptr(values[0], function), []), ir.IntType(64))

    return types.int64(types.int64), write


@cache
def _plain_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="hybrid-mobilenet")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_plain_threads.cache_clear)  # threads do not survive a fork
