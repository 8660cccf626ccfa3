"""Student's t, pooled deviations, margins, and the rules for verdicts."""

from __future__ import annotations

import pytest
from scipy.stats import t

from hybrid_mobilenet.study.statistics import Deviation, Difference, pooled_deviation, student_t, verdict_on_comparisons


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 9, 30, 101, 1000])
def test_student_s_t(freedom: int) -> None:
    for probability in (0.6, 0.975, 1 - 0.025 / 6, 1 - 0.025 / 20):
        assert student_t(probability, freedom) == pytest.approx(t.ppf(probability, freedom), rel=1e-9)


def test_a_pooled_deviation_weighs_groups_by_their_degrees_of_freedom() -> None:
    pooled = pooled_deviation([[1.0, 2.0, 3.0], [5.0, 9.0], [7.0]])
    assert pooled is not None
    assert pooled.points == pytest.approx(((2 * 1 + 1 * 8) / 3) ** 0.5)
    assert pooled.degrees_of_freedom == 3


@pytest.mark.parametrize("groups", [[], [[1.0], [2.0]], [[1.0, 1.0], [3.0, 3.0]]])
def test_without_repetition_or_difference_there_is_no_deviation(groups: list[list[float]]) -> None:
    assert pooled_deviation(groups) is None


def test_a_margin_adds_variances_and_shares_the_level_among_tests() -> None:
    deviation = Deviation(0.6, 4)
    terms = [(1.0, 3), (-0.5, 2), (0.0, 1)]
    for tests in (1, 6):
        expected = t.ppf(1 - 0.025 / tests, 4) * 0.6 * (1 / 3 + 0.25 / 2) ** 0.5
        assert deviation.margin(terms, tests) == pytest.approx(expected)
    assert Deviation(0.6, None).margin([(1.0, 1)]) == pytest.approx(1.959964 * 0.6)


@pytest.mark.parametrize(
    ("points", "least", "verdict"), [(1.6, 0, "true"), (1.5, 0, "inconclusive"), (1.6, 4, "false"), (-1.6, 0, "false")]
)
def test_a_difference_decides_beyond_its_margin(points: float, least: float, verdict: str) -> None:
    assert Difference(points, 1.5).verdict(least) == verdict


def test_a_refuted_claim_is_false_whatever_else_was_tested() -> None:
    assert verdict_on_comparisons(["true", "untested", "false"], refuted=True, mean=Difference(9, 1)) == "false"
