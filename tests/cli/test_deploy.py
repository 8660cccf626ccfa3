"""`export` and `benchmark` from the command line: what they print and write, and how they fail."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from command_line import NETWORK, fails, invoke
from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.data.splits import load_test
from hybrid_mobilenet.deploy.export import export_file
from hybrid_mobilenet.deploy.runtimes import ExecuTorchClassifier, LiteRTClassifier, OnnxClassifier
from networks import network, trained
from processes import run_command


@pytest.mark.slow
def test_export_from_another_folder(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, elsewhere = photos.parent, tmp_path / "elsewhere"
    network = ["--family", "mp3", *NETWORK[2:], "--batch-size", "16"]
    result = run_command("train", "photos", *network, "--epochs", "30", "--out", "run", cwd=work)
    assert result.returncode == 0, result.stderr
    assert json.loads((work / "run/config.json").read_text())["training"]["data"] == str(photos)
    targets = ("--to", "onnx,onnx-int8")
    result = run_command("export", "../work/run", *targets, "--json", cwd=elsewhere)
    assert (result.returncode, result.stderr) == (0, "")
    assert [file["target"] for file in json.loads(result.stdout)["files"]] == ["onnx", "onnx-int8"]

    shutil.rmtree(photos)
    monkeypatch.chdir(elsewhere)
    without = invoke("export", work / "run", *targets, "--out", "files", "--json")
    assert without.exit_code == 2
    assert [file["target"] for file in json.loads(without.stdout)["files"]] == ["onnx"]
    (line,) = without.stderr.splitlines()
    for part in ("error: onnx-int8: it is calibrated on training images", "--data", f"'{photos}'", "cannot be read"):
        assert part in line
    assert [path.name for path in Path("files").iterdir()] == ["model.onnx"]
    # What is named now and cannot be read is a mistake, for all targets.
    fails(invoke("export", work / "run", *targets, "--data", photos, "--out", "others"), f"there is no data '{photos}'")
    assert not Path("others").exists()


def test_few_images_for_int8_are_no_obstacle_for_float32(photos: Path, model: Path, tmp_path: Path) -> None:
    for name in map(str, range(10)):
        (tmp_path / "few" / name).mkdir(parents=True)
        for index in range(3):
            shutil.copy(photos / "0" / f"{index}.png", tmp_path / "few" / name)
    out = tmp_path / "files"
    result = invoke("export", model, "--to", "onnx-int8,onnx", "--data", tmp_path / "few", "--out", out)
    assert result.exit_code == 2
    assert re.fullmatch(r"error: onnx-int8: there are \d+ training images, but int8 [^\n]+\n", result.stderr)
    assert [path.name for path in out.iterdir()] == ["model.onnx"]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    network("fmp").save_pretrained(path)
    return path


@pytest.mark.slow
def test_export_command(untrained: Path) -> None:
    result = invoke("export", untrained, "--to", "onnx")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0].split("  ")[0] == "File"
    row = " ".join(result.stdout.splitlines()[2:])
    assert re.search(r"1,7\d\d kB +\d\.\de-\d\d +- +- +[\d,]+ us", row), row
    assert (untrained / "export" / "model.onnx").stat().st_size > 1_700_000


@pytest.mark.slow
def test_export_command_with_data(untrained: Path, tmp_path: Path) -> None:
    result = invoke("export", untrained, "--to", "onnx", "--data", "digits", "--out", tmp_path / "a" / "b", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    printed = json.loads(result.stdout)
    (record,) = printed["files"]
    file = tmp_path / "a" / "b" / "model.onnx"
    assert (record["target"], record["path"], record["size"]) == ("onnx", str(file), file.stat().st_size)
    test = load_test("digits")
    with torch.no_grad():
        right = HybridMobileNet.from_pretrained(untrained)(test.batch(torch.arange(len(test)))).argmax(1) == test.labels
    assert record["accuracy"] == pytest.approx(right.float().mean().item(), abs=1 / len(test))
    assert printed["accuracy"] == pytest.approx(record["accuracy"], abs=1 / len(test))
    assert 0 < record["parity"]["difference"] <= 1e-4
    assert record["microseconds"] > 1


@pytest.mark.slow
def test_several_targets_and_files_that_predict(tmp_path: Path) -> None:
    trained_fmp, folder = trained("fmp"), tmp_path / "model"
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


def test_int8_needs_training_images(untrained: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    fails(
        invoke("export", untrained, "--to", "onnx-int8", *out), "calibrated on training images: name them with --data"
    )
    for name in ("0", "1"):
        (tmp_path / "few" / name).mkdir(parents=True)
        for index in range(9):
            Image.new("RGB", (8, 8), (index, 9, 9)).save(tmp_path / "few" / name / f"{index}.png")
    few = network("mobilenet", classes=2)
    few.save_pretrained(tmp_path / "model")
    result = invoke("export", tmp_path / "model", "--to", "onnx-int8", "--data", tmp_path / "few", *out)
    fails(result, "there are 12 training images, but int8 is calibrated on 100 or more")
    assert not (tmp_path / "out").exists()


def test_export_refuses(untrained: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    fails(invoke("export", untrained, "--to", "onxx", *out), "--to is 'onxx', but must be one or more of onnx")
    fails(
        invoke("export", untrained, "--to", "onnx,coreml", *out),
        "--to is 'onnx,coreml' (unknown: 'coreml'), but must be",
    )
    fails(invoke("export", untrained, *out), "--to is missing: give one or more of onnx")
    fails(invoke("export", tmp_path / "nothing", "--to", "onnx", *out), "there is no config.json in it")
    (tmp_path / "file").write_text("")
    fails(invoke("export", untrained, "--to", "onnx", "--out", tmp_path / "file"), str(tmp_path / "file"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_a_missing_runtime_is_named_with_its_remedy_and_the_others_go_on(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExecuTorchClassifier, "module", "no_such_module")
    monkeypatch.setattr(LiteRTClassifier, "module", "numpy")
    monkeypatch.setattr(LiteRTClassifier, "exporter", "no_such_module")
    result = invoke("export", untrained, "--to", "executorch,onnx,litert", "--out", tmp_path)
    assert result.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    executorch, litert = result.stderr.splitlines()
    assert "executorch: ExecuTorch is not installed: pip install 'hybrid-mobilenet[executorch]'" in executorch
    assert "litert: no_such_module, which makes its files, is not installed: pip" in litert
    monkeypatch.setattr(LiteRTClassifier, "module", "no_such_module")
    for name, runtime in (("model.pte", "ExecuTorch"), ("model.tflite", "LiteRT")):
        (tmp_path / name).write_bytes(b"")
        fails(invoke("predict", tmp_path / name, tmp_path), f"{runtime} is not installed: pip install")


def test_without_onnx(untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxClassifier, "module", "no_such_module")
    result = invoke("export", untrained, "--to", "onnx", "--out", tmp_path)
    fails(result, "onnx: ONNX Runtime is not installed: pip install 'hybrid-mobilenet[export]'")
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.slow
def test_benchmark(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke("benchmark", run, "--threads", "1,2", "--rounds", "7", "--out", out, "--json")
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
    assert -0.5 < rows[1]["pooling_share"] < 1
    with Image.open(out / "benchmark.png") as picture:
        assert picture.format == "PNG"
    table = invoke("benchmark", file, "--rounds", "1", "--out", out).stdout
    assert table.split("\n")[0].split()[:3] == ["Model", "Runtime", "Threads"]
    assert "ONNX Runtime" in table


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
