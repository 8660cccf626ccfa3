"""ONNX: a graph with nodes named after the network's layers.

The graph takes `images`, uint8 (N, H, W, C), RGB or grey, 0..255, any N, and returns `logits` and `probabilities`,
float32 (N, classes). Class names and preprocessing are in the file's metadata_props.

The graph is built with onnx's helpers from the deployed steps. Tracing it with torch.onnx takes seconds instead of
milliseconds.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ..network.model import HybridMobileNet
from .deployed import Average, Deployed, ExportError, GridMaxPool, Normalise, Repeat, metadata

#: Supported by every ONNX Runtime of recent years, and new enough for per-channel quantisation.
OPSET, IR_VERSION = 17, 8

#: Up to this number of gathered pixels, a single Gather is the fastest form of fractional max pooling.
SMALL_GRID = 144

#: Largest number of channels in a block of ONNX Runtime's blocked layout (NCHWc).
BLOCK = 16


def onnx_bytes(model: HybridMobileNet) -> bytes:
    """The ONNX file of a model; fractional max pooling uses the fixed regions of eval()."""
    result: bytes = onnx_model(Deployed(model), metadata(model), Graph()).SerializeToString()
    return result


def onnx_model(deployed: Deployed, properties: dict[str, str], graph: Graph) -> onnx.ModelProto:
    """The deployed network as an ONNX model.

    Args:
        deployed: the network.
        properties: metadata of the file.
        graph: an empty graph: `Graph` for float32, or a subclass for another precision.
    """
    network = deployed.network
    current = "images"
    for name, step in deployed.steps.named_children():
        current = graph.add_step(name, step, current)
    graph.add("Softmax", "probabilities", [current], axis=1)
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *network.image_size, network.in_channels])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", network.classes])
        for name in ("logits", "probabilities")
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "hybrid_mobilenet", [images], outputs, [*graph.constants.values()]),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name=properties["producer"],
        producer_version=properties["version"],
    )
    helper.set_model_props(model, properties)
    onnx.checker.check_model(model)
    return model


class Graph:
    """Nodes and constants in order. Every node is named after its output, and every output after its layer."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, kind: str, output: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Add a constant, unless one of that name exists, and return its name."""
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def value(self, name: str) -> NDArray[np.float32]:
        """The value of a floating-point constant."""
        return numpy_helper.to_array(self.constants[name]).astype(np.float32)

    def add_step(self, name: str, step: nn.Module, x: str) -> str:
        """Add the nodes of a step on the maps x and return the name of its result."""
        match step:
            case Normalise():
                return self.add_centring(name, step, x)
            case Repeat():
                return self.add("Concat", name, [x] * step.copies, axis=1)
            case nn.Conv2d():
                return self.add_convolution(name, step, x, self.constant(f"{name}.weight", step.weight.numpy()))
            case nn.ReLU():
                return self.add("Relu", name, [x])
            case nn.ReLU6():
                return self.add("Clip", name, [x, *(self.constant(f"{b:g}", np.array(b, np.float32)) for b in (0, 6))])
            case nn.MaxPool2d():
                kernel, stride, padding = cast(tuple[int, int, int], (step.kernel_size, step.stride, step.padding))
                return self.add(
                    "MaxPool", name, [x], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4
                )
            case GridMaxPool():
                return self.add_fractional_pooling(name, step, x)
            case Average():
                if step.pixels > 1:
                    x = self.add("GlobalAveragePool", f"{name}.mean", [x])
                return self.add("Flatten", name, [x], axis=1)
            case nn.Linear():
                weight = self.constant(f"{name}.weight", step.weight.numpy())
                bias = self.constant(f"{name}.bias", step.bias.numpy())
                return self.add("Gemm", "logits", [x, weight, bias], transB=1)
            case _:
                raise ExportError(f"{name} ({type(step).__name__}) has no ONNX form: please report it")

    def add_centring(self, name: str, step: Normalise, x: str) -> str:
        """Bytes to float maps minus the mean. The transpose to NCHW comes first, while a value is one byte."""
        x = self.add("Transpose", f"{name}.nchw", [x], perm=[0, 3, 1, 2])
        x = self.add("Cast", f"{name}.float", [x], to=TensorProto.FLOAT)
        mean = self.constant(f"{name}.mean", step.mean.view(-1, 1, 1).numpy())
        return self.add("Sub", f"{name}.centred", [x, mean])

    def add_fractional_pooling(self, name: str, step: GridMaxPool, x: str) -> str:
        """The maximum of each region, in the form that is fastest for the size of the maps (docs/LOG.md).

        In NHWC, whole rows and pixels are copied. Max pooling follows the transpose back to NCHW, which ONNX Runtime
        fuses with the conversion to its blocked layout. If the channels do not fill a block, nothing is fused, and the
        maximum over columns is also taken in NHWC.
        """
        window, rows, columns = step.window, step.rows.int(), step.columns.int()
        x = self.add("Transpose", f"{name}.nhwc", [x], perm=[0, 2, 3, 1])
        if len(rows) * len(columns) <= SMALL_GRID:
            pixels = self.constant(f"{name}.of", (rows[:, None] * step.width + columns).numpy())
            flat = self.constant(f"{name}.shape", np.array([0, -1, step.channels]))
            x = self.add("Reshape", f"{name}.flat", [x, flat])
            x = self.add("Gather", f"{name}.grid", [x, pixels], axis=1)
            kernel = [window, window]
        else:
            x = self.add_maximum(f"{name}.rows", rows.view(-1, window), x, axis=1)
            if step.channels % BLOCK:
                x = self.add_maximum(f"{name}.columns", columns.view(-1, window).t(), x, axis=2)
                return self.add("Transpose", name, [x], perm=[0, 3, 1, 2])
            of = self.constant(f"{name}.columns.of", columns.numpy())
            x = self.add("Gather", f"{name}.columns", [x, of], axis=2)
            kernel = [1, window]
        x = self.add("Transpose", f"{name}.nchw", [x], perm=[0, 3, 1, 2])
        return self.add("MaxPool", name, [x], kernel_shape=kernel, strides=kernel)

    def add_maximum(self, name: str, pixels: Tensor, x: str, axis: int) -> str:
        """The maximum over the rows of each region, `pixels` (H_out, window), or its columns, (window, W_out)."""
        of = self.constant(f"{name}.of", pixels.contiguous().numpy())
        x = self.add("Gather", f"{name}.all", [x, of], axis=axis)
        return self.add("ReduceMax", name, [x], axes=[2], keepdims=0)

    def add_convolution(self, name: str, step: nn.Conv2d, x: str, weight: str) -> str:
        assert step.bias is not None
        return self.add(
            "Conv",
            name,
            [x, weight, self.constant(f"{name}.bias", step.bias.numpy())],
            kernel_shape=step.kernel_size,
            strides=step.stride,
            pads=[*step.padding, *step.padding],
            group=step.groups,
        )
