"""Folders of images as people have them: splits, class folders, and those that can be read in several ways."""

from __future__ import annotations

import os
import unicodedata
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybrid_mobilenet.data.folders import open_folder
from hybrid_mobilenet.data.images import DataError
from hybrid_mobilenet.data.splits import Splits, load_data
from noise_images import image_folder, noise

SEEDS = count()


def pictures(root: Path, *folders: str, each: int = 3) -> Path:
    """Different noise images in each of these folders below `root`."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            Image.fromarray(noise(8, 8, seed=next(SEEDS))).save(root / folder / f"{number}.png")
    return root


def load(root: Path, validation: float = 0.0) -> Splits:
    return load_data(str(root), image_size=8, validation=validation)


def files_of(root: Path, *folders: str) -> int:
    return sum(len(list((root / folder).rglob("*.png"))) for folder in folders)


def assert_splits(splits: Splits, *names: str, train: int, test: int) -> None:
    """The data has its own test split, with these classes and numbers of images."""
    assert splits.has_own_test
    assert splits.train.class_names == splits.test.class_names == names
    assert (len(splits.train), len(splits.test)) == (train, test)


def assert_classes(splits: Splits, *names: str, images: int) -> None:
    """The data has no test split; it has these classes, and this number of images."""
    assert not splits.has_own_test
    assert splits.train.class_names == names
    assert len(splits.train) + len(splits.test) == images


# Splits


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *(("train", "test"), ("Training", "Testing"), ("TRAIN", "TEST"), ("training", "test")),
        *(("train_set", "test_set"), ("seg_train", "seg_test"), ("asl_alphabet_train", "asl_alphabet_test")),
        *(("Train Images", "Test Images"), ("TrainSet", "TestSet")),
    ],
)
def test_names_of_splits(train: str, test: str, tmp_path: Path) -> None:
    pictures(tmp_path / train, "b", "a")
    pictures(tmp_path / test, "a", "b", each=1)
    splits = load(tmp_path)
    assert_splits(splits, "a", "b", train=6, test=2)
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.test.labels.tolist() == [0, 1]
    assert splits.validation is None
    assert splits.notes == ()
    wanted = np.array(Image.open(tmp_path / train / "b/1.png").convert("RGB"))
    assert np.array_equal(splits.train.batch(torch.tensor([4]))[0].permute(1, 2, 0).numpy(), wanted)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Validation", "dev", "seg_val", "VAL"])
def test_a_validation_folder_serves_as_validation(name: str, tmp_path: Path) -> None:
    train = "seg_train" if name.startswith("seg") else "train"
    pictures(tmp_path, f"{train}/a", f"{train}/b", each=10)
    pictures(tmp_path, f"{name}/a", f"{name}/b", each=2)
    splits = load(tmp_path, validation=0.1)
    assert splits.validation is not None
    assert splits.validation.labels.tolist() == [0, 0, 1, 1]
    assert not splits.has_own_test
    assert len(splits.train) + len(splits.test) == 20
    assert splits.notes == (
        f"{tmp_path} has validation images but no test images: {len(splits.test)} of the 20 training images are "
        "held out for the test",
    )
    assert load(tmp_path).validation is None  # --validation 0
    assert load(tmp_path).train.fingerprint == splits.train.fingerprint


def test_three_splits(tmp_path: Path) -> None:
    for name, number in (("train", 2), ("val", 3), ("test", 4)):
        pictures(tmp_path / name, "a", "b", each=number)
    splits = load(tmp_path, validation=0.3)
    assert splits.validation is not None
    assert_splits(splits, "a", "b", train=4, test=8)
    assert len(splits.validation) == 6
    assert splits.notes == ()


def test_train_alone_is_the_folder_of_classes(tmp_path: Path) -> None:
    pictures(tmp_path, "train/a", "train/b")
    splits = load(tmp_path)
    assert_classes(splits, "a", "b", images=6)
    assert splits.notes == (f"read {tmp_path / 'train'}, the only folder of images in {tmp_path}",)
    assert load(tmp_path / "train").train.fingerprint == splits.train.fingerprint


def test_doubled_folders_of_archives(tmp_path: Path) -> None:
    pictures(tmp_path, "seg_train/seg_train/sea", "seg_train/seg_train/forest")
    pictures(tmp_path, "seg_test/seg_test/sea", "seg_test/seg_test/forest", "seg_pred/seg_pred", each=2)
    splits = load(tmp_path)
    assert_splits(splits, "forest", "sea", train=6, test=4)
    assert splits.notes == (f"left alone, since they are not splits: {tmp_path / 'seg_pred'}",)


@pytest.mark.parametrize("test", ["test", "test/test", "Test Images", "asl_test/asl_test"])
def test_a_flat_test_folder_beside_the_training_folder_is_left_alone(test: str, tmp_path: Path) -> None:
    train = "asl_train" if test.startswith("asl") else "train"
    pictures(tmp_path, f"{train}/a", f"{train}/b", test)
    splits = load(tmp_path)
    assert_classes(splits, "a", "b", images=6)
    first = tmp_path / test.partition("/")[0]
    assert splits.notes == (f"left alone: {first} (3 images without class folders)",)


def test_a_flat_test_folder_beside_class_folders_is_left_alone(tmp_path: Path) -> None:
    pictures(tmp_path, "a", "b", "Test")
    splits = load(tmp_path)
    assert_classes(splits, "a", "b", images=6)
    assert splits.notes == (
        f"left alone: {tmp_path / 'Test'} (3 images without class folders): if it is a class, give it another name",
    )


def test_splits_beside_class_folders(tmp_path: Path) -> None:
    pictures(tmp_path, "a", "b", "test/a", "test/b", "val/a")
    splits = load(tmp_path, validation=0.1)
    assert_splits(splits, "a", "b", train=6, test=6)
    assert splits.validation is not None
    assert splits.validation.labels.tolist() == [0, 0, 0]
    assert splits.notes == ("there are no validation images of b",)


def test_a_class_that_the_test_folder_lacks(tmp_path: Path) -> None:
    pictures(tmp_path / "train", "ant", "bee", "cat")
    pictures(tmp_path / "test", "cat", "ant", each=2)
    (tmp_path / "test/bee").mkdir()
    splits = load(tmp_path)
    assert_splits(splits, "ant", "bee", "cat", train=9, test=4)
    assert splits.test.labels.tolist() == [0, 0, 2, 2]
    assert splits.notes == ("there are no test images of bee",)
    (tmp_path / "test/bee").rmdir()
    assert load(tmp_path).notes == splits.notes


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_class_that_the_training_folder_lacks(split: str, tmp_path: Path) -> None:
    pictures(tmp_path, "train/ant", "train/bee", f"{split}/ant", f"{split}/Bee")
    with pytest.raises(
        DataError,
        match=rf"there are {split} images of 'Bee', but no training images \(the training classes are ant, bee\): add",
    ):
        load(tmp_path)


def test_one_class_in_two_unicode_forms(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD"))
    pictures(tmp_path / "train", decomposed, "Wespe")
    pictures(tmp_path / "test", composed, "Wespe", each=1)
    splits = load(tmp_path)
    assert_splits(splits, composed, "Wespe", train=6, test=2)
    assert splits.notes == ()
    pictures(tmp_path / "train", composed, each=2)
    splits = load(tmp_path)
    assert_splits(splits, composed, "Wespe", train=8, test=2)
    assert splits.train.labels.tolist() == [0] * 5 + [1] * 3
    assert splits.notes == (f"read as one class: the 2 folders 'Käfer' in {tmp_path / 'train'}, in two Unicode forms",)


# Classes


def test_numbers_as_classes_are_in_natural_order(tmp_path: Path) -> None:
    pictures(tmp_path, *map(str, range(13)))
    assert load(tmp_path).train.class_names == tuple(map(str, range(13)))


@pytest.mark.parametrize(
    "names",
    [
        *(["bus", "car", "train"], ["plane", "train", "train_station"], ["invalid", "valid"], ["dev", "prod"]),
        *(["crash_test", "road"], ["training", "yoga"]),
    ],
)
def test_classes_called_like_splits(names: list[str], tmp_path: Path) -> None:
    splits = load(pictures(tmp_path, *names))
    assert_classes(splits, *names, images=3 * len(names))
    assert splits.notes == ()


def test_folders_are_searched_to_any_depth_and_leftovers_are_skipped(tmp_path: Path) -> None:
    image_folder(tmp_path, {"a": 2, "b": 2, "b/deep/deeper": 2, ".hidden": 1, "__MACOSX": 1, "a/.cache": 1})
    image_folder(tmp_path, {"@eaDir": 1, "$RECYCLE.BIN": 1, "lost+found": 1, ".ipynb_checkpoints": 1, "a/@eaDir": 1})
    for leftover in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.png", "notes.txt", "README"):
        (tmp_path / "a" / leftover).write_bytes(b"junk")
    (tmp_path / "top.txt").write_bytes(b"junk")
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "b" / "self").symlink_to(tmp_path / "b" / "self")
    splits = load_data(str(tmp_path))
    assert_classes(splits, "a", "b", images=6)
    assert splits.notes == (
        "skipped 4 files that are not images: 2 without extension, 2 .txt",
        f"skipped links that lead to a folder above them: {tmp_path / 'b/loop'}",
    )
    assert load_data(str(tmp_path / ".hidden/..")).train.fingerprint == splits.train.fingerprint


def test_linked_class_folders_and_splits(tmp_path: Path) -> None:
    pictures(tmp_path / "elsewhere", "b", "test/a", "test/b")
    pictures(tmp_path / "root", "train/a")
    (tmp_path / "root/train/b").symlink_to(tmp_path / "elsewhere/b", target_is_directory=True)
    (tmp_path / "root/test").symlink_to(tmp_path / "elsewhere/test", target_is_directory=True)
    assert_splits(load(tmp_path / "root"), "a", "b", train=6, test=6)


@pytest.mark.parametrize(
    ("link", "target", "places"),
    [
        ("test", "train", ("test image of a", "training image of a")),
        ("val/b/1.png", "train/b/1.png", ("validation image of b", "training image of b")),
        ("train/c", "train/b", ("training image of c", "training image of b")),
        ("train/a/all", "train/b", ("training image of b", "training image of a")),
    ],
)
def test_a_link_that_puts_an_image_into_two_places(
    link: str, target: str, places: tuple[str, str], tmp_path: Path
) -> None:
    pictures(tmp_path, "train/a", "train/b", "val/a")
    (tmp_path / link).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / link).symlink_to(tmp_path / target)
    with pytest.raises(
        DataError,
        match=f"{tmp_path}.*png and {tmp_path}.*png are the same file, through a link, but the first is a {places[0]}, "
        f"the second a {places[1]}: remove the link",
    ):
        load(tmp_path)


def test_a_link_within_a_class_is_read(tmp_path: Path) -> None:
    pictures(tmp_path, "a", "b")
    (tmp_path / "a/again.png").symlink_to(tmp_path / "a/1.png")
    assert_classes(load(tmp_path), "a", "b", images=7)


def test_names_that_cannot_be_printed(tmp_path: Path) -> None:
    root = pictures(tmp_path / "two\nlines", "a", "b\udce9", ".")
    (root / "b\udce9/empty.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        load(root)
    assert str(caught.value).startswith(rf"{tmp_path}/two\nlines/b\udce9/empty.png is empty or not in a supported")
    (root / "b\udce9/empty.png").unlink()
    splits = load(root)
    assert splits.train.class_names == ("a", "b\udce9")
    assert splits.notes == (rf"left alone: 3 images directly in {tmp_path}/two\nlines, not in a class folder",)


def test_images_outside_class_folders_are_noted(tmp_path: Path) -> None:
    pictures(tmp_path, "a", "b", ".", each=2)
    assert load(tmp_path).notes == (f"left alone: 2 images directly in {tmp_path}, not in a class folder",)
    pictures(tmp_path / "s", "train/a", "train/b", "test/a", "test/b", ".", each=2)
    pictures(tmp_path / "s", "train", each=1)
    splits = load(tmp_path / "s")
    assert_splits(splits, "a", "b", train=4, test=4)
    assert splits.notes == (
        f"left alone: 2 images directly in {tmp_path / 's'}",
        f"left alone: 1 image directly in {tmp_path / 's/train'}, not in a class folder",
    )


def test_class_folders_with_several_subfolders_are_noted(tmp_path: Path) -> None:
    pictures(tmp_path, "archive/Cat", "archive/Dog", "samples")
    splits = load(tmp_path)
    assert_classes(splits, "archive", "samples", images=9)
    (note,) = splits.notes
    assert note.endswith(f"as in {tmp_path / 'archive'} (Cat, Dog): to tell these apart, give that folder")


@pytest.mark.parametrize("around", ["PetImages", "archive/PetImages", "data/train"])
def test_one_level_too_deep_is_read_and_noted(around: str, tmp_path: Path) -> None:
    pictures(tmp_path / around, "Cat", "Dog")
    (tmp_path / "readme[1].txt").write_text("licence")
    splits = load(tmp_path)
    assert_classes(splits, "Cat", "Dog", images=6)
    assert splits.notes == (
        f"read {tmp_path / around}, the only folder of images in {tmp_path}",
        "skipped 1 file that is not an image: 1 .txt",
    )


def test_splits_one_level_too_deep(tmp_path: Path) -> None:
    pictures(tmp_path / "archive/set", "train/a", "train/b", "test/a", "test/b")
    splits = load(tmp_path)
    assert_splits(splits, "a", "b", train=6, test=6)
    assert splits.notes == (f"read {tmp_path / 'archive/set'}, the only folder of images in {tmp_path}",)


def test_runs_inside_the_folder_are_left_alone(tmp_path: Path) -> None:
    pictures(tmp_path, "a", "b", "runs/one", "runs/two")
    (tmp_path / "runs/one/checkpoint.safetensors").write_bytes(b"")
    for name in ("config.json", "model.safetensors", "metrics.jsonl"):
        (tmp_path / "runs/two" / name).write_bytes(b"")
    splits = load(tmp_path)
    assert_classes(splits, "a", "b", images=6)
    assert splits.notes == (f"left alone, since they are run folders: {tmp_path}/runs/one, {tmp_path}/runs/two",)


# Errors


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no subfolders: put the images of each class into a folder named after"):
        load(tmp_path)
    pictures(tmp_path, "ant")
    with pytest.raises(DataError, match=r"of one class only \(ant\), but a classifier needs two or more"):
        load(tmp_path)
    (tmp_path / "bee").mkdir()
    with pytest.raises(
        DataError, match=r"class folder .*bee contains no images: add images such as .jpg or .png files, or"
    ):
        load(tmp_path)
    (tmp_path / "bee" / "photo.HEIC").write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"class folder .*bee contains no images \(skipped 1 file that is not an image: 1 .heic \(convert them to "
        r"JPEG, .*\)\): add images such as .jpg or .png files, or",
    ):
        load(tmp_path)
    (tmp_path / "bee" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"notes.txt is a file, but must be a .parquet file, or a folder with one"):
        load(tmp_path / "bee" / "notes.txt")


def test_one_level_too_shallow(tmp_path: Path) -> None:
    pictures(tmp_path / "d", "train/cats", "train/dogs", "test/cats", "test/dogs")
    for folder in ("train/cats", "test/dogs"):
        with pytest.raises(
            DataError,
            match=rf"{folder} has 3 images directly in it, but must have one subfolder per class: if it is one class "
            rf"of several, give {tmp_path / 'd'}; otherwise give their labels with --labels TABLE",
        ):
            load(tmp_path / "d" / folder)
    pictures(tmp_path / "photos", "cats", "cats/more", "dogs")
    with pytest.raises(DataError, match=f"if it is one class of several, give {tmp_path / 'photos'}; otherwise"):
        load(tmp_path / "photos/cats")
    pictures(tmp_path / "alone/flat", ".")
    with pytest.raises(DataError, match="class: put the images of each class into a folder named after the class, or"):
        load(tmp_path / "alone/flat")
    (tmp_path / "alone/flat/labels.csv").write_text("file,label\n")
    with pytest.raises(DataError, match=f"give their labels with --labels {tmp_path / 'alone/flat/labels.csv'}"):
        load(tmp_path / "alone/flat")


def test_only_splits_without_class_folders(tmp_path: Path) -> None:
    pictures(tmp_path, "train", "test")
    with pytest.raises(
        DataError, match=r"test, train could be splits without class folders, or classes: .*--labels; for classes, give"
    ):
        load(tmp_path)


@pytest.mark.parametrize("folders", [["test/a", "test/b"], ["val/a", "val/b"], ["d/test/x/a", "d/test/x/b"]])
def test_no_training_images(folders: list[str], tmp_path: Path) -> None:
    pictures(tmp_path, *folders)
    with pytest.raises(
        DataError, match=r"has no folder of training images, only .*: add a folder named train, or give"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    "folders",
    [
        ["train/steam", "train/diesel", "bus", "car"],
        ["train/a", "train/b", "test", "unlabelled"],
        ["train/a", "train/b", "test/x", "test/y", "more"],
        ["a", "b", "test/x", "test/y"],
        ["train", "test", "bus", "car"],
        ["control", "test"],
        ["a", "test/a"],
    ],
    ids=" ".join,
)
def test_ambiguous_folders(folders: list[str], tmp_path: Path) -> None:
    pictures(tmp_path, *folders)
    with pytest.raises(
        DataError,
        match=r"could be splits, or classes beside .*: for splits, move the other folders elsewhere; for classes, give",
    ):
        load(tmp_path)


def test_several_folders_of_one_split(tmp_path: Path) -> None:
    pictures(tmp_path, "train/a", "train/b", "test1/a", "test2/a")
    with pytest.raises(DataError, match=r"has several folders of test images \(test1, test2\): put their images toget"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_images_must_be_regular_files(kind: str, tmp_path: Path) -> None:
    pictures(tmp_path, "a", "b")
    if kind == "link":
        (tmp_path / "b" / "odd.png").symlink_to(tmp_path / "gone.png")
    else:
        os.mkfifo(tmp_path / "b" / "odd.png")
    with pytest.raises(DataError, match=r"odd.png is not a regular file \(a broken link\?\): repair or remove it"):
        load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read every file")
def test_file_without_permission(tmp_path: Path) -> None:
    pictures(tmp_path, "a", "b")
    (tmp_path / "b" / "1.png").chmod(0)
    with pytest.raises(DataError, match=r"1.png cannot be read as an image \(Permission denied\)"):
        load(tmp_path)


# For evaluation


@pytest.mark.parametrize(
    ("folders", "classes", "train", "test"),
    [
        (["a/x", "a/y"], ("a", "b"), ("a",), None),  # a single class, with subfolders
        (["dogs/x", "dogs/y"], ("x", "y"), ("x", "y"), None),  # a folder around classes
        (["test/a", "test/b"], ("a", "b"), ("a", "b"), None),
        (["val/a", "val/b"], ("a", "b"), ("a", "b"), None),
        (["a", "test"], ("a", "test"), ("a", "test"), None),  # the model has a class called test
        (["a", "b", "test"], ("a", "b"), ("a", "b"), None),
        (["train/a", "train/b", "test/a"], ("a", "b"), ("a", "b"), ("a",)),
    ],
)
def test_folders_to_evaluate(
    folders: list[str], classes: tuple[str, ...], train: tuple[str, ...], test: tuple[str, ...] | None, tmp_path: Path
) -> None:
    opened = open_folder(pictures(tmp_path, *folders), classes)
    assert opened.train.class_names == train
    assert (opened.test and opened.test.class_names) == test
