"""An exported file that disagrees with PyTorch is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.deploy.deployed import ExportError
from hybrid_mobilenet.deploy.export import export_file
from hybrid_mobilenet.deploy.onnx import onnx_bytes
from hybrid_mobilenet.deploy.parity import TOLERANCE, float_parity
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
        changed.get_parameter("classifier.linear.bias")[3] += 1e-3
    monkeypatch.setattr("hybrid_mobilenet.deploy.onnx.onnx_bytes", lambda _model: onnx_bytes(changed))
    with pytest.raises(ExportError, match=r"disagrees with PyTorch in ONNX Runtime: logits differ by 0.00[01]"):
        export_file(fmp, "onnx", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_not_a_number_is_a_disagreement(fmp: HybridMobileNet) -> None:
    changed = network("fmp")
    with torch.no_grad():
        changed.get_parameter("classifier.linear.bias")[3] = float("nan")
    with pytest.raises(ExportError, match="differ by nan"):
        float_parity(fmp, OnnxClassifier(onnx_bytes(changed)), None)


@pytest.mark.slow
def test_a_network_that_amplifies_rounding_is_exported(tmp_path: Path) -> None:
    """Where PyTorch's own float32 is far from exact, as after little training, so may be the export."""
    model = network("fmp").train()
    for pool in model.fractional_max_pools():
        pool.eval()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    images = torch.randint(0, 256, (64, 3, *model.network.image_size), dtype=torch.uint8)
    with torch.no_grad():
        norms[0].bias.add_(1000)  # the next normalisation subtracts it again, and leaves the rounding
        for norm in norms:
            norm.momentum = 1.0
        model(images)
    single = model.eval()(images)
    assert single.abs().max() < 10
    assert (single - copy.deepcopy(model).double()(images.double() / 255)).abs().max() > TOLERANCE
    export_file(model, "onnx", tmp_path / "model.onnx", images)
    assert (tmp_path / "model.onnx").is_file()
