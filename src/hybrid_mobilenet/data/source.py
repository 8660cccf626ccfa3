"""What every source of data gives: encoded images with labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..common.messages import printable
from .images import Item


def expanded(path: str) -> Path:
    """A path with ~ replaced by the home folder. Without a user of that name, ~name is a name like any other."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


class Source(ABC):
    """Encoded images with their labels, int64 (n,), and the files that contain them."""

    labels: Tensor
    class_names: tuple[str, ...]
    files: Sequence[Path] = ()

    @abstractmethod
    def fetch(self, rows: Sequence[int]) -> list[Item]:
        """The images in these rows, in the order of `rows`, which may be any."""


class ImageFiles(Source):
    """Image files, each with a label.

    Args:
        files: the image files.
        labels: the index of each one's class.
        class_names: name of each label.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[int], class_names: Sequence[str]) -> None:
        self.files = files
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.class_names = tuple(class_names)

    def fetch(self, rows: Sequence[int]) -> list[Item]:
        return [(str(self.files[row]), self.files[row]) for row in rows]


@dataclass(frozen=True)
class Opened:
    """The images of a source, by split.

    Attributes:
        train: training images, or the only images.
        validation: None if the source has no validation split.
        test: None if the source has no test split.
        notes: how the source was read, where it could be read in another way, and what was left out; one line each.
    """

    train: Source
    validation: Source | None = None
    test: Source | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(map(printable, self.notes)))


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source, where its name does not say it. A field that is None is found automatically.

    Attributes:
        labels: path of a table that names the label of each file, for a folder of images.
        config: configuration of a data set on the Hub.
        image_column: column of the images, or of the files in `labels`.
        label_column: column of the labels.
    """

    labels: str | None = None
    config: str | None = None
    image_column: str | None = None
    label_column: str | None = None


AUTOMATIC = SourceOptions()
