"""The benchmark command, and the networks that it compares with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.deploy import benchmark
from hybrid_mobilenet.deploy.benchmark import expand, share_saved, with_plain_pooling
from hybrid_mobilenet.deploy.export import export_file
from hybrid_mobilenet.deploy.onnx import onnx_bytes
from hybrid_mobilenet.deploy.runtimes import ExecuTorchClassifier, LiteRTClassifier, OnnxClassifier, open_file
from scripts import script

ROOT = Path(__file__).parents[2]


peers = script("benchmarks/peers.py")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(cli.app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an exported file."""
    torch.manual_seed(0)
    model = HybridMobileNet("fmp", 0.25, 1, 10, 3, 32).eval()
    folder = tmp_path_factory.mktemp("run")
    model.save_pretrained(folder)
    (folder / "export").mkdir()
    export_file(model, "onnx", folder / "export" / "model.onnx")
    return folder


@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_have_the_published_size(name: str) -> None:
    build, parameters, mult_adds = peers.PEERS[name]
    network = build()
    counted = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert f"{counted:.2f}" == parameters
    assert f"{peers.mult_adds(network) / 1e6:.{len(mult_adds.partition('.')[2])}f}" == mult_adds


def test_peers_run_in_onnx_runtime_as_in_pytorch(tmp_path: Path) -> None:
    for path, (build, *_) in zip(peers.write_peers(tmp_path), peers.PEERS.values(), strict=True):
        torch.manual_seed(0)
        network = peers.FromBytes(build()).eval()
        images = np.random.default_rng(0).integers(256, size=(3, 32, 32, 3), dtype=np.uint8)
        with torch.no_grad():
            logits, probabilities = network(torch.from_numpy(images))
        for expected, given in zip((logits, probabilities), open_file(path).run(images), strict=True):
            np.testing.assert_allclose(given, expected, atol=1e-4)


@pytest.mark.slow
def test_benchmark(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke("benchmark", run, "--threads", "1,2", "--rounds", "2", "--out", out, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    record = json.loads(result.stdout)
    assert record == json.loads((out / "benchmark.json").read_text())
    assert {"processor", "versions", "date"} <= set(record["environment"])
    file = str(run / "export" / "model.onnx")
    rows = record["measurements"]
    assert [(row["model"], row["runtime"], row["threads"]) for row in rows] == [
        (str(run), "PyTorch", 1), (file, "ONNX Runtime", 1), (str(run), "PyTorch", 2), (file, "ONNX Runtime", 2),
    ]  # fmt: skip
    for row in rows:
        latency = row["latency"]
        assert 1e-6 < latency["lower"] <= latency["median"] <= latency["upper"]
        assert row["images_per_second"] > 0
        assert row["bytes"] > 8e5
        assert row["peak_bytes"] > 1e5
        assert (row["pooling_share"] is None) == (row["runtime"] == "PyTorch" or row["threads"] > 1)
    assert -0.5 < rows[1]["pooling_share"] < 1  # two short rounds
    with Image.open(out / "benchmark.png") as picture:
        assert picture.format == "PNG"
    table = invoke("benchmark", file, "--rounds", "1", "--out", out).stdout
    assert table.split("\n")[0].split()[:3] == ["Model", "Runtime", "Threads"]
    assert "ONNX Runtime" in table


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
def test_threads_are_as_before_where_a_measurement_fails(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(benchmark, "peak_memory", fail)
    with pytest.raises(OSError, match="no memory"):
        benchmark.benchmark([str(run)], [2], rounds=1)
    assert torch.get_num_threads() == 1


def test_benchmark_refuses(run: Path, tmp_path: Path) -> None:
    for arguments, part in (
        (("--threads", "0"), "--threads is '0', but must be one or more whole numbers"),
        (("--rounds", "0"), "--rounds is 0"),
        (("--out", run / "config.json"), "config.json"),
    ):
        result = invoke("benchmark", run, "--out", tmp_path, *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert part in result.stderr
        assert result.stderr.count("\n") == 1
    result = invoke("benchmark", tmp_path / "none.onnx", "--out", tmp_path)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert list(tmp_path.iterdir()) == []
