"""What is in a data set: counts, sizes, kinds of images, unreadable ones, and duplicates."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from hybrid_mobilenet.data.dataset import Imbalance
from hybrid_mobilenet.data.images import DataError
from hybrid_mobilenet.data.inspection import SPLITS, TRAITS, imbalance, inspect
from hybrid_mobilenet.data.splits import load_data
from noise_images import image_folder, noise, parquet


def names(source: Path, wanted: str) -> list[str]:
    """The files of a folder that have a trait."""
    found = inspect(str(source))
    images = np.flatnonzero(found.traits[:, TRAITS.index(wanted)]).tolist()
    return [Path(name).name for name, _ in found.items(images)]


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """Images of every kind, in two classes."""
    root = image_folder(tmp_path / "kinds", {"a": 2, "b": 2}, size=40)
    colour = Image.fromarray(noise(30, 50, seed=99))
    colour.convert("L").save(root / "a/grey.png")
    colour.convert("RGBA").save(root / "a/alpha.png")
    colour.convert("P").save(root / "a/key.png", transparency=3)
    Image.fromarray(noise(20, 24, 1).astype(np.uint16) * 250).save(root / "b/deep.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    colour.save(root / "b/turned.jpg", exif=exif)
    exif[ExifTags.Base.Orientation] = 1
    colour.save(root / "b/upright.jpg", exif=exif)
    colour.save(root / "b/film.gif", save_all=True, append_images=[Image.fromarray(noise(30, 50, seed=98))])
    Image.new("RGB", (16, 16), "navy").save(root / "b/plain.bmp")
    return root


@pytest.mark.parametrize(
    ("trait", "files"),
    [
        ("greyscale", ["grey.png", "deep.png"]),
        ("transparent", ["alpha.png", "key.png"]),
        ("16-bit", ["deep.png"]),
        ("rotated by EXIF", ["turned.jpg"]),
        ("animated", ["film.gif"]),
        ("of nearly one colour", ["plain.bmp"]),
    ],
)
def test_unusual_images_are_recognised(kinds: Path, trait: str, files: list[str]) -> None:
    assert names(kinds, trait) == files


def test_sizes_and_formats(kinds: Path) -> None:
    found = inspect(str(kinds))
    assert len(found) == 12
    assert found.formats == {"PNG": 8, "JPEG": 2, "BMP": 1, "GIF": 1}
    assert found.extremes() == [(16, 16), (30, 50), (40, 40)]  # by number of pixels
    sizes = {
        Path(name).name: size for (name, _), size in zip(found.items(range(12)), found.sizes.tolist(), strict=True)
    }
    assert sizes["upright.jpg"] == [50, 30]
    assert sizes["turned.jpg"] == [30, 50]
    assert found.trait_counts()["transparent"] == 2
    assert [found.enlarged(size) for size in ((16, 16), (17, 17), (20, 24), (21, 24), (31, 40), (64, 64))] == [
        0, 1, 1, 2, 8, 12
    ]  # fmt: skip


def test_images_that_cannot_be_read_are_named_with_the_reason(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"a": 3, "b": 3}, size=40)
    (root / "a/empty.png").write_bytes(b"")
    (root / "b/cut.png").write_bytes((root / "b/000.png").read_bytes()[:200])
    (root / "b/page.jpg").write_text("<html>")
    (root / "b/blank.png").write_bytes(b"")
    found = inspect(str(root))
    errors = {Path(name).name: found.unreadable[image] for image, (name, _) in enumerate(found.items(range(10)))
              if image in found.unreadable}  # fmt: skip
    assert set(errors) == {"empty.png", "cut.png", "page.jpg", "blank.png"}
    for name, error in errors.items():
        assert name in error
        assert "replace or remove it" in error
    assert "truncated" in errors["cut.png"].lower()
    assert found.groups(found.assigned(None)) == []  # two empty files are not duplicates
    assert found.formats == {"PNG": 6}


def test_equal_and_similar_images_are_found_across_classes_and_splits(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    image_folder(root / "train", {"a": 4, "b": 4}, size=40)
    image_folder(root / "test", {"a": 2, "b": 2}, size=40)
    for split in ("train", "test"):  # different noise, with large shapes
        for seed, file in enumerate(sorted((root / split).rglob("*.png"))):
            blobs = Image.fromarray(noise(5, 5, seed=seed + 100 * (split == "test"))).resize((40, 40))
            blobs.save(file)
    shutil.copy(root / "train/a/000.png", root / "train/b/wrong.png")
    Image.open(root / "train/b/001.png").save(root / "test/b/leak.jpg", quality=90)
    shutil.copy(root / "train/a/002.png", root / "train/a/again.png")
    found = inspect(str(root))
    groups = found.groups(found.assigned(None))
    members = [sorted(Path(name).name for name, _ in found.items(group.members)) for group in groups]
    assert members == [["000.png", "wrong.png"], ["001.png", "leak.jpg"], ["002.png", "again.png"]]
    assert [(group.is_exact, group.across_classes, group.across_splits) for group in groups] == [
        (True, True, False),
        (False, False, True),
        (True, False, False),
    ]


@pytest.mark.parametrize("own_test", [False, True])
def test_splits_are_those_of_training(tmp_path: Path, own_test: bool) -> None:
    root = tmp_path / "photos"
    counts = {"a": 30, "b": 20}
    image_folder(root / "train" if own_test else root, counts, size=8)
    if own_test:
        image_folder(root / "test", {"a": 5, "b": 7}, size=9)
    splits = load_data(str(root), validation=0.2, memory_bound=0)
    found = inspect(str(root))
    split = found.assigned(splits)
    expected = [
        [int((part.labels == label).sum()) for part in (splits.train, splits.validation, splits.test) if part]
        for label in range(2)
    ]
    assert found.counts(split).tolist() == expected
    assert splits.validation is not None
    for index, part in enumerate((splits.train, splits.validation, splits.test)):
        assert sorted(found.contents[split == index]) == sorted(part.contents())
    assert found.counts(found.assigned(None)).sum(0).tolist() == ([50, 0, 12] if own_test else [50, 0, 0])


def test_imbalance_is_of_training_images() -> None:
    assert imbalance(np.array([[950, 0, 1], [50, 0, 900], [0, 0, 3]])) == Imbalance(0, 1, 19.0)
    assert imbalance(np.zeros((2, 3), np.int64)) is None


def test_classes_of_all_splits_are_counted_by_name(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", {"a": 3, "b": 3})
    image_folder(tmp_path / "test", {"b": 2, "c": 1})
    found = inspect(str(tmp_path))
    assert found.class_names == ("a", "b", "c")
    assert found.counts(found.assigned(None)).tolist() == [[3, 0, 0], [3, 0, 2], [0, 0, 1]]


def test_tables_and_the_digits(tmp_path: Path) -> None:
    table = parquet(tmp_path / "images.parquet", [0, 1, 1, 0, 1], names=["cat", "dog"])
    found = inspect(str(table))
    assert found.counts(found.assigned(None)).tolist() == [[2, 0, 0], [3, 0, 0]]
    assert found.items([4])[0][0].endswith("row 4")
    digits = inspect("digits")
    assert (len(digits), digits.formats, digits.extremes()) == (1797, {"": 1797}, [(8, 8)] * 3)
    assert digits.groups(digits.assigned(None)) == []  # too small to tell similar ones from copies
    assert digits.traits.sum(0).tolist() == [1797, 0, 0, 0, 0, 0]


def test_progress_covers_reading_and_comparing(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"a": 2, "b": 2}, size=20)
    seen: list[tuple[str, int, int]] = []
    inspect(str(root), progress=lambda *progress: seen.append(progress))
    assert ("reading images", 4, 4) in seen
    assert seen[-1] == ("comparing images", 4, 4)


def test_unusable_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no subfolders"):
        inspect(str(tmp_path))
    with pytest.raises(DataError, match="there is no data"):
        inspect("nothing here")


def test_splits_are_named_as_everywhere() -> None:
    assert SPLITS == ("training", "validation", "test")
