"""int8 for exporters of PyTorch graphs (ExecuTorch, LiteRT): PT2E quantisation by torchao, calibrated on images.

PT2E asks a quantiser how to compute each node of the graph, observes the ranges of the maps on calibration images, and
inserts quantise and dequantise nodes, which the exporter fuses to integer arithmetic. Convolutions, the matrix product
and the average compute in integers. All nodes that only move data keep the integers and their scale. The softmax stays
in float32, and so do convolutions with few channels: rescaling their result to 8 bits costs more than the few integer
multiplications save.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

aten = torch.ops.aten

PRODUCTS = {aten.conv2d.default, aten.linear.default}
ACTIVATIONS = {aten.relu.default, aten.relu6.default, aten.hardtanh.default}

#: Up to this number of input channels float32 is faster, as measured in XNNPACK (docs/LOG.md): for depthwise
#: convolutions, and for others.
FEW_CHANNELS_DEPTHWISE, FEW_CHANNELS = 64, 16

MAPS = QuantizationSpec(
    torch.int8, MinMaxObserver.with_args(eps=2**-20), quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine
)
#: eps keeps the scale large enough for the bias, in units of it, to fit 32 bits.
WEIGHTS = QuantizationSpec(
    torch.int8,
    PerChannelMinMaxObserver.with_args(eps=2**-20),
    quant_min=-127,
    quant_max=127,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
)


def quantised(network: nn.Module, images: Tensor, fold: bool) -> GraphModule:
    """The graph of a network with its maps and weights quantised to 8 bits.

    Args:
        network: a deployed network, exported with batch size 1.
        images: uint8 (n, C, H, W), training images.
        fold: whether weights are stored in int8, or in float32 with quantise nodes in the graph.
    """
    images = images.permute(0, 2, 3, 1).contiguous()  # as a device gives them
    graph = torch.export.export(network, (images[:1],)).module()
    prepared = prepare_pt2e(graph, IntegerQuantizer())
    with torch.no_grad():
        for image in images[:, None]:
            prepared(image)
    result: GraphModule = convert_pt2e(prepared, fold_quantize=fold)
    return result


class IntegerQuantizer(Quantizer):  # type: ignore[misc]  # torchao need not be installed where types are checked
    """Everything in integers except the softmax and convolutions with few channels."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate each node with the quantisation of its inputs and its output."""
        floating = _floating(list(model.graph.nodes))
        rounded: set[Node] = set()
        for node in model.graph.nodes:
            if node.op == "call_function" and node not in floating:
                annotation = _annotation(node, rounded)
                if annotation is not None:
                    node.meta["quantization_annotation"] = annotation
                    if annotation.output_qspec is not None:
                        rounded.add(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Required by `Quantizer`; there is nothing to check."""


def _floating(nodes: list[Node]) -> set[Node]:
    """The nodes that compute in float32 and whose results stay in float32."""
    softmaxes = {node for node in nodes if node.target == aten.softmax.int}
    products = [node for node in nodes if node.target in PRODUCTS]
    small = {node for node in products if _has_few_channels(node)}
    if products[0] in small:  # then the bytes minus their mean stay in float32 too
        small.update(nodes[: nodes.index(products[0])])
    for product, following in pairwise(products):
        # An activation between two float32 products stays in float32, unless it is pooled: pooling bytes is faster.
        if {product, following} <= small and _map(following).shape[2:] == product.meta["val"].shape[2:]:
            small.update(product.users)
    return softmaxes | small


def _has_few_channels(product: Node) -> bool:
    groups = product.args[6] if len(product.args) > 6 else 1  # groups of a convolution; absent if 1
    return _map(product).shape[1] <= (FEW_CHANNELS if groups == 1 else FEW_CHANNELS_DEPTHWISE)


def _map(product: Node) -> Tensor:
    """A tensor of the shape of a product's input."""
    taken: Tensor = product.all_input_nodes[0].meta["val"]
    return taken


def _annotation(node: Node, rounded: set[Node]) -> QuantizationAnnotation | None:
    source = node.all_input_nodes[0]
    if node.target in PRODUCTS:
        # A following activation is fused: its output is quantised, not its input.
        followed = all(user.target in ACTIVATIONS for user in node.users)
        weights = {source: MAPS, node.all_input_nodes[1]: WEIGHTS}
        return QuantizationAnnotation(weights, None if followed else MAPS, _annotated=True)
    if node.target in ACTIVATIONS and source.target in PRODUCTS:
        return QuantizationAnnotation({}, MAPS, _annotated=True)
    if node.target == aten.sub.Tensor:
        return QuantizationAnnotation({}, MAPS, _annotated=True)
    if node.target == aten.mean.dim:
        return QuantizationAnnotation({source: MAPS}, MAPS, _annotated=True)
    if source in rounded:
        same = SharedQuantizationSpec(source)
        moved = {input_: same for input_ in node.all_input_nodes if input_ in rounded}
        return QuantizationAnnotation(moved, same, _annotated=True)
    return None
