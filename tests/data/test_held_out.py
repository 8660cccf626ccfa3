"""Which images of a folder `evaluate` tests: all that the model was not trained on, and no others."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.data.dataset import ImageDataset
from hybrid_mobilenet.data.held_out import RunImages, load_to_evaluate
from hybrid_mobilenet.data.images import DataError
from hybrid_mobilenet.data.splits import Splits, load_data
from hybrid_mobilenet.deploy import classify
from hybrid_mobilenet.training import evaluate as evaluation
from hybrid_mobilenet.training import setup
from processes import run_command

COUNTS = {"bee": 25, "cat": 22, "dog": 20}
SIDE = 16
NETWORK = ["--family", "mobilenet", "--alpha", "0.25", "--delta", "1", "--image-size", str(SIDE), "--epochs", "2"]
NETWORK += ["--validation", "0"]


def picture(path: Path, seed: int) -> None:
    """Write colour noise of the network's input size, so that it is not resized."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path)


def image_folder(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    for name, count in counts.items():
        for index in range(count):
            picture(root / name / f"{index:03}.png", seed := seed + 1)
    return root


def content(file: Path) -> bytes:
    return np.array(Image.open(file)).tobytes()


def contents(folder: Path) -> set[bytes]:
    return {content(file) for file in folder.rglob("*.png")}


def dataset_contents(dataset: ImageDataset) -> set[bytes]:
    return {image.permute(1, 2, 0).numpy().tobytes() for image in dataset.batch(torch.arange(len(dataset)))}


def shell(*arguments: str | Path, cwd: Path) -> str:
    ran = run_command(*arguments, environment={"COLUMNS": "200"}, cwd=cwd)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def invoke(*arguments: str | Path) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, list(map(str, arguments)))
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(*arguments: str | Path) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, list(map(str, arguments)))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@dataclass
class Seen:
    """Pixels of the images that commands in this process trained on and tested."""

    trained: set[bytes]
    tested: set[bytes]


def watch(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen(set(), set())
    load: Callable[..., Splits] = load_data
    tally: Callable[..., evaluation.Evaluation] = evaluation.tally

    def watched_load(*arguments: Any, **options: Any) -> Splits:
        splits = load(*arguments, **options)
        seen.trained = dataset_contents(splits.train)
        return splits

    def watched_tally(*arguments: Any, **options: Any) -> evaluation.Evaluation:
        seen.tested = dataset_contents(next(each for each in arguments if isinstance(each, ImageDataset)))
        return tally(*arguments, **options)

    monkeypatch.setattr(setup, "load_data", watched_load)
    for module in (evaluation, classify):
        monkeypatch.setattr(module, "tally", watched_tally)
    return seen


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return watch(monkeypatch)


@dataclass(frozen=True)
class Run:
    """A finished run, the image folder it was trained on, and the pixels of its images."""

    out: Path
    photos: Path
    trained: set[bytes]
    held_out: set[bytes]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    photos = image_folder(folder / "photos", COUNTS)
    with pytest.MonkeyPatch.context() as monkeypatch:
        seen = watch(monkeypatch)
        invoke("train", photos, *NETWORK, "--out", folder / "model")
    assert not seen.trained & seen.tested
    assert seen.trained | seen.tested == contents(photos)
    return Run(folder / "model", photos, seen.trained, seen.tested)


@pytest.fixture
def copied(run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.photos, tmp_path / "copied"))


def evaluated(*arguments: str | Path) -> dict[str, Any]:
    record = json.loads(invoke("evaluate", *arguments, "--json"))
    assert isinstance(record, dict)
    return record


# The training folder


def test_held_out_images_of_the_training_folder_are_tested(run: Run, seen: Seen) -> None:
    record = evaluated(run.out, run.photos)
    assert seen.tested == run.held_out
    about = {"tested": "held out", "of": 67, "images": len(run.held_out), "used_in_training": 0, "notes": []}
    assert {key: record[key] for key in about} == about
    expected = json.loads((run.out / "evaluation.json").read_text())
    assert record["confusion"] == expected["confusion"]
    text = invoke("evaluate", run.out, run.photos)
    count = f"{len(run.held_out)} of 67"
    assert f"tested: {count} images of {run.photos}, held out when the model was trained on it" in text


@pytest.mark.parametrize("name", ["000.png", "0000.png", "zzz.png"])
@pytest.mark.parametrize("animal", COUNTS)
def test_an_added_image_is_not_tested(run: Run, copied: Path, seen: Seen, animal: str, name: str) -> None:
    picture(copied / animal / name, 999)  # 000.png replaces an image
    record = evaluated(run.out, copied)
    assert not seen.tested & run.trained
    assert seen.tested == run.held_out & contents(copied)
    (note,) = record["notes"]
    assert note.startswith("1 images were added after training and are not tested")


@pytest.mark.slow
def test_an_added_image_is_not_tested_in_a_new_process(run: Run, copied: Path) -> None:
    picture(copied / "bee" / "0000.png", 999)
    record = json.loads(shell("evaluate", run.out, "copied", "--json", cwd=copied.parent))
    assert (record["tested"], record["images"], record["of"]) == ("held out", len(run.held_out), 68)
    assert record["confusion"] == json.loads((run.out / "evaluation.json").read_text())["confusion"]


def test_an_added_class_is_an_error(run: Run, copied: Path) -> None:
    picture(copied / "elk" / "1.png", 999)
    assert "the data has images of 'elk', but the model knows 3 classes (bee, cat, dog)" in refused(
        "evaluate", run.out, copied
    )


def test_a_moved_folder_with_renamed_files(run: Run, copied: Path, tmp_path: Path, seen: Seen) -> None:
    moved = copied.rename(tmp_path / "moved")
    for animal in COUNTS:
        for index, file in enumerate(sorted((moved / animal).iterdir())):
            file.rename(file.with_name(f"{index * 7 % 31:02} renamed.png"))
    record = evaluated(run.out, moved)
    assert seen.tested == run.held_out
    assert record["tested"] == "held out"


def test_a_training_folder_is_recognised_after_growing_fourfold(run: Run, copied: Path, seen: Seen) -> None:
    image_folder(copied / "bee", {"new": 200}, seed=5000)
    record = evaluated(run.out, copied)
    assert seen.tested == run.held_out
    assert record["of"] == 267


def test_duplicates_are_in_the_same_split(run: Run, copied: Path, tmp_path: Path, seen: Seen) -> None:
    for file in [*copied.rglob("*.png")]:
        shutil.copy(file, file.with_name(f"again {file.name}"))
    invoke("train", copied, *NETWORK, "--out", tmp_path / "model")
    assert seen.trained | seen.tested == contents(copied)
    assert not seen.trained & seen.tested
    # Duplicates do not change the split of other images.
    assert (seen.trained, seen.tested) == (run.trained, run.held_out)


def test_validation_images_count_as_used_in_training(copied: Path, tmp_path: Path, seen: Seen) -> None:
    invoke("train", copied, *NETWORK, "--validation", "0.3", "--out", tmp_path / "model")
    trained, held_out = seen.trained, seen.tested
    validation = contents(copied) - trained - held_out
    assert validation
    for file in copied.rglob("*.png"):
        if content(file) in trained | held_out:
            file.unlink()
    record = evaluated(tmp_path / "model", copied)
    assert (record["tested"], record["used_in_training"]) == ("all", len(validation))
    assert seen.tested == validation


def test_a_missing_or_damaged_split_json(run: Run, tmp_path: Path, seen: Seen) -> None:
    out = Path(shutil.copytree(run.out, tmp_path / "model"))
    for damaged in (
        b'{"train": ["12", "not hexadecimal"]}',
        b'{"train": "abc", "validation": "", "held_out": ""}',
        b'{"train": [], "validation": [], "held_out": []}',
        b"\xff\xfe\x00",
    ):
        (out / "split.json").write_bytes(damaged)
        assert "split.json is damaged and does not say which images" in refused("evaluate", out, run.photos)
    (out / "split.json").unlink()
    record = evaluated(out, run.photos)
    assert (record["tested"], record["used_in_training"]) == ("all", None)
    assert seen.tested == contents(run.photos)
    (note,) = record["notes"]
    assert note.startswith("the run folder has no split.json, so it is not known which images")


def test_split_json_lists_sha256_prefixes_of_the_files(run: Run) -> None:
    record = json.loads((run.out / "split.json").read_text())
    files = {hashlib.sha256(file.read_bytes()).hexdigest()[:16]: file for file in run.photos.rglob("*.png")}
    for name, expected in (("train", run.trained), ("held_out", run.held_out)):
        assert {content(files[prefix]) for prefix in record[name]} == expected
    assert record["validation"] == []


# Other folders


def test_all_images_of_another_folder_are_tested(run: Run, tmp_path: Path, seen: Seen) -> None:
    other = image_folder(tmp_path / "other", {"bee": 10, "cat": 10, "dog": 10}, seed=7000)
    record = evaluated(run.out, other)
    assert seen.tested == contents(other)
    about = {"tested": "all", "of": 30, "images": 30, "used_in_training": 0, "notes": []}
    assert {key: record[key] for key in about} == about
    assert f"tested: all 30 images of {other}\n" in invoke("evaluate", run.out, other)


def test_a_folder_with_its_own_test_images(tmp_path: Path, seen: Seen) -> None:
    image_folder(tmp_path / "d" / "train", COUNTS)
    test = image_folder(tmp_path / "d" / "test", {"bee": 8, "cat": 8, "dog": 8}, seed=7000)
    out = tmp_path / "model"
    invoke("train", tmp_path / "d", *NETWORK, "--out", out)
    record = evaluated(out, tmp_path / "d")
    assert seen.tested == contents(test)
    assert record["tested"] == "test split"
    assert f"tested: all 24 images of the test split of {tmp_path / 'd'}\n" in invoke("evaluate", out, tmp_path / "d")
    record = evaluated(out, test)
    assert seen.tested == contents(test)
    assert record["tested"] == "all"
    record = evaluated(out, tmp_path / "d" / "train")  # tested as requested, with a note
    assert (record["images"], record["used_in_training"]) == (67, 67)
    assert record["notes"] == ["the model was trained on 67 of these images"]


def test_a_folder_with_its_own_validation_images(run: Run, tmp_path: Path, seen: Seen) -> None:
    image_folder(tmp_path / "d" / "train", COUNTS)
    validation = image_folder(tmp_path / "d" / "val", {"bee": 8, "cat": 8, "dog": 8}, seed=7000)
    out = tmp_path / "model"
    invoke("train", tmp_path / "d", *NETWORK[:-2], "--out", out)
    trained, held_out = seen.trained, seen.tested
    assert trained | held_out == contents(tmp_path / "d" / "train")
    assert not trained & held_out
    record = evaluated(out, tmp_path / "d")
    assert record["tested"] == "held out"
    assert seen.tested == held_out
    record = evaluated(out, validation)  # used in training
    assert (record["tested"], record["images"], record["used_in_training"]) == ("all", 24, 24)
    shutil.rmtree(tmp_path / "d" / "train")
    image_folder(tmp_path / "d" / "train", COUNTS, seed=9000)  # another data set
    record = evaluated(run.out, tmp_path / "d")
    assert (record["tested"], record["images"]) == ("validation split", 24)
    assert seen.tested == contents(validation)
    text = invoke("evaluate", run.out, tmp_path / "d")
    assert f"tested: all 24 images of the validation split of {tmp_path / 'd'}\n" in text


def test_notes_on_how_the_folder_was_read(run: Run, tmp_path: Path) -> None:
    image_folder(tmp_path / "archive" / "pets", {"bee": 10, "cat": 10, "dog": 10}, seed=7000)
    (tmp_path / "archive" / "notes.txt").write_text("")
    notes = [
        f"read {tmp_path / 'archive/pets'}, the only folder of images in {tmp_path / 'archive'}",
        "skipped 1 file that is not an image: 1 .txt",
    ]
    assert evaluated(run.out, tmp_path / "archive")["notes"] == notes
    assert f"note: {notes[1]}\n" in invoke("evaluate", run.out, tmp_path / "archive")


def test_another_folder_with_one_training_image(run: Run, tmp_path: Path) -> None:
    other = image_folder(tmp_path / "other", {"bee": 10, "cat": 10, "dog": 10}, seed=7000)
    trained = next(file for file in sorted(run.photos.rglob("*.png")) if content(file) in run.trained)
    shutil.copy(trained, other / "bee" / "seen.png")
    record = evaluated(run.out, other)
    assert (record["tested"], record["images"], record["used_in_training"]) == ("all", 31, 1)


# Classes


@pytest.mark.parametrize("names", [["bee", "dog"], ["cat"]])
def test_a_folder_with_fewer_classes(run: Run, tmp_path: Path, names: list[str]) -> None:
    other = image_folder(tmp_path / "other", dict.fromkeys(names, 10), seed=7000)
    record = evaluated(run.out, other)
    assert record["images"] == 10 * len(names)
    assert list(record["per_class"]) == list(COUNTS)
    for index, (name, figures) in enumerate(record["per_class"].items()):
        assert sum(record["confusion"][index]) == figures["images"] == 10 * (name in names)
        recall = record["confusion"][index][index] / 10 if name in names else None
        assert figures["recall"] == recall
    assert record["notes"] == [f"no images of {', '.join(name for name in COUNTS if name not in names)}"]
    text = invoke("evaluate", run.out, other)
    assert [line.split()[0] for line in text.splitlines() if line.strip()[:3] in COUNTS] == names


def test_classes_are_matched_by_name_not_by_index(run: Run, tmp_path: Path) -> None:
    """In a folder that has only dogs, they are class 0, which is bee in the model."""
    dogs = Path(shutil.copytree(run.photos / "dog", tmp_path / "other" / "dog")).parent
    record = evaluated(run.out, dogs)
    expected = json.loads((run.out / "evaluation.json").read_text())
    assert record["tested"] == "held out"
    assert record["confusion"][2] == expected["confusion"][2]
    assert record["confusion"][:2] == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("empty", ["cat", "elk"])
def test_an_empty_class_folder_is_noted(run: Run, tmp_path: Path, empty: str) -> None:
    other = image_folder(tmp_path / "other", {"bee": 10, "cat": 10, "dog": 10}, seed=7000)
    shutil.rmtree(other / empty, ignore_errors=True)
    (other / empty).mkdir()
    record = evaluated(run.out, other)
    assert record["images"] == 10 * len(set(COUNTS) - {empty})
    assert record["notes"] == [f"no images of {empty}"]
    assert f"note: no images of {empty}\n" in invoke("evaluate", run.out, other)


def test_a_folder_without_images(run: Run, tmp_path: Path) -> None:
    (tmp_path / "other" / "bee").mkdir(parents=True)
    assert "class folder" in refused("evaluate", run.out, tmp_path / "other")


# Exported files


@pytest.mark.slow
def test_an_exported_file(run: Run, tmp_path: Path) -> None:
    out = Path(shutil.copytree(run.out, tmp_path / "model"))
    work = tmp_path / "work"
    work.mkdir()
    (work / "confusion.png").write_bytes(b"of another program")
    shell("export", out, "--to", "onnx", cwd=work)
    file = out / "export" / "model.onnx"
    record = json.loads(shell("evaluate", file, run.photos, "--json", cwd=work))
    assert (work / "confusion.png").read_bytes() == b"of another program"
    assert (record["tested"], record["images"], record["picture"]) == ("held out", len(run.held_out), None)
    shell("evaluate", file, run.photos, "--out", "there.png", cwd=work)
    assert (work / "confusion.png").read_bytes() == b"of another program"
    assert sorted(path.name for path in work.iterdir()) == ["confusion.png", "there.png"]
    assert (work / "there.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "export" / "confusion.png").exists()


@pytest.mark.parametrize(
    ("contents", "is_own"),
    [
        ([1, 2, 3, 6, *range(20, 60)], True),  # half of the run's images
        ([1, 2, 6, *range(20, 60)], False),
        ([1, 6, 20, 21], True),  # half of the data
        ([1, 6, 20, 21, 22], False),
        ([1, 2, 3, 4, 5], False),  # none held out
        ([6, 7, 8], False),  # none used
    ],
)
def test_the_run_s_own_data(contents: list[int], is_own: bool) -> None:
    run = RunImages(*(np.array(part, np.uint64) for part in ([1, 2, 3, 4], [5], [6, 7, 8])))
    assert run.is_from(np.array(contents, np.uint64)) == is_own


def test_images_that_cannot_be_read_are_left_out_of_an_evaluation(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"a": 4, "b": 4})
    (root / "b/001.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"b/001.png is empty .* --skip-bad$"):
        load_to_evaluate(str(root), None, ("a", "b"), image_size=8)
    evaluated = load_to_evaluate(str(root), None, ("a", "b"), image_size=8, skip_bad=True)
    assert (evaluated.total, len(evaluated.images)) == (7, 7)
    assert evaluated.notes == (f"1 of 8 images cannot be read and are left out: {root}/b/001.png",)
