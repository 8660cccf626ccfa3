"""The triton kernels against plain torch: on a CUDA device if there is one, otherwise in triton's interpreter.

The interpreter has to be chosen before triton is imported, so the comparisons run in processes of their own.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from processes import run_python

POOLING = """
import torch
from hybrid_mobilenet.layers.kernels.cuda import pooling as cuda
from hybrid_mobilenet.layers.kernels import reference
from hybrid_mobilenet.layers.pooling import random_sequence

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

BEGINNING = """
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")

def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32

def assert_close(ours, exact, dtype):
    # dtype: of the result, whose only large error is the last rounding
    assert ours.dtype == dtype
    tolerance = max(torch.finfo(dtype).eps, 300 * torch.finfo(wide(dtype)).eps)
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)

compared = 0
"""

DEPTHWISE = (
    BEGINNING
    + """
from hybrid_mobilenet.layers.kernels.cuda import depthwise as kernel

def compare(dtype, batch, channels, size, multiplier, stride):
    global compared
    x = torch.randn(batch, channels, *size).to(dtype)
    weight = torch.randn(channels * multiplier, 1, 3, 3, dtype=wide(dtype))
    exact_x, exact_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    repeated = torch.cat([exact_x] * multiplier, 1)
    exact = F.conv2d(repeated, exact_weight, stride=stride, padding=1, groups=len(weight))
    by_place = weight.view(-1, 9).t()
    y = kernel.forward(x, by_place.contiguous(), stride)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, exact, dtype)
    gradient = torch.randn(y.shape).to(dtype)
    dx, dweight = kernel.backward(gradient, x, by_place, stride, True)
    exact_dx, exact_dweight = torch.autograd.grad(exact, (exact_x, exact_weight), gradient.double())
    assert_close(dx, exact_dx, dtype)
    assert_close(dweight.t().reshape(-1, 1, 3, 3), exact_dweight, weight.dtype)
    nothing, again = kernel.backward(gradient, x, by_place, stride, False)
    assert nothing is None
    assert torch.equal(again, dweight)
    compared += 1

for case in (
    (torch.float32, 2, 8, (5, 4), 1, 1),
    (torch.bfloat16, 2, 8, (5, 4), 2, 2),
    (torch.float64, 3, 24, (4, 5), 4, 2),
    (torch.float32, 2, 40, (7, 6), 1, 2),
    (torch.bfloat16, 2, 40, (1, 1), 2, 1),
    (torch.float32, 1, 130, (3, 2), 2, 3),
    (torch.float16, 1, 3, (6, 7), 1, 1),
):
    compare(*case)
kernel.TILE, kernel.SHARES = 128, 3  # several shares, of several tiles; the last share has fewer
compare(torch.float32, 2, 8, (9, 9), 2, 1)
nobody, by_place = torch.empty(0, 8, 5, 5), torch.randn(9, 16)
y = kernel.forward(nobody, by_place, 2)
assert y.shape == (0, 16, 3, 3)
dx, dweight = kernel.backward(y, nobody, by_place, 2, True)
assert dx.shape == nobody.shape
assert not dweight.any()
print("compared", compared)
"""
)

BATCH_NORM = (
    BEGINNING
    + """
import copy
from hybrid_mobilenet.layers.kernels.cuda import batch_norm as kernel

def layer(channels, dtype):
    norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03, dtype=wide(dtype))
    nn.init.uniform_(norm.weight, -2, 2)
    nn.init.normal_(norm.bias)
    return norm

def compare(dtype, batch, channels, size, relu):
    global compared
    x = (3 * torch.randn(batch, channels, *size) + 10).to(dtype)  # a sum of squares would lose digits
    norm = layer(channels, dtype)
    exact_norm, exact_x = copy.deepcopy(norm).double(), x.double().requires_grad_()
    exact = exact_norm(exact_x)
    exact = exact.relu() if relu else exact
    y, saved = kernel.forward(x, norm, relu)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, exact, dtype)
    assert_close(norm.running_mean, exact_norm.running_mean, wide(dtype))
    assert_close(norm.running_var, exact_norm.running_var, wide(dtype))
    gradient = torch.randn(y.shape).to(dtype)
    dx, (dbias, dweight) = kernel.backward(gradient, x, saved, relu)
    exact = torch.autograd.grad(exact, (exact_x, exact_norm.weight, exact_norm.bias), gradient.double())
    for ours, expected, precision in zip((dx, dweight, dbias), exact, (dtype, wide(dtype), wide(dtype))):
        assert_close(ours, expected, precision)
    compared += 1

kernel.TILE, kernel.SHARES, kernel.LONG_TILE = 256, 3, 1024  # several tiles, and several shares, of few pixels
for kernel.ALL_AT_ONCE in (4096, 0):
    compare(torch.float32, 3, 8, (7, 5), True)
    compare(torch.float32, 5, 130, (3, 3), False)
    compare(torch.bfloat16, 70, 5, (4, 2), True)
    compare(torch.bfloat16, 7, 40, (1, 1), False)
    compare(torch.float64, 6, 24, (5, 5), True)
    compare(torch.float16, 9, 1, (4, 4), True)
    x, norm = torch.randn(2, 3, 2, 2), layer(3, torch.float32)
    x[0, 1, 0, 0] = torch.nan
    y, _ = kernel.forward(x, norm, True)
    assert y.isnan().all((0, 2, 3)).tolist() == y.isnan().any((0, 2, 3)).tolist() == [False, True, False]
    assert norm.running_mean.isnan().tolist() == [False, True, False]
    # Where the result is zero, so is the gradient: torch's ReLU does the same.
    x = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1)
    y, saved = kernel.forward(x, nn.BatchNorm2d(1), True)
    assert y.flatten()[:2].tolist() == [0, 0]
    _, (dbias, _) = kernel.backward(torch.ones_like(x), x, saved, True)
    assert dbias.item() == 1
print("compared", compared)
"""
)


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (torch for CUDA brings it)"
)
@pytest.mark.parametrize(
    ("comparison", "compared"), [(POOLING, 40), (DEPTHWISE, 8), (BATCH_NORM, 12)], ids=["pooling", "depthwise", "norm"]
)
@pytest.mark.slow
def test_triton_kernels_equal_plain_ones(comparison: str, compared: int) -> None:
    environment = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = run_python("-c", comparison, environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"compared {compared}\n"
