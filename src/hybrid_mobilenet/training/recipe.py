"""Recipes: how a network is trained. Every field names the source of its value. Standard library only."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

from ..layers.sizes import PoolingSequence
from ..network.architecture import Activation, Family

Precision = Literal["fp32", "bf16"]
Optimizer = Literal["adam", "sgd"]
Balance = Literal["none", "sampling"]
Keep = Literal["last", "best"]
Flips = Literal["none", "horizontal", "vertical", "both"]


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied. By default they are not.

    Attributes:
        shift: largest shift, as a share of the side. Beyond its edges, an image is continued by reflection.
        scale: largest change of size. With 0.25, objects appear 1/1.25 to 1.25 times as large.
        flips: "horizontal" mirrors half of the images left to right, "vertical" upside down, "both" does both.
        colour: largest change of brightness, contrast and saturation, as a share.
        cutout: side of a square that is filled with the mean colour of the image, as a share of the side (DeVries and
            Taylor, 2017).
        combined: share of the batches in which each image is combined from parts of four (RICAP: Takahashi, Matsubara
            and Uehara, 2018). Their labels count by area.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> from hybrid_mobilenet import Augmentation
        >>> str(Augmentation(shift=0.125, flips="horizontal")), str(Augmentation())
        ('shift 0.125, flips horizontal', 'none')
    """

    shift: float = 0.0
    scale: float = 0.0
    flips: Flips = "none"
    colour: float = 0.0
    cutout: float = 0.0
    combined: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "flips":
                if value not in get_args(Flips):
                    raise ValueError(f"flips is {value!r}, but must be one of {', '.join(get_args(Flips))}")
            elif not 0 <= value <= 1:
                raise ValueError(f"{name} is {value!r}, but must be from 0 to 1")

    def __bool__(self) -> bool:
        """Whether images are varied at all."""
        return self != NO_AUGMENTATION

    def __str__(self) -> str:
        """The settings that vary images, or "none"."""
        chosen = [f"{name} {value}" for name, value in vars(self).items() if value not in (0, "none")]
        return ", ".join(chosen) or "none"


NO_AUGMENTATION = Augmentation()


@dataclass(frozen=True)
class Recipe:
    """The settings of training. The defaults are the paper's; where it gives none, they are ours.

    The paper has Adam, 10 % dropout, and no augmentation: Chen and Su (2018), section IV. Ours were chosen on the
    validation split of CIFAR-10; docs/LOG.md has the searches.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> from hybrid_mobilenet import Recipe
        >>> Recipe(epochs=40, fixed_epochs=8).with_epochs(20).fixed_epochs
        4
    """

    epochs: int = 16  # ours
    batch_size: int = 64  # ours: between Keras's 32 and the fastest on a CPU
    optimizer: Optimizer = "adam"  # paper; "sgd" has Nesterov momentum of `beta1`
    learning_rate: float = 1e-2  # ours, for FMP; Keras's 1e-3 learns much more slowly
    schedule: Literal["cosine", "constant"] = "cosine"  # ours: the last epoch is reported, so the rate must end low
    warm_up: float = 0.0  # share of the steps in which the learning rate rises linearly from 0
    head_factor: float = 1.0  # factor of the learning rate of the classifier, for fine-tuning
    frozen: float = 0.0  # share of the steps, from the first, in which only the classifier learns, for fine-tuning
    beta1: float = 0.9  # Keras's default
    beta2: float = 0.999  # Keras's default
    epsilon: float = 1e-7  # Keras's default
    weight_decay: float = 0.1  # ours, as in AdamW: without it, networks with strides overfit
    dropout: float = 0.1  # paper, section IV
    label_smoothing: float = 0.0  # share of each label that is spread over all classes (Szegedy et al., 2016)
    averaging: float = 0.0  # decay of a moving average of the weights, which is then the model; 0 for none
    augmentation: Augmentation = NO_AUGMENTATION  # paper
    activation: Activation = "relu"  # ours
    sequence: PoolingSequence = "random"  # TensorFlow's default
    overlapping: bool = False  # TensorFlow's default
    precision: Precision = "fp32"  # Keras's default; "bf16" (autocast) is for GPUs
    fixed_epochs: int = 0  # ours: number of last epochs with the fixed pooling regions of eval()
    least_steps: int = 0  # ours: minimum over all epochs; with few images, an epoch is then several passes
    balance: Balance = "none"  # "sampling" repeats images of small classes: see docs/LOG.md
    patience: int = 0  # epochs without a lower validation loss after which training stops; 0 for never
    keep: Keep = "last"  # "best" keeps the weights of the epoch with the lowest validation loss

    def __post_init__(self) -> None:
        self._require("epochs", self.epochs >= 1, "1 or more")
        self._require("batch_size", self.batch_size >= 2, "2 or more, since batch normalisation needs two images")
        self._require("learning_rate", 0 < self.learning_rate < 1, "above 0 and below 1: try 0.001")
        self._require("optimizer", self.optimizer in get_args(Optimizer), "adam or sgd")
        self._require("warm_up", 0 <= self.warm_up < 1, "0 or more and below 1: the share of the steps")
        self._require("head_factor", 0 < self.head_factor <= 100, "above 0 and up to 100: try 10")
        self._require("frozen", 0 <= self.frozen < 1, "0 or more and below 1: the share of the steps")
        self._require("label_smoothing", 0 <= self.label_smoothing < 1, "0 or more and below 1: try 0.1")
        self._require("averaging", 0 <= self.averaging < 1, "0 or more and below 1: try 0.999")
        self._require(
            "augmentation",
            isinstance(self.augmentation, Augmentation),
            'an Augmentation, such as Augmentation(shift=0.125, flips="horizontal")',
        )
        self._require("schedule", self.schedule in ("cosine", "constant"), "cosine or constant")
        self._require("weight_decay", 0 <= self.weight_decay < 10, "0 or more and below 10: try 0.1")
        self._require("dropout", 0 <= self.dropout < 1, "0 or more and below 1: the paper's is 0.1")
        self._require("activation", self.activation in get_args(Activation), "relu or relu6")
        self._require("sequence", self.sequence in get_args(PoolingSequence), "random or pseudorandom")
        self._require("precision", self.precision in get_args(Precision), "fp32 or bf16")
        self._require(
            "least_steps", self.least_steps >= 0, "0 or more: with 0, every epoch is one pass over the images"
        )
        self._require("balance", self.balance in get_args(Balance), "none or sampling")
        self._require("patience", self.patience >= 0, "0 or more epochs: with 0, training never stops early")
        self._require("keep", self.keep in get_args(Keep), "last or best")
        self._require("fixed_epochs", 0 <= self.fixed_epochs <= self.epochs, "between 0 and epochs")

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """The recipe from its JSON record, which `dataclasses.asdict` made. Settings that it lacks are the default."""
        return cls(**record | {"augmentation": Augmentation(**record.get("augmentation", {}))})

    @property
    def is_fine_tuning(self) -> bool:
        """Whether the classifier has a learning rate of its own."""
        return self.head_factor != 1 or self.frozen > 0

    def with_epochs(self, epochs: int) -> Recipe:
        """The recipe with another number of epochs, and the same share of epochs with fixed regions."""
        return replace(self, epochs=epochs, fixed_epochs=round(self.fixed_epochs * epochs / self.epochs))

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"{name} is {getattr(self, name)!r}, but must be {rule}")


PAPER = Recipe()

#: Seeds are below this, the limit of torch's generators.
SEEDS = 2**64


def check_seed(seed: int) -> None:
    """Check that a seed is in range.

    Raises:
        ValueError: if it is not.
    """
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed is {seed}, but must be 0 or more and less than 2**64 ({SEEDS})")


def derived_seed(seed: int, number: int) -> int:
    """A seed for one of many draws, such as the order of an epoch or the dropout of a process."""
    return (seed * 1_000_003 + number) % SEEDS


#: Minimum number of steps on the built-in data sets, without --epochs. Ours, chosen on validation images: see
#: docs/LOG.md.
LEAST_STEPS = 4000

#: The default recipe of each family, with which its rows of the paper's tables are reproduced. Random regions need
#: longer training. After some epochs on fixed regions, one pass is nearly as good as the mean of many.
PAPER_RECIPES: dict[Family, Recipe] = {
    "mobilenet": PAPER,
    "mp3": PAPER,
    "fmp": replace(PAPER, epochs=25, fixed_epochs=5),
}

#: With a hundred classes, networks learn slowly at first with the learning rate above, and MP3 is better with larger
#: batches. Chosen on validation images: see docs/LOG.md.
CIFAR100_RECIPES: dict[Family, Recipe] = {
    family: replace(recipe, learning_rate=3e-3, weight_decay=0.3, batch_size=128 if family == "mp3" else 64)
    for family, recipe in PAPER_RECIPES.items()
}


def paper_recipe(family: Family, data: str) -> Recipe:
    """The default recipe of a family on a data set.

    Args:
        family: "mobilenet", "mp3" or "fmp".
        data: name or path of the data; "cifar100" has recipes of its own.

    Raises:
        ValueError: if there is no such family.

    Example:
        >>> from hybrid_mobilenet import paper_recipe
        >>> paper_recipe("fmp", "cifar10").epochs
        25
    """
    if family not in PAPER_RECIPES:
        raise ValueError(f"family is {family!r}, but must be one of {', '.join(PAPER_RECIPES)}")
    return (CIFAR100_RECIPES if data == "cifar100" else PAPER_RECIPES)[family]


#: Augmentation by name, for `train --augmentation`. Chosen on validation images: see docs/LOG.md.
AUGMENTATIONS: dict[str, Augmentation] = {
    "none": NO_AUGMENTATION,
    "light": Augmentation(shift=0.125, flips="horizontal"),
    "medium": Augmentation(shift=0.125, scale=0.25, flips="horizontal", colour=0.25),
    "strong": Augmentation(shift=0.2, scale=0.5, flips="horizontal", colour=0.4, cutout=0.4),
}


#: Below this number of images per class, augmentation is "strong" by default.
FEW_IMAGES = 50
#: Learning rate of trained features.
FINE_TUNING_RATE = 1e-3
#: Minimum number of steps for up to 1,000 images of one's own, and the share of them with a rising learning rate.
OWN_STEPS = 3000
OWN_WARM_UP = 0.05


def own_recipe(family: Family, images: int, class_names: Sequence[str]) -> Recipe:
    """The default recipe for images of one's own: that of the paper, with augmentation and at least `own_steps`.

    Args:
        family: "mobilenet", "mp3" or "fmp".
        images: number of training images.
        class_names: images of characters, or of left and right, are not mirrored.

    Raises:
        ValueError: if there is no such family.

    Example:
        >>> from hybrid_mobilenet import own_recipe
        >>> own_recipe("fmp", 1000, ["cat", "dog"]).augmentation.flips
        'horizontal'
        >>> own_recipe("fmp", 1000, ["a", "b", "c"]).augmentation.flips
        'none'
    """
    recipe = paper_recipe(family, "")
    augmentation = AUGMENTATIONS["strong" if images < FEW_IMAGES * len(class_names) else "medium"]
    if changes_when_mirrored(class_names):
        augmentation = replace(augmentation, flips="none")
    # With augmentation, random regions are too much of a good thing: see docs/LOG.md.
    fixed_epochs = recipe.epochs if family == "fmp" else 0
    return replace(
        recipe,
        fixed_epochs=fixed_epochs,
        least_steps=own_steps(images),
        augmentation=augmentation,
        warm_up=OWN_WARM_UP,
    )


def fine_tuning_recipe(recipe: Recipe) -> Recipe:
    """The recipe for a network with trained features and a new classifier.

    For a tenth of the steps only the classifier learns, and then faster than the features: its random weights must not
    spoil them. The values are common practice, not yet compared with others.
    """
    return replace(recipe, learning_rate=FINE_TUNING_RATE, head_factor=10.0, frozen=0.1)


def own_steps(images: int) -> int:
    """The minimum number of steps for images of one's own. Above 1,000 images it grows with the square root."""
    return round(OWN_STEPS * math.sqrt(max(1.0, images / 1000)))


def changes_when_mirrored(class_names: Sequence[str]) -> bool:
    """Whether the names suggest that a mirrored image is of another class or of none: characters, left or right."""
    is_characters = sum(len(name) == 1 or name.isdecimal() for name in class_names) > len(class_names) / 2
    words = {word for name in class_names for word in re.split(r"[\W\d_]+", name.lower())}
    return is_characters or {"left", "right"} <= words
