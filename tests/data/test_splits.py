"""Splits by content, those that a source has, and which images are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from hybrid_mobilenet.data import dataset
from hybrid_mobilenet.data.dataset import ImageDataset
from hybrid_mobilenet.data.images import DataError
from hybrid_mobilenet.data.splits import MEMORY_BOUND, load_data, load_test
from noise_images import all_pixels, class_labels, image_folder, noise, parquet
from processes import run_python


def test_digits() -> None:
    splits = load_data("digits", image_size=(24, 20), validation=0.1, seed=3)
    assert splits.name == "digits"
    assert splits.validation is not None
    every = (splits.train, splits.validation, splits.test)
    counts = np.bincount(load_digits().target)
    train, validation, test = (part.labels.bincount().numpy() for part in every)
    assert (test + validation + train).tolist() == counts.tolist()
    assert len(splits.test) == 359  # a fifth
    assert (np.abs(test - counts / 5) <= 8).all()
    assert len(splits.validation) == pytest.approx(1438 / 10, rel=0.25)
    for each in every:
        assert each.class_names == tuple("0123456789")
        assert each.labels.dtype == torch.int64
        assert (each.image_size, each.channels) == ((24, 20), 3)
        images = each.batch(torch.tensor([5, 0]))
        assert images.shape == (2, 3, 24, 20)
        assert images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)


def contents(images: ImageDataset) -> list[bytes]:
    return [image.numpy().tobytes() for image in all_pixels(images)]


def three_parts(root: Path) -> list[set[bytes]]:
    """Contents of the training, validation and test images of a folder; checks that the three sets are disjoint."""
    splits = load_data(str(root), image_size=8, validation=0.25)
    assert splits.validation is not None
    parts = [set(contents(each)) for each in (splits.train, splits.validation, splits.test)]
    train, validation, test = parts
    assert len(train | validation | test) == sum(map(len, parts))
    return parts


def test_every_class_is_split(tmp_path: Path) -> None:
    for draw in range(5):
        root = image_folder(tmp_path / f"pets{draw}", {"ant": 3, "bee": 10, "cat": 200 + draw})
        splits = load_data(str(root), image_size=8, validation=0.25)
        assert splits.name == f"pets{draw}"
        assert splits.validation is not None
        ant, bee, cat = splits.test.labels.bincount().tolist()
        assert ant == 1
        assert 1 <= bee <= 6
        assert 20 <= cat <= 60
        assert class_labels(splits.validation) == class_labels(splits.train) == [0, 1, 2]


def test_adding_or_removing_an_image_moves_no_other_between_splits(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", {"bee": 60, "cat": 60})
    before = three_parts(root)
    Image.fromarray(noise(8, 8, seed=999)).save(root / "bee" / "0000.png")  # sorts before all others
    (root / "cat" / "030.png").unlink()
    after = three_parts(root)
    assert sum(map(len, after)) == 120
    stayed = set[bytes]().union(*before) & set[bytes]().union(*after)
    assert len(stayed) == 119
    assert [part & stayed for part in before] == [part & stayed for part in after]


def test_moving_and_renaming_a_folder_keeps_its_splits(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", {"bee": 20, "cat": 20})
    before = three_parts(root)
    moved = root.rename(tmp_path / "moved")
    (moved / "bee").rename(moved / "wasp")  # now sorts after the cats
    for index, file in enumerate(sorted((moved / "cat").iterdir())):
        file.rename(moved / "cat" / f"{(index * 7) % 20:02d} renamed.png")
    assert three_parts(moved) == before


def test_duplicates_are_in_the_same_split(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"bee": 20, "cat": 20})
    for file in [*root.rglob("*.png")]:
        shutil.copy(file, file.with_name(f"again {file.name}"))
        shutil.copy(file, root / ("cat" if file.parent.name == "bee" else "bee") / f"other {file.name}")
    train, validation, test = three_parts(root)
    assert len(train) + len(validation) + len(test) == 40
    assert min(map(len, (train, validation, test))) > 0


@pytest.mark.slow
def test_splits_depend_only_on_seeds(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"a": 20, "b": 20})

    def fingerprints(seed: int) -> list[str]:
        splits = load_data(str(root), image_size=8, validation=0.25, seed=seed)
        assert splits.validation is not None
        return [splits.train.fingerprint, splits.validation.fingerprint, splits.test.fingerprint]

    first = fingerprints(0)
    assert fingerprints(0) == first
    other = fingerprints(1)
    assert other[:2] != first[:2]
    assert other[2] == first[2]  # the test images never depend on the seed
    script = (
        "import sys; from hybrid_mobilenet.data.splits import load_data\n"
        "s = load_data(sys.argv[1], image_size=8, validation=0.25)\n"
        "print(s.train.fingerprint, s.validation.fingerprint, s.test.fingerprint)"
    )
    ran = run_python("-c", script, root, environment={"PYTHONHASHSEED": "7", "LC_ALL": "C"})
    assert (ran.returncode, ran.stdout.split()) == (0, first), ran.stderr


@pytest.mark.parametrize("validation", [-0.1, 1.0, 2, float("nan")])
def test_validation_must_be_a_fraction(validation: float) -> None:
    with pytest.raises(ValueError, match=r"validation is .*, but must be a fraction: 0 or more, and less than 1"):
        load_data("digits", validation=validation)


def test_class_with_one_image_cannot_be_split(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"ant": 5, "bee": 1})
    with pytest.raises(DataError, match="test split needs two or more different images of every class, but 'bee'"):
        load_data(str(root))
    image_folder(tmp_path / "both/train", {"ant": 5, "bee": 1})
    image_folder(tmp_path / "both/test", {"ant": 1, "bee": 1})
    assert len(load_data(str(tmp_path / "both")).train) == 6
    with pytest.raises(
        DataError, match=r"validation split needs two or more different images of every class.*--validation 0"
    ):
        load_data(str(tmp_path / "both"), validation=0.1)


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_READ_AT_ONCE", 1000)
    calls: list[tuple[str, int, int]] = []
    splits = load_data("digits", image_size=8, validation=0.1, progress=lambda *call: calls.append(call))
    assert splits.validation is not None
    train, validation = len(splits.train), len(splits.validation)
    assert calls == [
        ("comparing images", 1000, 1797),
        ("comparing images", 1797, 1797),
        ("reading training images", 1000, train),
        ("reading training images", train, train),
        ("reading validation images", validation, validation),
        ("reading test images", 359, 359),
    ]


def test_load_test_reads_only_test_images(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", {"a": 3, "b": 3})
    image_folder(tmp_path / "test", {"a": 1, "b": 1})
    (tmp_path / "train/a/000.png").write_bytes(b"damaged")
    calls: list[tuple[str, int, int]] = []
    test = load_test(str(tmp_path), image_size=(7, 8), channels=1, progress=lambda *call: calls.append(call))
    assert calls == [("reading test images", 2, 2)]
    with pytest.raises(DataError, match=r"train/a/000.png is empty or not in a supported format"):
        load_data(str(tmp_path))
    assert (test.labels.tolist(), test.image_size, test.channels) == ([0, 1], (7, 8), 1)

    assert load_test("digits", image_size=8).fingerprint == load_data("digits", image_size=8).test.fingerprint


# Images that cannot be read


def damage(root: Path, *names: str) -> None:
    for name in names:
        (root / name).write_bytes((root / name).read_bytes()[:80])


@pytest.mark.parametrize("memory_bound", [0, MEMORY_BOUND], ids=["on disk", "in memory"])
def test_skip_bad_gives_what_the_folder_without_the_bad_images_gives(memory_bound: int, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "photos", {"a": 12, "b": 9, "c": 5})
    bad = ["a/002.png", "b/000.png", "b/001.png", "c/003.png", "c/004.png"]
    damage(root, *bad)
    options = {"image_size": 8, "validation": 0.3, "memory_bound": memory_bound}
    skipped = load_data(str(root), skip_bad=True, **options)  # type: ignore[arg-type]
    first = ", ".join(str(root / name) for name in bad[:4])
    assert skipped.notes[0] == f"5 of 26 images cannot be read and are left out: {first} and 1 more"
    for name in bad:
        (root / name).unlink()
    without = load_data(str(root), **options)  # type: ignore[arg-type]
    assert skipped.notes[1:] == without.notes
    assert bool(without.notes) == (memory_bound == 0)
    for part in ("train", "validation", "test"):
        ours, theirs = getattr(skipped, part), getattr(without, part)
        assert len(ours) == len(theirs) > 0
        assert ours.fingerprint == theirs.fingerprint
        assert torch.equal(all_pixels(ours), all_pixels(theirs))
        assert (ours.contents() == theirs.contents()).all()


def test_skip_bad_of_a_source_with_its_own_test_images(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", {"a": 5, "b": 5})
    image_folder(tmp_path / "test", {"a": 2, "b": 2})
    assert load_data(str(tmp_path), skip_bad=True).notes == ()
    damage(tmp_path, "train/a/001.png", "test/b/000.png")
    splits = load_data(str(tmp_path), skip_bad=True)
    assert (len(splits.train), len(splits.test)) == (9, 3)
    assert splits.notes == (
        f"2 of 14 images cannot be read and are left out: {tmp_path}/train/a/001.png, {tmp_path}/test/b/000.png",
    )


def test_skip_bad_of_a_table(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", [0, 1] * 4, names=["a", "b"])
    table = pq.read_table(tmp_path / "train.parquet")
    images = table["image"].to_pylist()
    images[3]["bytes"] = images[3]["bytes"][:70]
    table = table.set_column(0, "image", pa.array(images, table.schema.field("image").type))
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train.parquet, row 3 cannot be read .*--skip-bad$"):
        load_data(str(tmp_path))
    splits = load_data(str(tmp_path), skip_bad=True)
    assert len(splits.train) + len(splits.test) == 7
    assert splits.notes == (f"1 of 8 images cannot be read and are left out: {tmp_path}/train.parquet, row 3",)


def test_a_class_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"a": 6, "b": 3})
    damage(root, "a/000.png", "b/000.png", "b/001.png", "b/002.png")
    with pytest.raises(
        DataError,
        match=r"none of the 3 training images of 'b' can be read \(.*b/000.png, .*b/001.png, .*b/002.png\): "
        r"replace them, or remove the class$",
    ):
        load_data(str(root), skip_bad=True)
