"""Records grouped into rows: the runs of one configuration over seeds, as the report's tables show them.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from statistics import stdev

from ..network.architecture import Family
from ..training.recipe import Recipe, paper_recipe
from .grid import BASELINE, CONFIGURATIONS, DATA_SETS
from .records import Record

Configuration = tuple[Family, int, float]
"""Family, delta, alpha."""

DATA_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "digits"}
FAMILY_NAMES: dict[Family, str] = {"mobilenet": "MobileNet", "mp3": "MP3", "fmp": "FMP"}


@dataclass(frozen=True)
class Row:
    """All runs of one configuration on one data set with one recipe and one revision of the training code.

    Attributes:
        data: the data set.
        configuration: the network.
        recipe: the training recipe.
        records: the records of the runs, ordered by seed.
    """

    data: str
    configuration: Configuration
    recipe: Recipe
    records: tuple[Record, ...]

    @classmethod
    def of(cls, records: tuple[Record, ...]) -> Row:
        """The row of some records, which differ in their seeds alone and are ordered by them."""
        first = records[0]
        return cls(first.data, (first.family, first.delta, first.alpha), first.recipe, records)

    @property
    def accuracies(self) -> list[float]:
        """Accuracy of each run in percent, with fixed pooling regions."""
        return [100 * record.test[1].correct / record.test[1].images for record in self.records]

    @property
    def averaged(self) -> list[float]:
        """Accuracy of each run in percent, averaged over passes with random regions; empty without such passes."""
        return [100 * record.test[max(record.test)].accuracy for record in self.records if max(record.test) > 1]

    @property
    def n(self) -> int:
        """Number of runs."""
        return len(self.records)

    @property
    def is_distilled(self) -> bool:
        """Whether the runs had a teacher."""
        return self.records[0].teacher is not None

    @property
    def training(self) -> int:
        """Revision of the training code: see `records.Record`."""
        return self.records[0].training

    @property
    def accuracy(self) -> float:
        """Mean accuracy over the runs in percent."""
        scores = [record.test[1] for record in self.records]  # from integers, so that 767 of 1000 is exactly 76.7 %
        return 100 * sum(score.correct for score in scores) / sum(score.images for score in scores)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds; None for a single run."""
        return stdev(self.accuracies) if self.n > 1 else None


def rows(records: Iterable[Record]) -> list[Row]:
    """Group records into rows, in the order of the paper's tables.

    If a configuration has several rows, the one with today's `paper_recipe` comes first, then the newest revision of
    the training code, then the most epochs, then the most seeds.
    """

    def key(record: Record) -> tuple[int, int, str, int]:
        configuration = (record.family, record.delta, record.alpha)
        return (
            [*DATA_SETS].index(record.data),
            CONFIGURATIONS.index(configuration),
            record.fingerprint,
            record.training,
        )

    ordered = sorted(records, key=lambda record: (*key(record), record.seed))
    found = [Row.of(tuple(group)) for _, group in groupby(ordered, key)]
    return sorted(
        found,
        key=lambda row: (
            *key(row.records[0])[:2],
            row.recipe != paper_recipe(row.configuration[0], row.data),
            -row.training,
            -row.recipe.epochs,
            -row.n,
        ),
    )


def configuration_name(configuration: Configuration) -> str:
    """For example "FMP d2 a0.25"."""
    family, delta, alpha = configuration
    return f"{FAMILY_NAMES[family]} d{delta} a{alpha:g}"


def network_name(configuration: Configuration) -> str:
    """As `configuration_name`, but "the baseline" for the baseline."""
    return "the baseline" if configuration == BASELINE else configuration_name(configuration)
