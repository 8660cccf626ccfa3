"""A pointwise convolution with the normalisation before it: the kernel against torch's layers, and when it runs."""

from __future__ import annotations

import copy
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_mobilenet import HybridMobileNet, resolve
from hybrid_mobilenet.architecture import FAMILIES, Family
from hybrid_mobilenet.kernels import pointwise as kernel
from hybrid_mobilenet.pointwise import can_normalise, normalised_convolution

#: Images, rows and columns: one block of pixels, less than a tile's six, several blocks and a part of one.
SIZES = [(2, 1, 1), (1, 5, 1), (1, 12, 8), (3, 9, 11)]
CHANNELS = [(16, 16), (32, 16), (16, 48), (64, 32)]


def layers(channels: int, out_channels: int, dtype: torch.dtype = torch.float64) -> tuple[nn.BatchNorm2d, nn.Conv2d]:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels, eps=1e-3, dtype=dtype)
    nn.init.uniform_(norm.weight, -2, 2)
    nn.init.normal_(norm.bias)
    return norm, nn.Conv2d(channels, out_channels, 1, bias=False, dtype=dtype)


def maps(images: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Far from zero in the mean, where a sum of squares would lose its digits."""
    x = 3 * torch.randn(images, channels, height, width, dtype=dtype) + 10
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def torch_own(x: Tensor, norm: nn.BatchNorm2d, conv: nn.Conv2d) -> Tensor:
    return conv(F.relu(norm(x)))  # type: ignore[no-any-return]


def gradients(y: Tensor, x: Tensor, norm: nn.BatchNorm2d, conv: nn.Conv2d, gradient: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, (x, norm.weight, norm.bias, conv.weight), gradient)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_equal_to_torch(size: tuple[int, int, int], channels: tuple[int, int]) -> None:
    layer, x = layers(*channels), maps(size[0], channels[0], *size[1:])
    other = copy.deepcopy(layer)
    assert can_normalise(x, *layer)
    for _ in range(2):  # the running statistics of two batches
        ours, theirs = normalised_convolution(x, *layer), torch_own(x, *other)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(layer[0].state_dict(), other[0].state_dict())
    gradient = torch.randn_like(theirs)
    found, expected = gradients(ours, x, *layer, gradient), gradients(theirs, x, *other, gradient)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_float32_is_as_precise_as_torch() -> None:
    layer, x = layers(32, 64, torch.float32), maps(64, 32, 22, 22, torch.float32)
    other, (norm, conv) = copy.deepcopy(layer), copy.deepcopy(layer)
    exact = norm.double(), conv.double()
    wide = x.detach().double().requires_grad_()
    ideal = torch_own(wide, *exact)
    gradient = torch.randn(ideal.shape).contiguous(memory_format=torch.channels_last)
    expected = (ideal.detach(), *gradients(ideal, wide, *exact, gradient.double()))

    def worst(y: Tensor, layer: tuple[nn.BatchNorm2d, nn.Conv2d]) -> list[float]:
        found = (y.detach(), *gradients(y, x, *layer, gradient))
        return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]

    for ours, theirs in zip(
        worst(normalised_convolution(x, *layer), layer), worst(torch_own(x, *other), other), strict=True
    ):
        assert ours <= 2 * theirs + 1e-6


def test_numerical_gradient() -> None:
    norm, conv = layers(16, 16)
    assert torch.autograd.gradcheck(
        lambda x, *_: normalised_convolution(x, norm, conv), (maps(1, 16, 3, 3), norm.weight, norm.bias, conv.weight)
    )


def test_any_memory_format() -> None:
    (norm, conv), x = layers(16, 32), maps(3, 16, 4, 5)
    first, second = (normalised_convolution(each, norm, conv) for each in (x, x.contiguous()))
    assert torch.equal(first, second)
    gradient = torch.randn(first.shape, dtype=first.dtype)
    last = gradient.contiguous(memory_format=torch.channels_last)
    for a, b in zip(gradients(first, x, norm, conv, gradient), gradients(second, x, norm, conv, last), strict=True):
        assert torch.equal(a, b)


def test_nan_stays_where_it_is() -> None:
    (norm, conv), x = layers(16, 16), maps(2, 16, 3, 3)
    with torch.no_grad():
        x[0, 3] = torch.nan
    assert normalised_convolution(x, norm, conv).isnan().all()  # every output sums this channel


@pytest.mark.parametrize("channels", [(8, 16), (16, 24)])
def test_other_numbers_of_channels_are_torch_s(channels: tuple[int, int]) -> None:
    assert not can_normalise(maps(2, channels[0], 3, 3), *layers(*channels))


def test_it_is_for_training_on_the_cpu() -> None:
    x, (norm, conv) = maps(2, 16, 3, 3), layers(16, 16)
    assert can_normalise(x, norm, conv)
    assert not can_normalise(x.float(), norm, conv)
    assert not can_normalise(maps(1, 16, 1, 1), norm, conv)  # torch says what is wrong with one pixel
    assert not can_normalise(x, norm, nn.Conv2d(16, 16, 1).double())  # a bias
    assert not can_normalise(x, norm, nn.Conv2d(16, 16, 3, bias=False).double())
    with torch.no_grad():
        assert not can_normalise(x, norm, conv)
    assert not can_normalise(x, norm.eval(), conv)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_trains_as_with_torch_s_layers(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    forward = Mock(side_effect=kernel.forward)
    monkeypatch.setattr(kernel, "forward", forward)
    for ours in (True, False):
        torch.manual_seed(0)
        model = HybridMobileNet(resolve(family, 0.5, 2, image_size=16), dropout=0).double()
        if not ours:
            monkeypatch.setattr("hybrid_mobilenet.model.can_normalise", lambda *_: False)
        torch.manual_seed(1)  # the same pooling regions
        logits = model(torch.rand(3, 3, 16, 16, dtype=torch.float64))
        logits.square().sum().backward()
        results.append((logits, model.state_dict(), [parameter.grad for parameter in model.parameters()]))
    assert forward.call_count == sum(layer.kind == "pointwise" for layer in model.network.layers)
    torch.testing.assert_close(*results)
