"""Facts about the machine, for the records of measurements. Standard library only."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

#: Linux's description of the processors.
CPUINFO = Path("/proc/cpuinfo")

#: The instruction sets that matter most for speed, by Linux's names: wide vectors and int8 products on x86 and ARM.
VECTOR_INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "asimd", "asimddp", "i8mm", "sve")


def environment() -> dict[str, Any]:
    """Date and machine of a measurement, without the versions of libraries."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "vector_instructions": vector_instructions(),
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def processor() -> str:
    """Name of the processor, or its architecture if the system does not report a name."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def vector_instructions() -> list[str] | None:
    """The `VECTOR_INSTRUCTIONS` that the processor has; None if the system does not report them."""
    info = _cpuinfo()
    flags = (info.get("flags") or info.get("Features") or "").split()
    return [name for name in VECTOR_INSTRUCTIONS if name in flags] if flags else None


def _cpuinfo() -> dict[str, str]:
    """Linux's description of the first processor; empty on other systems."""
    first = CPUINFO.read_text(encoding="utf-8").strip().partition("\n\n")[0] if CPUINFO.exists() else ""
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
