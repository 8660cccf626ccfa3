"""What `check` finds, in words and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from hybrid_mobilenet.cli.check_report import (
    Report,
    balance_in_words,
    cut,
    images_in_words,
    kinds,
    make_report,
    portion,
    record,
    training_in_words,
)
from hybrid_mobilenet.training import plan as plans
from hybrid_mobilenet.training.setup import Setup
from noise_images import image_folder, noise


@pytest.fixture(autouse=True)
def _measures_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "SECONDS", 0.0)


def report_of(folder: Path) -> Report:
    return make_report(Setup(str(folder), delta=1, image_size=(8, 8), validation=0.1), None, "cpu")


def test_a_good_folder(tmp_path: Path) -> None:
    report = report_of(image_folder(tmp_path / "photos", {"a": 20, "b": 20}))
    assert report.refusals == ()
    assert report.seconds is not None
    assert report.seconds > 0
    assert report.plan is not None
    train, validation, test = (sum(column) for column in zip(*report.counts, strict=True))
    assert (train, validation, test) == (report.plan.train, report.plan.validation, report.plan.test)
    assert (train + validation + test, min(validation, test) > 0) == (40, True)
    assert training_in_words(report.plan)[0] == (
        f"{train} images for training, {validation} for validation, {test} for the final test"
    )
    assert balance_in_words(report) == []
    assert images_in_words(report) == ["all images are 8x8 pixels (width x height)", "formats: PNG 40"]
    assert kinds(report) == []
    assert report.names([0, 39]) == ["a/000.png", "b/019.png"]
    found = json.loads(json.dumps(record(report)))
    assert found["train_would_start"] is True
    assert found["refusals"] == found["duplicates"] == found["unreadable"] == []
    assert found["training"]["seconds"] == report.seconds
    assert found["classes"]["a"] == dict(zip(("training", "validation", "test"), report.counts[0], strict=True))


def test_imbalance_and_unusual_images_are_described(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "photos", {"many": 90, "few": 4}, size=6)
    Image.fromarray(noise(40, 30, 1, seed=5000)).save(root / "many/grey.bmp")
    report = report_of(root)
    (line,) = balance_in_words(report)
    assert line.startswith("imbalanced: many has ")
    assert "times the training images of few;" in line
    assert images_in_words(report) == [
        "pixels (width x height): smallest image 6x6, median 6x6, largest 30x40",
        "94 (99%) smaller than 8x8 (enlarged)",
        "formats: PNG 94, BMP 1",
        "1 (1%) greyscale (converted to RGB)",
    ]


def test_unreadable_images_are_a_refusal(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "photos", {"a": 10, "b": 10})
    (root / "a/bad.png").write_bytes(b"no image")
    report = report_of(root)
    assert report.refusals == (
        "1 of 21 images cannot be read: repair or remove them, or leave them out with --skip-bad",
    )
    assert report.seconds is None
    assert report.plan is not None
    assert record(report)["train_would_start"] is False


def test_what_training_refuses_is_a_refusal(tmp_path: Path) -> None:
    one = report_of(image_folder(tmp_path / "one", {"a": 10, "b": 1}))
    (reason,) = one.refusals
    assert "needs two or more different images of every class" in reason
    assert one.plan is None
    assert record(one)["training"] is None
    assert one.counts == [[10, 0, 0], [1, 0, 0]]  # the source's own splits, since it cannot be split
    single = report_of(image_folder(tmp_path / "single", {"a": 10}))
    assert "one class only" in single.refusals[0]
    image_folder(tmp_path / "two/train", {"a": 5, "b": 5})
    image_folder(tmp_path / "two/test", {"a": 5, "c": 5})
    different = report_of(tmp_path / "two")
    assert "there are test images of 'c', but no training images" in different.refusals[0]
    assert balance_in_words(different) == ["without training images: c"]


def test_equal_images_are_in_the_record(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "photos", {"a": 10, "b": 10})
    (root / "b/copy.png").write_bytes((root / "a/000.png").read_bytes())
    report = report_of(root)
    assert kinds(report) == [("equal", "in different classes (a wrong label?)", 1, 2)]
    (group,) = record(report)["duplicates"]
    assert (group["equal"], group["across_classes"], group["across_splits"]) == (True, True, False)
    assert [(each["name"], each["class"]) for each in group["images"]] == [("a/000.png", "a"), ("b/copy.png", "b")]


def test_long_lists_are_cut() -> None:
    assert cut(["a", "b", "c"], 3) == "a, b, c"
    assert cut([str(number) for number in range(1002)], 2) == "0, 1 ... 1,000 more, see --json"


def test_small_portions_have_no_percentage() -> None:
    assert [portion(count, 1000) for count in (9, 10, 1000)] == ["9", "10 (1%)", "1,000 (100%)"]
