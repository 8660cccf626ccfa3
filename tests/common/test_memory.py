"""Freed memory stays with the process, on huge pages."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from processes import run_python

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

#: Prints the fewest pages of 4 kB that the system gives for an array of 40 MB while others like it are freed.
NEW_PAGES = """
import ctypes, sys, torch
from resource import RUSAGE_SELF, getrusage
from hybrid_mobilenet.common.memory import keep_freed_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page would count as one
if sys.argv[1] == "kept":
    keep_freed_memory()
given = [getrusage(RUSAGE_SELF).ru_minflt]
for _ in range(10):
    torch.ones(10_000_000)
    given.append(getrusage(RUSAGE_SELF).ru_minflt)
print(min(later - earlier for earlier, later in zip(given, given[1:])))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
@pytest.mark.parametrize("how", ["kept", "given back"])
@pytest.mark.slow
def test_what_is_freed_is_taken_again(how: str) -> None:
    done = run_python("-c", NEW_PAGES, how)
    assert done.returncode == 0, done.stderr
    pages = int(done.stdout)
    assert pages < 100 if how == "kept" else pages > 5000


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(encoding="utf-8"),
    reason="Linux does not give huge pages to those who ask, and to no other",
)
@pytest.mark.slow
def test_maps_lie_on_huge_pages() -> None:
    program = """
import re, torch
from pathlib import Path
from hybrid_mobilenet.common.memory import keep_freed_memory

keep_freed_memory()
maps = [torch.ones(5_000_000) for _ in range(3)]
print(re.search(r"AnonHugePages: +([0-9]+) kB", Path("/proc/self/smaps_rollup").read_text())[1])
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30_000  # of 60,000: the system may have run out of some
