"""ONNX in int8: the graph of `onnx`, its maps in 8 bits unsigned, its weights in 8 bits signed, per output channel.

The maps are integers throughout. Where a convolution or a matrix product computes, its inputs are written as
dequantised and its result as quantised again (QDQ): ONNX Runtime fuses that to integer arithmetic. Pooling, gathering
and repeating channels need no arithmetic, and act on the integers. An activation is the rounding itself: it saturates
at 0 and at the largest value. Biases stay float32, which ONNX Runtime rounds when it loads the file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..common.files import write_atomically
from ..network.model import HybridMobileNet
from .check import Parity, int8_parity
from .deployed import Average, Deployed, GridMaxPool, Normalise, metadata
from .onnx import Graph, onnx_model
from .quantise import maxima
from .runtimes import OnnxClassifier

#: Largest weight. Without VNNI, processors add two products of a map and a weight in 16 bits, which 2 * 255 * 127 would
#: overflow (1.8 points of CIFAR-10 accuracy); depthwise convolutions add in 32 bits.
WEIGHT_BOUND, DEPTHWISE_BOUND = 64, 127


def export_onnx_int8(model: HybridMobileNet, path: Path, calibration: Tensor, images: Tensor | None = None) -> Parity:
    """Write a model as ONNX in int8, after running it in ONNX Runtime.

    Args:
        model: the model.
        path: the file.
        calibration: uint8 (n, C, H, W), training images that the ranges of the maps are taken from.
        images: as for `export_onnx`.

    Raises:
        ExportError: where the results have little to do with the model's; no file is written then.
        OSError: where the file cannot be written.
    """
    deployed = Deployed(model)
    graph = Int8Graph(maxima(deployed, calibration))
    content: bytes = onnx_model(deployed, metadata(model), graph).SerializeToString()
    parity = int8_parity(model, OnnxClassifier(content), images)
    write_atomically(path, content)
    return parity


class Int8Graph(Graph):
    """The graph in int8.

    Args:
        largest: the largest value after each activation, by its name.
    """

    def __init__(self, largest: dict[str, float]) -> None:
        super().__init__()
        self.largest = largest
        # Of the maps at hand: the names of scale and zero point.
        self.map_quantisation: list[str] = []

    def add_step(self, name: str, step: nn.Module, x: str) -> str:
        match step:
            case Normalise():
                x = self.add_centring(name, step, x)
                # Bytes less their mean: a step of one grey level, or hardly more.
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
                # The bias is rounded here: ONNX Runtime does it only where the result is rounded too.
                scales = self.value(self.map_quantisation[0]) * self.value(f"{name}.wscale")
                rounded = np.rint(step.bias.numpy() / scales).clip(-(2**31), 2**31 - 1).astype(np.int32)
                inputs = [self.constant(f"{name}.bias", rounded), self.constant(f"{name}.bscale", scales)]
                bias = self.add("DequantizeLinear", f"{name}.b", inputs, axis=0)
                return self.add("Gemm", "logits", [x, weight, bias], transB=1)
            case _:
                return super().add_step(name, step, x)

    def add_fractional_pooling(self, name: str, step: GridMaxPool, x: str) -> str:
        """The maximum of each region's rows, then of its columns; `ReduceMax` is slow on integers."""
        x = self.add("Transpose", f"{name}.nhwc", [x], perm=[0, 2, 3, 1])
        x = self._maximum(f"{name}.rows", step.rows, step.window, x, axis=1)
        x = self._maximum(f"{name}.columns", step.columns, step.window, x, axis=2)
        return self.add("Transpose", name, [x], perm=[0, 3, 1, 2])

    def _maximum(self, name: str, pixels: Tensor, window: int, x: str, axis: int) -> str:
        """The maximum of each region's first, second, ... rows or columns; `pixels` as in `GridMaxPool`."""
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
        # ONNX Runtime fuses Gemm only where a zero point is written down.
        inputs = [
            self.constant(f"{name}.weight", rounded.to(torch.int8).numpy()),
            self.constant(f"{name}.wscale", scale.numpy()),
            self.constant(f"wzero{len(scale)}", np.zeros(len(scale), np.int8)),
        ]
        return self.add("DequantizeLinear", f"{name}.w", inputs, axis=0)
