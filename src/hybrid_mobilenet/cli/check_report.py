"""What `check` finds, and how it is put into words: shared by the text, the JSON and the HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.dataset import OnProgress
from ..data.duplicates import Group
from ..data.images import DataError
from ..data.inspection import SPLITS, Inspection, imbalance, inspect
from ..data.splits import MEMORY_BOUND, split_source
from ..data.storage import choose_storage
from ..training.plan import Plan, estimate_seconds, plan
from ..training.setup import IMBALANCED, Setup

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: How `read_image` treats each unusual kind of image.
TREATMENT = {
    "greyscale": "converted to RGB",
    "transparent": "composited on white",
    "16-bit": "scaled to 8 bits",
    "rotated by EXIF": "turned upright",
    "animated": "first frame only",
    "of nearly one colour": "nothing to see in them",
}


@dataclass(frozen=True)
class Report:
    """What `check` finds.

    Attributes:
        setup: the settings with which `train` would start.
        inspection: the images.
        split: the split of each image, int64 (n,).
        plan: what `train` would do; None if it would refuse the data.
        seconds: estimated time of the training; None without a plan.
        refusals: why `train` would refuse the data.
        notes: how the data was read, and what was left out.
    """

    setup: Setup
    inspection: Inspection
    split: NDArray[np.int64]
    plan: Plan | None
    seconds: float | None
    refusals: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def source(self) -> str:
        """The name of the data, as it was given."""
        return self.setup.data

    @cached_property
    def counts(self) -> list[list[int]]:
        """Number of images of each class in each split."""
        counts: list[list[int]] = self.inspection.counts(self.split).tolist()
        return counts

    @cached_property
    def groups(self) -> list[Group]:
        """Images that are equal or look alike, the worst first."""
        return self.inspection.groups(self.split)

    @property
    def options(self) -> list[str]:
        """The options with which `train` does what was planned."""
        setup = self.setup
        height, width = setup.image_size
        size = f"{height}" if height == width else f"{height}x{width}"
        options = ["--image-size", size] if (height, width) != (32, 32) else []
        for name, value in asdict(setup.source_options).items():
            options += [f"--{name.replace('_', '-')}", value] if value is not None else []
        return options + ["--skip-bad"] * setup.skip_bad

    def names(self, images: Sequence[int]) -> list[str]:
        """Names of images by their numbers; of files, the path inside the source's folder."""
        folder = Path(self.source).expanduser()
        names = [name for name, _ in self.inspection.items(images)]
        return [str(Path(name).relative_to(folder)) if Path(name).is_relative_to(folder) else name for name in names]

    def place(self, image: int) -> str:
        """The class and the split of an image."""
        inspection = self.inspection
        return f"{inspection.class_names[inspection.labels[image]]}, {SPLITS[self.split[image]]}"


def make_report(setup: Setup, progress: OnProgress | None, device: str) -> Report:
    """Inspect the data of a setup, and plan its training.

    Raises:
        DataError: if the data cannot be opened.
        OSError: if a folder cannot be listed.
        ValueError: if there is no such device.
    """
    inspection = inspect(setup.data, setup.source_options, progress)
    refusals, splits, planned, seconds = [], None, None, None
    if inspection.unreadable and not setup.skip_bad:
        refusals.append(
            f"{len(inspection.unreadable):,} of {len(inspection):,} images cannot be read: repair or remove them, or "
            "leave them out with --skip-bad"
        )
    try:
        splits = split_source(setup.data, setup.source_options, **setup.split_options, progress=progress)
        recipe = setup.chosen_recipe(splits.train)
        held_out = 0 if splits.validation is None else len(splits.validation)
        classes = len(inspection.class_names)
        planned = plan(setup, recipe, classes, len(splits.train), held_out, len(splits.test))
    except (DataError, ValueError) as error:
        refusals.append(str(error))
    if splits and planned and not refusals:
        size = sum(part.decoded_bytes for part in splits.parts.values())
        is_kept = choose_storage(size, MEMORY_BOUND) != "nowhere"
        fetching = 0 if is_kept else inspection.seconds / len(inspection)
        seconds = estimate_seconds(planned, inspection.seconds, fetching, device)
    split = inspection.assigned(splits)
    notes = inspection.notes if splits is None else splits.notes
    return Report(setup, inspection, split, planned, seconds, tuple(refusals), notes)


def balance_in_words(report: Report) -> list[str]:
    """A line if the classes are imbalanced, and one if a class has no training images."""
    names, lines = report.inspection.class_names, []
    found = imbalance(report.inspection.counts(report.split))
    if found and found.ratio >= IMBALANCED:
        lines.append(
            f"imbalanced: {names[found.largest]} has {found.ratio:.0f} times the training images of "
            f"{names[found.smallest]}; add images of the small classes, or train with --balance sampling"
        )
    if missing := [name for name, (train, *_) in zip(names, report.counts, strict=True) if not train]:
        lines.append(f"without training images: {cut(missing, 5)}")
    return lines


def images_in_words(report: Report) -> list[str]:
    """Sizes, formats and unusual kinds of images, a line each."""
    inspection, lines = report.inspection, []
    if sizes := inspection.extremes():
        smallest, median, largest = (f"{width}x{height}" for width, height in sizes)
        if smallest == largest:
            lines.append(f"all images are {smallest} pixels (width x height)")
        else:
            lines.append(f"pixels (width x height): smallest image {smallest}, median {median}, largest {largest}")
        height, width = report.setup.image_size
        if enlarged := inspection.enlarged(report.setup.image_size):
            lines.append(f"{portion(enlarged, len(inspection))} smaller than {width}x{height} (enlarged)")
    if formats := [f"{name} {count:,}" for name, count in inspection.formats.items() if name]:
        lines.append(f"formats: {', '.join(formats)}")
    lines += [
        f"{portion(count, len(inspection))} {trait} ({TREATMENT[trait]})"
        for trait, count in inspection.trait_counts().items()
        if count
    ]
    return lines


def kind_of(group: Group) -> str:
    """What is wrong with a group of images."""
    if group.across_classes:
        return "in different classes (a wrong label?)"
    if group.across_splits:
        return "in training and held out (accuracy too high)"
    return "in one class and split"


def kinds(report: Report) -> list[tuple[str, str, int, int]]:
    """For each kind of group, the worst first: equal or alike, what is wrong, number of groups, number of images."""
    found: dict[tuple[str, str], list[int]] = {}
    for group in report.groups:
        found.setdefault(("equal" if group.is_exact else "alike", kind_of(group)), []).append(len(group.members))
    return [(*kind, len(sizes), sum(sizes)) for kind, sizes in found.items()]


def training_in_words(plan: Plan) -> list[str]:
    """What `train` would do, a line each."""
    return [
        f"{plan.train:,} images for training, {plan.validation:,} for validation, {plan.test:,} for the final test",
        *plan.in_words(),
    ]


def portion(count: int, total: int) -> str:
    """A number with its percentage."""
    return f"{count:,} ({count / total:.0%})" if count * 100 >= total else f"{count:,}"


def cut(things: Sequence[str], limit: int) -> str:
    """The first things, and how many more --json has."""
    more = f" ... {len(things) - limit:,} more, see --json" if len(things) > limit else ""
    return ", ".join(things[:limit]) + more


def record(report: Report) -> dict[str, Any]:
    """The report as JSON."""
    inspection, planned = report.inspection, report.plan
    found = imbalance(inspection.counts(report.split))
    sizes = inspection.extremes()
    names = inspection.class_names
    return {
        "data": report.source,
        "images": len(inspection),
        "classes": {
            name: dict(zip(SPLITS, counts, strict=True)) for name, counts in zip(names, report.counts, strict=True)
        },
        "imbalance": found
        and {
            "largest": names[found.largest],
            "smallest": names[found.smallest],
            "ratio": found.ratio,
        },
        "sizes": sizes and dict(zip(("smallest", "median", "largest"), map(list, sizes), strict=True)),
        "smaller_than_network": inspection.enlarged(report.setup.image_size),
        "formats": inspection.formats,
        "traits": inspection.trait_counts(),
        "unreadable": list(inspection.unreadable.values()),
        "duplicates": [
            {
                "equal": group.is_exact,
                "across_classes": group.across_classes,
                "across_splits": group.across_splits,
                "images": [
                    {"name": name, "class": names[inspection.labels[image]], "split": SPLITS[report.split[image]]}
                    for image, name in zip(group.members, report.names(group.members), strict=True)
                ],
            }
            for group in report.groups
        ],
        "training": planned
        and {
            "images": {"training": planned.train, "validation": planned.validation, "test": planned.test},
            "epochs": planned.recipe.epochs,
            "steps_per_epoch": planned.steps,
            "batch_size": planned.batch_size,
            "seconds": report.seconds,
        },
        "notes": list(report.notes),
        "train_would_start": not report.refusals,
        "refusals": list(report.refusals),
    }
