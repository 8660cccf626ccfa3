"""int8 for exporters that take PyTorch's own graphs: quantised by torchao's PT2E, with ranges from training images.

PT2E asks a quantiser how each node of the graph is to be computed, watches the maps while images go through, and
writes the rounding into the graph; an exporter then fuses it to integer arithmetic. Ours has few kinds of nodes to
judge: convolutions, the matrix product and the average compute in integers, and whatever else moves maps about moves
integers, in the scale they have. The softmax is floating point, and so are products of few channels: each number of
their result must be scaled and rounded to 8 bits, which costs more than so few multiplications in integers save.
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

#: The most channels of a map for whose products float32 is faster, measured in XNNPACK (docs/LOG.md): depthwise
#: convolutions, with nine multiplications for a number, and others.
FEW_CHANNELS_DEPTHWISE, FEW_CHANNELS = 64, 16

MAPS = QuantizationSpec(
    torch.int8, MinMaxObserver.with_args(eps=2**-20), quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine
)
#: No scale so small that a bias, in steps of it, would not fit 32 bits.
WEIGHTS = QuantizationSpec(
    torch.int8,
    PerChannelMinMaxObserver.with_args(eps=2**-20),
    quant_min=-127,
    quant_max=127,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
)


def quantised(network: nn.Module, images: Tensor, fold: bool) -> GraphModule:
    """The graph of a network with its maps and weights rounded to 8 bits.

    Args:
        network: from `deployed`, for one image at a time.
        images: uint8 (n, H, W, C), training images.
        fold: whether weights are stored rounded, or rounded by nodes of the graph.
    """
    graph = torch.export.export(network, (images[:1],)).module()
    prepared = prepare_pt2e(graph, IntegerQuantizer())
    with torch.no_grad():
        for image in images[:, None]:
            prepared(image)
    result: GraphModule = convert_pt2e(prepared, fold_quantize=fold)
    return result


class IntegerQuantizer(Quantizer):  # type: ignore[misc]  # torchao need not be installed where types are checked
    """All in integers but products of few channels and the softmax."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Say of each node how its inputs and its output are rounded."""
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
        """Nothing to check: the graph is ours."""


def _floating(nodes: list[Node]) -> set[Node]:
    """The nodes that compute in float32, and give it to one that does."""
    softmaxes = {node for node in nodes if node.target == aten.softmax.int}
    products = [node for node in nodes if node.target in PRODUCTS]
    small = {node for node in products if _has_few_channels(node)}
    if products[0] in small:  # so are the bytes less their mean
        small.update(nodes[: nodes.index(products[0])])
    for product, following in pairwise(products):
        # An activation in between keeps its numbers. One that is pooled does not: pooling bytes is faster.
        if {product, following} <= small and _map(following).shape[2:] == product.meta["val"].shape[2:]:
            small.update(product.users)
    return softmaxes | small


def _has_few_channels(product: Node) -> bool:
    groups = product.args[6] if len(product.args) > 6 else 1  # of a convolution, where there are several
    return _map(product).shape[1] <= (FEW_CHANNELS if groups == 1 else FEW_CHANNELS_DEPTHWISE)


def _map(product: Node) -> Tensor:
    """A tensor of the shape that a product takes."""
    taken: Tensor = product.all_input_nodes[0].meta["val"]
    return taken


def _annotation(node: Node, rounded: set[Node]) -> QuantizationAnnotation | None:
    source = node.all_input_nodes[0]
    if node.target in PRODUCTS:
        # An activation behind it is part of it: what it gives is rounded, not what it is given.
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
