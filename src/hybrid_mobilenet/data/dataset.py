"""Data sets for training, validation and test: a source split, resized, and kept in memory or streamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..layers.sizes import Size
from .images import DataError, Item, checked_shape, decode, listed
from .sources import KNOWN, Source, open_source

#: Images that are loaded together stay in memory if their decoded pixels take at most this many bytes.
MEMORY_BOUND = 1 << 30

#: Without a test split, about this share of every class is held out. The seed does not depend on the training seed, so
#: that results can be compared. Of the seeds 0 to 199, it splits the digits most evenly.
TEST_FRACTION = 0.2
TEST_SEED = 71

#: In a run folder: what was held out and trained on. See `Remembered`.
SPLIT_FILE = "split.json"

#: A data set is normalised by at most this many of its images, evenly spaced: all of CIFAR, some of a larger one.
NORMALISATION_SAMPLE = 50_000

Progress = Callable[[str, int, int], None]
"""Called with the current activity, the number of images done, and the total."""

_READ_AT_ONCE = 256


class ImageDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Labelled images of one size, kept in memory, or streamed: decoded each time they are fetched.

    It works in a `torch.utils.data.DataLoader`, also with several workers, and the networks take its uint8 images as
    they are. `load_data` makes it.

    Attributes:
        labels: int64 (n,), always in memory. The indices given to `batch` must be on the same device.
        class_names: name of each label.
        image_size: (height, width) in pixels.
        channels: 3 for RGB, 1 for greyscale.
        pixels: uint8 (n, height, width, channels), or None where they are streamed.

    Example:
        >>> import torch
        >>> from hybrid_mobilenet import ImageDataset, load_data
        >>> digits = load_data("digits", image_size=8, channels=1).train
        >>> isinstance(digits, ImageDataset)
        True
        >>> image, label = digits[0]
        >>> image.shape, image.dtype, digits.class_names[label]
        (torch.Size([1, 8, 8]), torch.uint8, '1')
        >>> loader = torch.utils.data.DataLoader(digits, batch_size=64, shuffle=True)
        >>> images, labels = next(iter(loader))
        >>> images.shape, labels.shape
        (torch.Size([64, 1, 8, 8]), torch.Size([64]))
    """

    def __init__(self, source: Source, rows: Tensor, image_size: Size, channels: int) -> None:
        self.labels = source.labels[rows]
        self.class_names = source.class_names
        self.image_size = image_size
        self.channels = channels
        self.pixels: Tensor | None = None
        self._source = source
        self._rows = rows
        self._contents: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image, uint8 (channels, height, width), and its label.

        Raises:
            IndexError: if there is no such image.
            DataError: if a streamed image cannot be read.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Images and labels as `__getitem__` returns them, fetched at once. A DataLoader calls it for each batch."""
        for index in indices:
            if not -len(self) <= index < len(self):
                raise IndexError(f"index is {index}, but the data set has {len(self)} images, from 0")
        numbers = torch.tensor(indices, dtype=torch.int64, device=self.labels.device) % max(len(self), 1)
        images, labels = self.labelled(numbers)
        return list(zip(images, labels.tolist(), strict=True))

    def batch(self, indices: Tensor) -> Tensor:
        """The images with these numbers.

        Args:
            indices: int64 (b,).

        Returns:
            uint8 (b, channels, height, width), in channels-last memory format.

        Raises:
            DataError: if an image of a streamed data set cannot be read.
        """
        if self.pixels is not None:
            return self.pixels.index_select(0, indices).permute(0, 3, 1, 2)
        pixels = np.empty((len(indices), *self.image_size, self.channels), np.uint8)
        if failures := self._decode(indices, pixels):
            raise failures[0]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def labelled(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The images with these numbers, and their labels, int64 (b,)."""
        return self.batch(indices), self.labels.index_select(0, indices)

    def to(self, device: torch.device) -> ImageDataset:
        """The same images, fetched on a GPU without the host, if they are in memory and fit in half of its free memory.

        Any other data set is returned itself.
        """
        if self.pixels is None or device.type == "cpu" or self.pixels.nbytes > _free_memory(device) // 2:
            return self
        there = ImageDataset(self._source, self._rows, self.image_size, self.channels)
        there.pixels, there.labels = self.pixels.to(device), self.labels.to(device)
        return there

    def subset(self, is_in: Tensor) -> ImageDataset:
        """The images for which `is_in`, bool (n,), is true, streamed."""
        part = ImageDataset(self._source, self._rows[is_in], self.image_size, self.channels)
        if self._contents is not None:
            part._contents = self._contents[is_in.numpy()]
        return part

    def contents(self, progress: Progress | None = None) -> NDArray[np.uint64]:
        """A hash of each image, uint64 (n,): the first 16 hexadecimal digits of the SHA-256 of its file.

        It does not depend on names, folders, labels or the other images. The whole file is hashed, because scans and
        uncompressed images may begin and end alike. Hashing takes a small part of the time of decoding.
        """
        if self._contents is None:
            found: list[int] = []
            together = _READ_AT_ONCE // 8
            for rows in torch.split(self._rows, _READ_AT_ONCE):
                items = self._source.fetch(rows.tolist())
                parts = [items[start : start + together] for start in range(0, len(items), together)]
                found += chain.from_iterable(_pool().map(lambda part: list(map(_content, part)), parts))
                if progress is not None:
                    progress("comparing images", len(found), len(self))
            self._contents = np.array(found, np.uint64)
        return self._contents

    def read(self, what: str, progress: Progress | None) -> None:
        """Decode all images into memory. `what` names them in progress reports and errors.

        Raises:
            DataError: if images cannot be read. It names the first one, and says how many others there are.
        """
        pixels = np.empty((len(self), *self.image_size, self.channels), np.uint8)
        failures: list[DataError] = []
        for start in range(0, len(self), _READ_AT_ONCE):
            stop = min(start + _READ_AT_ONCE, len(self))
            failures += self._decode(torch.arange(start, stop), pixels[start:stop])
            if progress is not None:
                progress(f"reading {what} images", stop, len(self))
        if failures:
            others = f" ({len(failures) - 1} more of {len(self)} {what} images cannot be read either)"
            raise DataError(f"{failures[0]}{others if len(failures) > 1 else ''}")
        self.pixels = torch.from_numpy(pixels)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over class names, labels and content: the pixels in memory, or names and sizes of streamed files."""
        digest = hashlib.sha256(repr((self.class_names, self.image_size, self.channels)).encode())
        digest.update(self.labels.numpy().astype("<i8").tobytes())
        if self.pixels is not None:
            digest.update(self.pixels.numpy().data)
        else:
            files = [(file.name, file.stat().st_size) for file in self._source.files]
            digest.update(repr((self._rows.tolist(), files)).encode())
        return digest.hexdigest()

    def _decode(self, indices: Tensor, out: NDArray[np.uint8]) -> list[DataError]:
        """Decode images into `out`, uint8 (b, height, width, channels), by a few threads; returns what went wrong."""
        items = self._source.fetch(self._rows[indices].tolist())
        together = 8  # handing small images to a thread one by one costs a fifth of the time

        def decode_some(start: int) -> list[DataError]:
            failures = []
            for row in range(start, min(start + together, len(items))):
                try:
                    out[row] = decode(items[row], self.image_size, self.channels)
                except DataError as error:
                    failures.append(error)
            return failures

        return [failure for some in _pool().map(decode_some, range(0, len(items), together)) for failure in some]


def _free_memory(device: torch.device) -> int:
    """Free memory of a device in bytes; 0 if it is unknown."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _pool() -> ThreadPoolExecutor:
    return _pool_of(os.getpid())


@cache
def _pool_of(_process: int) -> ThreadPoolExecutor:
    """One pool for each process: a forked process, such as a DataLoader's worker, has no threads of its parent."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")


def _content(item: Item) -> int:
    """See `ImageDataset.contents`."""
    name, raw = item
    if isinstance(raw, Image.Image):
        raw = raw.tobytes()
    try:
        content = raw if isinstance(raw, bytes) else raw.read_bytes()
    except OSError:
        content = b""
    # Empty or unreadable files are not duplicates of each other. Decoding them raises the error.
    return int.from_bytes(hashlib.sha256(content or name.encode()).digest()[:8])


@dataclass(frozen=True)
class Remembered:
    """The images that a run used for training and validation, and held out, by their `ImageDataset.contents`.

    Attributes:
        train: uint64 (a,), sorted and without duplicates, as are the others.
        validation: uint64 (b,).
        held_out: uint64 (c,), the test images if the source had no test split; otherwise empty.
    """

    train: NDArray[np.uint64]
    validation: NDArray[np.uint64]
    held_out: NDArray[np.uint64]

    def encoded(self) -> bytes:
        """The content of split.json, one line per image."""
        fields = {name: [f"{content:016x}" for content in part.tolist()] for name, part in vars(self).items()}
        about = {"about": "first 16 hexadecimal digits of each image's SHA-256: what sha256sum says of its file"}
        return (json.dumps(about | fields, indent=0) + "\n").encode()

    @classmethod
    def of(cls, model: str | Path) -> Self | None:
        """Read split.json of a run folder, or of that of an exported file (RUN/export/FILE); None if it is missing.

        Raises:
            DataError: if split.json is damaged.
            OSError: if it cannot be read.
        """
        path = Path(model).resolve()
        folders = [path] if path.is_dir() else path.parents[:3] if path.is_file() else []
        file = next((folder / SPLIT_FILE for folder in folders if (folder / SPLIT_FILE).is_file()), None)
        if file is None:
            return None
        try:
            fields = json.loads(file.read_bytes())
            parts = [fields[name] for name in ("train", "validation", "held_out")]
            if not parts[0] or not all(isinstance(part, list) for part in parts):
                raise ValueError
            return cls(*(np.array([int(content, 16) for content in part], np.uint64) for part in parts))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise DataError(
                f"{file} is damaged and does not say which images the model was trained on: restore it, or delete it "
                "to evaluate without knowing"
            ) from error


@dataclass(frozen=True)
class Splits:
    """The images of a source for training, for validation (None if none are held out), and for the final test.

    Attributes:
        has_own_test: whether the source has test images of its own; otherwise they were held out.
    """

    train: ImageDataset
    validation: ImageDataset | None
    test: ImageDataset
    name: str
    has_own_test: bool

    def remembered(self, progress: Progress | None = None) -> Remembered:
        """The record of these images that a run keeps in split.json."""
        none = np.empty(0, np.uint64)
        return Remembered(
            np.unique(self.train.contents(progress)),
            none if self.validation is None else np.unique(self.validation.contents(progress)),
            none if self.has_own_test else np.unique(self.test.contents(progress)),
        )


def load_data(
    source: str,
    *,
    image_size: int | Size = 32,
    channels: int = 3,
    validation: float = 0.0,
    seed: int = 0,
    memory_bound: int = MEMORY_BOUND,
    progress: Progress | None = None,
) -> Splits:
    """Load the images of a source, resized and split.

    Args:
        source: "digits", "cifar10" or "cifar100"; or the path of a folder with one subfolder per class (or train/ and
            test/ or validation/ with such subfolders), a Parquet file, or a folder of train*.parquet and test*.parquet;
            or owner/name of an image data set on the Hugging Face Hub. If a source has a validation split but no test
            split, the validation split is used for the test; if it has both, the validation split is not used.
        image_size: side in pixels or (height, width): see `images.read_image`.
        channels: 3 for RGB, 1 for greyscale.
        validation: share of the training images of every class to hold out for validation, in [0, 1). `_split` says
            which images are held out, also for the test split of a source without one.
        seed: chooses the images held out for validation. Those for test never depend on it: see `TEST_SEED`.
        memory_bound: decoded bytes of all splits above which they are streamed instead.
        progress: called as images are read into memory.

    Raises:
        DataError: if the source is unknown or its data unusable.
        ValueError: if another argument is invalid.
        OSError: if a folder cannot be listed.

    Example:
        >>> from hybrid_mobilenet import load_data
        >>> digits = load_data("digits", image_size=16, channels=1, validation=0.1)
        >>> [len(part) for part in (digits.train, digits.validation, digits.test)]
        [1305, 133, 359]
    """
    if not 0 <= validation < 1:  # NaN fails too
        raise ValueError(f"validation is {validation!r}, but must be a fraction: 0 or more, and less than 1")
    name, train, test, has_own_test = _open(source, image_size, channels, progress)
    if validation == 0:
        _read({"training": train, "test": test}, memory_bound, progress)
        return Splits(train, None, test, name, has_own_test)
    train, held_out = _split(
        train,
        validation,
        f"validation {seed}",
        f"{source}: the validation split",
        progress,
        "add images, remove the class, or hold none out (--validation 0)",
    )
    _read({"training": train, "validation": held_out, "test": test}, memory_bound, progress)
    return Splits(train, held_out, test, name, has_own_test)


def load_test(
    source: str, *, image_size: int | Size = 32, channels: int = 3, progress: Progress | None = None
) -> ImageDataset:
    """The test images of a source, as `load_data` gives them, without decoding the others."""
    _, _, test, _ = _open(source, image_size, channels, progress)
    _read({"test": test}, MEMORY_BOUND, progress)
    return test


@dataclass(frozen=True)
class Evaluated:
    """The images that a model is evaluated on.

    Attributes:
        images: in memory, where they fit.
        which: "held out" from the data that the model was trained on, the source's "test split", or "all" of it.
        of: number of images in the source, or in its test split.
        used_in_training: number of `images` that the model's training or validation used; None if it is unknown.
        left_out: number of images that were added after the run, and are not in `images`.
    """

    images: ImageDataset
    which: Literal["held out", "test split", "all"]
    of: int
    used_in_training: int | None
    left_out: int = 0


def load_to_evaluate(
    source: str,
    run: Remembered | None,
    class_names: tuple[str, ...],
    *,
    image_size: int | Size = 32,
    channels: int = 3,
    progress: Progress | None = None,
) -> Evaluated:
    """The images of a source on which to evaluate a trained model: its test split, or all of them if it has none.

    The test split of the digits is the one that `load_data` holds out. If another source lacks a test split and the
    model was trained on it, the images are those that the run held out, even if files were added, removed, renamed or
    moved since. The model counts as trained on the source if at least half of the run's images are in it, or at least
    half of its images are the run's.

    Args:
        source: as for `load_data`; classes may be empty, and a single class is allowed.
        run: the images of the model's run, if they are known.
        class_names: the model's.
        image_size: as for `load_data`.
        channels: as for `load_data`.
        progress: as for `load_data`.

    Raises:
        DataError, ValueError, OSError: as `load_data`; also where images have a class that the model lacks.
    """
    size = checked_shape(image_size, channels)
    _, train, test = open_source(source, to_evaluate=True)
    part = test or train
    images = ImageDataset(part, torch.arange(len(part.labels)), size, channels)
    which: Literal["held out", "test split", "all"] = "test split" if test else "all"
    numbered(images, class_names)
    if test is None and source in KNOWN:
        which, images = "test split", _with_test(source, images, progress)[1]
    of = len(images)
    used, left_out = None, 0
    if run is not None:
        contents = images.contents(progress)
        is_used = np.isin(contents, run.train) | np.isin(contents, run.validation)
        is_held_out = np.isin(contents, run.held_out)
        own = np.concatenate([run.train, run.validation, run.held_out])
        is_own = is_used | is_held_out
        is_run_data = 2 * np.isin(own, contents).sum() >= len(own) or 2 * is_own.sum() >= of
        if which == "all" and is_used.any() and is_held_out.any() and is_run_data:
            which, images, left_out = "held out", images.subset(torch.from_numpy(is_held_out)), int((~is_own).sum())
            is_used = is_used[is_held_out]
        used = int(is_used.sum())
    _read({"test": images}, MEMORY_BOUND, progress)
    return Evaluated(images, which, of, used, left_out)


def numbered(dataset: ImageDataset, class_names: tuple[str, ...]) -> Tensor:
    """The model's index of each class of a data set, by name, int64; -1 for an empty class that the model lacks.

    Raises:
        DataError: if images are of a class that the model lacks, or there are none.
    """
    if not len(dataset):
        raise DataError("the data has no images: name data with images")
    number = {name: index for index, name in enumerate(class_names)}
    with_images = {dataset.class_names[label] for label in torch.unique(dataset.labels).tolist()}
    if unknown := [name for name in dataset.class_names if name in with_images and name not in number]:
        raise DataError(
            f"the data has images of {listed([repr(name) for name in unknown])}, but the model knows "
            f"{len(class_names)} classes ({listed(class_names)}): name classes as the model does, or leave those "
            "images out"
        )
    return torch.tensor([number.get(name, -1) for name in dataset.class_names])


def normalisation(dataset: ImageDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in 0..1, over up to `NORMALISATION_SAMPLE` images.

    The deviation of a constant channel is set to one grey level, so that it is never zero.
    """
    sample = min(len(dataset), NORMALISATION_SAMPLE)
    counts = torch.zeros(dataset.channels, 256, dtype=torch.int64)
    for indices in torch.split(torch.arange(sample) * len(dataset) // sample, _READ_AT_ONCE):
        by_channel = dataset.batch(indices).transpose(0, 1).flatten(1)
        for channel in range(dataset.channels):
            counts[channel] += torch.bincount(by_channel[channel], minlength=256)
    share = counts.double() / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().clamp_min(1 / 255).tolist())


def _open(
    source: str, image_size: int | Size, channels: int, progress: Progress | None
) -> tuple[str, ImageDataset, ImageDataset, bool]:
    """The source's name, its training and test images (not decoded yet), and whether the test images are its own."""
    size = checked_shape(image_size, channels)
    name, train, test = open_source(source)
    if test is not None and test.class_names != train.class_names:
        only_train = [each for each in train.class_names if each not in test.class_names]
        only_test = [each for each in test.class_names if each not in train.class_names]
        raise DataError(
            f"{source}: training and test images have different classes (only in training: {listed(only_train)}; only "
            f"in test: {listed(only_test)}): give both the same, in the same order"
        )
    if len(torch.unique(train.labels)) < 2:
        raise DataError(
            f"{source}: its training images are of one class only ({listed(train.class_names)}), but a classifier "
            "needs two or more: add images of another class"
        )

    def whole(part: Source) -> ImageDataset:
        return ImageDataset(part, torch.arange(len(part.labels)), size, channels)

    if test is not None:
        return name, whole(train), whole(test), True
    return name, *_with_test(source, whole(train), progress), False


def _with_test(source: str, images: ImageDataset, progress: Progress | None) -> tuple[ImageDataset, ImageDataset]:
    return _split(images, TEST_FRACTION, f"test {TEST_SEED}", f"{source}: its test split", progress)


def _split(
    dataset: ImageDataset,
    fraction: float,
    salt: str,
    problem: str,
    progress: Progress | None,
    remedy: str = "add images, or remove the class",
) -> tuple[ImageDataset, ImageDataset]:
    """Split a data set into the images that remain and those held out.

    Each image has a place in [0, 1), a hash of its content and `salt`. It is held out if its place is below `fraction`.
    This does not depend on other images. Images with the same content are on the same side, even in different classes.
    If a class would have no image held out, the one with the lowest place is held out. If more than (1 + fraction) / 2
    of its images would be, only that share is, from the lowest place on. In such a class an image may change sides when
    others are added or removed, so a run records what it held out.
    """
    different, which = np.unique(dataset.contents(progress), return_inverse=True)
    places = np.array([_place(content, salt) for content in different.tolist()])
    is_held_out = places < fraction
    of_class = {
        label: np.unique(which[dataset.labels.numpy() == label]) for label in torch.unique(dataset.labels).tolist()
    }
    for label, members in of_class.items():
        if len(members) < 2:
            raise DataError(
                f"{problem} needs two or more different images of every class, but {dataset.class_names[label]!r} has "
                f"one: {remedy}"
            )
        count = is_held_out[members].sum()
        allowed = min(max(count, 1), int(len(members) * (1 + fraction) / 2))
        if count != allowed:
            is_held_out[members] = False
            is_held_out[members[places[members].argsort()[:allowed]]] = True
    for label, members in of_class.items():
        if len(np.unique(is_held_out[members])) < 2:
            raise DataError(
                f"{problem} cannot be made, since the few images of {dataset.class_names[label]!r} are also in other "
                "classes: remove them there, or add images"
            )
    is_in = torch.from_numpy(is_held_out[which])
    return dataset.subset(~is_in), dataset.subset(is_in)


def _place(content: int, salt: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{salt} {content:016x}".encode()).digest()[:8]) / 2**64


def _read(parts: dict[str, ImageDataset], memory_bound: int, progress: Progress | None) -> None:
    """Read all parts into memory, if they fit in together."""
    if (
        sum(len(part) * part.image_size[0] * part.image_size[1] * part.channels for part in parts.values())
        <= memory_bound
    ):
        for what, part in parts.items():
            part.read(what, progress)
