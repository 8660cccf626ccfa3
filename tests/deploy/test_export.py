"""The function `export`: what it returns, and what it refuses."""

from __future__ import annotations

import doctest
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_mobilenet import HybridMobileNet, export
from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.deploy.deployed import ExportError


def test_the_example_in_the_docstring() -> None:
    results = doctest.testmod(import_module("hybrid_mobilenet.deploy.export"))
    assert (results.failed, results.attempted > 3) == (0, True)


@pytest.mark.slow
def test_export_says_what_it_wrote(trained_fmp: HybridMobileNet, tmp_path: Path) -> None:
    splits = load_data("digits", image_size=16)
    counts: list[int] = []
    folder = tmp_path / "a" / "b"
    exported = export(
        trained_fmp, "onnx-int8", str(folder), calibration=splits.train, test=splits.test, on_images=counts.append
    )
    assert (exported.target, exported.path) == ("onnx-int8", folder / "model.int8.onnx")
    assert exported.size == exported.path.stat().st_size
    assert exported.parity.images == 256
    assert exported.parity.signal_to_noise >= 10
    with torch.no_grad():
        right = trained_fmp(splits.test.batch(torch.arange(len(splits.test)))).argmax(1) == splits.test.labels
    assert exported.accuracy == pytest.approx(right.float().mean().item(), abs=0.02)
    assert sum(counts) == len(splits.test)
    record = json.loads(json.dumps(exported.record()))
    assert list(record) == ["target", "path", "size", "parity", "accuracy", "microseconds"]
    assert (record["path"], record["parity"]["images"]) == (str(exported.path), 256)


@pytest.mark.slow
def test_export_without_test_images_has_no_accuracy(fmp: HybridMobileNet, tmp_path: Path) -> None:
    assert export(fmp, "onnx", tmp_path).accuracy is None


def test_export_refuses_what_it_cannot_do(fmp: HybridMobileNet, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^to is 'coreml', but must be one of onnx, onnx-int8, "):
        export(fmp, "coreml", tmp_path / "out")
    with pytest.raises(ExportError, match=r"^calibration is None, but onnx-int8 takes .* from training images: pass"):
        export(fmp, "onnx-int8", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_path_is_not_a_model(tmp_path: Path) -> None:
    model: Any = "runs/digits"
    with pytest.raises(ValueError, match="model is 'runs/digits', but must be a HybridMobileNet"):
        export(model, "onnx", tmp_path)
