"""The blocks of the networks: the first convolution, and the depthwise-separable block.

Faster functions replace the parts of a block as long as these are unchanged. A part with a hook or a
parametrisation, a pruned part, and a substituted module are called as modules, and the fast paths that would skip
the call are not taken. Hooks on a whole block are unaffected: its input and output are the same either way.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.batch_norm import batch_norm
from ..layers.depthwise import depthwise_convolution, is_depthwise, repeat_channels
from ..layers.fast_path import is_plain
from ..layers.pointwise import can_fuse, fused_convolution, pointwise_convolution
from .architecture import Activation, Layer

#: Keras's epsilon. Larger than PyTorch's 1e-5, it limits the amplification of channels with little variance.
BATCH_NORM_EPSILON = 1e-3

#: Not in place, because hooks on the gradients of the normalisation would not work.
ACTIVATIONS: dict[Activation, type[nn.ReLU | nn.ReLU6]] = {"relu": nn.ReLU, "relu6": nn.ReLU6}


class ConvolutionBlock(nn.Module):
    """A standard convolution without bias, batch normalisation, activation.

    Padding is PyTorch's, one pixel on every side. TensorFlow's "same" pads only bottom and right at stride 2 on even
    sizes: the maps are as large, and shifted by one pixel.

    Args:
        layer: the resolved convolution.
        activation: "relu" or "relu6".

    Shape:
        - Input: (N, C, H, W).
        - Output: (N, C_out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, layer: Layer, activation: Activation) -> None:
        super().__init__()
        self.conv = _convolution(layer)
        self.norm = nn.BatchNorm2d(layer.out_channels, BATCH_NORM_EPSILON)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        return _normalised(self.conv(x), self.norm, self.activation)

    def convolutions(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Each convolution of the block with the batch normalisation that follows it."""
        return [(self.conv, self.norm)]


class DepthwiseSeparableBlock(nn.Module):
    """The paper's unit: depthwise and pointwise convolution, each with batch normalisation and activation.

    With a depth multiplier `delta`, output ``m * C + c`` of the depthwise convolution is the m-th map of input channel
    c, and `depthwise` is a plain depthwise convolution over the input channels repeated `delta` times. Keras and
    PyTorch's grouped convolutions put that map at ``c * delta + m``.

    In training on a CPU, one kernel reads what the depthwise convolution has written, normalises and activates it, and
    convolves it pointwise (`layers.pointwise.fused_convolution`). Padding is as in `ConvolutionBlock`.

    Args:
        depthwise: the resolved depthwise layer.
        pointwise: the resolved pointwise layer after it.
        activation: "relu" or "relu6".

    Shape:
        - Input: (N, C, H, W).
        - Output: (N, C_out, ceil(H / stride), ceil(W / stride)).

    Source: Chen and Su (2018), section III.A.
    """

    def __init__(self, depthwise: Layer, pointwise: Layer, activation: Activation) -> None:
        super().__init__()
        self.delta = depthwise.out_channels // depthwise.in_channels
        self.depthwise = _convolution(depthwise)
        self.depthwise_norm = nn.BatchNorm2d(depthwise.out_channels, BATCH_NORM_EPSILON)
        self.depthwise_activation = ACTIVATIONS[activation]()
        self.pointwise = _convolution(pointwise)
        self.pointwise_norm = nn.BatchNorm2d(pointwise.out_channels, BATCH_NORM_EPSILON)
        self.pointwise_activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        x = self._convolved_depthwise(x)
        if self._is_fused(x):
            return fused_convolution(x, self.depthwise_norm, self.pointwise, self.pointwise_norm)
        x = _normalised(x, self.depthwise_norm, self.depthwise_activation)
        x = pointwise_convolution(x, self.pointwise)
        return _normalised(x, self.pointwise_norm, self.pointwise_activation)

    def convolutions(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Each convolution of the block with the batch normalisation that follows it."""
        return [(self.depthwise, self.depthwise_norm), (self.pointwise, self.pointwise_norm)]

    def _convolved_depthwise(self, x: Tensor) -> Tensor:
        conv = self.depthwise
        if is_depthwise(conv) and conv.in_channels == self.delta * x.shape[1]:
            return depthwise_convolution(x, conv.weight, conv.stride[0])
        return cast(Tensor, conv(repeat_channels(x, self.delta)))

    def _is_fused(self, x: Tensor) -> bool:
        """Whether one kernel may take all that follows the depthwise convolution."""
        return (
            self.training
            and x.is_cpu
            and is_plain(self.depthwise_activation, nn.ReLU)
            and is_plain(self.pointwise_activation, nn.ReLU)
            and can_fuse(x, self.depthwise_norm, self.pointwise, self.pointwise_norm)
        )


def _convolution(layer: Layer) -> nn.Conv2d:
    depthwise = layer.kind == "depthwise"
    return nn.Conv2d(
        layer.out_channels if depthwise else layer.in_channels,  # depthwise: over repeated channels
        layer.out_channels,
        layer.kernel,
        layer.stride,
        padding=layer.kernel // 2,
        groups=layer.out_channels if depthwise else 1,
        bias=False,
    )


def _normalised(x: Tensor, norm: nn.BatchNorm2d, activation: nn.Module) -> Tensor:
    if is_plain(activation, nn.ReLU):
        return batch_norm(x, norm, relu=True)
    x = batch_norm(x, norm, relu=False)
    if is_plain(activation, nn.ReLU6) and is_plain(norm, nn.BatchNorm2d):
        return F.relu6(x, inplace=True)
    return cast(Tensor, activation(x))
