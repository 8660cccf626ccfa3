"""Which images a run used and held out, and those to evaluate its model on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.messages import listed
from ..layers.sizes import Size
from .dataset import ImageDataset, OnProgress
from .images import DataError, checked_shape
from .source import AUTOMATIC, Source, SourceOptions
from .sources import KNOWN, open_source
from .splits import MEMORY_BOUND, Splits, read, readable, with_test

#: In a run folder: what was held out and trained on. See `RunImages`.
SPLIT_FILE = "split.json"


def run_file(model: str | Path, name: str) -> Path | None:
    """The file of this name in a run folder, or in that of an exported file (RUN/export/FILE), if there is one."""
    path = Path(model).resolve()
    folders = [path] if path.is_dir() else path.parents[:3] if path.is_file() else []
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


@dataclass(frozen=True)
class RunImages:
    """The images that a run used for training and validation, and held out, by their `ImageDataset.contents`.

    Attributes:
        train: uint64 (a,), sorted and without duplicates, as are the others.
        validation: uint64 (b,).
        held_out: uint64 (c,), the test images if the source had no test split; otherwise empty.
    """

    train: NDArray[np.uint64]
    validation: NDArray[np.uint64]
    held_out: NDArray[np.uint64]

    @classmethod
    def of(cls, splits: Splits, progress: OnProgress | None = None) -> Self:
        """The images of a run that is trained on these splits."""
        none = np.empty(0, np.uint64)
        return cls(
            np.unique(splits.train.contents(progress)),
            none if splits.validation is None else np.unique(splits.validation.contents(progress)),
            none if splits.has_own_test else np.unique(splits.test.contents(progress)),
        )

    def joined(self, earlier: RunImages) -> RunImages:
        """The images of a run and of the earlier one that it continued."""
        parts = {name: np.union1d(part, getattr(earlier, name)) for name, part in vars(self).items()}
        return RunImages(**parts)

    def encoded(self) -> bytes:
        """The content of split.json, one line per image."""
        fields = {name: [f"{content:016x}" for content in part.tolist()] for name, part in vars(self).items()}
        about = {"about": "first 16 hexadecimal digits of each image's SHA-256: what sha256sum says of its file"}
        return (json.dumps(about | fields, indent=0) + "\n").encode()

    @classmethod
    def read(cls, model: str | Path) -> Self | None:
        """Read split.json of a run folder, or of that of an exported file (RUN/export/FILE); None if it is missing.

        Raises:
            DataError: if split.json is damaged.
            OSError: if it cannot be read.
        """
        file = run_file(model, SPLIT_FILE)
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

    def is_used(self, contents: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether each image was used for training or validation, bool (n,). `contents` are those of a data set."""
        return np.isin(contents, self.train) | np.isin(contents, self.validation)

    def is_held_out(self, contents: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether the run held each image out, bool (n,)."""
        return np.isin(contents, self.held_out)

    def is_from(self, contents: NDArray[np.uint64]) -> bool:
        """Whether a data set with these contents is the one that the run split, perhaps changed since.

        It is if at least half of the run's images are in it, or at least half of its images are the run's. It must
        contain images that the run used, and images that it held out.
        """
        is_used, is_held_out = self.is_used(contents), self.is_held_out(contents)
        if not (is_used.any() and is_held_out.any()):
            return False
        own = np.concatenate([self.train, self.validation, self.held_out])
        return bool(2 * np.isin(own, contents).sum() >= len(own) or 2 * (is_used | is_held_out).sum() >= len(contents))


@dataclass(frozen=True)
class Evaluated:
    """The images that a model is evaluated on.

    Attributes:
        images: in memory, where they fit.
        which: "held out" from the data that the model was trained on, the source's "test split" or "validation split",
            or "all" of it.
        total: number of images in the source, or in its split.
        used_in_training: number of `images` that the model's training or validation used; None if it is unknown.
        left_out: number of images that were added after the run, and are not in `images`.
        notes: as of `Splits`.
    """

    images: ImageDataset
    which: Literal["held out", "test split", "validation split", "all"]
    total: int
    used_in_training: int | None
    left_out: int = 0
    notes: tuple[str, ...] = ()


def load_to_evaluate(
    source: str,
    run: RunImages | None,
    class_names: tuple[str, ...],
    *,
    options: SourceOptions = AUTOMATIC,
    image_size: int | Size = 32,
    channels: int = 3,
    skip_bad: bool = False,
    progress: OnProgress | None = None,
) -> Evaluated:
    """The images of a source on which to evaluate a trained model: its test split, or all of them if it has none.

    The test split of the digits is the one that `load_data` holds out. If another source lacks a test split and the
    model was trained on it, the images are those that the run held out, even if files were added, removed, renamed or
    moved since. `RunImages.is_from` decides whether the model was trained on it. If it was not, a validation split
    serves as the test split.

    Args:
        source: as for `load_data`; classes may be empty, and a single class is allowed.
        run: the images of the model's run, if they are known.
        class_names: the model's.
        options: how to read the source.
        image_size: as for `load_data`.
        channels: as for `load_data`.
        skip_bad: as for `load_data`.
        progress: as for `load_data`.

    Raises:
        DataError, ValueError, OSError: as `load_data`; also where images have a class that the model lacks.
    """
    size = checked_shape(image_size, channels)
    opened = open_source(source, options, class_names)
    notes = opened.notes

    def whole(part: Source) -> ImageDataset:
        return ImageDataset(part, torch.arange(len(part.labels)), size, channels)

    which: Literal["held out", "test split", "validation split", "all"] = "all"
    images = whole(opened.test or opened.train)
    if skip_bad:
        parts, bad = readable(source, {"test": images}, progress)
        images, notes = parts["test"], (*notes, *bad)
    if opened.test is not None:
        which = "test split"
    elif source in KNOWN:
        which, images = "test split", with_test(source, images, progress)[1]
    elif run is not None and run.is_from(images.contents(progress)):
        which = "held out"
    elif opened.validation is not None:
        which, images = "validation split", whole(opened.validation)
    numbered(images, class_names)
    total = len(images)
    used, left_out = None, 0
    if run is not None:
        contents = images.contents(progress)
        is_used, is_held_out = run.is_used(contents), run.is_held_out(contents)
        if which == "held out":
            images = images.subset(torch.from_numpy(is_held_out))
            left_out = int((~(is_used | is_held_out)).sum())
            is_used = is_used[is_held_out]
        used = int(is_used.sum())
    read({"test": images}, MEMORY_BOUND, progress)
    return Evaluated(images, which, total, used, left_out, notes)


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
