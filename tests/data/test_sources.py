"""Data by name: the digits, a folder or a built-in name, names that do not exist, and real CIFAR."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hybrid_mobilenet.data import sources
from hybrid_mobilenet.data.images import DataError
from hybrid_mobilenet.data.sources import display_name
from hybrid_mobilenet.data.splits import Splits, load_data
from noise_images import GOOD_PNG, all_pixels, image_folder, parquet

real_data = pytest.mark.skipif(
    "HYBRID_MOBILENET_DATA" not in os.environ, reason="HYBRID_MOBILENET_DATA, a folder with real CIFAR data, is not set"
)


def test_digits_pixels_are_scaled_to_255() -> None:
    splits = load_data("digits", image_size=8, channels=1)
    ours = {image.numpy().tobytes() for each in (splits.train, splits.test) for image in all_pixels(each)}
    theirs = {np.floor(image * 255 / 16 + 0.5).astype(np.uint8).tobytes() for image in load_digits().images}
    assert ours == theirs


def test_the_digits_are_those_of_scikit_learn_in_the_same_order() -> None:
    # Which ones are held out depends on the order. Made by: np.savez_compressed(file, images=..., labels=...), as uint8
    with np.load(Path(sources.__file__).with_name("digits.npz")) as ours:
        theirs = load_digits()
        assert (ours["images"] == theirs.images).all()
        assert (ours["labels"] == theirs.target).all()


# Names


def test_unknown_names() -> None:
    with pytest.raises(
        DataError, match=r"no data 'cifar-10' \(did you mean 'cifar10'\?\): give digits, cifar10, cifar100"
    ):
        load_data("cifar-10")
    with pytest.raises(DataError, match=r"no data '': give .*folder .*Parquet .*Hugging Face Hub, owner/name"):
        load_data("")


def test_near_match_of_a_path(tmp_path: Path) -> None:
    image_folder(tmp_path / "flowers", {"a": 2, "b": 2})
    with pytest.raises(DataError, match=r"did you mean '.*/flowers'"):
        load_data(str(tmp_path / "flovers"))


def test_a_built_in_name_wins_over_a_folder_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_data("digits", image_size=8).notes == ()
    image_folder(tmp_path / "digits", {"a": 3, "b": 3})
    splits = load_data("digits", image_size=8)
    assert len(splits.train.class_names) == 10
    assert splits.notes == ("digits is the built-in data set: for the folder of this name, give ./digits",)
    for name in ("digits/", "./digits", str(tmp_path / "digits")):
        splits = load_data(name)
        assert (splits.name, splits.train.class_names, splits.notes) == ("digits", ("a", "b"), ())


def test_display_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos/cats").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos")
    assert [display_name(name) for name in (".", "..", "cats/..", "cats/", "digits", "owner/name")] == [
        "photos",
        tmp_path.name,
        "photos",
        "cats",
        "digits",
        "owner/name",
    ]


@pytest.mark.parametrize(
    ("source", "option", "part"),
    [
        ("digits", "labels", "it is for a folder of images, not for 'digits'"),
        ("digits", "config", "it is for a data set on the Hub, not for 'digits'"),
        ("photos", "config", "it is for a data set on the Hub, not for 'photos'"),
        ("photos", "image_column", "it is for Parquet files, data sets on the Hub, or a table given with --labels"),
        ("photos", "label_column", "it is for Parquet files, data sets on the Hub, or a table given with --labels"),
        ("owner/name", "labels", "it is for a folder of images, not for 'owner/name'"),
    ],
)
def test_options_that_do_not_apply(
    source: str, option: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "photos", {"a": 3, "b": 3})
    options: dict[str, Any] = {option: "x"}
    with pytest.raises(DataError, match=f"--{option.replace('_', '-')} is 'x', but {part}.*: leave it out"):
        load_data(source, **options)


def test_existing_path_comes_before_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "owner/name", {"a": 2, "b": 2})
    assert load_data("owner/name").train.class_names == ("a", "b")


def test_a_folder_whose_name_starts_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "~nobody of this name", {"a": 2, "b": 2})
    assert load_data("~nobody of this name").train.class_names == ("a", "b")


def test_images_beside_parquet_files_are_noted(tmp_path: Path) -> None:
    parquet(tmp_path / "x.parquet", [0, 1] * 5)
    (tmp_path / "preview.png").write_bytes(GOOD_PNG)
    assert load_data(str(tmp_path), image_size=8).notes == (
        f"left alone, since the data is in Parquet files: {tmp_path / 'preview.png'}",
    )


def test_a_class_folder_called_like_a_parquet_file(tmp_path: Path) -> None:
    image_folder(tmp_path, {"a.parquet": 3, "b": 3})
    assert load_data(str(tmp_path)).train.class_names == ("a.parquet", "b")


def test_variable_with_a_folder_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_MOBILENET_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=r"HYBRID_MOBILENET_DATA is .*cifar10/train.parquet is not a file: correct the variable"
    ):
        load_data("cifar10")


# Real data


def official_digest(splits: Splits) -> str:
    """MD5 of all pixels in the order of the official files: channel, row, column."""
    digest = hashlib.md5(all_pixels(splits.train).contiguous().numpy().tobytes(), usedforsecurity=False)
    digest.update(all_pixels(splits.test).contiguous().numpy().tobytes())
    return digest.hexdigest()


@real_data
@pytest.mark.parametrize(
    ("source", "classes", "some_names", "first_labels", "per_class", "digest"),
    [
        (
            "cifar10",
            10,
            ("airplane", "automobile", "bird"),
            ([6, 9, 9], [3, 8, 8]),
            (5000, 1000),
            "fc5173ca52a4702ea67b79f536bb8ae2",
        ),
        (
            "cifar100",
            100,
            ("apple", "aquarium_fish", "baby"),
            ([19, 29, 0], [49, 33, 72]),
            (500, 100),
            "86dce5cdade4f31999f10b51fb7199b9",
        ),
    ],
)
def test_cifar(
    source: str,
    classes: int,
    some_names: tuple[str, ...],
    first_labels: tuple[list[int], list[int]],
    per_class: tuple[int, int],
    digest: str,
) -> None:
    splits = load_data(source)
    assert len(splits.train.class_names) == classes
    assert splits.train.class_names[:3] == some_names
    for dataset, labels, count in zip((splits.train, splits.test), first_labels, per_class, strict=True):
        assert dataset.pixels is not None
        assert dataset.labels[:3].tolist() == labels
        assert dataset.labels.bincount().tolist() == [count] * classes
    assert official_digest(splits) == digest
