"""Labelled images of one size, kept in memory or streamed, and their mean and standard deviation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..layers.sizes import Size
from .images import DataError, Item, decode
from .sources import Source

#: A data set is normalised by at most this many of its images, evenly spaced: all of CIFAR, some of a larger one.
NORMALISATION_SAMPLE = 50_000

OnProgress = Callable[[str, int, int], None]
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

    def contents(self, progress: OnProgress | None = None) -> NDArray[np.uint64]:
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
                found += chain.from_iterable(_pool().map(lambda part: list(map(content_hash, part)), parts))
                if progress is not None:
                    progress("comparing images", len(found), len(self))
            self._contents = np.array(found, np.uint64)
        return self._contents

    def read(self, what: str, progress: OnProgress | None) -> None:
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


def content_hash(item: Item) -> int:
    """A hash of an encoded image, as in `ImageDataset.contents`."""
    name, raw = item
    if isinstance(raw, Image.Image):
        raw = raw.tobytes()
    try:
        content = raw if isinstance(raw, bytes) else raw.read_bytes()
    except OSError:
        content = b""
    # Empty or unreadable files are not duplicates of each other. Decoding them raises the error.
    return int.from_bytes(hashlib.sha256(content or name.encode()).digest()[:8])


def check_dataset(dataset: object) -> None:
    """Refuse what is not a data set, such as all the splits of one.

    Raises:
        ValueError: if it is not an ImageDataset.
    """
    if not isinstance(dataset, ImageDataset):
        raise ValueError(
            f"dataset is {dataset!r:.80}, but must be an ImageDataset: use load_data(...).train, .validation or .test"
        )


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
