"""The machine: what it is, for the records of measurements, and how it keeps memory. Standard library only."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

#: Where Linux describes the processors, and what decides most about speed as it names it: wide vectors and products of
#: int8, of x86 and of ARM.
CPUINFO = Path("/proc/cpuinfo")
VECTOR_INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "asimd", "asimddp", "i8mm", "sve")

#: What glibc's mallopt calls the sizes from which memory is the system's again: of what lies free at the end of the
#: heap, and of an array that is asked for.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

#: Bytes of heap that are to lie on huge pages: about what training on CIFAR-10 takes. What is not used is not there.
HUGE_BYTES = 1 << 29

#: Bytes of a huge page.
HUGE_PAGE = 1 << 21


def environment() -> dict[str, Any]:
    """When and where something was measured, to be completed with versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "vector_instructions": vector_instructions(),
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def vector_instructions() -> list[str] | None:
    """Those of `VECTOR_INSTRUCTIONS` that the processor has; None where the system doesn't tell."""
    told = _cpuinfo()
    flags = (told.get("flags") or told.get("Features") or "").split()
    return [name for name in VECTOR_INSTRUCTIONS if name in flags] if flags else None


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; nothing elsewhere."""
    first = CPUINFO.read_text(encoding="utf-8").strip().partition("\n\n")[0] if CPUINFO.exists() else ""
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


@cache
def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, on huge pages, where the C library is glibc (Linux).

    Every batch makes and frees the same maps. By its defaults glibc gives many of them back to the system, and every
    new one comes as pages of zeros, a fault each: up to a quarter of a training step on a CPU, half of an evaluation.
    Maps are also larger than what a processor can find on pages of 4 kB without looking each up in memory.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt = getattr(library, "mallopt", None)
    # Older versions take 32 MB at most. A heap that never shrinks helps only arrays that lie on it.
    if library and mallopt and (mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 1 << 25)):
        mallopt(M_TRIM_THRESHOLD, 1 << 30)
        _advise_huge_pages(library)


def _advise_huge_pages(library: ctypes.CDLL) -> None:
    """Ask for huge pages below what the heap has yet to hand out, where Linux gives them to those who ask."""
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = library.malloc(HUGE_BYTES)
    if start:
        first = -(-start // HUGE_PAGE) * HUGE_PAGE
        library.madvise(first, start + HUGE_BYTES - first, mmap.MADV_HUGEPAGE)  # advice: a refusal harms nobody
        library.free(start)
