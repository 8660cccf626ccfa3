"""What a data set contains: classes, sizes, kinds of images, images that cannot be read, and duplicates."""

from __future__ import annotations

import io
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ..layers.sizes import Size
from .dataset import Imbalance, OnProgress, class_imbalance, content_hash
from .duplicates import MIN_CONTRAST, MIN_SIDE, THUMBNAIL, Group, contrast, duplicate_groups, look, look_alikes
from .images import DataError, Item, decode, open_image
from .source import AUTOMATIC, Source, SourceOptions
from .sources import open_source
from .splits import Splits

SPLITS = ("training", "validation", "test")

#: What may be unusual about an image. `read_image` says how each is read.
TRAITS = ("greyscale", "transparent", "16-bit", "rotated by EXIF", "animated", "of nearly one colour")

_READ_AT_ONCE = 256
_TOGETHER = 8  # images handed to a thread at once
_SIDE = 64  # images are compared at this size, cropped to a square


@dataclass(frozen=True)
class Inspection:
    """All images of a source. Memory is about 250 bytes per image.

    Attributes:
        parts: the source's own splits, by name.
        class_names: of all parts.
        part: int64 (n,), the index of each image's part.
        row: int64 (n,), the row of each image in its part.
        labels: int64 (n,).
        contents: uint64 (n,), `ImageDataset.contents`.
        sizes: int64 (n, 2), width and height in pixels after the EXIF rotation; 0 where an image cannot be read.
        traits: bool (n, len(TRAITS)).
        formats: number of images of each format, such as JPEG, the most frequent first.
        alike: int64 (n,), the group of images that look alike; equal images are in the same group.
        unreadable: the error of each image that cannot be read, by its number.
        seconds: time spent on reading and decoding.
        notes: how the source was read, as of `Opened`.
    """

    parts: Mapping[str, Source]
    class_names: tuple[str, ...]
    part: NDArray[np.int64]
    row: NDArray[np.int64]
    labels: NDArray[np.int64]
    contents: NDArray[np.uint64]
    sizes: NDArray[np.int64]
    traits: NDArray[np.bool_]
    formats: dict[str, int]
    alike: NDArray[np.int64]
    unreadable: dict[int, str]
    seconds: float
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def items(self, images: Sequence[int]) -> list[Item]:
        """Images and their names, by their numbers."""
        chosen = np.array(images, np.int64)
        found: dict[int, Item] = {}
        for index, part in enumerate(self.parts.values()):
            of_part = chosen[self.part[chosen] == index]
            for some in np.split(of_part, range(_READ_AT_ONCE, len(of_part), _READ_AT_ONCE)):
                found |= zip(some.tolist(), part.fetch(self.row[some].tolist()), strict=True)
        return [found[image] for image in images]

    def assigned(self, splits: Splits | None) -> NDArray[np.int64]:
        """The split of each image, an index of SPLITS: int64 (n,).

        Args:
            splits: as `train` would make them; None for the source's own.
        """
        split = np.array([SPLITS.index(name) for name in self.parts])[self.part]
        if splits is not None:
            is_first = self.part == 0
            if splits.validation is not None and "validation" not in self.parts:
                split[is_first & np.isin(self.contents, splits.validation.contents())] = SPLITS.index("validation")
            if not splits.has_own_test:
                split[is_first & np.isin(self.contents, splits.test.contents())] = SPLITS.index("test")
        return split

    def counts(self, split: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of readable images of each class in each split, int64 (classes, 3). `split` is from `assigned`."""
        counts = np.zeros((len(self.class_names), len(SPLITS)), np.int64)
        readable = np.setdiff1d(np.arange(len(self)), list(self.unreadable))
        np.add.at(counts, (self.labels[readable], split[readable]), 1)
        return counts

    def groups(self, split: NDArray[np.int64]) -> list[Group]:
        """Images that are equal or look alike, the worst groups first. `split` is from `assigned`."""
        groups = duplicate_groups(self.contents, self.alike, self.labels, split)
        return [group for group in groups if group.members[0] not in self.unreadable]  # equal ones are unreadable too

    def extremes(self) -> list[Size]:
        """Width and height of the image with the fewest pixels, the median and the most; empty without images."""
        known = self.sizes[self.sizes[:, 0] > 0]
        order = np.argsort(known.prod(1), kind="stable")
        chosen = order[[0, len(order) // 2, -1]] if len(order) else order
        return [(int(width), int(height)) for width, height in known[chosen]]

    def enlarged(self, image_size: Size) -> int:
        """Number of images that are smaller than a network's input, (height, width), and would be enlarged."""
        known = self.sizes[self.sizes[:, 0] > 0]
        return int((known < image_size[::-1]).any(1).sum())

    def trait_counts(self) -> dict[str, int]:
        """Number of images of each of `TRAITS`."""
        return dict(zip(TRAITS, self.traits.sum(0).tolist(), strict=True))


def imbalance(counts: NDArray[np.int64]) -> Imbalance | None:
    """The imbalance of the training images; None without any. `counts` are from `Inspection.counts`."""
    return class_imbalance(counts[:, SPLITS.index("training")].tolist())


def inspect(source: str, options: SourceOptions = AUTOMATIC, progress: OnProgress | None = None) -> Inspection:
    """Read every image of a source once, and compare all of them.

    Args:
        source: as for `load_data`.
        options: how to read it.
        progress: called as images are read and compared.

    Raises:
        DataError: if the source is unknown, or its data is unusable as a whole. Single images that cannot be read are
            in `Inspection.unreadable`.
        OSError: if a folder cannot be listed.
    """
    opened = open_source(source, options)
    splits = {"training": opened.train, "validation": opened.validation, "test": opened.test}
    parts = {name: part for name, part in splits.items() if part is not None}
    class_names = tuple(dict.fromkeys(chain.from_iterable(part.class_names for part in parts.values())))
    labels = [np.array([class_names.index(name) for name in part.class_names])[part.labels] for part in parts.values()]
    lengths = [len(each) for each in labels]
    count = sum(lengths)

    contents, sizes = np.zeros(count, np.uint64), np.zeros((count, 2), np.int64)
    traits = np.zeros((count, len(TRAITS)), np.bool_)
    hashes, thumbnails = np.zeros((count, 2), np.uint64), np.zeros((count, THUMBNAIL**2 * 3), np.uint8)
    formats, unreadable = Counter[str](), dict[int, str]()
    started = time.perf_counter()
    for image, (content, seen) in enumerate(_examined(list(parts.values()), count, progress)):
        contents[image] = content
        if isinstance(seen, DataError):
            unreadable[image] = str(seen)
        else:
            sizes[image], traits[image] = seen.size, seen.traits
            if min(seen.size) >= MIN_SIDE:  # the others have no contrast and look like no other
                hashes[image], thumbnails[image] = seen.hash, seen.thumbnail
            formats[seen.format] += 1
    seconds = time.perf_counter() - started

    # Equal images are compared once.
    _, first, which = np.unique(contents, return_index=True, return_inverse=True)
    compare = None if progress is None else lambda done, total: progress("comparing images", done, total)
    alike = first[look_alikes(hashes[first], thumbnails[first], compare)[which]]
    return Inspection(
        parts,
        class_names,
        np.repeat(np.arange(len(parts)), lengths),
        np.concatenate([np.arange(length) for length in lengths]),
        np.concatenate(labels),
        contents,
        sizes,
        traits,
        dict(formats.most_common()),
        alike,
        unreadable,
        seconds,
        opened.notes,
    )


class _Seen(NamedTuple):
    size: Size
    format: str
    traits: tuple[bool, ...]
    hash: NDArray[np.uint64]
    thumbnail: NDArray[np.uint8]


def _examined(
    parts: Sequence[Source], count: int, progress: OnProgress | None
) -> Iterator[tuple[int, _Seen | DataError]]:
    """The content and the properties of each image, or the error of one that cannot be read."""
    done = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for part in parts:
            for start in range(0, len(part.labels), _READ_AT_ONCE):
                items = part.fetch(range(start, min(start + _READ_AT_ONCE, len(part.labels))))
                together = [items[first : first + _TOGETHER] for first in range(0, len(items), _TOGETHER)]
                yield from chain.from_iterable(pool.map(lambda some: list(map(_examine, some)), together))
                done += len(items)
                if progress is not None:
                    progress("reading images", done, count)


def _examine(item: Item) -> tuple[int, _Seen | DataError]:
    name, raw = item
    if isinstance(raw, Path):
        with suppress(OSError):  # decode reports it
            raw = raw.read_bytes()
    content = content_hash((name, raw))
    try:
        pixels = decode((name, raw), (_SIDE, _SIDE), 3)
    except DataError as error:
        return content, error
    if isinstance(raw, Image.Image):
        size, kind, traits = _header(raw)
    else:
        assert isinstance(raw, bytes)  # a file that cannot be read is an error above
        with open_image(io.BytesIO(raw), "") as opened:
            size, kind, traits = _header(opened)
    return content, _Seen(size, kind, (*traits, contrast(pixels) < MIN_CONTRAST), *look(pixels))


def _header(image: Image.Image) -> tuple[Size, str, tuple[bool, ...]]:
    """Width and height, format, and all of `TRAITS` but the last."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of a damaged EXIF block, which decode ignores
        orientation = 1
    size = image.size[::-1] if orientation in range(5, 9) else image.size
    is_16_bit = image.mode.startswith("I")
    is_grey = image.mode in ("1", "L", "LA", "La", "F") or is_16_bit
    traits = is_grey, image.has_transparency_data, is_16_bit, orientation in range(2, 9)
    return size, image.format or "", (*traits, getattr(image, "is_animated", False))
