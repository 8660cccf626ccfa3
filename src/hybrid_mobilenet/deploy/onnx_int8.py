"""ONNX in int8: the graph of `onnx` with unsigned 8-bit maps and signed 8-bit weights, one scale per output channel.

All maps are integers. The inputs of a convolution or matrix product are dequantised and its result is quantised (QDQ);
ONNX Runtime fuses this to integer arithmetic. Pooling, gathering and repeating channels need no arithmetic and act on
the integers. The activation is part of the quantisation, which saturates at 0 and at the largest value. Biases are
stored in float32; ONNX Runtime rounds them when it loads the file.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..network.model import HybridMobileNet
from .calibration import activation_maxima
from .deployed import Average, Deployed, GridMaxPool, Normalise, metadata
from .onnx import Graph, onnx_model

#: Largest absolute weight. Without VNNI, x86 processors add two products in 16 bits, and 2 * 255 * 127 would overflow:
#: that cost 1.8 points of CIFAR-10 accuracy. Depthwise convolutions add in 32 bits.
WEIGHT_BOUND, DEPTHWISE_BOUND = 64, 127


def onnx_int8_bytes(model: HybridMobileNet, calibration: Tensor) -> bytes:
    """The int8 ONNX file of a model.

    Args:
        model: the model.
        calibration: uint8 (n, C, H, W), training images, for the ranges of the feature maps.
    """
    deployed = Deployed(model)
    graph = Int8Graph(activation_maxima(deployed, calibration))
    result: bytes = onnx_model(deployed, metadata(model), graph).SerializeToString()
    return result


class Int8Graph(Graph):
    """The graph in int8.

    Args:
        largest: the largest output of each activation, by its name.
    """

    def __init__(self, largest: dict[str, float]) -> None:
        super().__init__()
        self.largest = largest
        # Names of scale and zero point of the current maps.
        self.map_quantisation: list[str] = []

    def add_step(self, name: str, step: nn.Module, x: str) -> str:
        match step:
            case Normalise():
                x = self.add_centring(name, step, x)
                # Bytes minus their mean: the scale is one grey level or slightly more.
                low, high = min(-step.mean.max().item(), 0.0), max(255 - step.mean.min().item(), 0.0)
                scale = (high - low) / 255
                return self._quantise(name, x, scale, round(-low / scale))
            case nn.Conv2d():
                weight = self._weight(name, step.weight, DEPTHWISE_BOUND if step.groups > 1 else WEIGHT_BOUND)
                return self.add_convolution(name, step, self._dequantise(name, x), weight)
            case nn.ReLU() | nn.ReLU6():
                return self._quantise(name, x, self.largest[name] / 255, 0)
            case Average():
                if step.pixels > 1:
                    x = self.add("GlobalAveragePool", f"{name}.pool", [self._dequantise(name, x)])
                    x = self.add("QuantizeLinear", f"{name}.q", [x, *self.map_quantisation])
                return self.add("Flatten", name, [x], axis=1)
            case nn.Linear():
                weight = self._weight(name, step.weight, WEIGHT_BOUND)
                x = self._dequantise(name, x)
                # Round the bias here: ONNX Runtime rounds it only where the result is quantised too.
                scales = self.value(self.map_quantisation[0]) * self.value(f"{name}.wscale")
                rounded = np.rint(step.bias.numpy() / scales).clip(-(2**31), 2**31 - 1).astype(np.int32)
                inputs = [self.constant(f"{name}.bias", rounded), self.constant(f"{name}.bscale", scales)]
                bias = self.add("DequantizeLinear", f"{name}.b", inputs, axis=0)
                return self.add("Gemm", "logits", [x, weight, bias], transB=1)
            case _:
                return super().add_step(name, step, x)

    def add_fractional_pooling(self, name: str, step: GridMaxPool, x: str) -> str:
        """The maximum over the rows of each region, then over its columns; `ReduceMax` is slow on integers."""
        x = self.add("Transpose", f"{name}.nhwc", [x], perm=[0, 2, 3, 1])
        x = self._maximum(f"{name}.rows", step.rows, step.window, x, axis=1)
        x = self._maximum(f"{name}.columns", step.columns, step.window, x, axis=2)
        return self.add("Transpose", name, [x], perm=[0, 3, 1, 2])

    def _maximum(self, name: str, pixels: Tensor, window: int, x: str, axis: int) -> str:
        """The maximum of the first, second, ... row or column of each region; `pixels` as in `GridMaxPool`."""
        parts = [
            self.add("Gather", f"{name}{place}", [x, self.constant(f"{name}{place}.of", each.int().numpy())], axis=axis)
            for place, each in enumerate(pixels.view(-1, window).unbind(1))
        ]
        return self.add("Max", name, parts)

    def _quantise(self, name: str, x: str, scale: float, zero: int) -> str:
        self.map_quantisation = [
            self.constant(f"{name}.scale", np.array(scale or 1, np.float32)),
            self.constant(f"zero{zero}", np.array(zero, np.uint8)),
        ]
        return self.add("QuantizeLinear", name, [x, *self.map_quantisation])

    def _dequantise(self, name: str, x: str) -> str:
        return self.add("DequantizeLinear", f"{name}.in", [x, *self.map_quantisation])

    def _weight(self, name: str, weight: Tensor, bound: int) -> str:
        scale = weight.abs().flatten(1).amax(1) / bound
        scale[scale == 0] = 1
        rounded = (weight / scale.view(-1, *[1] * (weight.dim() - 1))).round()
        # ONNX Runtime fuses Gemm only if the zero point is explicit.
        inputs = [
            self.constant(f"{name}.weight", rounded.to(torch.int8).numpy()),
            self.constant(f"{name}.wscale", scale.numpy()),
            self.constant(f"wzero{len(scale)}", np.zeros(len(scale), np.int8)),
        ]
        return self.add("DequantizeLinear", f"{name}.w", inputs, axis=0)
