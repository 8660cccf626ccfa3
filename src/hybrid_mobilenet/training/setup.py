"""The settings of a run, the checks before its first step, and the sizes of its batches and epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch

from ..data.dataset import ImageDataset, class_imbalance
from ..data.source import SourceOptions
from ..data.sources import KNOWN, whole_name
from ..data.splits import Splits, load_data
from ..layers.sizes import Size
from ..network.architecture import Family, Network, resolve
from ..network.model import HybridMobileNet
from .event_files import check_tensorboard
from .processes import Processes
from .recipe import LEAST_STEPS, PAPER, Recipe, check_seed, fine_tuning_recipe, own_recipe, paper_recipe

#: Largest share of the images that an epoch may leave out because they do not fill a batch. They vary by epoch.
LEFT_OUT = 0.02
#: The largest class has at least this many times the images of the smallest one where a run notes an imbalance.
IMBALANCED = 4
#: `Setup.start` for random weights.
SCRATCH = "scratch"

Log = Literal["tensorboard"]


class TrainingDiverged(ValueError):  # noqa: N818  the field's word for it
    """The loss or a weight is no longer a finite number."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C or SIGTERM, and its state was saved."""


def default_recipe(setup: Setup, images: ImageDataset) -> Recipe:
    """The default recipe of a setup: the paper's for the built-in data sets, `own_recipe` for others."""
    if setup.data in KNOWN:
        recipe = replace(paper_recipe(setup.family, setup.data), least_steps=LEAST_STEPS)
    else:
        recipe = own_recipe(setup.family, len(images), images.class_names)
    if setup.start != SCRATCH:
        recipe = fine_tuning_recipe(recipe)
    # A teacher regularises enough: with random regions too, a student would underfit.
    is_fixed = setup.teacher is not None and setup.family == "fmp"
    return replace(recipe, fixed_epochs=recipe.epochs) if is_fixed else recipe


ChooseRecipe = Callable[["Setup", ImageDataset], Recipe]
"""Chooses the recipe of a setup when its training images are known."""


@dataclass(frozen=True)
class Setup:
    """Everything that decides the outcome of a run, except the machine.

    The defaults are the network that the paper recommends, trained as `default_recipe` chooses.

    Attributes:
        data: name or path of the data, as `load_data` takes it. A run records a path as an absolute one.
        family: "mobilenet", "mp3" or "fmp".
        alpha: width multiplier.
        delta: depth multiplier.
        image_size: (height, width) in pixels, to which images are resized.
        channels: 3 for RGB, 1 for greyscale.
        validation: share of the training images of every class that is held out for validation, in [0, 1). If the data
            has a validation split of its own, that is used instead of any share above 0. None chooses: see `load_data`.
        seed: of weights, order of the images, dropout, pooling regions and the validation split; 0 to 2**64 - 1.
        recipe: how the network is trained, or a function that chooses the recipe for the training images.
        labels: path of a table with the labels of a folder of images, as `load_data` takes it; recorded as absolute.
        config: configuration of a data set on the Hub.
        image_column: column of the images.
        label_column: column of the labels.
        skip_bad: whether images that cannot be read are left out.
        start: "scratch" for random weights, or a model as `HybridMobileNet.from_pretrained` takes it, whose weights
            training starts from. With other classes than the model's, the classifier is new (fine-tuning);
            `continue_from` continues a run with its own.
        teacher: the folder of a finished run from whose outputs training also learns; None without one. See
            `distillation`.
        class_names: in the order of the network's outputs; None for the order of the data.
        log: "tensorboard" for event files in the run folder, beside metrics.jsonl; None for metrics.jsonl alone.

    Example:
        >>> from hybrid_mobilenet import Setup
        >>> Setup("photos", family="mp3", alpha=0.5).network(classes=10).layers[-1].in_channels
        512
    """

    data: str
    family: Family = "fmp"
    alpha: float = 0.25
    delta: int = 2
    image_size: Size = (32, 32)
    channels: int = 3
    validation: float | None = None
    seed: int = 0
    recipe: Recipe | ChooseRecipe = field(default_factory=lambda: default_recipe)  # a plain default would be a method
    labels: str | None = None
    config: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    skip_bad: bool = False
    start: str = SCRATCH
    teacher: str | None = None
    class_names: tuple[str, ...] | None = None
    log: Log | None = None

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Setup:
        """The setup from its JSON record, which `dataclasses.asdict` made."""
        size, names = record["image_size"], record["class_names"]
        changed = {
            "image_size": (size[0], size[1]),
            "recipe": Recipe.from_record(record["recipe"]),
            "class_names": None if names is None else tuple(names),
        }
        return cls(**{**record, **changed})

    @property
    def source_options(self) -> SourceOptions:
        """How to read the data."""
        return SourceOptions(self.labels, self.config, self.image_column, self.label_column)

    @property
    def split_options(self) -> dict[str, Any]:
        """How to size and split the images: arguments of `load_data` and `split_source`."""
        return {name: getattr(self, name) for name in ("image_size", "channels", "validation", "seed", "skip_bad")}

    def chosen_recipe(self, images: ImageDataset) -> Recipe:
        """The recipe for these training images."""
        return self.recipe if isinstance(self.recipe, Recipe) else self.recipe(self, images)

    def from_anywhere(self) -> Setup:
        """The same setup with absolute paths, so that it can be resumed from any folder."""
        start = self.start if self.start != SCRATCH and Path(self.start).is_dir() else None
        paths = {"labels": self.labels, "teacher": self.teacher, "start": start}
        absolute: dict[str, Any] = {name: whole_name(path) for name, path in paths.items() if path is not None}
        return replace(self, data=whole_name(self.data), **absolute)

    def network(self, classes: int) -> Network:
        """The layers of the network for this number of classes.

        Raises:
            ValueError: if the family has no such network.
        """
        return resolve(self.family, self.alpha, self.delta, classes, self.channels, self.image_size)


class Monitor(Protocol):
    """Receives the progress of training, and cannot change its outcome."""

    def on_data(self, what: str, done: int, total: int) -> None:
        """Images are read: `done` of `total`."""

    def on_start(self, epoch: int, epochs: int, step: int, steps: int, batch_size: int) -> None:
        """An epoch, counted from 0, starts or is resumed at a step."""

    def on_step(self, loss: float, step: int) -> None:
        """The loss of a step was read, which happens every few steps."""

    def on_epoch(self, record: dict[str, Any]) -> None:
        """An epoch is finished; its record is a line of metrics.jsonl."""

    def on_note(self, note: str) -> None:
        """Something was chosen automatically, or left out of the data."""

    def on_warning(self, warning: str) -> None:
        """Something is probably wrong."""


class Silent:
    """A monitor that shows nothing."""

    def on_data(self, what: str, done: int, total: int) -> None: ...
    def on_start(self, epoch: int, epochs: int, step: int, steps: int, batch_size: int) -> None: ...
    def on_step(self, loss: float, step: int) -> None: ...
    def on_epoch(self, record: dict[str, Any]) -> None: ...
    def on_note(self, note: str) -> None: ...
    def on_warning(self, warning: str) -> None: ...


Read = Callable[[Setup, Monitor], Splits]


def read_data(setup: Setup, monitor: Monitor) -> Splits:
    """Read the data of a setup. The monitor receives notes on how it was read.

    Raises:
        DataError: if it cannot be read.
    """
    splits = load_data(setup.data, **asdict(setup.source_options), **setup.split_options, progress=monitor.on_data)
    for note in splits.notes:
        monitor.on_note(note)
    return splits


def check_setup(setup: Setup, device: str, processes: Processes) -> torch.device:
    """Check the settings without reading the data; returns the device to train on.

    A recipe that is chosen for the images is checked when it is.

    Raises:
        ValueError: if a setting is out of range, the device does not exist, or the two do not fit together.
    """
    check_seed(setup.seed)
    setup.network(classes=2)
    if setup.log is not None and setup.log not in get_args(Log):
        raise ValueError(f"log is {setup.log!r}, but must be tensorboard, or None for metrics.jsonl alone")
    if setup.log == "tensorboard":
        check_tensorboard()
    if setup.teacher is not None and processes.size > 1:
        raise ValueError(
            f"teacher is {setup.teacher!r}, but there are {processes.size} processes, and a teacher is for one: start "
            "one, or leave the teacher out"
        )
    if not isinstance(setup.recipe, Recipe):
        return check_device(device, PAPER, processes)
    if setup.teacher is not None and setup.recipe.augmentation.combined:
        raise ValueError(
            f"combined is {setup.recipe.augmentation.combined}, but must be 0 with a teacher, whose outputs are for "
            "single images: set it to 0, or leave the teacher out"
        )
    check_validation(setup.recipe, has_validation=setup.validation != 0)
    return check_device(device, setup.recipe, processes)


def check_validation(recipe: Recipe, *, has_validation: bool) -> None:
    """Check that there are validation images, if the recipe needs them.

    Raises:
        ValueError: if it does and there are none.
    """
    for name, value, is_off in (("patience", recipe.patience, 0), ("keep", recipe.keep, "last")):
        if value != is_off and not has_validation:
            raise ValueError(
                f"{name} is {value!r}, which compares the validation loss of the epochs, but there are no "
                f"validation images: give some, or hold some out with a validation of 0.1, or leave {name} out"
            )


def check_device(device: str, recipe: Recipe, processes: Processes) -> torch.device:
    """The device on which this process trains.

    Args:
        device: as for `choose_device`.
        recipe: the device must support its precision.
        processes: each trains on a GPU of its own, or all on the CPU.

    Raises:
        ValueError: if the device does not exist, or does not support the precision.
    """
    chosen = processes.device(device)
    if chosen.type == "cpu" and recipe.precision == "bf16":
        raise ValueError(
            "precision is 'bf16', which needs a GPU, but this run would be on the CPU: train with --precision fp32, or "
            "on a GPU"
        )
    return chosen


def build_model(
    network: Network,
    recipe: Recipe,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> HybridMobileNet:
    """An untrained network with the activation, dropout and pooling of a recipe; the rest as for `HybridMobileNet`."""
    return HybridMobileNet(
        **network.choices(),
        class_names=class_names,
        mean=mean,
        std=std,
        activation=recipe.activation,
        dropout=recipe.dropout,
        sequence=recipe.sequence,
        overlapping=recipe.overlapping,
    )


def choose_batch_size(recipe: Recipe, images: int, processes: Processes) -> int:
    """Images of a batch, over all processes: the recipe's number, or less where an epoch would leave images out.

    Raises:
        ValueError: if the recipe's batches or the images cannot be divided among the processes.
    """
    if recipe.batch_size % processes.size or recipe.batch_size < 2 * processes.size:
        raise ValueError(
            f"batch_size is {recipe.batch_size}, but must be a multiple of the number of processes ({processes.size}) "
            "and at least twice that number: it counts the images of all processes, and batch normalisation needs two "
            "in each"
        )
    if images < 2 * processes.size:
        raise ValueError(
            f"there are {images} training images, but {processes.size} processes need two each: start fewer"
        )
    size = min(recipe.batch_size, images // processes.size * processes.size)
    if images % size <= LEFT_OUT * images:
        return size
    # Batches of equal size, so that few images are repeated to fill the last one.
    return math.ceil(images / math.ceil(images / size) / processes.size) * processes.size


def steps_per_epoch(recipe: Recipe, images: int, batch_size: int) -> int:
    """Steps of an epoch: one pass over the images, or more where the recipe requires more steps in total."""
    steps = images // batch_size
    if images - steps * batch_size > LEFT_OUT * images:
        steps += 1
    return max(steps, math.ceil(recipe.least_steps / recipe.epochs))


def automatic_lengths(recipe: Recipe, images: int, steps: int, batch_size: int) -> str:
    """Explains a batch size or a number of steps that differs from the recipe's; empty where neither does."""
    chosen = []
    if batch_size != recipe.batch_size:
        chosen.append(f"batches of {batch_size} instead of {recipe.batch_size}, so that an epoch uses all of them")
    if steps * batch_size >= 2 * images:
        chosen.append(
            f"{steps} steps an epoch, which is {steps * batch_size / images:.0f} passes over them, for at least "
            f"{recipe.least_steps:,} steps in all (with --epochs N every epoch is one pass)"
        )
    return f"{images} training images: {'; '.join(chosen)}" if chosen else ""


def imbalance(dataset: ImageDataset, recipe: Recipe) -> str:
    """Explains that classes differ much in size, where the recipe does not balance them; otherwise empty."""
    images = torch.bincount(dataset.labels, minlength=len(dataset.class_names)).tolist()
    found = class_imbalance(images)
    if found is None or recipe.balance != "none" or found.ratio < IMBALANCED:
        return ""
    names = dataset.class_names
    return (
        f"the classes are imbalanced: {images[found.largest]:,} training images of {names[found.largest]!r}, "
        f"{images[found.smallest]:,} of {names[found.smallest]!r}. Small classes will be recognised less often; "
        "--balance sampling shows images of every class equally often"
    )
