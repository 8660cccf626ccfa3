"""Memory allocation on Linux: keep freed memory in the process, on huge pages. Standard library only."""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache

#: mallopt parameters of glibc: trim threshold, mmap threshold.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

#: Bytes of heap to back with huge pages: about what training on CIFAR-10 needs. Unused pages take no memory.
HUGE_BYTES = 1 << 29

#: Bytes of a huge page.
HUGE_PAGE = 1 << 21


@cache
def keep_freed_memory() -> None:
    """Keep the memory that this process frees, on huge pages. Does nothing unless the C library is glibc (Linux).

    Every batch allocates and frees the same feature maps. By default glibc returns large blocks to the system, and the
    next allocation causes a page fault for every page: up to a quarter of a training step on a CPU, and half of an
    evaluation. Feature maps also need more pages of 4 kB than the TLB of a processor can hold.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt = getattr(library, "mallopt", None)
    # Older versions allow at most 32 MB. The trim threshold matters only for arrays on the heap, so it comes second.
    if library and mallopt and (mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 1 << 25)):
        mallopt(M_TRIM_THRESHOLD, 1 << 30)
        _advise_huge_pages(library)


def _advise_huge_pages(library: ctypes.CDLL) -> None:
    """Ask Linux for huge pages (madvise) under the part of the heap that is not allocated yet."""
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = library.malloc(HUGE_BYTES)
    if start:
        first = -(-start // HUGE_PAGE) * HUGE_PAGE
        library.madvise(first, start + HUGE_BYTES - first, mmap.MADV_HUGEPAGE)  # advice only: failure is harmless
        library.free(start)
