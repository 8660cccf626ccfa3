"""Exported files in their runtimes; `make test-runtimes` installs ExecuTorch and LiteRT and runs this."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image

from hybrid_mobilenet import HybridMobileNet, __version__
from hybrid_mobilenet.data.splits import load_test
from hybrid_mobilenet.deploy.deployed import ExportError
from hybrid_mobilenet.deploy.export import export_file
from hybrid_mobilenet.deploy.onnx import onnx_bytes
from hybrid_mobilenet.deploy.runtimes import ExecuTorchClassifier, LiteRTClassifier, RuntimeFileError, open_file
from hybrid_mobilenet.layers.sizes import Size
from hybrid_mobilenet.network.architecture import FAMILIES, Family
from networks import images, network, trained
from processes import run_command
from runtime_files import BYTES, CLASSIFIERS, FILES, RUNTIMES

ROOT = Path(__file__).parents[2]


SIZES: tuple[Size, ...] = ((32, 32), (40, 24))


@pytest.fixture(scope="module", params=RUNTIMES)
def file(
    request: pytest.FixtureRequest, trained_fmp: HybridMobileNet, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The trained network, exported."""
    path = tmp_path_factory.mktemp(request.param) / FILES[request.param]
    assert 0 < export_file(trained_fmp, request.param, path).difference <= 1e-4
    return path


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own: what C++ prints passes by Python's streams."""
    return run_command(*arguments, timeout=600)


def printed(*arguments: str | Path) -> Any:
    result = command(*arguments, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


# What the files compute


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("family", "alpha", "delta", "classes", "size"),
    list(product(FAMILIES, (0.25, 1.0), (1, 2), (10, 100), SIZES)),
    ids=lambda value: str(value).replace(" ", ""),
)
def test_agrees_with_pytorch(runtime: str, family: Family, alpha: float, delta: int, classes: int, size: Size) -> None:
    model = network(family, alpha, delta, classes, size)
    some = images(2, size, seed=1)
    with torch.no_grad():
        expected = model(some)
    logits, probabilities = CLASSIFIERS[runtime](BYTES[runtime](model)).outputs(some)
    assert expected.std(0).max() > 0.1  # that logits depend on the image
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(probabilities, expected.softmax(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("options", [{"overlapping": True}, {"activation": "relu6"}], ids=str)
def test_options_of_the_model_are_exported(runtime: str, options: dict[str, Any]) -> None:
    model, plain, some = network("fmp", **options), network("fmp"), images(4)
    # The same weights and statistics: only the option makes the difference.
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        expected, other = model(some), plain(some)
    logits, _ = CLASSIFIERS[runtime](BYTES[runtime](model)).outputs(some)
    assert (expected - other).abs().max() > 1e-2
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_greyscale(runtime: str) -> None:
    torch.manual_seed(0)
    model = HybridMobileNet("fmp", 0.25, 4, 10, 1, 8, mean=[0.3], std=[0.4]).eval()
    some = images(4, (8, 8), 1)
    with torch.no_grad():
        expected = model(some)
    logits, _ = CLASSIFIERS[runtime](BYTES[runtime](model)).outputs(some)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_what_the_file_says(file: Path) -> None:
    classifier = open_file(file, threads=1)
    assert (classifier.class_names, classifier.image_size, classifier.in_channels) == (tuple("0123456789"), (16, 16), 3)
    assert isinstance(classifier, ExecuTorchClassifier | LiteRTClassifier)
    about = classifier.about
    assert {key: about[key] for key in ("family", "alpha", "delta", "version")} == {
        "family": "fmp", "alpha": "0.25", "delta": "2", "version": __version__,
    }  # fmt: skip
    assert "uint8 (1, 16, 16, 3), RGB, 0..255" in about["preprocessing"]
    assert about["outputs"].startswith("logits and probabilities: float32 (1, classes)")


def test_images_do_not_depend_on_each_other(file: Path) -> None:
    classifier, some = open_file(file), images(5, (16, 16))
    together, shares = classifier.outputs(some)
    assert together.shape == shares.shape == (5, 10)
    torch.testing.assert_close(shares.sum(1), torch.ones(5))
    for index in (4, 0):
        assert torch.equal(classifier.outputs(some[index : index + 1])[0][0], together[index])


# What is refused


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.slow
def test_an_export_that_disagrees_leaves_no_file(
    runtime: str, trained_fmp: HybridMobileNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = trained("fmp")
    with torch.no_grad():
        changed.get_parameter("classifier.linear.bias")[3] += 1e-3
    content = BYTES[runtime](changed)
    monkeypatch.setattr(f"hybrid_mobilenet.deploy.{runtime}.{runtime}_bytes", lambda *_: content)
    with pytest.raises(ExportError, match=r"disagrees with PyTorch in .*: logits differ by 0\.001"):
        export_file(trained_fmp, runtime, tmp_path / FILES[runtime])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 1, 100, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_in_the_middle(file: Path, tmp_path: Path, keep: float) -> None:
    content = file.read_bytes()
    cut = tmp_path / file.name
    cut.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(RuntimeFileError, match=r"is damaged or not .*export it again"):
        open_file(cut)
    if keep == 0.5:
        Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
        result = command("predict", cut, tmp_path / "image.png")
        assert (result.returncode, result.stdout) == (2, "")
        assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_of_another_kind(runtime: str, tmp_path: Path) -> None:
    foreign = tmp_path / FILES[runtime]
    foreign.write_bytes(bytes(range(256)) * 100)
    with pytest.raises(RuntimeFileError, match="damaged or not"):
        open_file(foreign)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.999])
def test_an_onnx_file_cut_in_the_middle(fmp: HybridMobileNet, tmp_path: Path, keep: float) -> None:
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


# The commands


def test_export_predict_evaluate_and_benchmark(trained_fmp: HybridMobileNet, file: Path, tmp_path: Path) -> None:
    target = next(target for target, name in FILES.items() if name == file.name)
    folder = tmp_path / "model"
    trained_fmp.save_pretrained(folder)
    (record,) = printed("export", folder, "--to", target, "--data", "digits")["files"]
    exported = folder / "export" / file.name
    assert (record["target"], record["path"], record["size"]) == (target, str(exported), exported.stat().st_size)
    assert 0 < record["parity"]["difference"] <= 1e-4
    test = load_test("digits", image_size=16)
    with torch.no_grad():
        right = trained_fmp(test.batch(torch.arange(len(test)))).argmax(1) == test.labels
    assert record["accuracy"] == pytest.approx(right.float().mean().item(), abs=1 / len(test))

    Image.fromarray(test.batch(torch.arange(1))[0].permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    with torch.no_grad():
        expected = trained_fmp(test.batch(torch.arange(1))).softmax(1)[0]
    (prediction,) = printed("predict", exported, tmp_path / "image.png", "--top", "10")
    for index, share in enumerate(expected.tolist()):
        assert prediction["probabilities"][str(index)] == pytest.approx(share, abs=1e-5)
    evaluation = printed("evaluate", exported, "digits", "--out", tmp_path / "confusion.png")
    assert evaluation["accuracy"] == record["accuracy"]

    rows = printed("benchmark", folder, "--rounds", "1", "--threads", "1,2", "--out", tmp_path)
    runtime = CLASSIFIERS[target].runtime
    assert [(row["runtime"], row["threads"]) for row in rows["measurements"]] == [
        ("PyTorch", 1), (runtime, 1), ("PyTorch", 2), (runtime, 2),
    ]  # fmt: skip
    assert all(row["latency"]["median"] > 1e-6 for row in rows["measurements"])
    assert target.replace("litert", "ai-edge-litert") in rows["environment"]["versions"]


def test_the_example(trained_fmp: HybridMobileNet, file: Path, tmp_path: Path) -> None:
    one = load_test("digits", image_size=16).batch(torch.arange(1))
    Image.fromarray(one[0].permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    with torch.no_grad():
        share, best = trained_fmp(one).softmax(1)[0].max(0)
    target = next(target for target, name in FILES.items() if name == file.name)
    # Outside the checkout, and without the package.
    example = ROOT / "examples" / f"run_{target}.py"
    assert "hybrid_mobilenet" not in example.read_text()
    call = [sys.executable, str(example), str(file), "image.png"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == f"{best.item()} {share.item():.1%}\n"
