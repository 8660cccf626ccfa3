"""Pixels in memory, in a file or decoded when fetched, fingerprints, normalisation, and data loaders."""

from __future__ import annotations

import errno
import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hybrid_mobilenet.data import dataset as data
from hybrid_mobilenet.data import splits as splits_module
from hybrid_mobilenet.data import storage
from hybrid_mobilenet.data.dataset import ImageDataset, normalisation
from hybrid_mobilenet.data.images import DataError, Item
from hybrid_mobilenet.data.source import Source
from hybrid_mobilenet.data.splits import MEMORY_BOUND, load_data
from hybrid_mobilenet.data.storage import Storage
from noise_images import all_pixels, image_folder, noise, parquet
from processes import run_python


def test_damaged_images_are_named_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder(tmp_path / "train", {"a": 5, "b": 5})
    image_folder(tmp_path / "test", {"a": 1, "b": 1})
    with monkeypatch.context() as patched:
        patched.setattr(splits_module, "choose_storage", lambda *_: "nowhere")
        whole = load_data(str(tmp_path)).train
    names = ("train/a/003.png", "train/b/000.png", "test/b/000.png")
    for name in names:
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:80])
    for memory_bound in (0, MEMORY_BOUND):
        with pytest.raises(
            DataError,
            match=r"^.*a/003.png cannot .*: replace or remove it, or leave unreadable images out with --skip-bad "
            r"\(2 more of 12 images cannot be read either\)$",
        ) as raised:
            load_data(str(tmp_path), memory_bound=memory_bound)
        assert raised.value.images == tuple(str(tmp_path / name) for name in names)
    with pytest.raises(DataError, match=r"\.png cannot be read as an image") as raised:
        all_pixels(whole)  # damaged since it was loaded
    assert raised.value.images == (str(tmp_path / names[0]),)


def test_one_damaged_image(tmp_path: Path) -> None:
    image_folder(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a/003.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a/003.png is empty .* or leave unreadable images out with --skip-bad$"):
        load_data(str(tmp_path))


def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder(tmp_path / "train", {"a": 5, "b": 5})
    image_folder(tmp_path / "test", {"a": 1, "b": 1})
    opened: list[str] = []
    open_file = Path.open  # read_bytes calls it

    def counted(file: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(str(file))
        return open_file(file, *arguments, **options)

    monkeypatch.setattr(Path, "open", counted)
    calls: list[tuple[str, int, int]] = []
    splits = load_data(str(tmp_path), memory_bound=0, progress=lambda *call: calls.append(call))
    assert calls == [("reading training images", 10, 10), ("reading test images", 2, 2)]
    assert normalisation(splits.train)
    assert len(splits.train.contents()) == 10
    monkeypatch.undo()
    assert sorted(set(opened)) == sorted(map(str, tmp_path.rglob("*.png")))
    assert len(opened) in (12, 24)  # read_bytes may call open


# Memory, fingerprints, normalisation


def make_folder(root: Path) -> str:
    return str(image_folder(root / "folder", {"a": 12, "b": 11}, size=9))


def make_parquet(root: Path) -> str:
    parquet(root / "train-0.parquet", [0, 1] * 5, names=["a", "b"])
    parquet(root / "train-1.parquet", [0, 1] * 3, names=["a", "b"], seed=50)
    parquet(root / "test.parquet", [0, 1], names=["a", "b"], seed=90)
    return str(root)


@pytest.mark.parametrize("place", ["disk", "nowhere"])
@pytest.mark.parametrize(
    "make", [make_folder, make_parquet, lambda _root: "digits"], ids=["folder", "parquet", "digits"]
)
def test_other_images_equal_those_in_memory_bit_for_bit(
    make: Callable[[Path], str], place: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path)
    in_memory = load_data(source, image_size=(7, 8), validation=0.3)
    images = len(in_memory.train) + len(in_memory.test) + len(in_memory.validation or ())
    fits = load_data(source, image_size=(7, 8), validation=0.3, memory_bound=images * 7 * 8 * 3)
    assert in_memory.notes == fits.notes == ()
    if place == "nowhere":
        monkeypatch.setattr(storage, "temporary_folder", lambda: tmp_path / "missing")
    elsewhere = load_data(source, image_size=(7, 8), validation=0.3, memory_bound=images * 7 * 8 * 3 - 1)
    (note,) = elsewhere.notes
    assert ("kept in a temporary file in " in note) == (place == "disk")
    assert ("decoded again whenever it is used" in note) == (place == "nowhere")
    for name in ("train", "validation", "test"):
        kept, also_kept, other = getattr(in_memory, name), getattr(fits, name), getattr(elsewhere, name)
        assert kept.pixels is not None
        assert also_kept.pixels is not None
        assert (other.pixels is None) == (place == "nowhere")
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
    assert normalisation(in_memory.train) == normalisation(elsewhere.train)


def test_where_images_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # it is looked up again
    assert storage.temporary_folder() == tmp_path
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=200 if folder == tmp_path else 0))
    places = [storage.choose_storage(size, 50) for size in (50, 51, 100, 101)]
    assert places == ["memory", "disk", "disk", "nowhere"]


def test_a_disk_that_becomes_full_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "photos", {"a": 12, "b": 11}, size=9)
    in_memory = load_data(str(root)).train

    class Full(io.BytesIO):
        def write(self, _content: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_options: Full())
    splits = load_data(str(root), memory_bound=0)
    assert splits.train.pixels is None
    assert "decoded again whenever it is used" in splits.notes[0]
    assert torch.equal(all_pixels(splits.train), all_pixels(in_memory))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_images_on_disk_do_not_fill_memory(tmp_path: Path) -> None:
    """Twice the bound: the memory that the system cannot drop grows by far less than the images take."""
    root = image_folder(tmp_path / "photos", {"a": 300, "b": 300}, size=8)
    program = """
import sys
import torch
from pathlib import Path
from hybrid_mobilenet import load_data

def held():
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) * 1024

load_data(sys.argv[1], image_size=8)
before = held()
splits = load_data(sys.argv[1], image_size=256, memory_bound=600 * 256 * 256 * 3 // 2)
for numbers in torch.split(torch.arange(len(splits.train)), 8):
    splits.train.batch(numbers)
print(sum(part.decoded_bytes for part in splits.parts.values()), held() - before)
"""
    result = run_python("-c", program, str(root))
    size, grown = map(int, result.stdout.split())
    assert size == 600 * 256 * 256 * 3
    assert grown < size / 2


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


def test_fingerprint_of_files_that_are_not_in_memory(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"a": 6, "b": 6})
    for part in ("train", "test"):
        (root / part).mkdir()
        for name in ("a", "b"):
            (root / part / name).mkdir()
            for file in sorted((root / name).glob("*.png"))[: 4 if part == "train" else 6]:
                file.rename(root / part / name / file.name)

    def fingerprint() -> str:
        return load_data(str(root), memory_bound=0).train.fingerprint

    before = fingerprint()
    assert fingerprint() == before
    one = root / "train/a/001.png"
    content = one.read_bytes()
    one.write_bytes(content + b"x")
    longer = fingerprint()
    one.write_bytes(content + b"y")  # of the same size
    assert len({before, longer, fingerprint()}) == 3
    one.write_bytes(content)  # restored
    (root / "test/a/004.png").write_bytes(content)
    one.rename(one.with_name("001 (restored).png"))  # in the same place
    assert fingerprint() == before
    one.with_name("001 (restored).png").rename(one.with_name("9.png"))
    assert fingerprint() != before


def test_classes_in_another_order(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "folder", {"a": 12, "b": 11, "c": 7}, size=9)
    dataset = load_data(str(folder)).train
    before = dataset.fingerprint
    other = dataset.with_classes(("c", "a", "b"))
    assert [other.class_names[label] for label in other.labels] == [dataset.class_names[n] for n in dataset.labels]
    assert torch.equal(all_pixels(other), all_pixels(dataset))
    assert other.fingerprint != before
    assert (dataset.class_names, dataset.fingerprint) == (("a", "b", "c"), before)
    assert dataset.with_classes(("a", "b", "c")) is dataset


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
    monkeypatch.setattr(data, "NORMALISATION_SAMPLE", 100)
    for memory_bound in (0, MEMORY_BOUND):
        digits = load_data("digits", image_size=8, memory_bound=memory_bound).train
        mean, std = normalisation(digits)
        chosen = digits.batch(torch.arange(100) * len(digits) // 100)[:, 0].double() / 255
        assert mean == pytest.approx((chosen.mean().item(),) * 3)
        assert std == pytest.approx((chosen.std(correction=0).item(),) * 3)


# A DataLoader


@pytest.mark.parametrize("memory_bound", [MEMORY_BOUND, 0], ids=["in memory", "on disk"])
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
        ("fork", make_folder, MEMORY_BOUND),
        ("fork", lambda _root: "digits", MEMORY_BOUND),
        ("spawn", make_folder, 0),
        ("spawn", lambda _root: "digits", MEMORY_BOUND),
    ],
    ids=["fork, on disk", "fork, in memory", "fork, digits", "spawn, on disk", "spawn, digits"],
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


def test_a_table_is_sent_to_workers_without_the_pixels_on_disk(tmp_path: Path) -> None:
    part = load_data(make_parquet(tmp_path), image_size=8, memory_bound=0).train
    assert part.pixels is not None
    copy = pickle.loads(pickle.dumps(part))
    assert copy.pixels is None
    assert part.with_classes(("b", "a")).pixels is part.pixels
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
    on_disk = load_data("digits", image_size=8, memory_bound=0).train
    assert on_disk.to(meta).labels.device == meta
    monkeypatch.setattr(splits_module, "choose_storage", lambda *_: "nowhere")
    not_kept = load_data("digits", image_size=8).train
    assert not_kept.to(meta) is not_kept
