"""Weights in Keras's and torch's order of channels: exactly what a grouped convolution and a loop give."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybrid_mobilenet
from hybrid_mobilenet import (
    convert_grouped_channels,
    convert_keras_depthwise,
    to_grouped_channels,
    to_keras_depthwise,
)
from hybrid_mobilenet.layers import keras
from hybrid_mobilenet.layers.depthwise import depthwise_convolution

shapes = pytest.mark.parametrize(
    ("kernel_size", "channels", "multiplier"), [((3, 3), 8, 2), ((3, 5), 3, 4), ((1, 1), 5, 1), ((2, 3), 1, 3)]
)


def integers(*shape: int) -> Tensor:
    """Whole numbers, whose products and sums are exact in any order."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(len(shape))).float()


def grouped_weight(kernel: Tensor) -> Tensor:
    """The weights of torch's grouped convolution, number by number from Keras's kernel."""
    height, width, channels, multiplier = kernel.shape
    weight = torch.empty(channels * multiplier, 1, height, width)
    for c in range(channels):
        for m in range(multiplier):
            weight[c * multiplier + m, 0] = kernel[:, :, c, m]
    return weight


@shapes
def test_keras_order_by_definition(kernel_size: tuple[int, int], channels: int, multiplier: int) -> None:
    # Keras: output c * multiplier + m is the correlation of channel c with kernel[:, :, c, m].
    kernel, x = integers(*kernel_size, channels, multiplier), integers(2, channels, 6, 7)
    height, width = (size - side + 1 for size, side in zip((6, 7), kernel_size, strict=True))
    expected = torch.zeros(2, channels * multiplier, height, width)
    for c in range(channels):
        for m in range(multiplier):
            for i in range(kernel_size[0]):
                for j in range(kernel_size[1]):
                    window = x[:, c, i : i + height, j : j + width]
                    expected[:, c * multiplier + m] += window * kernel[i, j, c, m]
    weight = convert_keras_depthwise(kernel)
    assert weight.shape == (channels * multiplier, 1, *kernel_size)
    assert weight.is_contiguous()
    ours = F.conv2d(torch.cat([x] * multiplier, 1), weight, groups=channels * multiplier)
    assert torch.equal(ours, convert_grouped_channels(expected, multiplier, dim=1))
    assert torch.equal(to_grouped_channels(ours, multiplier, dim=1), expected)
    assert torch.equal(F.conv2d(x, grouped_weight(kernel), groups=channels), expected)


@shapes
def test_keras_and_torch_weights_become_the_same(kernel_size: tuple[int, int], channels: int, multiplier: int) -> None:
    kernel = integers(*kernel_size, channels, multiplier)
    assert torch.equal(convert_keras_depthwise(kernel), convert_grouped_channels(grouped_weight(kernel), multiplier))


@shapes
def test_there_and_back(kernel_size: tuple[int, int], channels: int, multiplier: int) -> None:
    kernel = torch.rand(*kernel_size, channels, multiplier)
    weight = convert_keras_depthwise(kernel)
    back = to_keras_depthwise(weight, multiplier)
    assert torch.equal(back, kernel)
    assert back.is_contiguous()
    assert torch.equal(convert_keras_depthwise(back), weight)
    grouped = torch.rand(7, channels * multiplier, 2)
    for dim in (1, -2):
        ours = convert_grouped_channels(grouped, multiplier, dim)
        assert torch.equal(to_grouped_channels(ours, multiplier, dim), grouped)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_whole_block_computes_what_torchs_grouped_convolution_computes(stride: int) -> None:
    torch.manual_seed(0)
    channels, multiplier = 8, 4
    depthwise = nn.Conv2d(channels, channels * multiplier, 3, stride, padding=1, groups=channels, bias=False)
    norm = nn.BatchNorm2d(channels * multiplier, eps=1e-3).eval()
    pointwise = nn.Conv2d(channels * multiplier, 16, 1, bias=False)
    for vector in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert vector is not None
        nn.init.uniform_(vector, 0.5, 2)
    x = torch.rand(2, channels, 9, 9, requires_grad=True)  # with a gradient: the kernel of training
    expected = pointwise(norm(depthwise(x)).relu())

    state = {
        name: convert_grouped_channels(vector, multiplier) for name, vector in norm.state_dict().items() if vector.dim()
    }
    norm.load_state_dict(norm.state_dict() | state)
    weight = convert_grouped_channels(pointwise.weight, multiplier, dim=1)
    y = depthwise_convolution(x, convert_grouped_channels(depthwise.weight, multiplier), stride)
    torch.testing.assert_close(F.conv2d(norm(y).relu(), weight), expected, rtol=0, atol=1e-5)
    with pytest.raises(AssertionError):  # the order matters
        torch.testing.assert_close(pointwise(norm(y).relu()), expected, rtol=0, atol=1e-2)


def test_any_layout_in_memory() -> None:
    weight = torch.rand(6, 1, 3, 3)
    expected = to_keras_depthwise(weight, 2)
    spread = torch.rand(6, 2, 3, 3)[:, :1].copy_(weight)
    assert torch.equal(to_keras_depthwise(spread, 2), expected)
    assert torch.equal(to_keras_depthwise(weight.contiguous(memory_format=torch.channels_last), 2), expected)
    pointwise = torch.rand(4, 6, 1, 1).contiguous(memory_format=torch.channels_last)
    assert torch.equal(
        convert_grouped_channels(pointwise, 3, 1), convert_grouped_channels(pointwise.contiguous(), 3, 1)
    )


@pytest.mark.parametrize("shape", [(3, 3, 8), (16,), (1, 3, 3, 8, 2)], ids=str)
def test_a_kernel_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^kernel has shape .*, but must be \(kh, kw, C, delta\): take"):
        convert_keras_depthwise(torch.rand(shape))


@pytest.mark.parametrize("shape", [(16, 2, 3, 3), (16, 3, 3)], ids=str)
def test_weights_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^weight has shape .*, but must be \(C \* multiplier, 1, kh, kw\): take"):
        to_keras_depthwise(torch.rand(shape), 2)


@pytest.mark.parametrize("multiplier", [0, -1, 3])
@pytest.mark.parametrize("convert", [to_keras_depthwise, convert_grouped_channels, to_grouped_channels])
def test_a_multiplier_that_does_not_fit_is_refused(convert: Any, multiplier: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^multiplier is {multiplier}, but .* divide the 16 channels of dimension 0: use"
    ):
        convert(torch.rand(16, 1, 3, 3), multiplier)


def test_the_examples_in_the_docstrings() -> None:
    failed, attempted = doctest.testmod(keras)
    assert failed == 0
    assert attempted > 10
    assert {name for name in hybrid_mobilenet.__all__ if hasattr(keras, name)} == {
        "convert_grouped_channels", "convert_keras_depthwise", "to_grouped_channels", "to_keras_depthwise",
    }  # fmt: skip


def test_numpy_arrays_as_keras_gives_them() -> None:
    kernel, vector = torch.rand(3, 3, 4, 2), torch.arange(8)
    assert torch.equal(convert_keras_depthwise(kernel.numpy()), convert_keras_depthwise(kernel))
    assert torch.equal(convert_grouped_channels(vector.numpy(), 2), convert_grouped_channels(vector, 2))


def test_a_dimension_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="dim is 3, but the tensor has 1 dimensions"):
        convert_grouped_channels(torch.arange(6), 2, 3)
