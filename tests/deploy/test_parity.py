"""An exported file that disagrees with PyTorch is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.deploy.deployed import ExportError
from hybrid_mobilenet.deploy.export import export_file
from hybrid_mobilenet.deploy.onnx import onnx_bytes
from hybrid_mobilenet.deploy.parity import float_parity
from hybrid_mobilenet.deploy.runtimes import OnnxClassifier
from networks import network


@pytest.mark.slow
def test_int8_that_disagrees_leaves_no_file(trained_fmp: HybridMobileNet, digits: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"signal-to-noise ratio is -?\d.* dB, but must be 10 or more"):
        export_file(trained_fmp, "onnx-int8", tmp_path / "model.onnx", calibration=torch.zeros_like(digits))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_export_that_disagrees_leaves_no_file(
    fmp: HybridMobileNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = network("fmp")
    with torch.no_grad():
        changed.get_parameter("classifier.linear.bias")[3] += 2e-4
    monkeypatch.setattr("hybrid_mobilenet.deploy.onnx.onnx_bytes", lambda _model: onnx_bytes(changed))
    with pytest.raises(ExportError, match=r"disagrees with PyTorch in ONNX Runtime: logits differ by 0.000[12]"):
        export_file(fmp, "onnx", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_not_a_number_is_a_disagreement(fmp: HybridMobileNet) -> None:
    changed = network("fmp")
    with torch.no_grad():
        changed.get_parameter("classifier.linear.bias")[3] = float("nan")
    with pytest.raises(ExportError, match="differ by nan"):
        float_parity(fmp, OnnxClassifier(onnx_bytes(changed)), None)
