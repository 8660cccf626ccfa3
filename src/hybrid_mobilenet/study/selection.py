"""Which network is the best within a budget, by the recorded accuracies. Standard library only."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..layers.sizes import Size
from ..network.architecture import Network, resolve
from ..network.cost import network_mult_adds, network_parameters, weight_bytes
from .grid import PAPER_DATA_SETS
from .recorded import Recorded, recorded
from .rows import configuration_name

#: Size of the images on which the accuracies were recorded.
RECORDED_SIZE: Size = (32, 32)


@dataclass(frozen=True)
class Candidate:
    """A network of the user's image size and number of classes, and the accuracy of its family, delta and alpha.

    Attributes:
        network: the network.
        recorded: the accuracy by which it is ranked.
    """

    network: Network
    recorded: Recorded

    @property
    def name(self) -> str:
        """For example "FMP d2 a0.25"."""
        return configuration_name(self.recorded.configuration)

    @property
    def mult_adds(self) -> int:
        """Mult-Adds for one image."""
        return network_mult_adds(self.network)

    @property
    def parameters(self) -> int:
        """Parameters, counted as in the paper."""
        return network_parameters(self.network)

    @property
    def float_bytes(self) -> int:
        """Bytes of the float32 weights."""
        return weight_bytes(self.network, "float32")

    @property
    def int8_bytes(self) -> int:
        """Bytes of the int8 weights."""
        return weight_bytes(self.network, "int8")


@dataclass(frozen=True)
class Budget:
    """Upper limits of what a network may cost; None for no limit.

    Attributes:
        mult_adds: Mult-Adds for one image.
        parameters: number of parameters.
        int8_bytes: bytes of the int8 weights.
    """

    mult_adds: float | None = None
    parameters: float | None = None
    int8_bytes: float | None = None

    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: limit for name, limit in vars(self).items() if limit is not None}

    def share(self, candidate: Candidate) -> float:
        """The share of the tightest limit that a network uses; above 1, the network is too expensive."""
        return max((getattr(candidate, name) / limit for name, limit in self.limits().items()), default=0.0)


#: How the limits of a budget are called.
UNITS = {"mult_adds": "Mult-Adds", "parameters": "parameters", "int8_bytes": "bytes of int8 weights"}


def best_networks(
    budget: Budget,
    data: str | None = None,
    *,
    classes: int = 10,
    in_channels: int = 3,
    image_size: Size = RECORDED_SIZE,
    accuracies: Collection[Recorded] | None = None,
) -> list[Candidate]:
    """The networks within a budget that have a recorded accuracy, the most accurate first.

    Args:
        budget: the limits.
        data: "cifar10" or "cifar100" to rank by the accuracies on it. None for other data: then by those on CIFAR-100,
            which tell networks further apart, if it has one of every network within the budget, and else on CIFAR-10.
        classes: outputs of the classifier.
        in_channels: image channels.
        image_size: height and width in pixels.
        accuracies: the recorded accuracies; those of the package by default.

    Raises:
        ValueError: if the arguments give no network, or none is within the budget; it names the closest one.

    Example:
        >>> from hybrid_mobilenet.study.selection import Budget, best_networks
        >>> all(each.mult_adds <= 10e6 for each in best_networks(Budget(mult_adds=10e6)))
        True
    """
    candidates = [
        Candidate(resolve(each.family, each.alpha, each.delta, classes, in_channels, image_size), each)
        for each in (recorded() if accuracies is None else accuracies)
        if data in (None, each.data)
    ]
    found = [each for each in candidates if budget.share(each) <= 1]
    if not found:
        raise ValueError(_too_small(budget, min(candidates, key=budget.share)))
    ranking = data or _ranking(found)
    found = [each for each in found if each.recorded.data == ranking]
    return sorted(found, key=lambda each: (-each.recorded.accuracy, each.mult_adds))


def _ranking(candidates: Collection[Candidate]) -> str:
    """The data set that ranks the networks for other data: see `best_networks`."""
    networks = {data: {each.network for each in candidates if each.recorded.data == data} for data in PAPER_DATA_SETS}
    return "cifar100" if networks["cifar100"] >= networks["cifar10"] else "cifar10"


def _too_small(budget: Budget, closest: Candidate) -> str:
    network = closest.network
    height, width = network.image_size
    most = " and ".join(f"{limit:,.0f} {UNITS[name]}" for name, limit in budget.limits().items())
    has = " and ".join(f"{getattr(closest, name):,} {UNITS[name]}" for name in budget.limits())
    return (
        f"the budget is {most}, but no network with a recorded accuracy is that small for images of {height}x{width} "
        f"pixels and {network.classes} classes: the closest is {closest.name}, with {has}; allow at least these"
    )
