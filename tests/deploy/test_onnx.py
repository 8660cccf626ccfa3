"""ONNX files: what the graph computes, its operators, and what it says of itself."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from hybrid_mobilenet import HybridMobileNet, __version__
from hybrid_mobilenet.deploy.export import export_file
from hybrid_mobilenet.deploy.onnx import onnx_bytes
from hybrid_mobilenet.deploy.runtimes import OnnxClassifier
from hybrid_mobilenet.layers.sizes import Size
from hybrid_mobilenet.network.architecture import FAMILIES, Family
from networks import images, network

SIZES: tuple[Size, ...] = ((32, 32), (40, 24))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "alpha", "delta", "classes", "size"),
    list(product(FAMILIES, (0.25, 1.0), (1, 2), (10, 100), SIZES)),
    ids=lambda value: str(value).replace(" ", ""),
)
def test_onnx_agrees_with_pytorch(family: Family, alpha: float, delta: int, classes: int, size: Size) -> None:
    model = network(family, alpha, delta, classes, size)
    some = images(2, size, seed=1)
    with torch.no_grad():
        expected = model(some)
    logits, probabilities = OnnxClassifier(onnx_bytes(model)).outputs(some)
    assert expected.std(0).max() > 0.1  # that logits depend on the image
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(probabilities, expected.softmax(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"overlapping": True}, {"activation": "relu6"}], ids=str)
def test_options_of_the_model_are_exported(options: dict[str, Any]) -> None:
    model, plain, some = network("fmp", **options), network("fmp"), images(4)
    # The same weights and statistics: only the option makes the difference.
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        expected, other = model(some), plain(some)
    logits, _ = OnnxClassifier(onnx_bytes(model)).outputs(some)
    assert (expected - other).abs().max() > 1e-2
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_greyscale() -> None:
    torch.manual_seed(0)
    model = HybridMobileNet("fmp", 0.25, 1, 10, 1, 8, mean=[0.3], std=[0.4]).eval()
    some = images(4, (8, 8), 1)
    with torch.no_grad():
        expected = model(some)
    logits, _ = OnnxClassifier(onnx_bytes(model)).outputs(some)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("by_hand", [False, True])
def test_another_classifier_is_exported(by_hand: bool) -> None:
    model = HybridMobileNet("fmp", 0.25, 1, 10, 1, 8).eval()
    if by_hand:
        model.classifier.linear = nn.Linear(256, 3)
        model.class_names = ["a", "b", "c"]
    else:
        model.reset_classifier(3, ["a", "b", "c"])
    some = images(4, (8, 8), 1)
    with torch.no_grad():
        expected = model(some)
    classifier = OnnxClassifier(onnx_bytes(model))
    assert classifier.class_names == ("a", "b", "c")
    torch.testing.assert_close(classifier.outputs(some)[0], expected, rtol=0, atol=1e-5)


def test_the_graph_has_standard_operators_named_after_the_layers(fmp: HybridMobileNet) -> None:
    model = onnx.load_from_string(onnx_bytes(fmp))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    nodes = {node.name: node.op_type for node in model.graph.node}
    assert set(nodes.values()) == {
        "Transpose", "Cast", "Sub", "Concat", "Conv", "Relu", "Gather", "Reshape", "ReduceMax", "MaxPool", "Flatten",
        "Gemm", "Softmax",
    }  # fmt: skip
    layers = {layer.name: layer.kind for layer in fmp.network.layers}
    assert set(layers) - {"classifier"} <= set(nodes)  # whose output is the logits
    convolutions = [name for name, kind in layers.items() if kind in ("convolution", "depthwise", "pointwise")]
    assert {nodes[name] for name in convolutions} == {"Conv"}
    pools = [nodes[name] for name, kind in layers.items() if kind == "fractional_max_pool"]
    assert pools == ["Transpose"] + ["MaxPool"] * 6  # the first has 8 channels
    gathers = [sum(nodes[node] == "Gather" for node in nodes if node.startswith(f"pool{n}.")) for n in range(1, 8)]
    assert gathers == [2, 2, 2, 1, 1, 0, 0]  # 10 -> 6 and 6 -> 4 are small, 4 -> 2 and 2 -> 1 plain max pooling


@pytest.mark.slow
def test_any_batch_size_and_what_the_file_says(fmp: HybridMobileNet, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert 0 < export_file(fmp, "onnx", path).difference <= 1e-4
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type, entry.shape) == ("images", "tensor(uint8)", ["N", 32, 32, 3])
    assert [(out.name, out.type, out.shape) for out in session.get_outputs()] == [
        (name, "tensor(float)", ["N", 10]) for name in ("logits", "probabilities")
    ]
    some = images(5).permute(0, 2, 3, 1).numpy()
    together, _ = session.run(None, {"images": some})
    for index in range(5):
        (alone, shares) = session.run(None, {"images": some[index : index + 1]})
        np.testing.assert_allclose(alone[0], together[index], atol=1e-5)
        np.testing.assert_allclose(shares.sum(), 1, atol=1e-6)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["class_names"]) == list("0123456789")
    assert json.loads(said["image_size"]) == [32, 32]
    assert {key: said[key] for key in ("family", "alpha", "delta", "in_channels", "version")} == {
        "family": "fmp", "alpha": "0.25", "delta": "2", "in_channels": "3", "version": __version__,
    }  # fmt: skip
    assert "uint8 (N, 32, 32, 3), RGB, 0..255" in said["preprocessing"]
