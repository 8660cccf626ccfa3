"""Memory that is freed stays with the process."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

#: What an array of 20 MB is to glibc: bytes outside its heap while it exists, and bytes more of heap after it.
OUTSIDE_AND_LEFT = """
import ctypes, sys, torch
from hybrid_mobilenet.machine import keep_freed_memory

names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class Information(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

information = ctypes.CDLL(None).mallinfo2
information.restype = Information
if sys.argv[1] == "kept":
    keep_freed_memory()
before = information()
array = torch.ones(5_000_000)
outside = information().hblkhd - before.hblkhd
del array
print(outside, information().arena - before.arena)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library is not glibc 2.33 or newer")
@pytest.mark.parametrize("how", ["kept", "given back"])
def test_what_is_freed_stays_in_the_heap(how: str) -> None:
    command = [sys.executable, "-c", OUTSIDE_AND_LEFT, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    outside, left = (int(number) > 15_000_000 for number in done.stdout.split())
    assert (outside, left) == ((False, True) if how == "kept" else (True, False))
