"""The paper's grid: 19 configurations on CIFAR-10 and CIFAR-100, with any number of seeds. Standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from ..layers.sizes import Size
from ..network.architecture import FAMILIES, Family, Network, resolve
from ..network.cost import network_mult_adds
from ..training.recipe import Recipe, paper_recipe
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

#: Revision of the training code, increased when the final weights change: see `tables.REVISIONS`.
TRAINING = 2

#: Family, delta and alpha of the paper's configurations, in the order of its tables.
CONFIGURATIONS: tuple[tuple[Family, int, float], ...] = tuple(
    dict.fromkeys((result.family, result.delta, result.alpha) for result in RESULTS)
)
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
            "recipe": asdict(self.recipe),
            "training": TRAINING,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def select(only: Sequence[str] = (), seeds: int = 1, epochs: int | None = None) -> list[Run]:
    """The runs of the grid that are asked for, cheapest first.

    Args:
        only: conditions "KEY=VALUE,VALUE..." with the keys data, family, delta, alpha and table; all keys must hold, of
            a key one value. Without data, the paper's two data sets.
        seeds: seeds 0, 1, ..., seeds - 1.
        epochs: in place of the recipe's; the share of epochs with fixed regions stays.

    Raises:
        ValueError: where a condition cannot be read, or nothing meets them all.
    """
    if seeds < 1:
        raise ValueError(f"--seeds is {seeds}, but must be 1 or more: 3 stands for the seeds 0, 1 and 2")
    wanted = _conditions(only)

    def recipe(family: Family, data: str) -> Recipe:
        return paper_recipe(family, data) if epochs is None else paper_recipe(family, data).with_epochs(epochs)

    runs = [
        Run(data, family, delta, alpha, seed, recipe(family, data))
        for data in wanted.get("data", PAPER_DATA_SETS)
        for family, delta, alpha in CONFIGURATIONS
        for seed in range(seeds)
        if family in wanted.get("family", FAMILIES)
        and str(delta) in wanted.get("delta", (str(delta),))
        and f"{alpha:g}" in wanted.get("alpha", (f"{alpha:g}",))
        and any((family, delta, alpha) in TABLES[int(number)] for number in wanted.get("table", "4567"))
    ]
    if not runs:
        raise ValueError(
            f"--only {' --only '.join(only)} leaves nothing: delta 1 stands in the paper with alpha 1 of the family "
            "mobilenet only, the baseline; see `hybrid-mobilenet cost` for all configurations"
        )
    return sorted(runs, key=lambda run: (run.cost, run.data, run.seed))


def _conditions(only: Sequence[str]) -> dict[str, list[str]]:
    allowed: dict[str, list[str]] = {
        "data": list(DATA_SETS),
        "family": list(FAMILIES),
        "delta": ["1", "2", "4"],
        "alpha": ["0.25", "0.5", "1"],
        "table": [str(number) for number in TABLES],
    }
    wanted: dict[str, list[str]] = {}
    for condition in only:
        key, _, values = condition.partition("=")
        if key not in allowed:
            raise ValueError(
                f"--only is {condition!r}, but must be KEY=VALUE or KEY=VALUE,VALUE,... with KEY one of "
                f"{', '.join(allowed)}: try --only family=fmp"
            )
        for value in values.split(","):
            # "1.0" and ".5" are numbers too
            number = f"{float(value):g}" if value.replace(".", "", 1).isdecimal() else value
            if number not in allowed[key]:
                raise ValueError(
                    f"--only is {condition!r}, but {key} must be one or more of {', '.join(allowed[key])}, separated "
                    "by commas"
                )
            if number not in wanted.setdefault(key, []):
                wanted[key].append(number)
    return wanted
