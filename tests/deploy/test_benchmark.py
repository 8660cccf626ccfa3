"""Comparing runtimes: which files, in whose pooling the time goes, and how failures end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from hybrid_mobilenet import HybridMobileNet, resolve
from hybrid_mobilenet.deploy import benchmark
from hybrid_mobilenet.deploy.benchmark import expand, share_saved, with_plain_pooling
from hybrid_mobilenet.deploy.onnx import onnx_bytes
from hybrid_mobilenet.deploy.runtimes import ExecuTorchClassifier, FileClassifier, LiteRTClassifier, OnnxClassifier
from scripts import script

peers = script("benchmarks/peers.py")


@pytest.mark.parametrize("overlapping", [False, True])
def test_plain_pooling_in_place_of_fractional(tmp_path: Path, overlapping: bool) -> None:
    torch.manual_seed(0)
    model = HybridMobileNet("fmp", 0.25, overlapping=overlapping).eval()
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_bytes(model))
    content = with_plain_pooling(path)
    assert content
    kinds = {node.name: node.op_type for node in onnx.load_from_string(content).graph.node}
    layers = [layer.name for layer in model.network.layers if layer.kind == "fractional_max_pool"]
    assert [kinds[name] for name in layers] == ["MaxPool"] * len(layers)
    assert "Gather" not in kinds.values()
    images = np.zeros((2, 32, 32, 3), np.uint8)
    assert [part.shape for part in OnnxClassifier(content).run(images)] == [(2, 10)] * 2


def test_a_share_is_taken_within_rounds() -> None:
    """A machine that becomes twice as slow in the middle changes nothing."""
    assert share_saved([1.0, 1.0, 2.0, 2.0, 2.0], [0.9, 0.9, 1.8, 1.8, 1.8]) == pytest.approx(0.1)
    assert share_saved([1.0, 1.0, 1.0], [0.9, 0.9, 9.0]) == pytest.approx(0.1)


def test_untrained_networks_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = [resolve("mp3", 0.25, delta, in_channels=1, image_size=8) for delta in (1, 2)]
    measured: list[tuple[int, ...]] = []

    def seconds(classifier: FileClassifier, images: NDArray[np.uint8]) -> float:
        measured.append(images.shape)
        logits, probabilities = classifier.run(images)
        assert logits.shape == probabilities.shape == (1, 10)
        return len(measured) / 1000

    monkeypatch.setattr(benchmark, "seconds_per_call", seconds)
    for module, runtime in (("onnxruntime", "ONNX Runtime"), ("no_such_module", "PyTorch")):
        monkeypatch.setattr(OnnxClassifier, "module", module)
        measured.clear()
        turns: list[int] = []
        before = torch.get_num_threads()
        name, latencies = benchmark.untrained_latencies(networks, 3, turns.append)
        assert (name, turns, measured) == (runtime, [1] * 6, [(1, 8, 8, 1)] * 6)
        assert [each.median for each in latencies] == [0.003, 0.004]  # of calls 1, 3, 5 and of 2, 4, 6
        assert torch.get_num_threads() == before


def test_no_share_where_no_pooling_is_fractional(tmp_path: Path) -> None:
    path = tmp_path / "strided.onnx"
    path.write_bytes(onnx_bytes(HybridMobileNet("mobilenet", 0.25, 1).eval()))
    assert with_plain_pooling(path) is None
    assert all(with_plain_pooling(peer) is None for peer in peers.write_peers(tmp_path))


def test_files_for_runtimes_that_are_not_installed_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "export").mkdir()
    for name in ("model.onnx", "model.pte", "model.tflite", "notes.txt"):
        (tmp_path / "export" / name).touch()
    monkeypatch.setattr(ExecuTorchClassifier, "module", "numpy")
    monkeypatch.setattr(LiteRTClassifier, "module", "no_such_module")
    files = [str(tmp_path / "export" / name) for name in ("model.onnx", "model.pte")]
    assert expand([str(tmp_path)]) == [str(tmp_path), *files]


@pytest.mark.slow
def test_threads_are_as_before_where_a_measurement_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no memory")

    HybridMobileNet("fmp", 0.25, 1, 10, 3, 32).eval().save_pretrained(tmp_path)
    monkeypatch.setattr(benchmark, "peak_memory", fail)
    with pytest.raises(OSError, match="no memory"):
        benchmark.benchmark([str(tmp_path)], [2], rounds=1)
    assert torch.get_num_threads() == 1
