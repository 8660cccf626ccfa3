"""Batch normalisation with ReLU: the kernel against torch's layer, and when which one runs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hybrid_mobilenet.layers.batch_norm import batch_norm
from hybrid_mobilenet.layers.kernels.cpu import batch_norm as kernel

SIZES = [(2, 3, 1, 1), (3, 5, 4, 7), (64, 1024, 1, 1), (40, 8, 22, 22), (7, 700, 3, 3)]


def layer(channels: int, dtype: torch.dtype = torch.float64) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels, eps=1e-3, dtype=dtype)
    nn.init.uniform_(norm.weight, -2, 2)
    nn.init.normal_(norm.bias)
    return norm


def maps(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Far from zero in the mean, where a sum of squares would lose its digits."""
    x = 3 * torch.randn(*size, dtype=dtype) + 10
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def torch_own(x: Tensor, norm: nn.BatchNorm2d, relu: bool) -> Tensor:
    return norm(x).relu() if relu else norm(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_equal_to_torch(size: tuple[int, int, int, int], relu: bool) -> None:
    norm, x = layer(size[1]), maps(*size)
    other = copy.deepcopy(norm)
    for _ in range(2):  # the running statistics of two batches
        ours, theirs = batch_norm(x, norm, relu), torch_own(x, other, relu)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(norm.state_dict(), other.state_dict())
    gradient = torch.randn_like(theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (x, norm.weight, norm.bias), gradient),
        torch.autograd.grad(theirs, (x, other.weight, other.bias), gradient),
        rtol=1e-5,
        atol=1e-5,
    )


def test_float32_is_as_precise_as_torch() -> None:
    norm, x = layer(8, torch.float32), maps(64, 8, 22, 22, dtype=torch.float32)
    other, exact, wide = copy.deepcopy(norm), copy.deepcopy(norm).double(), x.detach().double().requires_grad_()
    gradient = torch.randn_like(x)
    expected = torch.autograd.grad(exact(wide), (wide, exact.weight, exact.bias), gradient.double())

    def worst(y: Tensor, norm: nn.BatchNorm2d) -> list[float]:
        found = torch.autograd.grad(y, (x, norm.weight, norm.bias), gradient)
        return [float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)]

    for ours, theirs in zip(worst(batch_norm(x, norm, False), norm), worst(other(x), other), strict=True):
        assert ours <= theirs + 1e-6


@pytest.mark.parametrize("relu", [False, True])
def test_numerical_gradient(relu: bool) -> None:
    norm = layer(3)
    assert torch.autograd.gradcheck(lambda x, *_: batch_norm(x, norm, relu), (maps(2, 3, 2, 3), norm.weight, norm.bias))


def test_any_memory_format() -> None:
    norm, x = layer(6), maps(3, 6, 4, 5)
    first = batch_norm(x, norm, True)
    second = batch_norm(x.contiguous(), norm, True)
    assert torch.equal(first, second)
    gradient = torch.randn(first.shape, dtype=first.dtype)
    for y in (first, second):
        a = torch.autograd.grad(y, x, gradient, retain_graph=True)[0]
        b = torch.autograd.grad(y, x, gradient.contiguous(memory_format=torch.channels_last), retain_graph=True)[0]
        assert torch.equal(a, b)


def test_not_a_number_stays() -> None:
    norm, x = layer(3), maps(2, 3, 2, 2).detach()
    x[0, 1, 0, 0] = torch.nan
    y = batch_norm(x.requires_grad_(), norm, True)
    assert y[:, 1].isnan().all()
    assert not y[:, (0, 2)].isnan().any()
    assert norm.running_mean is not None
    assert norm.running_mean.isnan().tolist() == [False, True, False]


def test_no_second_derivative() -> None:
    x = maps(2, 3, 2, 2)
    (first,) = torch.autograd.grad(batch_norm(x, layer(3), False).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()  # type: ignore[no-untyped-call]


class Subclass(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: (maps(2, 3, 4, 4), layer(3).eval()),
        lambda: (maps(2, 3, 4, 4), nn.BatchNorm2d(3, momentum=None, dtype=torch.float64)),
        lambda: (maps(2, 3, 4, 4), nn.BatchNorm2d(3, affine=False, dtype=torch.float64)),
        lambda: (maps(2, 3, 4, 4), nn.BatchNorm2d(3, track_running_stats=False, dtype=torch.float64)),
        lambda: (maps(2, 3, 4, 4), Subclass(3, dtype=torch.float64)),
        lambda: (maps(2, 3, 4, 4).bfloat16(), layer(3, torch.bfloat16)),
    ],
)
def test_torch_own_runs_where_the_kernel_would_differ(
    make: Callable[[], tuple[Tensor, nn.BatchNorm2d]], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, norm = make()
    other = copy.deepcopy(norm)
    monkeypatch.setattr(kernel, "forward", None)
    assert torch.equal(batch_norm(x, norm, True), torch_own(x, other, True))
    torch.testing.assert_close(norm.state_dict(), other.state_dict())


def test_one_pixel_has_no_variance() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm(maps(1, 3, 1, 1), layer(3), True)


@pytest.mark.slow
def test_compiles_to_torch_own() -> None:
    norm, x = layer(3), maps(2, 3, 4, 4)
    other = copy.deepcopy(norm)
    compiled = torch.compile(lambda x: batch_norm(x, norm, True), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), torch_own(x, other, True))
