"""Exported files: what they compute, what they say of themselves, how exporting fails."""

from __future__ import annotations

import doctest
import json
import re
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from hybrid_mobilenet import HybridMobileNet, __version__, export
from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.data.dataset import load_data, load_test
from hybrid_mobilenet.deploy.deployed import Deployed, ExportError
from hybrid_mobilenet.deploy.export import export_file
from hybrid_mobilenet.deploy.onnx import onnx_bytes
from hybrid_mobilenet.deploy.parity import float_parity
from hybrid_mobilenet.deploy.runtimes import (
    ExecuTorchClassifier,
    LiteRTClassifier,
    OnnxClassifier,
    RuntimeFileError,
    open_file,
)
from hybrid_mobilenet.layers.sizes import Size
from hybrid_mobilenet.network.architecture import FAMILIES, Family
from networks import images, network, trained

SIZES: tuple[Size, ...] = ((32, 32), (40, 24))


@pytest.fixture(scope="module")
def trained_fmp() -> HybridMobileNet:
    return trained("fmp")


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """Training images for calibration."""
    return load_data("digits", image_size=16).train.batch(torch.arange(200))


@pytest.fixture(scope="module")
def fmp() -> HybridMobileNet:
    return network("fmp")


@pytest.fixture(scope="module")
def folder(fmp: HybridMobileNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    fmp.save_pretrained(path)
    return path


def invoke(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(cli.app, list(map(str, arguments)))


def fails(result: Result, *parts: str) -> None:
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr


# What the graph computes


@pytest.mark.parametrize(
    ("family", "alpha", "delta", "classes", "size"),
    [
        *product(FAMILIES, (0.25,), (1, 2), (10, 100), SIZES),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in product(FAMILIES, (1.0,), (1, 2), (10, 100), SIZES)),
    ],
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


def test_the_deployed_network_leaves_the_model_as_it_is(fmp: HybridMobileNet) -> None:
    before = {name: tensor.clone() for name, tensor in fmp.state_dict().items()}
    deployed = Deployed(fmp)
    for parameter in deployed.parameters():
        parameter.data.zero_()
    for name, tensor in fmp.state_dict().items():
        assert torch.equal(tensor, before[name]), name


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


# int8


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


def test_int8_that_disagrees_leaves_no_file(trained_fmp: HybridMobileNet, digits: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"signal-to-noise ratio is -?\d.* dB, but must be 10 or more"):
        export_file(trained_fmp, "onnx-int8", tmp_path / "model.onnx", calibration=torch.zeros_like(digits))
    assert list(tmp_path.iterdir()) == []


# What is refused


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


def test_not_a_number_is_a_disagreement(fmp: HybridMobileNet) -> None:
    changed = network("fmp")
    with torch.no_grad():
        changed.get_parameter("classifier.linear.bias")[3] = float("nan")
    with pytest.raises(ExportError, match="differ by nan"):
        float_parity(fmp, OnnxClassifier(onnx_bytes(changed)), None)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.999])
def test_a_file_cut_in_the_middle(fmp: HybridMobileNet, tmp_path: Path, keep: float) -> None:
    content = onnx_bytes(fmp)
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(RuntimeFileError, match=r"model\.onnx is (damaged|not a model).*export it again"):
        open_file(path)


def test_a_foreign_onnx_model(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(RuntimeFileError, match="not a model exported by hybrid-mobilenet"):
        open_file(tmp_path / "model.onnx")


# The function


def test_the_example_in_the_docstring() -> None:
    results = doctest.testmod(import_module("hybrid_mobilenet.deploy.export"))
    assert (results.failed, results.attempted > 3) == (0, True)


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


# The command


@pytest.mark.slow
def test_export_command(folder: Path) -> None:
    result = invoke("export", folder, "--to", "onnx")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0].split("  ")[0] == "File"
    row = " ".join(result.stdout.splitlines()[2:])
    assert re.search(r"1,7\d\d kB +\d\.\de-\d\d +- +- +[\d,]+ us", row), row
    assert (folder / "export" / "model.onnx").stat().st_size > 1_700_000


@pytest.mark.slow
def test_export_command_with_data(folder: Path, tmp_path: Path) -> None:
    result = invoke("export", folder, "--to", "onnx", "--data", "digits", "--out", tmp_path / "a" / "b", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    printed = json.loads(result.stdout)
    (record,) = printed["files"]
    file = tmp_path / "a" / "b" / "model.onnx"
    assert (record["target"], record["path"], record["size"]) == ("onnx", str(file), file.stat().st_size)
    test = load_test("digits")
    with torch.no_grad():
        right = HybridMobileNet.from_pretrained(folder)(test.batch(torch.arange(len(test)))).argmax(1) == test.labels
    assert record["accuracy"] == pytest.approx(right.float().mean().item(), abs=1 / len(test))
    assert printed["accuracy"] == pytest.approx(record["accuracy"], abs=1 / len(test))
    assert 0 < record["parity"]["difference"] <= 1e-4
    assert record["microseconds"] > 1


@pytest.mark.slow
def test_several_targets_and_files_that_predict(trained_fmp: HybridMobileNet, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    trained_fmp.save_pretrained(folder)
    targets = ["--to", "onnx,onnx-int8", "--data", "digits"]
    result = invoke("export", folder, *targets, "--out", tmp_path, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    names = ["model.onnx", "model.int8.onnx"]
    assert [record["path"] for record in json.loads(result.stdout)["files"]] == [str(tmp_path / name) for name in names]
    one = load_test("digits", image_size=16).batch(torch.arange(1))
    Image.fromarray(one[0].permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    with torch.no_grad():
        expected = trained_fmp(one).softmax(1)[0]
    rounded = OnnxClassifier(tmp_path / names[1]).outputs(one)[1][0]
    for model, shares in ((folder, expected), (tmp_path / names[0], expected), (tmp_path / names[1], rounded)):
        (record,) = json.loads(invoke("predict", model, tmp_path / "image.png", "--top", "10", "--json").stdout)
        for index, share in enumerate(shares.tolist()):
            assert record["probabilities"][str(index)] == pytest.approx(share, abs=1e-5)
    counts = [
        json.loads(invoke("evaluate", model, "digits", "--json", "--out", tmp_path / "confusion.png").stdout)["correct"]
        for model in (folder, tmp_path / names[0])
    ]
    assert abs(counts[0] - counts[1]) <= 1
    fails(invoke("predict", tmp_path / names[0], tmp_path / "image.png", "--passes", "2"), "passes is 2", "run folder")
    fails(invoke("predict", tmp_path / "no.onnx", tmp_path / "image.png"), "no.onnx: No such file")


def test_int8_needs_training_images(folder: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    fails(invoke("export", folder, "--to", "onnx-int8", *out), "calibrated on training images: name them with --data")
    for name in ("0", "1"):
        (tmp_path / "few" / name).mkdir(parents=True)
        for index in range(9):
            Image.new("RGB", (8, 8), (index, 9, 9)).save(tmp_path / "few" / name / f"{index}.png")
    few = network("mobilenet", classes=2)
    few.save_pretrained(tmp_path / "model")
    result = invoke("export", tmp_path / "model", "--to", "onnx-int8", "--data", tmp_path / "few", *out)
    fails(result, "there are 12 training images, but int8 is calibrated on 100 or more")
    assert not (tmp_path / "out").exists()


def test_export_refuses(folder: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    fails(invoke("export", folder, "--to", "onxx", *out), "--to is 'onxx', but must be one or more of onnx")
    fails(
        invoke("export", folder, "--to", "onnx,coreml", *out), "--to is 'onnx,coreml' (unknown: 'coreml'), but must be"
    )
    fails(invoke("export", folder, *out), "--to is missing: give one or more of onnx")
    fails(invoke("export", tmp_path / "nothing", "--to", "onnx", *out), "there is no config.json in it")
    (tmp_path / "file").write_text("")
    fails(invoke("export", folder, "--to", "onnx", "--out", tmp_path / "file"), str(tmp_path / "file"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_a_missing_runtime_is_named_with_its_remedy_and_the_others_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExecuTorchClassifier, "module", "no_such_module")
    monkeypatch.setattr(LiteRTClassifier, "module", "numpy")
    monkeypatch.setattr(LiteRTClassifier, "exporter", "no_such_module")
    result = invoke("export", folder, "--to", "executorch,onnx,litert", "--out", tmp_path)
    assert result.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    executorch, litert = result.stderr.splitlines()
    assert "executorch: ExecuTorch is not installed: pip install 'hybrid-mobilenet[executorch]'" in executorch
    assert "litert: no_such_module, which makes its files, is not installed: pip" in litert
    monkeypatch.setattr(LiteRTClassifier, "module", "no_such_module")
    for name, runtime in (("model.pte", "ExecuTorch"), ("model.tflite", "LiteRT")):
        (tmp_path / name).write_bytes(b"")
        fails(invoke("predict", tmp_path / name, tmp_path), f"{runtime} is not installed: pip install")


def test_without_onnx(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxClassifier, "module", "no_such_module")
    result = invoke("export", folder, "--to", "onnx", "--out", tmp_path)
    fails(result, "onnx: ONNX Runtime is not installed: pip install 'hybrid-mobilenet[export]'")
    assert list(tmp_path.iterdir()) == []
