"""The accuracy that each network reached in our runs, as it comes with the package: recorded.json.

`benchmarks/frontier.py` writes that file from the records in results/, which an installed package does not have.
Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Literal

from ..network.architecture import Family
from .rows import Configuration, Row

RECORDED_FILE = Path(__file__).with_name("recorded.json")

#: "paper" for the recipe of the reproduction, "tuned" for a recipe that was tuned for accuracy: docs/FRONTIER.md.
RecipeKind = Literal["paper", "tuned"]


@dataclass(frozen=True)
class Recorded:
    """The accuracy of a network on the test images of a data set.

    Attributes:
        data: "cifar10" or "cifar100".
        family, delta, alpha: the network.
        recipe: how it was trained.
        distilled: whether it was trained with a teacher.
        accuracies: of the last epoch in one pass with fixed regions, one for each seed, 0 to 1.
    """

    data: str
    family: Family
    delta: int
    alpha: float
    recipe: RecipeKind
    distilled: bool
    accuracies: tuple[float, ...]

    @classmethod
    def of(cls, row: Row, recipe: RecipeKind) -> Recorded:
        """The accuracy of a row of records."""
        scores = (record.test[1] for record in row.records)
        accuracies = tuple(score.correct / score.images for score in scores)
        return cls(row.data, *row.configuration, recipe, row.is_distilled, accuracies)

    @property
    def configuration(self) -> Configuration:
        """Family, delta, alpha."""
        return self.family, self.delta, self.alpha

    @property
    def accuracy(self) -> float:
        """The mean over the seeds."""
        return mean(self.accuracies)


def encoded(accuracies: Iterable[Recorded]) -> bytes:
    """The content of recorded.json, with one line per network."""
    return ("[\n" + ",\n".join(json.dumps(asdict(each)) for each in accuracies) + "\n]\n").encode()


@cache
def recorded() -> tuple[Recorded, ...]:
    """All accuracies in recorded.json: per data set and network, that of its best recipe.

    Example:
        >>> from hybrid_mobilenet.study.recorded import recorded
        >>> {each.data for each in recorded()} == {"cifar10", "cifar100"}
        True
    """
    records = json.loads(RECORDED_FILE.read_bytes())
    return tuple(Recorded(**record | {"accuracies": tuple(record["accuracies"])}) for record in records)
