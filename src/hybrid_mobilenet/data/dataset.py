"""Labelled images of one size, and their mean and standard deviation."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from copy import copy
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..layers.sizes import Size
from .images import DataError, Item, decode
from .source import Source
from .storage import PixelFile, Storage

#: A data set is normalised by at most this many of its images, evenly spaced: all of CIFAR, some of a larger one.
NORMALISATION_SAMPLE = 50_000

OnProgress = Callable[[str, int, int], None]
"""Called with the current activity, the number of images done, and the total."""

#: Images are read in groups of this many, but of at most so many decoded bytes.
_READ_AT_ONCE = 256
_BYTES_AT_ONCE = 1 << 26
#: Images handed to a thread at once. Handing over small images one by one costs a fifth of the time.
_TOGETHER = 8
_HASHED_TOGETHER = 32


class ImageDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Labelled images of one size. Their pixels are kept in memory or in a temporary file, or decoded when fetched.

    It works in a `torch.utils.data.DataLoader`, also with several workers, and the networks take its uint8 images as
    they are. `load_data` makes it.

    Attributes:
        labels: int64 (n,), always in memory. The indices given to `batch` must be on the same device.
        class_names: name of each label.
        image_size: (height, width) in pixels.
        channels: 3 for RGB, 1 for greyscale.
        pixels: uint8 (n, height, width, channels), in memory or mapped from a file; None where they are decoded each
            time they are fetched.

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
        self._is_in_memory = False
        self._contents: NDArray[np.uint64] | None = None
        self._levels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image, uint8 (channels, height, width), and its label.

        Raises:
            IndexError: if there is no such image.
            DataError: if an image that is not kept cannot be read.
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

    @property
    def decoded_bytes(self) -> int:
        """Bytes of all images, decoded."""
        return len(self) * self.image_size[0] * self.image_size[1] * self.channels

    def batch(self, indices: Tensor) -> Tensor:
        """The images with these numbers.

        Args:
            indices: int64 (b,).

        Returns:
            uint8 (b, channels, height, width), in channels-last memory format.

        Raises:
            DataError: if an image that is not kept cannot be read.
        """
        if self.pixels is not None:
            return self.pixels.index_select(0, indices).permute(0, 3, 1, 2)
        pixels = np.empty((len(indices), *self.image_size, self.channels), np.uint8)
        if failures := self._decode(self._source.fetch(self._rows[indices].tolist()), pixels):
            raise next(iter(failures.values()))
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
        there = copy(self)
        there.pixels, there.labels = self.pixels.to(device), self.labels.to(device)
        return there

    def __getstate__(self) -> dict[str, object]:
        """Pixels in a file stay in this process; another one decodes the images that it fetches."""
        return {**vars(self), "pixels": self.pixels if self._is_in_memory else None}

    def __copy__(self) -> ImageDataset:
        other = ImageDataset.__new__(ImageDataset)
        vars(other).update(vars(self))
        return other

    def with_classes(self, class_names: tuple[str, ...]) -> ImageDataset:
        """The same images, with labels that number the same classes in this order."""
        if class_names == self.class_names:
            return self
        other = copy(self)
        vars(other).pop("fingerprint", None)  # it depends on the labels
        other.class_names = class_names
        other.labels = torch.tensor([class_names.index(name) for name in self.class_names])[self.labels]
        return other

    def subset(self, is_in: Tensor) -> ImageDataset:
        """The images for which `is_in`, bool (n,), is true, not kept yet."""
        part = ImageDataset(self._source, self._rows[is_in], self.image_size, self.channels)
        if self._contents is not None:
            part._contents = self._contents[is_in.numpy()]
        return part

    def contents(self, progress: OnProgress | None = None) -> NDArray[np.uint64]:
        """A hash of each image, uint64 (n,): the first 16 hexadecimal digits of the SHA-256 of its file.

        It does not depend on names, folders, labels or the other images. The whole file is hashed, because scans and
        uncompressed images may begin and end alike. Hashing takes a small part of the time of decoding.
        """
        if self._contents is None:
            found: list[int] = []
            for rows in torch.split(self._rows, _READ_AT_ONCE):
                items = self._source.fetch(rows.tolist())
                parts = [items[start : start + _HASHED_TOGETHER] for start in range(0, len(items), _HASHED_TOGETHER)]
                found += chain.from_iterable(_pool().map(lambda part: list(map(content_hash, part)), parts))
                if progress is not None:
                    progress("comparing images", len(found), len(self))
            self._contents = np.array(found, np.uint64)
        return self._contents

    def read(self, what: str, progress: OnProgress | None, storage: Storage = "memory") -> dict[int, DataError]:
        """Decode all images once, to find those that cannot be read.

        The files are read once: `contents` and `normalisation` use what was read here.

        Args:
            what: names the images in progress reports.
            progress: called with the number of images done.
            storage: where to keep the images. If the disk is full, they are kept nowhere.

        Returns:
            By its index, the error of each image that cannot be read. If there is one, no image is kept.
        """
        shape = (len(self), *self.image_size, self.channels)
        is_in_memory = storage == "memory"
        at_once = max(1, min(_READ_AT_ONCE, _BYTES_AT_ONCE // math.prod(shape[1:])))
        pixels = np.empty(shape if is_in_memory else (at_once, *shape[1:]), np.uint8)
        failures: dict[int, DataError] = {}
        contents = np.empty(len(self), np.uint64)
        is_sampled = torch.zeros(len(self), dtype=torch.bool)
        is_sampled[_sample(len(self))] = True
        levels = torch.zeros(self.channels, 256, dtype=torch.int64)
        with PixelFile() if storage == "disk" else nullcontext() as file:
            for start in range(0, len(self), at_once):
                stop = min(start + at_once, len(self))
                items = self._source.fetch(self._rows[start:stop].tolist())
                out = pixels[start:stop] if is_in_memory else pixels[: stop - start]
                hashes = contents[start:stop] if self._contents is None else None
                failures |= {start + index: error for index, error in self._decode(items, out, hashes).items()}
                levels += _levels(torch.from_numpy(out)[is_sampled[start:stop]])
                if file is not None:
                    file.add(out)
                if progress is not None:
                    progress(f"{'checking' if storage == 'nowhere' else 'reading'} {what} images", stop, len(self))
            if self._contents is None:
                self._contents = contents
            if not failures:
                self._levels = levels
                self._is_in_memory = is_in_memory
                self.pixels = torch.from_numpy(pixels) if is_in_memory else file.mapped(shape) if file else None
        return failures

    def levels(self) -> Tensor:
        """How often each channel has each value, int64 (channels, 256), in `NORMALISATION_SAMPLE` images."""
        if self._levels is None:
            levels = torch.zeros(self.channels, 256, dtype=torch.int64)
            for indices in torch.split(_sample(len(self)), _READ_AT_ONCE):
                levels += _levels(self.batch(indices).permute(0, 2, 3, 1))
            self._levels = levels
        return self._levels

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over class names, labels and content: the pixels in memory, or the hashes of other images.

        It does not depend on the place and the names of files, so a file that was damaged may be restored.
        """
        digest = hashlib.sha256(repr((self.class_names, self.image_size, self.channels)).encode())
        digest.update(self.labels.numpy().astype("<i8").tobytes())
        if self.pixels is not None and self._is_in_memory:
            digest.update(self.pixels.numpy().data)
        else:
            digest.update(self.contents().astype("<u8").tobytes())
        return digest.hexdigest()

    def _decode(
        self, items: list[Item], out: NDArray[np.uint8], contents: NDArray[np.uint64] | None = None
    ) -> dict[int, DataError]:
        """Decode images in a few threads; the errors by index.

        Args:
            items: the images.
            out: is filled with pixels, uint8 (b, height, width, channels).
            contents: is filled with the hashes of the images, uint64 (b,), if it is given.
        """

        def decode_some(start: int) -> dict[int, DataError]:
            failures = {}
            for index in range(start, min(start + _TOGETHER, len(items))):
                item = items[index]
                if contents is not None:
                    item = _loaded(item)  # the file is read once
                    contents[index] = content_hash(item)
                try:
                    out[index] = decode(item, self.image_size, self.channels)
                except DataError as error:
                    failures[index] = error
            return failures

        some = _pool().map(decode_some, range(0, len(items), _TOGETHER))
        return {index: error for failures in some for index, error in failures.items()}


def _free_memory(device: torch.device) -> int:
    """Free memory of a device in bytes; 0 if it is unknown."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _pool() -> ThreadPoolExecutor:
    return _pool_of(os.getpid())


@cache
def _pool_of(_process: int) -> ThreadPoolExecutor:
    """One pool for each process: a forked process, such as a DataLoader's worker, has no threads of its parent."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")


def _loaded(item: Item) -> Item:
    """An image with the content of its file. If the file cannot be read, decoding it raises the error."""
    name, raw = item
    if isinstance(raw, Path):
        with suppress(OSError):
            return name, raw.read_bytes()
    return item


def content_hash(item: Item) -> int:
    """A hash of an encoded image, as in `ImageDataset.contents`."""
    name, raw = _loaded(item)
    content = raw.tobytes() if isinstance(raw, Image.Image) else raw if isinstance(raw, bytes) else b""
    # Empty or unreadable files are not duplicates of each other. Decoding them raises the error.
    return int.from_bytes(hashlib.sha256(content or os.fsencode(name)).digest()[:8])


def _sample(images: int) -> Tensor:
    """The indices of up to `NORMALISATION_SAMPLE` images, evenly spaced."""
    sample = min(images, NORMALISATION_SAMPLE)
    return torch.arange(sample) * images // max(sample, 1)


def _levels(pixels: Tensor) -> Tensor:
    """How often each channel of uint8 (n, height, width, channels) has each value, int64 (channels, 256)."""
    return torch.stack([torch.bincount(values, minlength=256) for values in pixels.flatten(0, 2).T])


def check_dataset(dataset: object) -> None:
    """Refuse what is not a data set, such as all the splits of one.

    Raises:
        ValueError: if it is not an ImageDataset.
    """
    if not isinstance(dataset, ImageDataset):
        raise ValueError(
            f"dataset is {dataset!r:.80}, but must be an ImageDataset: use load_data(...).train, .validation or .test"
        )


class Imbalance(NamedTuple):
    """The largest and the smallest class that has images, and the quotient of their numbers of images."""

    largest: int
    smallest: int
    ratio: float


def class_imbalance(images: Sequence[int]) -> Imbalance | None:
    """The imbalance of classes with these numbers of images; None if all are empty."""
    classes = [label for label, count in enumerate(images) if count]
    if not classes:
        return None
    largest, smallest = max(classes, key=images.__getitem__), min(classes, key=images.__getitem__)
    return Imbalance(largest, smallest, images[largest] / images[smallest])


def normalisation(dataset: ImageDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in 0..1, over up to `NORMALISATION_SAMPLE` images.

    The deviation of a constant channel is set to one grey level, so that it is never zero.
    """
    counts = dataset.levels()
    share = counts.double() / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().clamp_min(1 / 255).tolist())
