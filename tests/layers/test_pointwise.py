"""Pointwise convolution, alone and between two normalisations: against torch's layers, and when which one runs."""

from __future__ import annotations

import copy
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.layers.kernels.cpu import pointwise as kernel
from hybrid_mobilenet.layers.pointwise import can_fuse, fused_convolution, pointwise_convolution
from hybrid_mobilenet.network.architecture import FAMILIES, Activation, Family
from processes import run_python

#: Images, rows and columns: less than the rows of a tile, one block of pixels, several blocks and a part of one.
SIZES = [(2, 1, 1), (1, 5, 1), (1, 12, 8), (3, 9, 11)]
CHANNELS = [(16, 16), (32, 16), (16, 48), (64, 32)]


class Layers(nn.Sequential):
    """What the kernel does, as torch's layers."""

    def __init__(self, channels: int, out_channels: int, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        before, after = (nn.BatchNorm2d(count, eps=1e-3) for count in (channels, out_channels))
        for norm in (before, after):
            nn.init.uniform_(norm.weight, -2, 2)
            nn.init.normal_(norm.bias)
        conv = nn.Conv2d(channels, out_channels, 1, bias=False)
        super().__init__(before, nn.ReLU(), conv, after, nn.ReLU())
        self.fused = before, conv, after
        self.to(dtype)

    def gradients(self, y: Tensor, x: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, (x, *self.parameters()), gradient)


def maps(images: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Far from zero in the mean, where a sum of squares would lose its digits."""
    x = 3 * torch.randn(images, channels, height, width, dtype=dtype) + 10
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def whole_numbers(*shape: int) -> Tensor:
    """Small integers as floats: their sums and products are exact in any order."""
    return torch.randint(-8, 9, shape).float()


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (4, 1), (2, 3), (5, 5), (6, 6)])
def test_alone_it_is_a_1x1_convolution_however_it_runs(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 9, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(whole_numbers(9, 6, 1, 1))
    x = whole_numbers(3, 6, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.no_grad():
        assert torch.equal(pointwise_convolution(x, conv), F.conv2d(x, conv.weight))
    F.relu(pointwise_convolution(x, conv)).square().sum().backward()  # type: ignore[no-untyped-call]
    other = x.detach().clone().requires_grad_()
    weight = conv.weight.detach().clone().requires_grad_()
    F.relu(F.conv2d(other, weight)).square().sum().backward()  # type: ignore[no-untyped-call]
    for ours, theirs in ((x.grad, other.grad), (conv.weight.grad, weight.grad)):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)
        assert ours.any()


def test_alone_it_is_a_matrix_product_of_small_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = Mock(wraps=F.linear)
    monkeypatch.setattr(F, "linear", linear)
    pointwise_convolution(torch.rand(2, 6, 2, 2), nn.Conv2d(6, 9, 1, bias=False))
    assert linear.call_count == 1
    pointwise_convolution(torch.rand(2, 6, 2, 3), nn.Conv2d(6, 9, 1, bias=False))
    pointwise_convolution(torch.rand(2, 6, 2, 2), nn.Conv2d(6, 9, 1))  # a bias
    assert linear.call_count == 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_equal_to_torch(size: tuple[int, int, int], channels: tuple[int, int]) -> None:
    layers, x = Layers(*channels), maps(size[0], channels[0], *size[1:])
    other = copy.deepcopy(layers)
    assert can_fuse(x, *layers.fused)
    for _ in range(2):  # the running statistics of two batches
        ours, theirs = fused_convolution(x, *layers.fused), other(x)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(layers.state_dict(), other.state_dict())
    gradient = torch.randn_like(theirs)
    found, expected = layers.gradients(ours, x, gradient), other.gradients(theirs, x, gradient)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_float32_is_as_precise_as_torch() -> None:
    layers, x = Layers(32, 64, torch.float32), maps(64, 32, 22, 22, torch.float32)
    other, exact = copy.deepcopy(layers), copy.deepcopy(layers).double()
    wide = x.detach().double().requires_grad_()
    ideal = exact(wide)
    gradient = torch.randn(ideal.shape).contiguous(memory_format=torch.channels_last)
    expected = ideal.detach(), *exact.gradients(ideal, wide, gradient.double())

    def errors(y: Tensor, layers: Layers) -> list[float]:
        found = y.detach(), *layers.gradients(y, x, gradient)
        return [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]

    for ours, theirs in zip(errors(fused_convolution(x, *layers.fused), layers), errors(other(x), other), strict=True):
        assert ours <= 2 * theirs + 1e-6


def test_numerical_gradient() -> None:
    layers = Layers(16, 16)
    inputs = maps(1, 16, 3, 3), *layers.parameters()
    assert torch.autograd.gradcheck(lambda x, *_: fused_convolution(x, *layers.fused), inputs)


def test_any_memory_format() -> None:
    layers, x = Layers(16, 32), maps(3, 16, 4, 5)
    first, second = (fused_convolution(each, *layers.fused) for each in (x, x.contiguous()))
    assert torch.equal(first, second)
    gradient = torch.randn(first.shape, dtype=first.dtype)
    last = gradient.contiguous(memory_format=torch.channels_last)
    for a, b in zip(layers.gradients(first, x, gradient), layers.gradients(second, x, last), strict=True):
        assert torch.equal(a, b)


def test_nan_stays() -> None:
    layers, x = Layers(16, 16), maps(2, 16, 3, 3)
    with torch.no_grad():
        x[0, 3] = torch.nan
    assert fused_convolution(x, *layers.fused).isnan().all()  # every output sums this channel


@pytest.mark.parametrize("channels", [(8, 16), (16, 24)])
def test_other_numbers_of_channels_are_torch_s(channels: tuple[int, int]) -> None:
    assert not can_fuse(maps(2, channels[0], 3, 3), *Layers(*channels).fused)


def test_it_is_for_training_on_the_cpu() -> None:
    x, (before, conv, after) = maps(2, 16, 3, 3), Layers(16, 16).fused
    assert can_fuse(x, before, conv, after)
    assert not can_fuse(x.float(), before, conv, after)
    assert not can_fuse(maps(1, 16, 1, 1), before, conv, after)  # torch says what is wrong with one pixel
    assert not can_fuse(x, before, nn.Conv2d(16, 16, 1).double(), after)  # a bias
    assert not can_fuse(x, before, nn.Conv2d(16, 16, 3, bias=False).double(), after)
    with torch.no_grad():
        assert not can_fuse(x, before, conv, after)
    assert not can_fuse(x, before, conv, copy.deepcopy(after).eval())
    assert not can_fuse(x, copy.deepcopy(before).eval(), conv, after)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_trains_as_with_torch_s_layers(
    family: Family, activation: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    forward = Mock(side_effect=kernel.forward)
    monkeypatch.setattr(kernel, "forward", forward)
    for ours in (True, False):
        torch.manual_seed(0)
        model = HybridMobileNet(family, 0.5, 2, image_size=16, dropout=0, activation=activation).double()
        if not ours:
            monkeypatch.setattr("hybrid_mobilenet.network.blocks.can_fuse", lambda *_: False)
        torch.manual_seed(1)  # the same pooling regions
        logits = model(torch.rand(3, 3, 16, 16, dtype=torch.float64))
        logits.square().sum().backward()
        results.append((logits, model.state_dict(), [parameter.grad for parameter in model.parameters()]))
    pointwise = sum(layer.kind == "pointwise" for layer in model.network.layers)
    assert forward.call_count == (pointwise if activation == "relu" else 0)
    torch.testing.assert_close(*results)


@pytest.mark.slow
def test_compiled_anew_or_from_the_cache_it_gives_the_same_bits(tmp_path: Path) -> None:
    # Or else a run that is resumed would end with other weights than one that was not interrupted.
    script = (
        "import torch; from hybrid_mobilenet.layers.kernels.cpu.batch_norm import Norm; "
        "from hybrid_mobilenet.layers.kernels.cpu.pointwise import backward, forward; "
        "norm = lambda count: Norm(*(torch.rand(count) for _ in range(4)), 0.1, 0.001); torch.manual_seed(0); "
        "x = torch.randn(3, 32, 9, 11).contiguous(memory_format=torch.channels_last); weight = torch.randn(64, 32); "
        "y, *rest = forward(x, norm(32), weight, norm(64)); "
        "print(*(each.double().sum().item() for each in (y, *rest, *backward(y, x, weight, *rest))))"
    )
    first, second = (run_python("-c", script, environment={"NUMBA_CACHE_DIR": str(tmp_path)}) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert list(tmp_path.rglob("*.nbc"))
    assert first.stdout == second.stdout != ""
