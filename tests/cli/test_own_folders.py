"""Folders of photographs as people have them, trained and evaluated from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from command_line import NETWORK, fails, invoke
from hybrid_mobilenet.cli.deploy import read_images
from hybrid_mobilenet.cli.display import RunDisplay
from hybrid_mobilenet.network.model import HybridMobileNet
from noise_images import noise, parquet
from runs import SMALL, Killed, kill, stopped

QUICK = (*NETWORK, "--epochs", "1", "--json")


def pictures(root: Path, *folders: str, each: int = 5, start: int = 0) -> None:
    for index, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            pixels = noise(8, 8, seed=start + 100 * index + number)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")


def train_on(*arguments: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `train --json` prints, and the evaluation in the run folder."""
    result = invoke("train", *arguments, *QUICK)
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    return printed, json.loads((Path(printed["run"]) / "evaluation.json").read_text())


def test_training_and_testing_are_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "d", "Training/cat", "Training/dog")
    pictures(tmp_path / "d", "Testing/dog", "Testing/cat", each=2, start=1000)
    (tmp_path / "d/Training/cat/IMG_1.HEIC").write_bytes(b"")
    printed, evaluation = train_on("d/")
    assert printed["images"] == 4
    assert list(evaluation["per_class"]) == ["cat", "dog"]
    heic = "1 .heic (convert them to JPEG, and set the phone's camera to 'Most Compatible')"
    assert printed["notes"][0] == f"skipped 1 file that is not an image: {heic}"


def test_the_notes_on_a_folder_are_shown_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "d", "train/cat", "train/dog", "test")
    result = invoke("train", "d", *QUICK[:-1])
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    assert lines[0] == f"left alone: {tmp_path / 'd/test'} (5 images without class folders)"
    assert next(number for number, line in enumerate(lines) if line.startswith("epoch 1/1")) > 0


def test_training_twice_in_the_folder_of_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"
    pictures(photos, "bee", "cat")
    monkeypatch.chdir(photos)
    first, before = train_on(".")
    assert first["run"] == "runs/photos-fmp-d1-a0.25-s0"
    assert not any("run folders" in note for note in first["notes"])
    second, after = train_on(".", "--seed", "1")
    assert list(after["per_class"]) == list(before["per_class"]) == ["bee", "cat"]
    assert f"left alone, since they are run folders: {photos / first['run']}" in second["notes"]
    setup = replace(SMALL, data=".", validation=0.0)
    run = stopped(Path("runs/stopped"), 1, kill, Killed, setup)
    monkeypatch.chdir(tmp_path)
    result = invoke("train", "--resume", photos / run, "--json")
    assert result.exit_code == 0, result.stderr
    assert len((photos / run / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_folder_named_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "digits", "one", "two")
    _, evaluation = train_on("digits/")
    assert list(evaluation["per_class"]) == ["one", "two"]
    printed, evaluation = train_on("digits", "--out", "built-in")
    assert len(evaluation["per_class"]) == 10
    assert "digits is the built-in data set: for the folder of this name, give ./digits" in printed["notes"]


def test_labels_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path, "photos", each=12)
    rows = [f"{number};{'cat' if number % 2 else 'dog'}" for number in range(12)]
    Path("labels.csv").write_text("\n".join(["image_id;breed", *rows]))
    printed, evaluation = train_on("photos", "--labels", "labels.csv")
    assert list(evaluation["per_class"]) == ["cat", "dog"]
    run = Path(printed["run"])
    record = json.loads((run / "config.json").read_text())["training"]
    assert (record["labels"], record["label_column"]) == (str(tmp_path / "labels.csv"), None)
    for options in (["--labels", "labels.csv", "--label-column", "breed"], []):  # the run's table, if none is given
        result = invoke("evaluate", run, "photos", *options, "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["tested"] == "held out"
    Path("sub").mkdir()
    Path("link").symlink_to("photos")
    for name in ("sub/../photos", "link"):  # other names of the folder
        result = invoke("evaluate", run, name, "--json")
        assert json.loads(result.stdout)["accuracy"] == evaluation["accuracy"], result.stderr
    with RunDisplay(shown=False) as display:  # as an export reads its images
        model = HybridMobileNet.from_pretrained(run)
        for data in ("photos", None):
            exported = read_images(model, str(run), data, is_calibrated=True, display=display)
            assert exported.calibration is not None
            assert exported.calibration.class_names == ("cat", "dog")
            assert (exported.test and len(exported.test)) == (evaluation["images"] if data else None)
    setup = replace(SMALL, data="photos", validation=0.0, labels="labels.csv", label_column="breed")
    run = stopped(Path("stopped"), 1, kill, Killed, setup).resolve()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert invoke("train", "--resume", run, "--json").exit_code == 0
    fails(invoke("train", "../photos", "--labels", "no.csv", *QUICK), "--labels is 'no.csv'", "no such file")
    fails(invoke("train", "--resume", run, "--labels", "labels.csv"), "leave out --labels")


def test_columns_of_a_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parquet(tmp_path / "a.parquet", ["x", "y"] * 6, image_column="photo", label_column="kind", colour=["r", "g"] * 6)
    fails(invoke("train", "a.parquet", *QUICK), "could be the label", "--label-column")
    columns = ("--image-column", "photo", "--label-column", "colour")
    printed, evaluation = train_on("a.parquet", *columns)
    assert list(evaluation["per_class"]) == ["g", "r"]
    result = invoke("evaluate", printed["run"], "a.parquet", *columns, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["tested"] == "held out"


def test_a_configuration_is_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["owl", "wren"])})
    images = [Image.fromarray(noise(8, 8, seed=seed)) for seed in range(12)]
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 6}, features)

    def load_dataset(name: str, config: str) -> Any:
        assert (name, config) == ("someone/birds", "small")
        return datasets.DatasetDict({"train": table})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    printed, evaluation = train_on("someone/birds", "--config", "small")
    assert list(evaluation["per_class"]) == ["owl", "wren"]
    assert printed["run"] == "runs/birds-fmp-d1-a0.25-s0"
    assert invoke("evaluate", printed["run"], "someone/birds", "--config", "small").exit_code == 0
    fails(invoke("train", "digits", "--config", "small", *QUICK), "--config is 'small'", "leave it out")
