"""Data sets for training, validation and test: a source split, resized, and kept in memory or streamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .architecture import Size
from .images import DataError, checked_shape, decode, listed
from .sources import Source, open_source

#: Decoded pixels of all images that are loaded together, in bytes, up to which they are kept in memory.
MEMORY_BOUND = 1 << 30

#: A source without a test split has this share of every class held out. The seed is fixed, whatever the training seed:
#: results compare, and evaluating a trained model later never meets an image it was trained on.
TEST_FRACTION = 0.2
TEST_SEED = 0

#: A data set is normalised by at most this many of its images, evenly spaced: all of CIFAR, some of a larger one.
NORMALISATION_SAMPLE = 50_000

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many images are done, and of how many."""

_READ_AT_ONCE = 256


class ImageDataset:
    """Labelled images of one size, fetched by number: kept in memory, or streamed (decoded whenever asked for).

    Attributes:
        labels: int64 (n,), always in memory; where they are, the numbers given to `batch` have to be.
        class_names: name of each label.
        image_size: (height, width) in pixels.
        channels: 3 for RGB, 1 for greyscale.
        pixels: uint8 (n, height, width, channels), or None where they are streamed.
    """

    def __init__(self, source: Source, rows: Tensor, image_size: Size, channels: int) -> None:
        self.labels = source.labels[rows]
        self.class_names = source.class_names
        self.image_size = image_size
        self.channels = channels
        self.pixels: Tensor | None = None
        self._source = source
        self._rows = rows

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """The images with these numbers.

        Args:
            indices: int64 (b,).

        Returns:
            uint8 (b, channels, height, width), in channels-last memory format.

        Raises:
            DataError: where an image of a streamed data set cannot be read.
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
        return ImageDataset(self._source, self._rows[is_in], self.image_size, self.channels)

    def read(self, what: str, progress: Progress | None) -> None:
        """Decode all images into memory; `what` they are is told with the progress and in errors.

        Raises:
            DataError: where images cannot be read, naming the first, with the number of the others.
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
    """Bytes that are free on a device; 0 where one is not told."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")


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
    if not 0 <= validation < 1:  # NaN fails too
        raise ValueError(f"validation is {validation!r}, but must be a fraction: 0 or more, and less than 1")
    name, train, test = _open(source, image_size, channels)
    if validation == 0:
        _read({"training": train, "test": test}, memory_bound, progress)
        return Splits(train, None, test, name)
    train, held_out = _split(train, validation, seed, f"{source}: the validation split")
    _read({"training": train, "validation": held_out, "test": test}, memory_bound, progress)
    return Splits(train, held_out, test, name)


def load_test(
    source: str, *, image_size: int | Size = 32, channels: int = 3, progress: Progress | None = None
) -> ImageDataset:
    """The test images of a source, as `load` gives them, without decoding the others."""
    _, _, test = _open(source, image_size, channels)
    _read({"test": test}, MEMORY_BOUND, progress)
    return test


def normalisation(dataset: ImageDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in 0..1, over up to `NORMALISATION_SAMPLE` images.

    A channel that never changes is given the deviation of one grey level, so that one can divide by it.
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


def _open(source: str, image_size: int | Size, channels: int) -> tuple[str, ImageDataset, ImageDataset]:
    """A source's name, its training images and its test images, none of them decoded yet."""
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
        return name, whole(train), whole(test)
    return name, *_split(whole(train), TEST_FRACTION, TEST_SEED, f"{source}: its test split")


def _split(dataset: ImageDataset, fraction: float, seed: int, problem: str) -> tuple[ImageDataset, ImageDataset]:
    """What remains, and what is held out: of each class the rounded share, but at least one image in either part."""
    generator = torch.Generator().manual_seed(seed)
    is_held_out = torch.zeros(len(dataset), dtype=torch.bool)
    for label in torch.unique(dataset.labels).tolist():
        members = (dataset.labels == label).nonzero().flatten()
        if len(members) < 2:
            raise DataError(
                f"{problem} needs two or more images of every class, but {dataset.class_names[label]!r} has one: add "
                "images, or remove the class"
            )
        count = min(max(int(fraction * len(members) + 0.5), 1), len(members) - 1)
        is_held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return dataset.subset(~is_held_out), dataset.subset(is_held_out)


def _read(parts: dict[str, ImageDataset], memory_bound: int, progress: Progress | None) -> None:
    """Read all parts into memory, if they fit in together."""
    if (
        sum(len(part) * part.image_size[0] * part.image_size[1] * part.channels for part in parts.values())
        <= memory_bound
    ):
        for what, part in parts.items():
            part.read(what, progress)
