"""The machine: what it is, for the records of measurements, and how it keeps memory. Standard library only."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

#: What glibc's mallopt calls the sizes from which memory is the system's again: of what lies free at the end of the
#: heap, and of an array that is asked for.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def environment() -> dict[str, str | int | None]:
    """When and where something was measured, to be completed with versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where the C library is glibc (Linux).

    Every batch makes and frees the same maps. By its defaults glibc gives many of them back to the system, and every
    new one comes as pages of zeros, a fault each: up to a quarter of a training step on a CPU, half of an evaluation.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # Older versions take 32 MB at most. A heap that never shrinks helps only arrays that lie on it.
    if mallopt and (mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 1 << 25)):
        mallopt(M_TRIM_THRESHOLD, 1 << 30)
