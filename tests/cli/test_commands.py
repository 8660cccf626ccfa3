"""Training, evaluating and predicting from the command line: what comes out, and how it fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner, Result

import hybrid_mobilenet
from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.training import recipe as recipe_module
from hybrid_mobilenet.training.recipe import PAPER_RECIPES

ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(hybrid_mobilenet.__file__).parents[1]),
    "COLUMNS": "80",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
NETWORK = ["--family", "fmp", "--alpha", "0.25", "--delta", "1", "--image-size", "8", "--in-channels", "1"]


def shell(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hybrid_mobilenet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd, check=False, timeout=120)


def start(*arguments: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hybrid_mobilenet", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT, cwd=cwd)


def invoke(*arguments: str | Path) -> Result:
    """The same in this process: importing torch anew takes seconds."""
    return CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, list(map(str, arguments)))


def fails(result: Result | subprocess.CompletedProcess[str], *parts: str) -> None:
    status = result.exit_code if isinstance(result, Result) else result.returncode
    assert (status, result.stdout) == (2, ""), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    for part in parts:
        assert part in result.stderr, result.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run in its default place, and what the command printed."""
    folder = tmp_path_factory.mktemp("work")
    result = shell("train", "digits", *NETWORK, "--epochs", "3", "--batch-size", "128", cwd=folder)
    return folder / "runs" / "digits-fmp-d1-a0.25-s0", result


@pytest.fixture(scope="module")
def model(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    folder, result = trained
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index, pixels in enumerate(load_digits().images[:3]):
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(folder / f"digit {index}.png")
    return folder


# Train


def test_train_prints_epochs_and_result(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, result = trained
    assert result.returncode == 0
    first, second = result.stdout.splitlines()
    assert re.fullmatch(r"\d+\.\d\d% of 359 test images right after the last epoch", first)
    assert second == "model, curves and evaluation in runs/digits-fmp-d1-a0.25-s0"
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    pattern = r"epoch (\d)/3  loss \d\.\d{4}  accuracy [\d.]+%  validation [\d.]+%  [\d,]+ images/s"
    epochs = [match[1] for line in lines if (match := re.fullmatch(pattern, line))]
    assert epochs == ["1", "2", "3"]
    assert "\x1b" not in result.stdout + result.stderr
    assert first.startswith(f"{json.loads((folder / 'evaluation.json').read_text())['accuracy']:.2%} of")


def test_train_json_is_all_that_is_printed(tmp_path: Path) -> None:
    result = invoke("train", "digits", *NETWORK, "--epochs", "1", "--out", tmp_path / "run", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    record = json.loads(result.stdout)
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert record == {
        "run": str(tmp_path / "run"),
        "accuracy": evaluation["accuracy"],
        "images": 359,
        "notes": [],
        "warnings": [],
    }


def test_every_option_reaches_the_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "epochs": 2, "batch-size": 500, "learning-rate": 0.01, "weight-decay": 0.1, "activation": "relu6",
        "sequence": "pseudorandom", "fixed-epochs": 1, "validation": 0.2, "seed": 3,
    }  # fmt: skip
    given = [text for name, value in options.items() for text in (f"--{name}", value)]
    network = ["--family", "fmp", "--alpha", "0.5", "--delta", "2", "--image-size", "8x12", "--in-channels", "3"]
    out = tmp_path / "run"
    result = invoke("train", "digits", *network, *map(str, given), "--overlapping", "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    config = json.loads((out / "config.json").read_text())
    record = config["training"] | config["training"]["recipe"]
    assert {name: record[name.replace("-", "_")] for name in options} == options
    assert (config["alpha"], config["delta"], config["image_size"], config["in_channels"]) == (0.5, 2, [8, 12], 3)
    assert (config["activation"], config["sequence"], config["overlapping"]) == ("relu6", "pseudorandom", True)


def test_fewer_epochs_have_fewer_with_fixed_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(PAPER_RECIPES["fmp"], epochs=30, fixed_epochs=15, batch_size=500)
    monkeypatch.setattr(recipe_module, "PAPER_RECIPES", {**PAPER_RECIPES, "fmp": recipe})
    network = ["--alpha", "0.25", "--delta", "1", "--image-size", "8", "--in-channels", "1"]
    result = invoke("train", "digits", *network, "--epochs", "2", "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.stderr
    trained = json.loads((tmp_path / "run/config.json").read_text())["training"]["recipe"]
    assert trained == asdict(replace(recipe, epochs=2, fixed_epochs=1))


def test_what_is_not_given_comes_from_the_family_s_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = {
        family: replace(recipe.with_epochs(1), batch_size=500, learning_rate=0.001 * (1 + index))
        for index, (family, recipe) in enumerate(PAPER_RECIPES.items())
    }
    monkeypatch.setattr(recipe_module, "PAPER_RECIPES", recipes)
    monkeypatch.setattr(cli, "LEAST_STEPS", 3)
    for family in ("mp3", "fmp"):
        network = ["--family", family, "--alpha", "0.25", "--delta", "1", "--image-size", "8", "--in-channels", "1"]
        out = tmp_path / family
        result = invoke("train", "digits", *network, "--fixed-epochs", "1", "--out", out, "--json")
        assert result.exit_code == 0, result.stderr
        recipe = json.loads((out / "config.json").read_text())["training"]["recipe"]
        assert recipe == asdict(replace(recipes[family], fixed_epochs=1, least_steps=3))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("train takes DATA", "or --resume RUN")),
        (("digits", "--resume", "run"), ("train takes DATA", "or --resume RUN")),
        (("--resume", "run", "--alpha", "0.25", "--epochs", "3"), ("leave out --alpha, --epochs",)),
        (("--resume", "nowhere"), ("no checkpoint.safetensors in nowhere",)),
        (("digits", "--alpha", "0.3"), ("alpha is 0.3", "choose a multiple of 1/32")),
        (("digits", "--delta", "0"), ("delta is 0",)),
        (("digits", "--image-size", "7"), ("image_size is 7x7", "must be 8 or more")),
        (("digits", "--image-size", "x"), ("--image-size is 'x'",)),
        (("digits", "--in-channels", "2"), ("2", "channels")),
        (("digits", "--epochs", "0"), ("epochs is 0",)),
        (("digits", "--batch-size", "1"), ("batch_size is 1",)),
        (("digits", "--learning-rate", "0"), ("learning_rate is 0",)),
        (("digits", "--weight-decay", "-1"), ("weight_decay is -1",)),
        (("digits", "--validation", "1"), ("validation is 1",)),
        (("digits", "--fixed-epochs", "99", "--epochs", "9"), ("fixed_epochs is 99",)),
        (("digits", "--seed", "-1"), ("seed is -1", "0 or more and less than 2**64")),
        (("digits", "--seed", "18446744073709551616"), ("seed is 18446744073709551616", "less than 2**64")),
        (("digit",), ("there is no data 'digit'", "did you mean 'digits'?")),
    ],
    ids=" ".join,
)
def test_train_refuses(
    arguments: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(invoke("train", *arguments), *parts)
    assert list(tmp_path.iterdir()) == []


def test_train_does_not_overwrite_a_run(model: Path) -> None:
    before = (model / "model.safetensors").read_bytes()
    fails(invoke("train", "digits", *NETWORK, "--out", model), str(model), "exists already", "--out", "--resume")
    fails(invoke("train", "--resume", model), "is finished")
    assert (model / "model.safetensors").read_bytes() == before


def test_mistakes_in_the_shell_leave_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = shell("train", "digits", *NETWORK, "--epochs", "1", "--out", tmp_path / "file" / "run")
    fails(result, f"out is '{tmp_path / 'file' / 'run'}'", "Not a directory", "choose another with --out")
    result = shell("train", "digits", "--family", "vgg")
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


# From another folder than training's


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with 200 training images in two classes, given to `train` by its relative name."""
    digits = load_digits()
    for name in ("0", "1"):
        (tmp_path / "work/photos" / name).mkdir(parents=True)
        for index, pixels in enumerate(digits.images[digits.target == int(name)][:130]):
            image = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
            image.save(tmp_path / "work/photos" / name / f"{index}.png")
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "work/photos"


def test_export_from_another_folder(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, elsewhere = photos.parent, tmp_path / "elsewhere"
    network = ["--family", "mp3", *NETWORK[2:], "--batch-size", "16"]
    result = shell("train", "photos", *network, "--epochs", "12", "--out", "run", cwd=work)
    assert result.returncode == 0, result.stderr
    assert json.loads((work / "run/config.json").read_text())["training"]["data"] == str(photos)
    targets = ("--to", "onnx", "onnx-int8")
    result = shell("export", "../work/run", *targets, "--json", cwd=elsewhere)
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
    result = invoke("export", model, "--to", "onnx-int8", "onnx", "--data", tmp_path / "few", "--out", out)
    assert result.exit_code == 2
    assert re.fullmatch(r"error: onnx-int8: there are \d+ training images, but int8 [^\n]+\n", result.stderr)
    assert [path.name for path in out.iterdir()] == ["model.onnx"]


def test_a_run_resumes_from_another_folder(photos: Path, tmp_path: Path) -> None:
    network = (*NETWORK, "--epochs", "8", "--batch-size", "16")
    process = start("train", "photos", *network, "--out", "stopped", cwd=photos.parent)
    assert process.stderr
    with process:
        assert process.stderr.readline().startswith("epoch 1/8")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().splitlines()[-1].endswith("train --resume stopped")
    assert process.returncode == 130
    run = photos.parent / "stopped"
    result = shell("train", "--resume", run, cwd=tmp_path / "elsewhere")
    assert result.returncode == 0, result.stderr
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 8
    assert json.loads((run / "evaluation.json").read_text())["images"] == 56


def test_names_of_data_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybrid_mobilenet.data.sources import whole_name

    monkeypatch.chdir(tmp_path)
    for name in ("digits", "cifar10", "cifar100", "owner/name", "nothing", ""):
        assert whole_name(name) == name
    for folder in ("digits", "photos", "owner2/name"):  # a folder called as data of the package is not meant
        (tmp_path / folder).mkdir(parents=True)
    assert whole_name("digits") == "digits"
    assert whole_name("photos") == str(tmp_path / "photos")
    assert whole_name("owner2/name") == str(tmp_path / "owner2/name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert whole_name("~/photos") == str(tmp_path / "photos")


# Evaluate


def test_evaluate(model: Path) -> None:
    result = shell("evaluate", model, "digits")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["Class", "Images", "Recall", "Precision", "F1"]
    assert [line.split()[0] for line in lines[2:12]] == list("0123456789")
    accuracy = json.loads((model / "evaluation.json").read_text())["accuracy"]
    assert lines[12].startswith(f"{accuracy:.2%} of 359 test images right, 1 pass, cross-entropy ")
    assert lines[13] == "tested: all 359 images of the test split of digits"
    assert " ".join(lines[14:]).replace("  ", " ").startswith("confusion matrix in")
    with Image.open(model / "confusion.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.size == (888, 813)


def test_evaluate_json_agrees_with_the_run(model: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    result = invoke("evaluate", model, "digits", "--json", "--out", picture)
    assert (result.exit_code, result.stderr) == (0, "")
    record = json.loads(result.stdout)
    assert (record.pop("model"), record.pop("data"), record.pop("picture")) == (str(model), "digits", str(picture))
    assert (record.pop("tested"), record.pop("of"), record.pop("used_in_training")) == ("test split", 359, 0)
    assert record.pop("notes") == []
    expected = json.loads((model / "evaluation.json").read_text())
    assert record.pop("loss") == pytest.approx(expected.pop("loss"), abs=1e-5)  # another runtime's rounding
    assert record == expected
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_evaluate_with_passes(model: Path) -> None:
    first, again, other = (
        json.loads(invoke("evaluate", model, "digits", "--passes", "3", "--seed", seed, "--json").stdout)
        for seed in ("1", "1", "2")
    )
    assert first == again
    assert first["passes"] == 3
    assert first["loss"] != other["loss"]
    assert "3 passes with random regions" in invoke("evaluate", model, "digits", "--passes", "3").stdout.replace(
        "\n", " "
    )


@pytest.mark.parametrize("seed", ["-1", "18446744073709551616"])
def test_evaluate_refuses_a_seed(seed: str, model: Path) -> None:
    for passes in ("1", "2"):
        result = invoke("evaluate", model, "digits", "--passes", passes, "--seed", seed)
        fails(result, f"seed is {seed}, but must be 0 or more and less than 2**64")


def test_a_time_is_a_seed(model: Path, tmp_path: Path) -> None:
    options = ("--epochs", "1", "--batch-size", "500", "--seed", "20241124123456")
    result = invoke("train", "digits", *NETWORK, *options, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.stderr
    result = invoke("evaluate", model, "digits", "--passes", "2", "--seed", str(2**64 - 1), "--json")
    assert result.exit_code == 0, result.stderr


def test_a_picture_that_cannot_be_written_costs_the_picture_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, reason in ((tmp_path / "file" / "picture.png", "File exists"), (tmp_path, "Is a directory")):
        result = invoke("evaluate", model, "digits", "--json", "--out", out)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        assert result.stderr.endswith(f": {reason}\n")
        assert json.loads(result.stdout)["images"] == 359
    assert invoke("evaluate", model, "digits", "--out", tmp_path / "new" / "picture.png").exit_code == 0
    assert (tmp_path / "new" / "picture.png").is_file()


# Predict


def test_predict(model: Path, images: Path) -> None:
    result = shell("predict", model, *sorted(images.iterdir()))
    assert (result.returncode, result.stderr.strip()) == (0, "")
    header, _, *rows = result.stdout.splitlines()
    assert header.split() == ["File", "Class", "Probability", "Then"]
    assert len(rows) == 3
    for index, row in enumerate(rows):
        assert re.fullmatch(rf"\S.*digit {index}\.png +\d +[\d.]+% +\d [\d.]+%, \d [\d.]+% *", row)


def test_a_damaged_exif_block_leaves_no_word(model: Path, tmp_path: Path) -> None:
    for name, exif in (("garbage", b"no TIFF header"), ("cut off", b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01")):
        for kind in ("jpg", "png", "webp"):
            Image.new("RGB", (8, 8), (90, 90, 90)).save(tmp_path / f"{name}.{kind}", exif=exif)
    result = shell("predict", model, tmp_path, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert len(json.loads(result.stdout)) == 6


def test_paths_that_are_no_files_are_named_and_not_read(model: Path, images: Path, tmp_path: Path) -> None:
    link, pipe = tmp_path / "link.png", tmp_path / "pipe.png"
    link.symlink_to(tmp_path / "gone")
    os.mkfifo(pipe)
    result = invoke("predict", model, link, pipe, images, "--json")
    assert result.exit_code == 2
    assert len(json.loads(result.stdout)) == 3
    for line, path in zip(result.stderr.splitlines(), (link, pipe), strict=True):
        assert line.startswith(f"error: {path} is not a regular file")


def test_predict_json(model: Path, images: Path) -> None:
    result = invoke("predict", model, images, "--json", "--top", "10")
    assert (result.exit_code, result.stderr) == (0, "")
    records = json.loads(result.stdout)
    assert [Path(record["file"]).name for record in records] == [f"digit {index}.png" for index in range(3)]
    for record in records:
        assert list(record) == ["file", "class", "probabilities"]
        shares = list(record["probabilities"].values())
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert record["class"] == next(iter(record["probabilities"]))
        assert set(record["probabilities"]) == set("0123456789")
    (one, *_) = json.loads(invoke("predict", model, images, "--json", "--top", "1").stdout)
    assert one["probabilities"] == {records[0]["class"]: records[0]["probabilities"][records[0]["class"]]}


def test_predict_averages_passes(model: Path, images: Path) -> None:
    file = next(iter(sorted(images.iterdir())))
    one, many = (
        json.loads(invoke("predict", model, file, "--passes", passes, "--json", "--top", "10").stdout)[0]
        for passes in ("1", "4")
    )
    assert one["probabilities"] != many["probabilities"]
    assert sum(many["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_a_bad_image_among_good_ones(model: Path, images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    whole = (folder / "digit 0.png").read_bytes()
    (folder / "digit 0.5.png").write_bytes(whole[: len(whole) // 2])
    (folder / "digit 1.5.png").write_text("no image")
    result = invoke("predict", model, folder, "--json")
    assert result.exit_code == 2
    assert [Path(record["file"]).name for record in json.loads(result.stdout)] == [
        f"digit {index}.png" for index in range(3)
    ]
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {folder / 'digit 0.5.png'} ")
    assert second.startswith(f"error: {folder / 'digit 1.5.png'} ")
    result = invoke("predict", model, folder)
    assert result.exit_code == 2
    assert result.stdout.count(".png") == 3


def test_paths_that_are_none_among_good_images(model: Path, images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    (folder / "digit 0.5.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "empty").mkdir()
    paths = (folder / "digit 1.png", tmp_path / "nothere.png", tmp_path / "empty", folder)
    result = invoke("predict", model, *paths, "--json")
    assert result.exit_code == 2
    found = [Path(record["file"]).name for record in json.loads(result.stdout)]
    assert found == ["digit 1.png", "digit 0.png", "digit 1.png", "digit 2.png"]
    missing, empty, link = result.stderr.splitlines()
    assert missing.startswith(f"error: {tmp_path / 'nothere.png'} does not exist")
    assert empty.startswith(f"error: {tmp_path / 'empty'} contains no images")
    assert link.startswith(f"error: {folder / 'digit 0.5.png'} is not a regular file")
    result = invoke("predict", model, images / "digit 1.png", "nothere.png")
    assert (result.exit_code, result.stdout.count("digit 1.png")) == (2, 1)
    assert re.fullmatch(r"error: nothere\.png does not exist[^\n]+\n", result.stderr)


@pytest.fixture(scope="module")
def many_images(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 of them, all the same file."""
    folder = tmp_path_factory.mktemp("many")
    for index in range(2000):
        os.link(images / "digit 0.png", folder / f"{index:04}.png")
    return folder


def first_row(lines: IO[str]) -> str:
    """What is printed up to the first image."""
    text = ""
    while "0000.png" not in text:
        line = lines.readline()
        assert line, text
        text += line
    return text


@pytest.mark.parametrize("as_json", [False, True], ids=["table", "json"])
def test_rows_appear_as_they_come_and_ctrl_c_keeps_them(as_json: bool, model: Path, many_images: Path) -> None:
    process = start("predict", model, many_images / "missing.png", many_images, *["--json"] * as_json)
    assert process.stdout
    assert process.stderr
    with process:
        text = first_row(process.stdout)
        assert process.poll() is None  # it has hardly begun
        process.send_signal(signal.SIGINT)
        text += process.stdout.read()
        stderr = process.stderr.read()
    assert process.returncode == 130
    if as_json:
        records = json.loads(text)
        assert {len(record["probabilities"]) for record in records} == {3}
        names = [Path(record["file"]).name for record in records]
    else:
        names = re.findall(r"(\d{4}\.png) +\d +[\d.]+% +\d [\d.]+%, \d [\d.]+% *\n", text)
        assert text.count("\n") == 2 + len(names)
    assert names == [f"{index:04}.png" for index in range(len(names))]
    assert 1 <= len(names) < 2000
    missing, interrupted = stderr.splitlines()
    assert missing.startswith(f"error: {many_images / 'missing.png'} does not exist")
    assert interrupted == f"error: interrupted after {len(names):,} of 2,000 images"


def test_rows_on_a_terminal(model: Path, many_images: Path) -> None:
    """Both outputs are one terminal, where no bar may run into the rows."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "hybrid_mobilenet", "predict", str(model), str(many_images)]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=ENVIRONMENT | {"COLUMNS": "120"}) as process:
        os.close(theirs)
        with os.fdopen(ours, closefd=True) as terminal:
            text = first_row(terminal)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            with suppress(OSError):  # Linux's way to say that the other end is closed
                while line := terminal.readline():
                    text += line
        assert process.wait(60) == 130
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines()
    *rows, interrupted = plain[2:]
    assert [row.split()[0] for row in rows] == [str(many_images / f"{index:04}.png") for index in range(len(rows))]
    assert interrupted == f"error: interrupted after {len(rows):,} of 2,000 images"


def test_rows_go_where_standard_output_goes(model: Path, many_images: Path, tmp_path: Path) -> None:
    """The bar is on a terminal, the rows are in a file."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "hybrid_mobilenet", "predict", str(model)]
    some = [str(many_images / f"{index:04}.png") for index in range(20)]
    with (tmp_path / "rows").open("w") as file:
        process = subprocess.Popen([*command, *some], stdout=file, stderr=theirs, env=ENVIRONMENT)
        os.close(theirs)
        sent = b""
        with suppress(OSError):
            while piece := os.read(ours, 4096):
                sent += piece
        os.close(ours)
    assert process.wait(60) == 0
    assert [line.split()[0] for line in (tmp_path / "rows").read_text().splitlines()[2:]] == some
    assert b"predicting" in sent
    assert b".png" not in sent


def test_only_bad_images(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    fails(invoke("predict", model, tmp_path / "bad.png"), "bad.png is empty", "replace or remove it")
    result = invoke("predict", model, tmp_path / "bad.png", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (2, [])


def gigapixel(path: Path) -> None:
    """A PNG of 40,000 x 40,000 pixels by its header, and without any."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def test_images_of_every_kind(model: Path, tmp_path: Path) -> None:
    Image.new("L", (9, 7), 100).save(tmp_path / "grey.png")
    Image.new("RGBA", (20, 10), (200, 0, 0, 100)).save(tmp_path / "rgba.png")
    Image.fromarray(np.full((12, 12), 40_000, np.uint16)).save(tmp_path / "sixteen bits.png")
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "one pixel.png")
    Image.new("P", (8, 8), 3).save(tmp_path / "palette.gif")
    Image.new("CMYK", (16, 16), (10, 20, 30, 40)).save(tmp_path / "print.jpg")
    result = invoke("predict", model, tmp_path, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(json.loads(result.stdout)) == 6
    gigapixel(tmp_path / "huge.png")
    fails(invoke("predict", model, tmp_path / "huge.png"), str(tmp_path / "huge.png"), "pixels")


def test_predict_refuses(model: Path, images: Path, tmp_path: Path) -> None:
    fails(invoke("predict", model, images, "--top", "0"), "--top is 0")
    fails(invoke("predict", model, images, "--passes", "0"), "passes is 0")
    fails(invoke("predict", model, tmp_path / "missing.png"), "missing.png does not exist")
    fails(invoke("predict", model, tmp_path), f"{tmp_path} contains no images")
    assert invoke("predict", model).exit_code == 2


# Names with brackets


def test_names_are_printed_as_they_are(tmp_path: Path) -> None:
    """Folders of runs and data, classes and files: nothing in them is markup, on a terminal or in a picture."""
    names = ("a[b]", "[", "[red]", "$\\frac{$", ":smile:")
    data, out = tmp_path / "[red]data[b]", tmp_path / "run[" / "b]" / "[old]"
    pixels = load_digits().images
    for label, name in enumerate(names):
        (data / name).mkdir(parents=True)
        for index in range(10):
            image = Image.fromarray((pixels[10 * label + index] * 255 / 16).astype(np.uint8))
            image.save(data / name / f"[red]{index}[b].png")

    def shown(*arguments: str | Path, status: int = 0) -> str:
        """What a terminal shows."""
        result = CliRunner(env={"COLUMNS": "1000", "FORCE_COLOR": "1"}).invoke(cli.app, list(map(str, arguments)))
        assert result.exit_code == status, result.output
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stdout)

    network = ("--family", "mobilenet", *NETWORK[2:], "--epochs", "1")
    assert f"evaluation in {out}\n" in shown("train", data, *network, "--out", out)
    text = shown("evaluate", out, data)
    assert [line.split()[0] for line in text.splitlines()[2:7]] == sorted(names)
    assert f"confusion matrix in {out / 'confusion.png'}\n" in text
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")
    text = shown("predict", out, data, "--top", "5")
    for name in names:
        assert str(data / name / "[red]0[b].png") in text
        assert re.search(rf"[ ,]{re.escape(name)} +\d", text)
    text = shown("export", out, "--to", "onnx", "--out", tmp_path / "[b]files[x]")
    assert str(tmp_path / "[b]files[x]/model.onnx") in text
    place = tmp_path / "[red]speed[b]"
    text = shown("benchmark", out, tmp_path / "[b]files[x]/model.onnx", "--rounds", "1", "--out", place)
    assert f"written to {place}" in text
    assert text.count(str(tmp_path / "[b]files[x]/model.onnx")) == 1
    assert f"{out} " in text
    error = CliRunner().invoke(cli.app, ["predict", str(tmp_path / "[/x]"), "x"]).stderr
    assert f"'{tmp_path / '[/x]'}'" in error


# Models that are none


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_model_that_is_none(command: str, model: Path, images: Path, tmp_path: Path) -> None:
    subject: str | Path = "digits" if command == "evaluate" else images
    fails(invoke(command, tmp_path, subject), "there is no config.json in it")
    bad = Path(shutil.copytree(model, tmp_path / "bad"))
    (bad / "model.safetensors").write_bytes(b"\x80\x05K\x01.")
    fails(invoke(command, bad, subject), str(bad / "model.safetensors"), "not a safetensors file")
    (bad / "config.json").write_text("{")
    fails(invoke(command, bad, subject), str(bad / "config.json"))


def test_a_mistyped_model_is_not_looked_for_in_the_hub_where_its_folder_exists(model: Path, images: Path) -> None:
    result = shell("predict", "runs/digit", images, cwd=model.parents[1])
    fails(result, "model is 'runs/digit', but there is no config.json in it")
    result = shell("predict", "nobody/nothing", images, cwd=model.parents[1])
    fails(result, "model is 'nobody/nothing', but there is no such folder", "Hub")
