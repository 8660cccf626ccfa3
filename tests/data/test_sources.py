"""Where images come from: digits, folders, Parquet files, the Hub, and real CIFAR; errors in each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from hybrid_mobilenet.data import sources
from hybrid_mobilenet.data.images import DataError, read_image
from hybrid_mobilenet.data.splits import MEMORY_BOUND, Splits, load_data
from noise_images import GOOD_PNG, IMAGE, all_pixels, class_labels, encoded, image_folder, noise, parquet

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


# Image folders


@pytest.mark.parametrize("held_out", ["test", "val", "valid", "validation"])
def test_folder_with_its_own_splits(held_out: str, tmp_path: Path) -> None:
    image_folder(tmp_path / "train", {"b": 3, "a": 2})
    image_folder(tmp_path / held_out, {"a": 1, "b": 1})
    splits = load_data(str(tmp_path), image_size=8, channels=1)
    assert splits.train.class_names == splits.test.class_names == ("a", "b")
    assert splits.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert splits.test.labels.tolist() == [0, 1]
    assert splits.validation is None
    wanted = np.array(Image.open(tmp_path / "train/b/001.png").convert("L"))
    assert np.array_equal(splits.train.batch(torch.tensor([3]))[0, 0].numpy(), wanted)


def test_test_folder_is_preferred_to_validation(tmp_path: Path) -> None:
    for name, count in (("train", 2), ("val", 3), ("test", 4)):
        image_folder(tmp_path / name, {"a": count, "b": count})
    assert len(load_data(str(tmp_path)).test) == 8


def test_folders_are_searched_to_any_depth_and_junk_is_skipped(tmp_path: Path) -> None:
    image_folder(tmp_path, {"a": 2, "b": 2, "b/deep/deeper": 2, ".hidden": 1, "__MACOSX": 1, "a/.cache": 1})
    for junk in (".DS_Store", "Thumbs.db", "notes.txt", "._000.png", "README"):
        (tmp_path / "a" / junk).write_bytes(b"junk")
    (tmp_path / "top.txt").write_bytes(b"junk")
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "b" / "self").symlink_to(tmp_path / "b" / "self")
    splits = load_data(str(tmp_path))
    assert splits.train.class_names == ("a", "b")
    assert len(splits.train) + len(splits.test) == 6
    assert load_data(str(tmp_path / ".hidden/..")).train.fingerprint == splits.train.fingerprint


def test_linked_class_folder(tmp_path: Path) -> None:
    image_folder(tmp_path / "elsewhere", {"b": 3})
    image_folder(tmp_path / "root", {"a": 3})
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere/b", target_is_directory=True)
    assert load_data(str(tmp_path / "root")).train.class_names == ("a", "b")


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no subfolders: put the images of each class into a folder named after"):
        load_data(str(tmp_path))
    image_folder(tmp_path, {"ant": 3})
    with pytest.raises(DataError, match=r"of one class only \(ant\), but a classifier needs two or more"):
        load_data(str(tmp_path))
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / "notes.txt").write_text("no image")
    with pytest.raises(
        DataError, match=r"class folder .*bee contains no images: add images such as .jpg or .png files, or"
    ):
        load_data(str(tmp_path))
    with pytest.raises(DataError, match=r"notes.txt is a file, but must be a .parquet file, or a folder with one"):
        load_data(str(tmp_path / "bee" / "notes.txt"))


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_images_must_be_regular_files(kind: str, tmp_path: Path) -> None:
    image_folder(tmp_path, {"a": 3, "b": 3})
    if kind == "link":
        (tmp_path / "b" / "odd.png").symlink_to(tmp_path / "gone.png")
    else:
        os.mkfifo(tmp_path / "b" / "odd.png")
    with pytest.raises(DataError, match=r"odd.png is not a regular file \(a broken link\?\): repair or remove it"):
        load_data(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read every file")
def test_file_without_permission(tmp_path: Path) -> None:
    image_folder(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "b" / "001.png").chmod(0)
    with pytest.raises(DataError, match=r"001.png cannot be read as an image \(Permission denied\)"):
        load_data(str(tmp_path))


# Parquet


def test_single_parquet_file_is_split(tmp_path: Path) -> None:
    file = parquet(tmp_path / "birds.parquet", [0, 1] * 10, names=["owl", "wren"])
    splits = load_data(str(file), image_size=8)
    assert splits.name == "birds.parquet"
    assert splits.train.class_names == ("owl", "wren")
    counts = splits.test.labels.bincount()
    assert (splits.train.labels.bincount() + counts).tolist() == [10, 10]
    assert 1 <= counts.min() <= counts.max() <= 6


@pytest.mark.parametrize("inside", ["", "data"])
def test_parquet_folder_in_the_hub_layout(inside: str, tmp_path: Path) -> None:
    folder = tmp_path / inside
    parquet(folder / "train-00001-of-00002.parquet", [1, 1, 0], names=["x", "y"], seed=50)
    parquet(folder / "train-00000-of-00002.parquet", [0, 0, 1], names=["x", "y"])
    parquet(folder / "test-00000-of-00001.parquet", [1, 0], names=["x", "y"], seed=90)
    parquet(folder / "validation-00000-of-00001.parquet", [1, 0, 1], names=["x", "y"], seed=99)
    splits = load_data(str(tmp_path), image_size=8)
    assert splits.train.labels.tolist() == [0, 0, 1, 1, 1, 0]
    assert splits.test.labels.tolist() == [1, 0]
    wanted = [noise(8, 8, seed=seed) for seed in (0, 1, 2, 50, 51, 52)]
    assert np.array_equal(all_pixels(splits.train).permute(0, 2, 3, 1).numpy(), np.stack(wanted))


def test_parquet_without_the_hubs_metadata(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", ["wren", "owl", "owl"], image_column="photo", label_column="species")
    parquet(tmp_path / "test.parquet", ["owl"], image_column="photo", label_column="species")
    splits = load_data(str(tmp_path))
    assert splits.train.class_names == splits.test.class_names == ("owl", "wren")
    assert (splits.train.labels.tolist(), splits.test.labels.tolist()) == ([1, 0, 0], [0])

    numbers = load_data(str(parquet(tmp_path / "numbers.parquet", [10, 9, 10, 9]))).train
    assert numbers.class_names == ("9", "10")

    pictures = [encoded(Image.fromarray(noise(8, 8, seed=seed))) for seed in range(4)]
    plain = pa.table({"raw": pictures, "kind": pa.array(["a", "b", "a", "b"]).dictionary_encode()})
    pq.write_table(plain, tmp_path / "plain.parquet")
    assert load_data(str(tmp_path / "plain.parquet")).train.class_names == ("a", "b")


def test_parquet_with_paths_instead_of_bytes(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", {"a": 2, "b": 2})
    rows = [{"bytes": None, "path": f"images/{name}/00{i}.png"} for name in "ab" for i in range(2)]
    pq.write_table(pa.table({"image": pa.array(rows, IMAGE), "label": list("aabb")}), tmp_path / "train.parquet")
    splits = load_data(str(tmp_path / "train.parquet"), image_size=8)
    found = {image.numpy().tobytes() for each in (splits.train, splits.test) for image in all_pixels(each)}
    assert found == {
        read_image(tmp_path / "images" / name / f"00{i}.png", 8, 3).numpy().tobytes() for name in "ab" for i in range(2)
    }


def test_columns_are_chosen_by_name_where_several_fit(tmp_path: Path) -> None:
    file = parquet(
        tmp_path / "a.parquet", [0, 1, 0, 1], label_column="fine_label", coarse_label=[0, 0, 0, 0], id=[1, 2, 3, 4]
    )
    assert load_data(str(file)).train.class_names == ("0", "1")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image": [b"", b""], "kind": [0, 1], "id": [0, 1]},
            "several columns that could be the label among image, kind, id: .*'label'",
        ),
        (
            {"front": [b"", b""], "back": [b"", b""], "label": [0, 1]},
            "could be the image among front, back, label: .* 'image'",
        ),
        ({"label": [0, 1], "text": ["a", "b"]}, "has no image column among label, text: "),
        ({"image": [b"", b""], "score": [0.5, 0.7]}, "has no label column among image, score: "),
        (
            {"image": [b"", b""], "label": [0, None]},
            "row 1: 'label' is None, but must be one of the 1 training classes",
        ),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "corresponds to no data"),
        (
            {"image": [b"", b""] * 2, "label": [0, 1] * 2},
            r"a.parquet, row \d is empty or .* \(1 more of 2 training images",
        ),
        ({"image": [None] * 4, "label": [0, 1] * 2}, "has no image column"),
        (
            {"image": [GOOD_PNG[:end] for end in range(96, 100)], "label": [0, 1] * 2},
            r"a.parquet, row \d cannot be read as an image",
        ),
        ({"image": [GOOD_PNG] * 4, "label": [3] * 4}, r"of one class only \(3\)"),
    ],
    ids=["labels", "images", "no image", "no label", "missing", "rows", "empty", "null", "truncated", "one class"],
)
def test_bad_tables(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_outside_the_class_names(label: int, tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", [0, 1, label], names=["owl", "wren"])
    with pytest.raises(DataError, match=f"row 2: 'label' is {label}, but must be one of the 2 training classes: label"):
        load_data(str(file))


def test_bad_parquet_folders(tmp_path: Path) -> None:
    parquet(tmp_path / "test.parquet", [0, 1])
    with pytest.raises(DataError, match=r"none named train\*.parquet: add the training images"):
        load_data(str(tmp_path))
    parquet(tmp_path / "train-0.parquet", [1, 2])
    with pytest.raises(
        DataError, match=r"test.parquet, row 0: 'label' is 0, but must be one of the 2 training classes"
    ):
        load_data(str(tmp_path))
    parquet(tmp_path / "train-1.parquet", [1, 2], label_column="kind")
    with pytest.raises(
        DataError,
        match=r"train-1.parquet cannot be read as Parquet \(.*\): .*give the files of a split the same columns",
    ):
        load_data(str(tmp_path))


def test_damaged_parquet(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", [0, 1] * 4)
    content = file.read_bytes()
    for damaged in (content[:-20], b"", content[:100] + bytes(400) + content[500:]):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a.parquet.*: (download it again|replace or remove it)") as raised:
            load_data(str(file))
        assert "\n" not in str(raised.value)


# The Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, list[int]]], None]:
    """Replaces the network: every requested name gives a data set built here, with these labels in each split."""
    import datasets

    def serve(splits: dict[str, list[int]]) -> None:
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["owl", "wren"])})
        built = {
            name: datasets.Dataset.from_dict(
                {"img": [Image.fromarray(noise(8, 8, seed=i)) for i in range(len(labels))], "label": labels}, features
            )
            for name, labels in splits.items()
        }
        monkeypatch.setattr(datasets, "load_dataset", lambda _name: datasets.DatasetDict(built))

    return serve


@pytest.mark.parametrize("memory_bound", [MEMORY_BOUND, 0])
def test_hub_data_set(hub: Callable[[dict[str, list[int]]], None], memory_bound: int) -> None:
    hub({"train": [0, 1, 1], "test": [1], "validation": [0, 0]})
    splits = load_data("someone/birds", image_size=8, memory_bound=memory_bound)
    assert splits.name == "someone/birds"
    assert splits.train.class_names == ("owl", "wren")
    assert (splits.train.labels.tolist(), splits.test.labels.tolist()) == ([0, 1, 1], [1])
    wanted = np.stack([noise(8, 8, seed=2), noise(8, 8, seed=0)])
    assert np.array_equal(splits.train.batch(torch.tensor([2, 0])).permute(0, 2, 3, 1).numpy(), wanted)
    assert len(splits.train.fingerprint) == 64


def test_hub_splits(hub: Callable[[dict[str, list[int]]], None]) -> None:
    hub({"train": [0, 1], "test": [-1, -1], "validation": [1]})
    assert load_data("someone/competition").test.labels.tolist() == [1]
    hub({"train": [0, 1] * 5, "test": [-1, -1]})
    assert class_labels(load_data("someone/competition").test) == [0, 1]
    hub({"all": [0, 1] * 5})
    assert class_labels(load_data("someone/single").test) == [0, 1]
    hub({"train": [0, 1], "test": []})
    with pytest.raises(DataError, match=r"someone/empty \(test\) has no rows: give a table with images"):
        load_data("someone/empty")
    hub({"a": [0, 1], "b": [0, 1]})
    with pytest.raises(DataError, match="has the splits a, b, but none is 'train'"):
        load_data("someone/odd")


def test_cifar_comes_from_the_hub_without_the_variable(
    hub: Callable[[dict[str, list[int]]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYBRID_MOBILENET_DATA", raising=False)
    hub({"train": [0, 1, 1], "test": [1]})
    splits = load_data("cifar100")
    assert splits.name == "cifar100"
    assert splits.train.labels.tolist() == [0, 1, 1]


def test_hub_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(_name: str) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError, match=r"^a/b is not an existing path, and cannot be loaded .* \(no route\): check the name"
    ):
        load_data("a/b")


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


def test_existing_path_comes_before_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "owner/name", {"a": 2, "b": 2})
    assert load_data("owner/name").train.class_names == ("a", "b")


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
