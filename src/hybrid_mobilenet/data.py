"""Data sets for training, validation and test: a source split, resized and normalised.

What fits in memory is decoded once; the rest is decoded as it is asked for, to the same pixels.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import compress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .architecture import Size
from .images import DataError, Item, checked_shape, decode, listed
from .sources import READ_AT_ONCE, Source, open_source

#: Decoded pixels of all images that are loaded together, in bytes, up to which they are kept in memory.
MEMORY_BOUND = 1 << 30

#: A source without a test split has this share of every class held out. The seed is fixed, whatever the training seed:
#: results compare, and evaluating a trained model later never meets an image it was trained on.
TEST_FRACTION = 0.2
TEST_SEED = 0

#: A data set is normalised by at most this many of its images, evenly spaced: all 50,000 of CIFAR, some of a larger one.
NORMALISATION_SAMPLE = 50_000

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many images are done, and of how many."""


class ImageDataset(ABC):
    """Labelled images of one size, fetched by number.

    Attributes:
        labels: int64 (n,), always in memory.
        class_names: name of each label.
        image_size: (height, width) in pixels.
        channels: 3 for RGB, 1 for greyscale.
    """

    def __init__(self, labels: Tensor, class_names: tuple[str, ...], image_size: Size, channels: int) -> None:
        self.labels = labels
        self.class_names = class_names
        self.image_size = image_size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def batch(self, indices: Tensor) -> Tensor:
        """The images with these numbers.

        Args:
            indices: int64 (b,).

        Returns:
            uint8 (b, channels, height, width), in channels-last memory format.

        Raises:
            DataError: where an image of a streamed data set cannot be read.
        """

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over class names, labels and content: the pixels in memory, or names and sizes of streamed files."""
        digest = hashlib.sha256(repr((self.class_names, self.image_size, self.channels)).encode())
        digest.update(self.labels.numpy().astype("<i8").tobytes())
        digest.update(self._content())
        return digest.hexdigest()

    @abstractmethod
    def _content(self) -> NDArray[np.uint8] | bytes: ...


class InMemoryImages(ImageDataset):
    """Decoded images, uint8 (n, height, width, channels)."""

    def __init__(self, pixels: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> None:
        super().__init__(labels, class_names, (pixels.shape[1], pixels.shape[2]), pixels.shape[3])
        self._pixels = pixels

    def batch(self, indices: Tensor) -> Tensor:
        return self._pixels.index_select(0, indices).permute(0, 3, 1, 2)

    def _content(self) -> NDArray[np.uint8]:
        return self._pixels.numpy()


class StreamedImages(ImageDataset):
    """Images decoded whenever they are asked for, by a few threads: rows `rows`, int64 (n,), of a source."""

    def __init__(self, source: Source, rows: Tensor, image_size: Size, channels: int) -> None:
        super().__init__(source.labels[rows], source.class_names, image_size, channels)
        self._source = source
        self._rows = rows

    def batch(self, indices: Tensor) -> Tensor:
        items = self._source.fetch(self._rows[indices].tolist())
        pixels = np.empty((len(items), *self.image_size, self.channels), np.uint8)
        if failures := _decode_all(items, pixels):
            raise failures[0]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _content(self) -> bytes:
        files = [(file.name, file.stat().st_size) for file in self._source.files]
        return repr((self._rows.tolist(), files)).encode()


@dataclass(frozen=True)
class Splits:
    """A source's images for training, for choosing settings (where asked for), and for the final test."""

    train: ImageDataset
    validation: ImageDataset | None
    test: ImageDataset
    name: str


def load(
    source: str,
    *,
    image_size: int | Size = 32,
    channels: int = 3,
    validation: float = 0.0,
    seed: int = 0,
    memory_bound: int = MEMORY_BOUND,
    progress: Progress | None = None,
) -> Splits:
    """The images of a source, resized and split.

    Args:
        source: "digits", "cifar10" or "cifar100"; else a path, of a folder with one subfolder per class (or train/ and
            test/ or validation/ with such subfolders), a Parquet file, or a folder of train*.parquet and test*.parquet;
            else the name of an image data set on the Hugging Face Hub, owner/name. A source with a validation split but
            no test split is tested on the former; with both, the validation split is left alone.
        image_size: side in pixels or (height, width): see `images.read_image`.
        channels: 3 for RGB, 1 for greyscale.
        validation: share of every class of the training images that is held out as validation split, in [0, 1).
        seed: chooses the images held out for validation. Those for test never depend on it: see `TEST_SEED`.
        memory_bound: decoded bytes of all splits above which they are streamed instead.
        progress: told of images read into memory.

    Raises:
        DataError: where the source is unknown or its data unusable.
        ValueError: where another argument is.
        OSError: where a folder cannot be listed.
    """
    size = checked_shape(image_size, channels)
    if not 0 <= validation < 1:  # NaN fails too
        raise ValueError(f"validation is {validation!r}, but must be a fraction: 0 or more, and less than 1")
    name, train, test = _open(source)
    parts = [train, test]
    if validation > 0:
        train, held_out = _split(train, validation, seed, f"{source}: the validation split")
        parts = [train, held_out, test]
    datasets = _read(parts, size, channels, memory_bound, progress)
    return Splits(datasets[0], datasets[1] if validation > 0 else None, datasets[-1], name)


def load_test(
    source: str, *, image_size: int | Size = 32, channels: int = 3, progress: Progress | None = None
) -> ImageDataset:
    """The test images of a source alone: those of `load`, of which it says more, without decoding the others."""
    size = checked_shape(image_size, channels)
    _, _, test = _open(source)
    return _read([test], size, channels, MEMORY_BOUND, progress)[0]


def normalisation(dataset: ImageDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in 0..1, over up to `NORMALISATION_SAMPLE` images.

    A channel that never changes is given the deviation of one grey level, so that one can divide by it.
    """
    sample = min(len(dataset), NORMALISATION_SAMPLE)
    counts = torch.zeros(dataset.channels, 256, dtype=torch.int64)
    for indices in torch.split(torch.arange(sample) * len(dataset) // sample, READ_AT_ONCE):
        by_channel = dataset.batch(indices).transpose(0, 1).flatten(1)
        for channel in range(dataset.channels):
            counts[channel] += torch.bincount(by_channel[channel], minlength=256)
    share = counts.double() / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().clamp_min(1 / 255).tolist())


@dataclass(frozen=True)
class _Part:
    """Images of a source that form a split, not yet decoded: rows `rows`, int64 (n,), ascending."""

    what: str
    source: Source
    rows: Tensor


def _open(source: str) -> tuple[str, _Part, _Part]:
    """A source's name, its training images and its test images."""
    name, train_source, test_source = open_source(source)
    if test_source is not None and test_source.class_names != train_source.class_names:
        only_train = [name for name in train_source.class_names if name not in test_source.class_names]
        only_test = [name for name in test_source.class_names if name not in train_source.class_names]
        raise DataError(
            f"{source}: training and test images have different classes (only in training: {listed(only_train)}; only "
            f"in test: {listed(only_test)}): give both the same, in the same order"
        )
    if len(torch.unique(train_source.labels)) < 2:
        raise DataError(
            f"{source}: its training images are of one class only ({listed(train_source.class_names)}), but a "
            "classifier needs two or more: add images of another class"
        )
    train = _Part("training", train_source, torch.arange(len(train_source.labels)))
    if test_source is not None:
        return name, train, _Part("test", test_source, torch.arange(len(test_source.labels)))
    return name, *_split(train, TEST_FRACTION, TEST_SEED, f"{source}: its test split", "test")


def _split(part: _Part, fraction: float, seed: int, problem: str, what: str = "validation") -> tuple[_Part, _Part]:
    """What remains, and what is held out: of each class the rounded share, but at least one image in either part."""
    labels = part.source.labels[part.rows]
    generator = torch.Generator().manual_seed(seed)
    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            raise DataError(
                f"{problem} needs two or more images of every class, but {part.source.class_names[label]!r} has one: "
                "add images, or remove the class"
            )
        count = min(max(int(fraction * len(members) + 0.5), 1), len(members) - 1)
        is_held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return _Part(part.what, part.source, part.rows[~is_held_out]), _Part(what, part.source, part.rows[is_held_out])


def _read(
    parts: Sequence[_Part], size: Size, channels: int, memory_bound: int, progress: Progress | None
) -> list[ImageDataset]:
    if sum(len(part.rows) for part in parts) * size[0] * size[1] * channels > memory_bound:
        return [StreamedImages(part.source, part.rows, size, channels) for part in parts]
    return [_read_into_memory(part, size, channels, progress) for part in parts]


def _read_into_memory(part: _Part, size: Size, channels: int, progress: Progress | None) -> InMemoryImages:
    total = len(part.rows)
    pixels = np.empty((total, *size, channels), np.uint8)
    is_wanted = torch.zeros(len(part.source.labels), dtype=torch.bool).index_fill(0, part.rows, True).tolist()
    failures: list[DataError] = []
    passed = done = 0
    for items in part.source.in_order():
        wanted = list(compress(items, is_wanted[passed : passed + len(items)]))
        passed += len(items)
        failures += _decode_all(wanted, pixels[done : done + len(wanted)])
        done += len(wanted)
        if progress is not None:
            progress(f"reading {part.what} images", done, total)
    if failures:
        others = f" ({len(failures) - 1} more of {total} {part.what} images cannot be read either)"
        raise DataError(f"{failures[0]}{others if len(failures) > 1 else ''}")
    return InMemoryImages(torch.from_numpy(pixels), part.source.labels[part.rows], part.source.class_names)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")


def _decode_all(items: Sequence[Item], out: NDArray[np.uint8]) -> list[DataError]:
    """Decode every item into its row of `out`, uint8 (n, height, width, channels); returns what went wrong."""
    _, height, width, channels = out.shape
    together = 8  # handing small images to a thread one by one costs a fifth of the time

    def decode_some(start: int) -> list[DataError]:
        failures = []
        for row in range(start, min(start + together, len(items))):
            try:
                out[row] = decode(items[row], (height, width), channels)
            except DataError as error:
                failures.append(error)
        return failures

    return [failure for some in _pool().map(decode_some, range(0, len(items), together)) for failure in some]
