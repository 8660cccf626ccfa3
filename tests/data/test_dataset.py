"""Splits, pixels in memory or streamed, fingerprints, normalisation, and data loaders."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from hybrid_mobilenet.data import dataset as data
from hybrid_mobilenet.data.dataset import ImageDataset, load_data, load_test, normalisation
from hybrid_mobilenet.data.images import DataError, Item
from hybrid_mobilenet.data.sources import Source
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


# Splits


def contents(dataset: ImageDataset) -> list[bytes]:
    return [image.numpy().tobytes() for image in all_pixels(dataset)]


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
        "import sys; from hybrid_mobilenet.data.dataset import load_data\n"
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


def test_different_classes_in_train_and_test(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", {"ant": 2, "bee": 2})
    image_folder(tmp_path / "test", {"ant": 2, "cat": 2})
    with pytest.raises(DataError, match=r"different classes \(only in training: bee; only in test: cat\)"):
        load_data(str(tmp_path))


def test_damaged_images_are_named_and_counted(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", {"a": 5, "b": 5})
    image_folder(tmp_path / "test", {"a": 1, "b": 1})
    for name in ("a/003.png", "b/000.png", "b/004.png"):
        file = tmp_path / "train" / name
        file.write_bytes(file.read_bytes()[:80])
    with pytest.raises(
        DataError, match=r"^.*a/003.png cannot .* \(2 more of 10 training images cannot be read either\)$"
    ):
        load_data(str(tmp_path))
    streamed = load_data(str(tmp_path), memory_bound=0).train
    with pytest.raises(DataError, match=r"\.png cannot be read as an image"):
        all_pixels(streamed)


# Memory, fingerprints, normalisation


def make_folder(root: Path) -> str:
    return str(image_folder(root / "folder", {"a": 12, "b": 11}, size=9))


def make_parquet(root: Path) -> str:
    parquet(root / "train-0.parquet", [0, 1] * 5, names=["a", "b"])
    parquet(root / "train-1.parquet", [0, 1] * 3, names=["a", "b"], seed=50)
    parquet(root / "test.parquet", [0, 1], names=["a", "b"], seed=90)
    return str(root)


@pytest.mark.parametrize(
    "make", [make_folder, make_parquet, lambda _root: "digits"], ids=["folder", "parquet", "digits"]
)
def test_streaming_equals_memory_bit_for_bit(make: Callable[[Path], str], tmp_path: Path) -> None:
    source = make(tmp_path)
    in_memory = load_data(source, image_size=(7, 8), validation=0.3)
    images = len(in_memory.train) + len(in_memory.test) + len(in_memory.validation or ())
    fits = load_data(source, image_size=(7, 8), validation=0.3, memory_bound=images * 7 * 8 * 3)
    streamed = load_data(source, image_size=(7, 8), validation=0.3, memory_bound=images * 7 * 8 * 3 - 1)
    for name in ("train", "validation", "test"):
        kept, also_kept, other = getattr(in_memory, name), getattr(fits, name), getattr(streamed, name)
        assert kept.pixels is not None
        assert also_kept.pixels is not None
        assert other.pixels is None
        assert torch.equal(kept.labels, other.labels)
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
        assert torch.equal(kept.batch(order), other.batch(order))
        assert other.batch(order).is_contiguous(memory_format=torch.channels_last)
        assert other.batch(order[:0]).shape == kept.batch(order[:0]).shape == (0, 3, 7, 8)
        assert (kept.class_names, kept.image_size, kept.channels) == (
            other.class_names,
            other.image_size,
            other.channels,
        )
    assert normalisation(in_memory.train) == normalisation(streamed.train)


class Pictures(Source):
    """A source of the images in an array, uint8 (n, height, width, 3)."""

    def __init__(self, pixels: NDArray[np.uint8], labels: list[int]) -> None:
        self._pixels = pixels
        self.labels = torch.tensor(labels)
        self.class_names = ("a", "b")

    def fetch(self, rows: Sequence[int]) -> list[Item]:
        return [(f"picture {row}", Image.fromarray(self._pixels[row])) for row in rows]


def pictures(pixels: NDArray[np.uint8], labels: list[int], rows: list[int]) -> ImageDataset:
    height, width = pixels.shape[1:3]
    dataset = ImageDataset(Pictures(pixels, labels), torch.tensor(rows), (height, width), 3)
    dataset.read("training", None)
    return dataset


def test_fingerprint_changes_with_a_pixel_a_label_and_a_row() -> None:
    pixels = noise(4 * 5, 6).reshape(4, 5, 6, 3)
    labels, rows = [0, 1, 1, 0], [2, 0, 3]
    changed, changed_outside = pixels.copy(), pixels.copy()
    changed[3, 4, 5, 2] ^= 1
    changed_outside[1] ^= 1  # not one of the rows
    first = pictures(pixels, labels, rows).fingerprint
    assert pictures(pixels, labels, rows).fingerprint == pictures(changed_outside, labels, rows).fingerprint == first
    different = {first, pictures(changed, labels, rows).fingerprint, pictures(pixels, labels, [0, 2, 3]).fingerprint}
    different.add(pictures(pixels, [1, 0, 0, 1], rows).fingerprint)
    assert len(different) == 4


def test_fingerprint_changes_with_size_and_class_name(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"a": 4, "b": 4})
    before = load_data(str(root), image_size=8)
    assert load_data(str(root), image_size=8).train.fingerprint == before.train.fingerprint
    assert load_data(str(root), image_size=9).train.fingerprint != before.train.fingerprint

    (root / "b").rename(root / "c")
    assert load_data(str(root), image_size=8).train.fingerprint != before.train.fingerprint


def test_fingerprint_of_streamed_files(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"a": 4, "b": 4})

    def fingerprint() -> str:
        return load_data(str(root), memory_bound=0).train.fingerprint

    before = fingerprint()
    assert fingerprint() == before
    for file in root.glob("a/*.png"):
        file.write_bytes(file.read_bytes() + b"x")
    longer = fingerprint()
    assert longer != before
    for file in root.glob("a/*.png"):
        file.rename(file.with_name("x" + file.name))
    assert fingerprint() not in (before, longer)


def test_normalisation() -> None:
    pixels = np.zeros((4, 1, 1, 3), np.uint8)
    pixels[:, 0, 0, 0] = [0, 255, 0, 255]
    pixels[:, 0, 0, 1] = [51, 51, 51, 255]
    mean, std = normalisation(pictures(pixels, [0, 1, 0, 1], [0, 1, 2, 3]))
    assert mean == pytest.approx((0.5, 0.4, 0))
    assert std == pytest.approx((0.5, 0.12**0.5, 1 / 255))  # the last channel never changes
    # Only the rows that belong to the data set count.
    mean, _ = normalisation(pictures(pixels, [0, 1, 0, 1], [1, 3]))
    assert mean == pytest.approx((1, 0.6, 0))


def test_normalisation_is_computed_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = load_data("digits", image_size=8, memory_bound=0).train
    monkeypatch.setattr(data, "NORMALISATION_SAMPLE", 100)
    mean, std = normalisation(streamed)
    chosen = streamed.batch(torch.arange(100) * len(streamed) // 100)[:, 0].double() / 255
    assert mean == pytest.approx((chosen.mean().item(),) * 3)
    assert std == pytest.approx((chosen.std(correction=0).item(),) * 3)


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_READ_AT_ONCE", 1000)
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


# A DataLoader


@pytest.mark.parametrize("memory_bound", [data.MEMORY_BOUND, 0], ids=["in memory", "streamed"])
def test_items_are_images_with_their_labels(memory_bound: int) -> None:
    digits = load_data("digits", image_size=8, channels=1, memory_bound=memory_bound).test
    images = digits.batch(torch.arange(len(digits)))
    for index in (0, 358, -1, -359):
        image, label = digits[index]
        assert (image.dtype, type(label), label) == (torch.uint8, int, int(digits.labels[index]))
        assert torch.equal(image, images[index])
    for index in (359, -360):
        with pytest.raises(IndexError, match=f"^index is {index}, but the data set has 359 images"):
            digits[index]
    assert [label for _, label in digits] == digits.labels.tolist()  # type: ignore[attr-defined]  # ends at an IndexError
    assert digits.__getitems__([]) == []


def test_a_data_loader_fetches_a_batch_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_data("digits", image_size=8, channels=1).test
    calls: list[int] = []
    batch = ImageDataset.batch

    def counted(dataset: ImageDataset, indices: torch.Tensor) -> torch.Tensor:
        calls.append(len(indices))
        return batch(dataset, indices)

    monkeypatch.setattr(ImageDataset, "batch", counted)
    batches = list(torch.utils.data.DataLoader(digits, batch_size=100))
    assert calls == [100, 100, 100, 59]
    assert torch.equal(torch.cat([images for images, _ in batches]), digits.batch(torch.arange(359)))
    assert torch.equal(torch.cat([labels for _, labels in batches]), digits.labels)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, in Python 3.12
@pytest.mark.parametrize(
    ("method", "make", "memory_bound"),
    [
        ("fork", make_folder, 0),
        ("fork", make_folder, data.MEMORY_BOUND),
        ("fork", lambda _root: "digits", data.MEMORY_BOUND),
        ("spawn", make_folder, 0),
        ("spawn", lambda _root: "digits", data.MEMORY_BOUND),
    ],
    ids=["fork, streamed", "fork, in memory", "fork, digits", "spawn, streamed", "spawn, digits"],
)
@pytest.mark.slow
def test_a_data_loader_with_workers(
    method: str, make: Callable[[Path], str], memory_bound: int, tmp_path: Path
) -> None:
    part = load_data(make(tmp_path), image_size=8, memory_bound=memory_bound).train
    expected = part.batch(torch.arange(len(part)))  # starts the threads that decode, which a forked process lacks
    loader = torch.utils.data.DataLoader(part, batch_size=8, num_workers=2, multiprocessing_context=method, timeout=120)
    batches = list(loader)
    assert torch.equal(torch.cat([images for images, _ in batches]), expected)
    assert torch.equal(torch.cat([labels for _, labels in batches]), part.labels)


def test_a_streamed_table_is_sent_to_workers(tmp_path: Path) -> None:
    part = load_data(make_parquet(tmp_path), image_size=8, memory_bound=0).train
    copy = pickle.loads(pickle.dumps(part))
    everything = torch.arange(len(part))
    assert torch.equal(copy.batch(everything), part.batch(everything))


def test_images_are_moved_to_a_device_if_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    meta = torch.device("meta")  # stands for a GPU; its tensors have no values
    train = load_data("digits", image_size=8).train
    assert train.pixels is not None
    assert train.to(torch.device("cpu")) is train
    assert train.to(meta) is train  # its free memory is unknown
    size = train.pixels.nbytes
    for free, fits in ((2 * size - 2, False), (2 * size, True)):
        monkeypatch.setattr(data, "_free_memory", lambda _device, free=free: free)
        there = train.to(meta)
        assert (there is not train) == fits
    assert there.labels.device == meta
    assert (len(there), there.class_names) == (len(train), train.class_names)
    batch = there.batch(torch.tensor([3, 1], device=meta))
    here = train.batch(torch.tensor([3, 1]))
    assert (batch.device, batch.dtype, batch.shape, batch.stride()) == (meta, here.dtype, here.shape, here.stride())
    streamed = load_data("digits", image_size=8, memory_bound=0).train
    assert streamed.to(meta) is streamed
