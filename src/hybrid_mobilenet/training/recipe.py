"""What a training run is made of besides network and data. Every field says where its value comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from ..layers.sizes import PoolingSequence
from ..network.architecture import Activation, Family

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Recipe:
    """The paper's training: Adam, 10 % dropout, no augmentation; what it leaves open is ours, with the reason.

    Source: Chen and Su (2018), section IV; docs/LOG.md has the searches on the validation split.
    """

    epochs: int = 16  # ours: the paper names none
    batch_size: int = 64  # ours, between Keras's 32 and what a CPU is fastest at
    learning_rate: float = 1e-2  # ours: FMP after 4 epochs 64.3 % on validation, with 3e-3 60.7, with Keras's 1e-3 47.1
    schedule: Literal["cosine", "constant"] = "cosine"  # ours: the last epoch is reported, so it must be a settled one
    beta1: float = 0.9  # Keras's default
    beta2: float = 0.999  # Keras's default
    epsilon: float = 1e-7  # Keras's default
    weight_decay: float = 0.1  # ours, as AdamW's: strides overfit without; 75.6 % on validation, with 0 at 3e-3 69.0
    dropout: float = 0.1  # paper, section IV
    activation: Activation = "relu"  # ours: the paper names none
    sequence: PoolingSequence = "random"  # TensorFlow's default; the paper names none
    overlapping: bool = False  # TensorFlow's default; the paper names none
    precision: Precision = "fp32"  # Keras's default; "bf16" (autocast) is for GPUs
    fixed_epochs: int = 0  # last epochs on the fixed regions of eval(); ours
    least_steps: int = 0  # of all epochs together: of few images an epoch is several passes; ours

    def __post_init__(self) -> None:
        self._require("epochs", self.epochs >= 1, "1 or more")
        self._require("batch_size", self.batch_size >= 2, "2 or more, since batch normalisation needs two images")
        self._require("learning_rate", 0 < self.learning_rate < 1, "above 0 and below 1: try 0.001")
        self._require("schedule", self.schedule in ("cosine", "constant"), "cosine or constant")
        self._require("weight_decay", 0 <= self.weight_decay < 10, "0 or more and below 10: try 0.1")
        self._require("dropout", 0 <= self.dropout < 1, "0 or more and below 1: the paper's is 0.1")
        self._require("activation", self.activation in get_args(Activation), "relu or relu6")
        self._require("sequence", self.sequence in get_args(PoolingSequence), "random or pseudorandom")
        self._require("precision", self.precision in get_args(Precision), "fp32 or bf16")
        self._require(
            "least_steps", self.least_steps >= 0, "0 or more: with 0, every epoch is one pass over the images"
        )
        self._require("fixed_epochs", 0 <= self.fixed_epochs <= self.epochs, "between 0 and epochs")

    def with_epochs(self, epochs: int) -> Recipe:
        """The recipe with another number of epochs; the share of them with fixed regions stays."""
        return replace(self, epochs=epochs, fixed_epochs=round(self.fixed_epochs * epochs / self.epochs))

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"{name} is {getattr(self, name)!r}, but must be {rule}")


PAPER = Recipe()

#: Seeds are below this, which is what torch's generators take.
SEEDS = 2**64


def check_seed(seed: int) -> None:
    """Refuse a seed that is out of range.

    Raises:
        ValueError: where it is.
    """
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed is {seed}, but must be 0 or more and less than 2**64 ({SEEDS})")


def derived_seed(seed: int, number: int) -> int:
    """The seed of one of many draws (an epoch's order, a process's dropout) that belong to one seed."""
    return (seed * 1_000_003 + number) % SEEDS


#: What `train` takes at least, unless told a number of epochs. Ours: docs/LOG.md has what others give, on validation
#: images, for 5 to 500 images per class.
LEAST_STEPS = 4000

#: What each family is trained with unless told otherwise, and what its rows of the paper's tables are reproduced with.
#: Random regions take longer to learn from; on fixed ones at the end, one pass is nearly as good as the mean of many.
PAPER_RECIPES: dict[Family, Recipe] = {
    "mobilenet": PAPER,
    "mp3": PAPER,
    "fmp": replace(PAPER, epochs=25, fixed_epochs=5),
}

#: Of a hundred classes, networks learn next to nothing at first in steps as large as for ten: FMP has 23.9 % on
#: validation after 4 epochs, and 20.9 with the steps and the decay above. MP3 wants larger batches: 32 epochs of 64
#: images at once end at 35.8 %, 16 of 128 at 38.8.
CIFAR100_RECIPES: dict[Family, Recipe] = {
    family: replace(recipe, learning_rate=3e-3, weight_decay=0.3, batch_size=128 if family == "mp3" else 64)
    for family, recipe in PAPER_RECIPES.items()
}


def paper_recipe(family: Family, data: str) -> Recipe:
    """What a family is trained with on a data set, unless told otherwise."""
    return (CIFAR100_RECIPES if data == "cifar100" else PAPER_RECIPES)[family]
