"""What machine this is, for the records of measurements. Standard library only."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path


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
