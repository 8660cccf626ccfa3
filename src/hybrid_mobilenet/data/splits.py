"""The images of a source for training, validation and test. What the source does not split is split by content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..common.messages import listed
from ..layers.sizes import Size
from .dataset import ImageDataset, OnProgress
from .images import DataError, checked_shape
from .sources import Source, open_source

#: Images that are loaded together stay in memory if their decoded pixels take at most this many bytes.
MEMORY_BOUND = 1 << 30

#: Without a test split, about this share of every class is held out. The seed does not depend on the training seed, so
#: that results can be compared. Of the seeds 0 to 199, it splits the digits most evenly.
TEST_FRACTION = 0.2
TEST_SEED = 71


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

    def with_classes(self, class_names: tuple[str, ...]) -> Splits:
        """The same images, with labels that number the same classes in another order.

        Raises:
            DataError: if these are not the classes of the images.
        """
        found = self.train.class_names
        if set(found) != set(class_names):
            missing = [name for name in class_names if name not in found]
            others = [name for name in found if name not in class_names]
            raise DataError(
                f"{self.name}: the classes of the data are not those of the model (only in the data: {listed(others)}; "
                f"only in the model: {listed(missing)}): name the classes as the model does"
            )
        validation = None if self.validation is None else self.validation.with_classes(class_names)
        train, test = self.train.with_classes(class_names), self.test.with_classes(class_names)
        return replace(self, train=train, validation=validation, test=test)


def load_data(
    source: str,
    *,
    image_size: int | Size = 32,
    channels: int = 3,
    validation: float = 0.0,
    seed: int = 0,
    memory_bound: int = MEMORY_BOUND,
    progress: OnProgress | None = None,
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
        read_if_fits({"training": train, "test": test}, memory_bound, progress)
        return Splits(train, None, test, name, has_own_test)
    train, held_out = _split(
        train,
        validation,
        f"validation {seed}",
        f"{source}: the validation split",
        progress,
        "add images, remove the class, or hold none out (--validation 0)",
    )
    read_if_fits({"training": train, "validation": held_out, "test": test}, memory_bound, progress)
    return Splits(train, held_out, test, name, has_own_test)


def load_test(
    source: str, *, image_size: int | Size = 32, channels: int = 3, progress: OnProgress | None = None
) -> ImageDataset:
    """The test images of a source, as `load_data` gives them, without decoding the others."""
    _, _, test, _ = _open(source, image_size, channels, progress)
    read_if_fits({"test": test}, MEMORY_BOUND, progress)
    return test


def _open(
    source: str, image_size: int | Size, channels: int, progress: OnProgress | None
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
    return name, *with_test(source, whole(train), progress), False


def with_test(source: str, images: ImageDataset, progress: OnProgress | None) -> tuple[ImageDataset, ImageDataset]:
    """Split the images of a source without a test split into those for training and those for test.

    Raises:
        DataError: if a class has too few different images.
    """
    return _split(images, TEST_FRACTION, f"test {TEST_SEED}", f"{source}: its test split", progress)


def _split(
    dataset: ImageDataset,
    fraction: float,
    salt: str,
    problem: str,
    progress: OnProgress | None,
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


def read_if_fits(parts: dict[str, ImageDataset], memory_bound: int, progress: OnProgress | None) -> None:
    """Read all parts into memory, if they fit in together."""
    if (
        sum(len(part) * part.image_size[0] * part.image_size[1] * part.channels for part in parts.values())
        <= memory_bound
    ):
        for what, part in parts.items():
            part.read(what, progress)
