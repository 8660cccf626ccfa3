"""The best networks within a budget."""

from __future__ import annotations

import doctest
from dataclasses import replace

import pytest

from hybrid_mobilenet.network.architecture import resolve
from hybrid_mobilenet.network.cost import network_mult_adds
from hybrid_mobilenet.study import selection
from hybrid_mobilenet.study.recorded import Recorded
from hybrid_mobilenet.study.selection import Budget, Candidate, best_networks

SMALL = Recorded("cifar10", "mobilenet", 2, 0.25, "paper", False, (0.75,))
MIDDLE = Recorded("cifar10", "mp3", 2, 0.5, "tuned", False, (0.86, 0.88))
LARGE = Recorded("cifar10", "fmp", 2, 0.5, "paper", False, (0.86,))
CIFAR10 = [SMALL, LARGE, MIDDLE]
MIDDLE_100, LARGE_100 = (replace(each, data="cifar100", accuracies=(a,)) for each, a in ((MIDDLE, 0.5), (LARGE, 0.6)))


def best(accuracies: list[Recorded], budget: Budget, data: str | None = None) -> list[Recorded]:
    return [each.recorded for each in best_networks(budget, data, accuracies=accuracies)]


def test_the_most_accurate_is_first_and_the_cheaper_of_equals() -> None:
    assert best(CIFAR10, Budget()) == [MIDDLE, LARGE, SMALL]
    equal = replace(LARGE, accuracies=(0.87,))
    assert best([equal, SMALL, MIDDLE], Budget()) == [MIDDLE, equal, SMALL]


def test_a_limit_may_be_reached() -> None:
    (middle,) = best_networks(Budget(mult_adds=1e9), accuracies=[MIDDLE])
    for name in ("mult_adds", "parameters", "int8_bytes"):
        cost = getattr(middle, name)
        assert best([MIDDLE, LARGE], Budget(**{name: cost}))[0] == MIDDLE
        assert MIDDLE not in best([SMALL, MIDDLE], Budget(**{name: cost - 1}))


def test_other_data_are_ranked_by_cifar100_if_it_has_all_networks() -> None:
    every = [*CIFAR10, MIDDLE_100, LARGE_100]
    assert best(every, Budget()) == [MIDDLE, LARGE, SMALL]  # the small one is not recorded on CIFAR-100
    without = [MIDDLE, LARGE, MIDDLE_100, LARGE_100]
    assert best(without, Budget()) == [LARGE_100, MIDDLE_100]
    small = Candidate(resolve("mobilenet", 0.25, 2), SMALL)
    assert best(every, Budget(mult_adds=small.mult_adds)) == [SMALL]
    assert best([MIDDLE_100], Budget()) == [MIDDLE_100]
    assert best(every, Budget(), "cifar100") == [LARGE_100, MIDDLE_100]
    assert best(every, Budget(), "cifar10") == [MIDDLE, LARGE, SMALL]


def test_costs_are_those_of_the_user_s_network() -> None:
    (found,) = best_networks(Budget(), classes=3, in_channels=1, image_size=(48, 24), accuracies=[SMALL])
    assert found.network == resolve("mobilenet", 0.25, 2, 3, 1, (48, 24))
    assert found.mult_adds == network_mult_adds(found.network)
    assert found.int8_bytes < found.float_bytes < 4 * found.parameters


def test_where_nothing_is_that_small_the_closest_is_named() -> None:
    with pytest.raises(ValueError, match=r"^the budget is 1,000 Mult-Adds and 500,000 parameters, .* 32x32 ") as error:
        best(CIFAR10, Budget(mult_adds=1e3, parameters=500e3))
    assert "the closest is MobileNet d2 a0.25, with 1,611,520 Mult-Adds and 433,458 parameters;" in str(error.value)
    with pytest.raises(ValueError, match=r"the closest is MobileNet d2 a0.25, with [\d,]+ bytes of int8 weights"):
        best(CIFAR10, Budget(int8_bytes=10), "cifar10")


def test_examples() -> None:
    assert doctest.testmod(selection).failed == 0
