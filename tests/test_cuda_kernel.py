"""The triton kernel against the plain one: on a CUDA device where there is one, else in triton's interpreter.

The interpreter must be chosen before triton is imported, hence the process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

COMPARISON = """
import torch
from hybrid_mobilenet.kernels import cuda, reference
from hybrid_mobilenet.pooling import random_sequence

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
compared = 0
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for overlapping in (False, True):
        for (height, width), (out_height, out_width) in (
            ((7, 9), (5, 6)), ((2, 2), (1, 1)), ((1, 1), (1, 1)), ((8, 5), (4, 5)), ((10, 10), (6, 6))
        ):
            x = torch.randint(0, 4, (3, 5, height, width), device=device).to(dtype)  # small integers: many ties
            x[0, 0, 0, 0] = float("nan")
            rows = random_sequence(height, out_height).to(device)
            columns = random_sequence(width, out_width).to(device)
            for ours, expected in zip(*(k.forward(x, rows, columns, overlapping) for k in (cuda, reference))):
                torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)
            y, winners = reference.forward(x, rows, columns, overlapping)
            assert y[0, 0, 0, 0].isnan()
            g = torch.randint(-8, 8, y.shape, device=device).to(dtype)  # whole numbers add exactly in any order
            ours, expected = (
                k.backward(g, winners, rows, columns, overlapping, height, width) for k in (cuda, reference)
            )
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)
            assert ours.is_contiguous(memory_format=torch.channels_last)
            compared += 1
empty, _ = cuda.forward(torch.empty(0, 4, 10, 10, device=device), rows, columns, False)
assert empty.shape == (0, 4, len(rows) - 1, len(columns) - 1)
print("compared", compared)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (torch for CUDA brings it)"
)
def test_triton_kernel_equals_reference() -> None:
    environment = os.environ if torch.cuda.is_available() else os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPARISON], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "compared 40\n"
