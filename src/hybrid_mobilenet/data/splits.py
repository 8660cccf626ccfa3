"""The images of a source for training, validation and test. Splits that the source lacks are made by content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..common.messages import listed, printable
from ..layers.sizes import Size
from .dataset import ImageDataset, OnProgress
from .images import DataError, checked_shape
from .source import AUTOMATIC, Source, SourceOptions
from .sources import KNOWN, display_name, open_source
from .storage import choose_storage, temporary_folder

#: Images that are loaded together stay in memory if their decoded pixels take at most this many bytes.
MEMORY_BOUND = 1 << 30

#: Without a validation split, this share of every class is held out by default. Fewer images of one's own than this are
#: all needed for training.
VALIDATION_FRACTION = 0.1
ENOUGH_FOR_VALIDATION = 2000

#: Without a test split, about this share of every class is held out. The seed does not depend on the training seed, so
#: that results can be compared. Of the seeds 0 to 199, it splits the digits most evenly.
TEST_FRACTION = 0.2
TEST_SEED = 71


@dataclass(frozen=True)
class Splits:
    """The images of a source for training, for validation (None without validation), and for the final test.

    Attributes:
        has_own_test: whether the source has test images of its own; otherwise they were held out.
        notes: how the source was read, where it could be read in another way, and what was left out; one line each.
    """

    train: ImageDataset
    validation: ImageDataset | None
    test: ImageDataset
    name: str
    has_own_test: bool
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(map(printable, self.notes)))

    @property
    def parts(self) -> dict[str, ImageDataset]:
        """The data sets by their names in messages."""
        parts = {"training": self.train, "validation": self.validation, "test": self.test}
        return {what: part for what, part in parts.items() if part is not None}

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
    validation: float | None = 0.0,
    seed: int = 0,
    labels: str | Path | None = None,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    memory_bound: int = MEMORY_BOUND,
    skip_bad: bool = False,
    progress: OnProgress | None = None,
) -> Splits:
    """Load the images of a source, resized and split.

    Args:
        source: "digits", "cifar10" or "cifar100"; or the path of a folder with one subfolder per class (or with folders
            of training, validation and test images with such subfolders), a Parquet file, or a folder of
            train*.parquet, validation*.parquet and test*.parquet; or owner/name of an image data set on the Hugging
            Face Hub.
        image_size: side in pixels or (height, width): see `images.read_image`.
        channels: 3 for RGB, 1 for greyscale.
        validation: share of the training images of every class to hold out for validation, in [0, 1). `_split` says
            which images are held out, also for the test split of a source without one. If the source has a validation
            split of its own, that is used instead of any share above 0. None holds out `VALIDATION_FRACTION`, but none
            of fewer than `ENOUGH_FOR_VALIDATION` images of one's own.
        seed: chooses the images held out for validation. Those for test never depend on it: see `TEST_SEED`.
        labels: a CSV or JSON lines file that names the label of each image of a folder: see `labels.open_labels`.
        config: configuration of a data set on the Hub.
        image_column: column of the images in Parquet files and on the Hub, or of the files in `labels`.
        label_column: column of the labels.
        memory_bound: decoded bytes of all splits above which they are kept in a temporary file, or are decoded each
            time they are fetched if there is no room on the disk. All are decoded once here, so that damaged ones are
            found before training. `Splits.notes` says where they are.
        skip_bad: leave images out that cannot be read, as if they were not in the source; `Splits.notes` says how many.
            The images are then decoded twice.
        progress: called as images are read.

    Raises:
        DataError: if the source is unknown or its data unusable, or if images cannot be read. With `skip_bad`, only if
            none of a class can be read.
        ValueError: if another argument is invalid.
        OSError: if a folder cannot be listed.

    Example:
        >>> from hybrid_mobilenet import load_data
        >>> digits = load_data("digits", image_size=16, channels=1, validation=0.1)
        >>> [len(part) for part in (digits.train, digits.validation, digits.test)]
        [1305, 133, 359]
    """
    options = SourceOptions(None if labels is None else str(labels), config, image_column, label_column)
    splits = split_source(
        source,
        options,
        image_size=image_size,
        channels=channels,
        validation=validation,
        seed=seed,
        skip_bad=skip_bad,
        progress=progress,
    )
    notes = read(splits.parts, memory_bound, progress)
    return replace(splits, notes=(*splits.notes, *notes))


def split_source(
    source: str,
    options: SourceOptions = AUTOMATIC,
    *,
    image_size: int | Size = 32,
    channels: int = 3,
    validation: float | None = 0.0,
    seed: int = 0,
    skip_bad: bool = False,
    progress: OnProgress | None = None,
) -> Splits:
    """The splits that `load_data` makes of a source, not decoded yet; arguments and errors as there."""
    if validation is not None and not 0 <= validation < 1:  # NaN fails too
        raise ValueError(f"validation is {validation!r}, but must be a fraction: 0 or more, and less than 1")
    splits = _open(source, options, image_size, channels, skip_bad, progress)
    train, held_out = splits.train, splits.validation
    if validation is None:
        is_enough = source in KNOWN or len(train) >= ENOUGH_FOR_VALIDATION
        validation = VALIDATION_FRACTION if is_enough or held_out is not None else 0.0
    if validation == 0:
        held_out = None
    elif held_out is None:
        train, held_out = _split(
            train,
            validation,
            f"validation {seed}",
            f"{source}: the validation split",
            progress,
            "add images, remove the class, or hold none out (--validation 0)",
        )
    return replace(splits, train=train, validation=held_out)


def load_test(
    source: str, *, image_size: int | Size = 32, channels: int = 3, progress: OnProgress | None = None
) -> ImageDataset:
    """The test images of a source, as `load_data` gives them, without decoding the others."""
    test = _open(source, AUTOMATIC, image_size, channels, False, progress).test
    read({"test": test}, MEMORY_BOUND, progress)
    return test


def _open(
    source: str,
    options: SourceOptions,
    image_size: int | Size,
    channels: int,
    skip_bad: bool,
    progress: OnProgress | None,
) -> Splits:
    """The splits of a source, not decoded yet. The validation split is the source's own; without one it is None."""
    size = checked_shape(image_size, channels)
    opened = open_source(source, options)
    notes = list(opened.notes)
    if len(torch.unique(opened.train.labels)) < 2:
        raise DataError(
            f"{source}: its training images are of one class only ({listed(opened.train.class_names)}), but a "
            "classifier needs two or more: add images of another class"
        )

    parts = {"training": opened.train, "validation": opened.validation, "test": opened.test}
    for what, part in parts.items():
        if what != "training" and part is not None:
            notes += match_classes(part, opened.train.class_names, source, what)
    images = {
        what: ImageDataset(part, torch.arange(len(part.labels)), size, channels)
        for what, part in parts.items()
        if part is not None
    }
    if skip_bad:
        images, bad = readable(source, images, progress)
        notes += bad
    train, validation, test = (images.get(what) for what in parts)
    assert train is not None
    if test is not None:
        return Splits(train, validation, test, display_name(source), True, tuple(notes))
    everything = len(train)
    train, test = with_test(source, train, progress)
    if validation is not None:
        notes.append(
            f"{source} has validation images but no test images: {len(test):,} of the {everything:,} training images "
            "are held out for the test"
        )
    return Splits(train, validation, test, display_name(source), False, tuple(notes))


def match_classes(part: Source, class_names: tuple[str, ...], source: str, what: str) -> list[str]:
    """Number the classes of a split as the training images do, by name. Returns a note on the classes it lacks.

    Raises:
        DataError: if it has images of a class without training images.
    """
    number = {name: index for index, name in enumerate(class_names)}
    present = torch.unique(part.labels).tolist()
    if unknown := [part.class_names[label] for label in present if part.class_names[label] not in number]:
        raise DataError(
            f"{source}: there are {what} images of {listed([repr(name) for name in unknown])}, but no training images "
            f"(the training classes are {listed(class_names)}): add some, or remove the {what} images of this class"
        )
    labels = torch.tensor([number.get(name, -1) for name in part.class_names])[part.labels]
    part.labels, part.class_names = labels, class_names
    missing = [name for label, name in enumerate(class_names) if not (labels == label).any()]
    return [f"there are no {what} images of {listed(missing)}"] if missing else []


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


def readable(
    source: str, parts: dict[str, ImageDataset], progress: OnProgress | None
) -> tuple[dict[str, ImageDataset], tuple[str, ...]]:
    """Leave out the images of all parts that cannot be read; the parts, and a note on what was left out.

    Raises:
        DataError: if none of the images of a class can be read.
    """
    errors: list[DataError] = []
    kept: dict[str, ImageDataset] = {}
    for what, part in parts.items():
        failures = part.read(what, progress, "nowhere")
        is_bad = torch.zeros(len(part), dtype=torch.bool)
        is_bad[list(failures)] = True
        for label in torch.unique(part.labels[is_bad]).tolist():
            of_class = (part.labels == label).nonzero().flatten().tolist()
            if failures.keys() >= set(of_class):
                names = listed([name for index in of_class for name in failures[index].images])
                raise DataError(
                    f"{source}: none of the {len(of_class)} {what} images of {part.class_names[label]!r} can be read "
                    f"({names}): replace them, or remove the class"
                )
        kept[what] = part.subset(~is_bad) if failures else part
        errors += failures.values()
    if not errors:
        return kept, ()
    total = sum(map(len, parts.values()))
    names = listed([name for error in errors for name in error.images])
    return kept, (printable(f"{len(errors):,} of {total:,} images cannot be read and are left out: {names}"),)


def read(parts: dict[str, ImageDataset], memory_bound: int, progress: OnProgress | None) -> tuple[str, ...]:
    """Decode the images of all parts, and keep them where there is room. Returns a note if that is not in memory.

    Raises:
        DataError: if images cannot be read. It names the first one, and says how many others there are.
    """
    size = sum(part.decoded_bytes for part in parts.values())
    storage = choose_storage(size, memory_bound)
    failures = [error for what, part in parts.items() for error in part.read(what, progress, storage).values()]
    if failures:
        total, others = sum(map(len, parts.values())), len(failures) - 1
        more = f" ({others} more of {total:,} images cannot be read either)" if others else ""
        error = DataError(f"{failures[0]}, or leave unreadable images out with --skip-bad{more}")
        error.images = tuple(name for failure in failures for name in failure.images)
        raise error
    if storage == "memory":
        return ()
    decoded = f"the decoded images ({size / 1e9:.1f} GB)"
    if all(part.pixels is not None for part in parts.values() if len(part)):
        return (f"{decoded} are kept in a temporary file in {temporary_folder()}",)
    return (
        f"{decoded} do not fit in half of the free space in {temporary_folder()}, so each image is decoded again "
        "whenever it is used: training is faster with more space, or with TMPDIR set to another folder",
    )
