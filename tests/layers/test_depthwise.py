"""The depthwise convolution: its kernel against torch's convolution of repeated channels, and when which one runs."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid_mobilenet.layers.depthwise import depthwise_convolution
from hybrid_mobilenet.layers.kernels.cpu import depthwise as kernel

SIZES = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (4, 4), (5, 7), (9, 2)]


def maps(channels: int, size: tuple[int, int]) -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(3, channels, *size, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def weights(channels: int) -> Tensor:
    return torch.randn(channels, 1, 3, 3, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("multiplier", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [5, 8, 24])  # 5: not a whole number of vectors, so torch's
def test_equal_to_torch(channels: int, size: tuple[int, int], stride: int, multiplier: int) -> None:
    x, weight = maps(channels, size), weights(channels * multiplier)
    ours = depthwise_convolution(x, weight, stride)
    theirs = F.conv2d(torch.cat([x] * multiplier, 1), weight, stride=stride, padding=1, groups=len(weight))
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight), gradient),
        torch.autograd.grad(theirs, (x, weight), gradient),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_numerical_gradient() -> None:
    assert torch.autograd.gradcheck(
        lambda x, weight: depthwise_convolution(x, weight, 2), (maps(8, (3, 4)), weights(16))
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_any_memory_format(memory_format: torch.memory_format) -> None:
    x, weight = maps(8, (4, 5)), weights(16)
    expected = depthwise_convolution(x, weight, 1)
    y = depthwise_convolution(x.contiguous(memory_format=memory_format), weight, 1)
    assert torch.equal(y, expected)
    gradient = torch.randn_like(y).contiguous(memory_format=memory_format)
    a, b = torch.autograd.grad(y, (x, weight), gradient, retain_graph=True)
    c, d = torch.autograd.grad(expected, (x, weight), gradient)
    assert torch.equal(a, c)
    assert torch.equal(b, d)


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_only_the_gradient_that_is_needed(needed: tuple[bool, bool]) -> None:
    x, weight = torch.randn(2, 8, 2, 2), torch.randn(8, 1, 3, 3)
    x.requires_grad_(needed[0])
    weight.requires_grad_(needed[1])
    depthwise_convolution(x, weight, 1).sum().backward()  # type: ignore[no-untyped-call]
    assert (x.grad is not None, weight.grad is not None) == needed


def test_no_second_derivative() -> None:
    x, weight = torch.randn(2, 8, 6, 6, requires_grad=True), torch.randn(8, 1, 3, 3)
    (first,) = torch.autograd.grad(depthwise_convolution(x, weight, 1).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.slow
def test_compiles_to_torch_own() -> None:
    weight = torch.randn(16, 1, 3, 3)
    compiled = torch.compile(depthwise_convolution, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(compiled(x, weight, 1), depthwise_convolution(x, weight, 1))


def test_kernel_runs_where_a_cpu_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Mock(wraps=kernel.forward)
    monkeypatch.setattr(kernel, "forward", forward)
    x, weight = torch.randn(2, 8, 6, 6), torch.randn(8, 1, 3, 3)
    depthwise_convolution(x, weight, 1)
    assert forward.call_count == 1
    with torch.no_grad():
        depthwise_convolution(x, weight, 1)
    depthwise_convolution(x.half(), weight.half(), 1)
    depthwise_convolution(x[:, :4], weight[:4], 1)
    assert forward.call_count == 1
