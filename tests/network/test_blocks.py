"""The blocks: compared, in whole numbers, to the same functions written otherwise."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_mobilenet.network.architecture import Activation, Layer
from hybrid_mobilenet.network.blocks import ConvolutionBlock, DepthwiseSeparableBlock


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def whole_numbers(*shape: int) -> Tensor:
    """Small integers as floats: their sums and products are exact in any order."""
    return torch.randint(-8, 9, shape).float()


def separable(
    channels: int,
    out_channels: int,
    size: tuple[int, int],
    *,
    delta: int = 1,
    stride: int = 1,
    activation: Activation = "relu",
) -> DepthwiseSeparableBlock:
    """A block in eval(), with whole weights."""
    height, width = size
    out = -(-height // stride), -(-width // stride)
    depthwise = Layer("block1_depthwise", "depthwise", channels, channels * delta, size, out, 3, stride)
    pointwise = Layer("block1_pointwise", "pointwise", channels * delta, out_channels, out, out)
    block = DepthwiseSeparableBlock(depthwise, pointwise, activation).eval()
    with torch.no_grad():
        for conv, _ in block.convolutions():
            conv.weight.copy_(whole_numbers(*conv.weight.shape))
    return block


def without_normalisation(block: DepthwiseSeparableBlock) -> DepthwiseSeparableBlock:
    """Its sums may run in another order: without it, equality is exact."""
    for part in ("depthwise_norm", "pointwise_norm"):
        block.set_submodule(part, nn.Identity())
    return block


def test_the_parts_are_plainly_named_and_in_order() -> None:
    block = separable(4, 8, (6, 6))
    assert [(name, type(part)) for name, part in block.named_children()] == [
        ("depthwise", nn.Conv2d),
        ("depthwise_norm", nn.BatchNorm2d),
        ("depthwise_activation", nn.ReLU),
        ("pointwise", nn.Conv2d),
        ("pointwise_norm", nn.BatchNorm2d),
        ("pointwise_activation", nn.ReLU),
    ]
    first = ConvolutionBlock(Layer("conv", "convolution", 3, 8, (6, 6), (3, 3), 3, 2), "relu6")
    assert [(name, type(part)) for name, part in first.named_children()] == [
        ("conv", nn.Conv2d),
        ("norm", nn.BatchNorm2d),
        ("activation", nn.ReLU6),
    ]


@pytest.mark.parametrize("delta", [1, 2, 3])
def test_delta_by_repeated_channels_is_a_grouped_convolution(delta: int) -> None:
    channels = 5
    block = without_normalisation(separable(channels, 7, (6, 7), delta=delta, stride=2))
    x = whole_numbers(2, channels, 6, 7)
    # Grouped convolution puts map m of channel c at c * delta + m, we put it at m * C + c.
    ours = torch.arange(channels * delta).view(delta, channels).t().reshape(-1)
    with torch.no_grad():
        maps = F.relu(F.conv2d(x, block.depthwise.weight[ours], stride=2, padding=1, groups=channels))
        expected = F.relu(F.conv2d(maps, block.pointwise.weight[:, ours]))
        assert torch.equal(block(x), expected)
    assert expected.any()


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (4, 1), (2, 3), (5, 5)])
@pytest.mark.parametrize("training", [False, True])
def test_a_block_is_its_convolutions_however_it_runs(size: tuple[int, int], training: bool) -> None:
    block = separable(6, 9, size).train(training)
    x = whole_numbers(3, 6, *size).contiguous(memory_format=torch.channels_last)
    norms = [nn.BatchNorm2d(channels, eps=1e-3).train(training) for channels in (6, 9)]
    with torch.no_grad():
        maps = F.conv2d(x, block.depthwise.weight, padding=1, groups=6)
        expected = F.relu(norms[1](F.conv2d(F.relu(norms[0](maps)), block.pointwise.weight)))
        torch.testing.assert_close(block(x), expected, rtol=1e-6, atol=1e-6)
        without_normalisation(block)
        assert torch.equal(block(x), F.relu(F.conv2d(F.relu(maps), block.pointwise.weight)))


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
@pytest.mark.parametrize("kind", ["convolution", "depthwise"])
def test_a_strided_convolution_is_centred_on_even_pixels(size: tuple[int, int], kind: str) -> None:
    # Padding of one pixel on every side; TensorFlow's "same" would centre on odd pixels where the size is even.
    height, width = size
    x = torch.arange(1.0, height * width + 1).view(1, 1, height, width)
    with torch.no_grad():
        if kind == "depthwise":
            block: nn.Module = without_normalisation(separable(1, 1, size, stride=2))
            block.get_parameter("pointwise.weight").fill_(1)
        else:
            layer = Layer("conv", "convolution", 1, 1, size, (-(-height // 2), -(-width // 2)), 3, 2)
            block = ConvolutionBlock(layer, "relu").eval()
            block.set_submodule("norm", nn.Identity())
        weight = block.get_parameter("depthwise.weight" if kind == "depthwise" else "conv.weight")
        weight.zero_()
        weight[:, :, 1, 1] = 1
        assert torch.equal(block(x), x[:, :, ::2, ::2])


def test_relu6_clips_at_6() -> None:
    layer = Layer("conv", "convolution", 1, 1, (4, 4), (4, 4), 3)
    relu, relu6 = (ConvolutionBlock(layer, activation).eval() for activation in get_args(Activation))
    relu6.load_state_dict(relu.state_dict())
    x = 100 * torch.randn(2, 1, 4, 4)
    with torch.no_grad():
        assert relu(x).max() > 6
        assert relu6(x).max() == 6
        assert torch.equal(relu(x).clamp(max=6), relu6(x))


def test_relu6_clips_at_6_twice_in_a_separable_block() -> None:
    relu, relu6 = (separable(4, 4, (4, 4), activation=activation) for activation in get_args(Activation))
    relu6.load_state_dict(relu.state_dict())
    x = 100 * torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        maps = relu.depthwise_norm(relu.depthwise(x)).clamp(0, 6)
        expected = relu.pointwise_norm(relu.pointwise(maps)).clamp(0, 6)
        torch.testing.assert_close(relu6(x), expected)
        assert not torch.allclose(relu(x).clamp(max=6), expected)
