"""What the machine is; memory that is freed stays with the process, on huge pages."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import pytest

from hybrid_mobilenet.common import machine
from processes import run_python

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

#: Prints the fewest pages of 4 kB that the system gives for an array of 40 MB while others like it are freed.
NEW_PAGES = """
import ctypes, sys, torch
from resource import RUSAGE_SELF, getrusage
from hybrid_mobilenet.common.machine import keep_freed_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page would count as one
if sys.argv[1] == "kept":
    keep_freed_memory()
given = [getrusage(RUSAGE_SELF).ru_minflt]
for _ in range(10):
    torch.ones(10_000_000)
    given.append(getrusage(RUSAGE_SELF).ru_minflt)
print(min(later - earlier for earlier, later in zip(given, given[1:])))
"""


@pytest.mark.parametrize(
    ("text", "name", "instructions"),
    [
        (
            "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\nflags\t\t: sve\n",
            "Some CPU",
            ["avx2", "avx512f"],
        ),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp sve2\n", "", ["asimd", "asimddp"]),
        ("processor\t: 0\n", "", None),
    ],
    ids=["x86", "ARM", "nothing told"],
)
def test_the_processor_as_linux_tells(
    text: str, name: str, instructions: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    machine.CPUINFO.write_text(text, encoding="utf-8")
    assert machine.vector_instructions() == instructions
    assert machine.processor() == (name or platform.processor() or platform.machine())
    machine.CPUINFO.unlink()
    assert machine.vector_instructions() is None
    assert machine.processor()
    assert {"processor", "vector_instructions"} <= set(machine.environment())


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
@pytest.mark.parametrize("how", ["kept", "given back"])
def test_what_is_freed_is_taken_again(how: str) -> None:
    done = run_python("-c", NEW_PAGES, how)
    assert done.returncode == 0, done.stderr
    pages = int(done.stdout)
    assert pages < 100 if how == "kept" else pages > 5000


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(encoding="utf-8"),
    reason="Linux does not give huge pages to those who ask, and to no other",
)
def test_maps_lie_on_huge_pages() -> None:
    program = """
import re, torch
from pathlib import Path
from hybrid_mobilenet.common.machine import keep_freed_memory

keep_freed_memory()
maps = [torch.ones(5_000_000) for _ in range(3)]
print(re.search(r"AnonHugePages: +([0-9]+) kB", Path("/proc/self/smaps_rollup").read_text())[1])
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30_000  # of 60,000: the system may have run out of some
