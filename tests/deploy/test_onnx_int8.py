"""ONNX files in int8: accuracy, size, and that they compute in integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from torch import Tensor

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.deploy.export import export_file
from hybrid_mobilenet.deploy.onnx import onnx_bytes
from hybrid_mobilenet.network.architecture import Family
from networks import trained


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"), [("mobilenet", {}), ("mp3", {}), ("mp3", {"activation": "relu6"})], ids=str
)
@pytest.mark.slow
def test_int8_agrees_and_is_small(family: Family, options: dict[str, Any], digits: Tensor, tmp_path: Path) -> None:
    model = trained(family, **options)
    path = tmp_path / "model.int8.onnx"
    export_file(model, "onnx-int8", path, calibration=digits)  # an error below 10 dB
    assert path.stat().st_size <= 0.3 * len(onnx_bytes(model))


@pytest.mark.slow
def test_int8_is_integer_throughout(trained_fmp: HybridMobileNet, digits: Tensor, tmp_path: Path) -> None:
    """In the graph that ONNX Runtime makes of the file, nothing but the ends is computed in floating point."""
    path, optimised = tmp_path / "model.int8.onnx", tmp_path / "optimised.onnx"
    assert export_file(trained_fmp, "onnx-int8", path, calibration=digits).signal_to_noise >= 10
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(optimised), 4
    onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    all_kinds = [node.op_type for node in onnx.load(optimised).graph.node]
    kinds = [kind for kind in all_kinds if kind != "Transpose"]
    assert kinds[:3] == ["Cast", "Sub", "QuantizeLinear"]
    assert kinds[-2:] == ["QGemm", "Softmax"]
    assert set(kinds[3:-2]) <= {"QLinearConv", "Gather", "Max", "NhwcMaxPool", "Concat", "Flatten"}
    assert kinds.count("QLinearConv") == 27
    assert all_kinds.count("Transpose") <= 2
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
    for layer in trained_fmp.network.layers:
        if layer.kind in ("convolution", "depthwise", "pointwise", "fully_connected"):
            largest = np.abs(weights[f"{layer.name}.weight"].astype(int)).max()
            assert largest == (127 if layer.kind == "depthwise" else 64), layer.name  # sums of pairs fit 16 bits
