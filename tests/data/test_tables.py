"""Parquet files and data sets on the Hub: splits, columns, configurations, and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hybrid_mobilenet.data.images import DataError, read_image
from hybrid_mobilenet.data.splits import MEMORY_BOUND, load_data
from noise_images import GOOD_PNG, IMAGE, all_pixels, class_labels, encoded, image_folder, noise, parquet

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
    assert splits.validation is None
    with_validation = load_data(str(tmp_path), image_size=8, validation=0.1)
    assert with_validation.validation is not None
    assert with_validation.validation.labels.tolist() == [1, 0, 1]
    assert with_validation.train.fingerprint == splits.train.fingerprint


def test_splits_of_parquet_files_as_people_name_them(tmp_path: Path) -> None:
    parquet(tmp_path / "birds_train-00000-of-00001-1a2b3c4d5e6f.parquet", [0, 1, 1], names=["x", "y"])
    parquet(tmp_path / "birds_Testing.parquet", [1, 0], names=["x", "y"], seed=90)
    parquet(tmp_path / "extra.parquet", [1], names=["x", "y"], seed=95)
    splits = load_data(str(tmp_path))
    assert (splits.train.labels.tolist(), splits.test.labels.tolist()) == ([0, 1, 1], [1, 0])
    assert splits.notes == (f"left alone, since they are not of a split: {tmp_path / 'extra.parquet'}",)


def test_classes_of_splits_are_matched_by_name(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", [0, 1, 2], names=["x", "y", "z"])
    parquet(tmp_path / "test.parquet", [0, 0, 1], names=["y", "x"], seed=50)
    splits = load_data(str(tmp_path))
    assert splits.test.class_names == ("x", "y", "z")
    assert splits.test.labels.tolist() == [1, 1, 0]
    assert splits.notes == ("there are no test images of z",)


def test_a_single_file_is_used_whole_whatever_its_name(tmp_path: Path) -> None:
    file = parquet(tmp_path / "test.parquet", [0, 1] * 5)
    splits = load_data(str(file))
    assert len(splits.train) + len(splits.test) == 10


@pytest.mark.parametrize("inside", ["", "data"])
def test_parquet_files_beside_folders_of_images(inside: str, tmp_path: Path) -> None:
    parquet(tmp_path / inside / "embeddings.parquet", [0, 1] * 5)
    image_folder(tmp_path, {"cats": 3, "dogs": 3})
    with pytest.raises(
        DataError,
        match=r"has Parquet files \(embeddings.parquet\) and folders of images \(cats, dogs\): move the ones not meant",
    ):
        load_data(str(tmp_path))


def test_numbers_in_names_of_classes_are_in_natural_order(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", ["10", "9", "b2", "b10"] * 2)
    assert load_data(str(file)).train.class_names == ("9", "10", "b2", "b10")


@pytest.fixture
def two_sided(tmp_path: Path) -> str:
    """A table with two columns of images, and two that could be the label."""

    def pictures(seed: int) -> pa.Array:
        images = [Image.fromarray(noise(8, 8, seed=seed + i)) for i in range(8)]
        return pa.array([{"bytes": encoded(image), "path": None} for image in images], IMAGE)

    columns = {"kind": ["a", "b"] * 4, "colour": [1, 2, 3, 4] * 2, "score": [0.5] * 8}
    pq.write_table(pa.table({"front": pictures(0), "back": pictures(100), **columns}), tmp_path / "a.parquet")
    return str(tmp_path / "a.parquet")


def test_columns_can_be_chosen(two_sided: str) -> None:
    splits = load_data(two_sided, image_size=8, image_column="back", label_column="colour")
    assert splits.train.class_names == ("1", "2", "3", "4")
    pixels = [all_pixels(each).permute(0, 2, 3, 1) for each in (splits.train, splits.test)]
    found = {image.numpy().tobytes() for image in torch.cat(pixels)}
    assert found == {noise(8, 8, seed=100 + i).tobytes() for i in range(8)}


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (None, None, r"several columns that could be the image among front, back, .*: choose it with --image-column"),
        ("front", None, r"several columns that could be the label among .*: choose it with --label-column"),
        ("side", None, r"--image-column is 'side', but the columns of .*a.parquet are front, back, kind"),
        ("kind", None, r"--image-column is 'kind', but this column of .* has the type string: .* encoded images"),
        ("front", "score", r"--label-column is 'score', but .* the type double: .* whole numbers or texts"),
    ],
)
def test_columns_that_cannot_be_chosen(two_sided: str, image: str | None, label: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(two_sided, image_column=image, label_column=label)


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
            r"a.parquet, row \d is empty or .* \(3 more of 4 images",
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
    hub({"train": [0, 1] * 5, "test": [-1, -1], "validation": [1]})
    splits = load_data("someone/competition", validation=0.1)
    assert splits.validation is not None
    assert splits.validation.labels.tolist() == [1]
    assert class_labels(splits.test) == [0, 1]
    assert splits.notes == (
        "left alone: the 2 images of test, which have no labels",
        "there are no validation images of owl",
        f"someone/competition has validation images but no test images: {len(splits.test)} of the 10 training images "
        "are held out for the test",
    )
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


def test_hub_configurations(hub: Callable[[dict[str, list[int]]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    hub({"train": [0, 1, 1], "test": [1]})
    load: Callable[[str], Any] = datasets.load_dataset

    def load_dataset(name: str, config: str | None = None) -> Any:
        if config is None:
            raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['full', 'small']")
        if config not in ("full", "small"):
            raise ValueError(f"BuilderConfig {config!r} not found. Available: ['full', 'small']")
        return load(f"{name} {config}")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda _name: ["small", "full"])
    with pytest.raises(
        DataError, match=r"^someone/birds has several configurations: choose one of full, small with --config$"
    ):
        load_data("someone/birds")
    with pytest.raises(DataError, match="has no configuration 'tiny': choose one of full, small with --config"):
        load_data("someone/birds", config="tiny")
    assert load_data("someone/birds", config="small").train.labels.tolist() == [0, 1, 1]


def test_hub_columns(hub: Callable[[dict[str, list[int]]], None]) -> None:
    hub({"train": [0, 1, 1], "test": [1]})
    assert load_data("someone/birds", image_column="img", label_column="label").train.labels.tolist() == [0, 1, 1]
    with pytest.raises(
        DataError, match=r"--label-column is 'species', but the columns of someone/birds \(train\) are img, label"
    ):
        load_data("someone/birds", label_column="species")
