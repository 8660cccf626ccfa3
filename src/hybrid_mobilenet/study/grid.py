"""The paper's grid: 19 configurations on CIFAR-10 and CIFAR-100, with any number of seeds. Standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cached_property

from ..layers.sizes import Size
from ..network.architecture import FAMILIES, Family, Network, resolve
from ..network.cost import network_mult_adds
from ..training.recipe import PAPER, Recipe, paper_recipe
from .paper import RESULTS, TABLE_7


@dataclass(frozen=True)
class DataSet:
    """The facts about a data set that the networks and the estimate of the time need."""

    classes: int
    image_size: Size
    channels: int
    train_images: int
    test_images: int


#: The paper's two data sets, and the built-in digits, on which the same grid takes minutes.
DATA_SETS: dict[str, DataSet] = {
    "cifar10": DataSet(10, (32, 32), 3, 50_000, 10_000),
    "cifar100": DataSet(100, (32, 32), 3, 50_000, 10_000),
    "digits": DataSet(10, (8, 8), 1, 1_438, 359),
}
PAPER_DATA_SETS = ("cifar10", "cifar100")

#: Revision of the training code, increased when the final weights change: see `report_tables.REVISIONS`.
TRAINING = 2

#: Settings of a recipe that no row of the paper uses. At their default they are not part of the fingerprint, so that
#: adding one does not make older records invalid.
LATER_SETTINGS = frozenset(
    {
        "optimizer",
        "warm_up",
        "head_factor",
        "frozen",
        "label_smoothing",
        "averaging",
        "augmentation",
        "balance",
        "patience",
        "keep",
    }
)

#: Family, delta and alpha of the paper's configurations, in the order of its tables.
CONFIGURATIONS: tuple[tuple[Family, int, float], ...] = tuple(
    dict.fromkeys((result.family, result.delta, result.alpha) for result in RESULTS)
)
DELTAS: tuple[int, ...] = tuple(sorted({delta for _, delta, _ in CONFIGURATIONS}))
ALPHAS: tuple[float, ...] = tuple(sorted({alpha for _, _, alpha in CONFIGURATIONS}))
BASELINE: tuple[Family, int, float] = ("mobilenet", 1, 1.0)

#: The configurations in each of the paper's result tables. Tables 5 and 6 repeat the baseline.
TABLES: dict[int, frozenset[tuple[Family, int, float]]] = {
    **{
        number: frozenset({BASELINE, *(each for each in CONFIGURATIONS if each[0] == family)})
        for number, family in zip((4, 5, 6), FAMILIES, strict=True)
    },
    7: frozenset((result.family, result.delta, result.alpha) for result in TABLE_7),
}


@dataclass(frozen=True)
class Run:
    """One training run of the grid."""

    data: str
    family: Family
    delta: int
    alpha: float
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """The name on disk and in messages."""
        return f"{self.data}-{self.family}-d{self.delta}-a{self.alpha:g}-seed{self.seed}"

    @cached_property
    def network(self) -> Network:
        """The network, resolved for the data set."""
        data = DATA_SETS[self.data]
        return resolve(self.family, self.alpha, self.delta, data.classes, data.channels, data.image_size)

    @property
    def cost(self) -> int:
        """Relative training cost: Mult-Adds times epochs."""
        return network_mult_adds(self.network) * self.recipe.epochs

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the data set, the layers, the recipe and the training code."""
        parts = {
            "data": self.data,
            "layers": [asdict(layer) for layer in self.network.layers],
            "recipe": {
                name: value
                for name, value in asdict(self.recipe).items()
                if name not in LATER_SETTINGS or getattr(self.recipe, name) != getattr(PAPER, name)
            },
            "training": TRAINING,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def select(
    *,
    data: Collection[str] = (),
    families: Collection[Family] = (),
    deltas: Collection[int] = (),
    alphas: Collection[float] = (),
    tables: Collection[int] = (),
    seeds: int = 1,
    epochs: int | None = None,
) -> list[Run]:
    """Select runs of the grid, cheapest first. A run must match every condition; an empty one matches all runs.

    Args:
        data: names in `DATA_SETS`; if empty, the paper's two data sets.
        families: names in `FAMILIES`.
        deltas: depth multipliers, in `DELTAS`.
        alphas: width multipliers, in `ALPHAS`.
        tables: numbers in `TABLES`: configurations that one of these tables of the paper has.
        seeds: number of runs of each configuration, with the seeds 0, 1, ..., seeds - 1.
        epochs: in place of the recipe's; the share of epochs with fixed regions stays the same.

    Raises:
        ValueError: if no run matches, or `seeds` or `epochs` is below 1.
    """
    if seeds < 1:
        raise ValueError(f"--seeds is {seeds}, but must be 1 or more: 3 stands for the seeds 0, 1 and 2")

    def recipe(family: Family, data: str) -> Recipe:
        return paper_recipe(family, data) if epochs is None else paper_recipe(family, data).with_epochs(epochs)

    runs = [
        Run(name, family, delta, alpha, seed, recipe(family, name))
        for name in DATA_SETS
        for family, delta, alpha in CONFIGURATIONS
        for seed in range(seeds)
        if name in (data or PAPER_DATA_SETS)
        and family in (families or FAMILIES)
        and delta in (deltas or DELTAS)
        and alpha in (alphas or ALPHAS)
        and any((family, delta, alpha) in rows for number, rows in TABLES.items() if number in (tables or TABLES))
    ]
    if not runs:
        conditions = {"data": data, "family": families, "delta": deltas, "alpha": alphas, "table": tables}
        wanted = ", ".join(f"{name} {' or '.join(map(str, some))}" for name, some in conditions.items() if some)
        raise ValueError(
            f"no configuration of the paper has {wanted}: delta 1 occurs only in the baseline, the family mobilenet "
            "with alpha 1; `hybrid-mobilenet cost` lists all configurations"
        )
    return sorted(runs, key=lambda run: (run.cost, run.data, run.seed))
