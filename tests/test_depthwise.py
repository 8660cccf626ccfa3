"""The depthwise convolution's own gradients against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hybrid_mobilenet.depthwise import depthwise_convolution

SIZES = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (4, 1), (3, 1), (4, 4), (5, 7), (8, 8)]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_equal_to_torch(size: tuple[int, int], stride: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(5, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    ours = depthwise_convolution(x, weight, stride)
    theirs = F.conv2d(x, weight, stride=stride, padding=1, groups=5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    gradient = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight), gradient),
        torch.autograd.grad(theirs, (x, weight), gradient),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_only_the_gradient_that_is_needed(needed: tuple[bool, bool]) -> None:
    x, weight = torch.randn(2, 4, 2, 2), torch.randn(4, 1, 3, 3)
    x.requires_grad_(needed[0])
    weight.requires_grad_(needed[1])
    depthwise_convolution(x, weight, 1).sum().backward()  # type: ignore[no-untyped-call]
    assert (x.grad is not None, weight.grad is not None) == needed


def test_no_second_derivative() -> None:
    x, weight = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(4, 1, 3, 3)
    (first,) = torch.autograd.grad(depthwise_convolution(x, weight, 1).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()  # type: ignore[no-untyped-call]


def test_compiles_to_torch_own() -> None:
    weight = torch.randn(4, 1, 3, 3)
    compiled = torch.compile(depthwise_convolution, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(compiled(x, weight, 1), depthwise_convolution(x, weight, 1))
