"""The arithmetic behind the verdicts: Student's t, margins of differences, and the rules for true and false.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import cos, pi, sin, sqrt, tan
from statistics import NormalDist, variance
from typing import Literal, get_args

Verdict = Literal["true", "false", "inconclusive", "untested"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

#: One-sided significance level: the probability that a true difference of zero exceeds its margin in one direction.
LEVEL = 0.025


def student_t(probability: float, degrees_of_freedom: int) -> float:
    """Quantile of Student's t distribution.

    Args:
        probability: cumulative probability, in [0.5, 1).
        degrees_of_freedom: 1 or more.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4, inverted by bisection.
    """
    odd = degrees_of_freedom % 2

    def within(angle: float) -> float:
        """The probability that the absolute value of t is at most sqrt(degrees_of_freedom) * tan(angle)."""
        total, term = 0.0, cos(angle) if odd else 1.0
        for factor in range(1 + odd, degrees_of_freedom, 2):
            total += term
            term *= cos(angle) ** 2 * factor / (factor + 1)
        return (angle + sin(angle) * total) * 2 / pi if odd else sin(angle) * total

    low, high = 0.0, pi / 2
    for _ in range(60):  # down to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 2 * probability - 1 else (low, middle)
    return sqrt(degrees_of_freedom) * tan(low)


@dataclass(frozen=True)
class Deviation:
    """A standard deviation over seeds, in points of accuracy.

    Attributes:
        points: the standard deviation.
        degrees_of_freedom: of its estimate; None for an assumed value, which is taken as exact.
    """

    points: float
    degrees_of_freedom: int | None

    def quantile(self, tests: int = 1) -> float:
        """Number of standard errors in a margin, at `LEVEL` shared among `tests` comparisons (Bonferroni)."""
        probability = 1 - LEVEL / tests
        if self.degrees_of_freedom is None:
            return NormalDist().inv_cdf(probability)
        return student_t(probability, self.degrees_of_freedom)

    def margin(self, terms: Iterable[tuple[float, int]], tests: int = 1) -> float:
        """Margin of a sum of independent means.

        Args:
            terms: the coefficient of each mean, and the number of runs that it is taken over.
            tests: number of comparisons, as for `quantile`.
        """
        return self.quantile(tests) * self.points * sqrt(sum(coefficient**2 / n for coefficient, n in terms))


def pooled_deviation(groups: Iterable[Sequence[float]]) -> Deviation | None:
    """The standard deviation within groups, pooled over the groups with two or more values.

    None if there is no such group, or if all deviations are zero: such an estimate cannot be trusted.
    """
    repeated = [(len(group) - 1, variance(group)) for group in groups if len(group) > 1]
    degrees_of_freedom = sum(weight for weight, _ in repeated)
    squares = sum(weight * within for weight, within in repeated)
    return Deviation(sqrt(squares / degrees_of_freedom), degrees_of_freedom) if squares else None


@dataclass(frozen=True)
class Difference:
    """A difference of accuracies, or a mean of differences, in points, with the margin that chance alone explains."""

    points: float
    margin: float

    def verdict(self, least: float) -> Verdict:
        """Whether the difference is more than `least`; inconclusive within the margin."""
        if abs(self.points - least) <= self.margin:
            return "inconclusive"
        return "true" if self.points > least else "false"

    def __str__(self) -> str:
        return f"{self.points:+.1f} \N{PLUS-MINUS SIGN} {self.margin:.1f}"


def verdict_on_comparisons(verdicts: Sequence[Verdict], *, refuted: bool, mean: Difference | None = None) -> Verdict:
    """The verdict on a claim, from the verdicts on its comparisons on one data set.

    Without `mean`, every comparison must hold. With `mean`, the mean difference decides: "true" also needs that no
    comparison is false. At least one comparison must be tested, and without `mean` all, with `mean` at least half.

    Args:
        verdicts: one verdict per comparison.
        refuted: whether a comparison is false by more than chance explains, given the number of comparisons. Then the
            claim is false.
        mean: the mean difference over all tested comparisons.
    """
    untested = verdicts.count("untested")
    if refuted:
        return "false"
    if untested > (len(verdicts) / 2 if mean else 0) or untested == len(verdicts):
        return "untested"
    if mean is None:
        return "true" if set(verdicts) == {"true"} else "inconclusive"
    verdict = mean.verdict(0)
    return "inconclusive" if verdict == "true" and "false" in verdicts else verdict


def verdict_over_data_sets(verdicts: Sequence[Verdict]) -> Verdict:
    """False if false on one data set, else true if true on one, else inconclusive, else untested.

    A data set on which nothing is decided counts neither for nor against a claim.
    """
    ordered: tuple[Verdict, ...] = ("false", "true", "inconclusive", "untested")
    return next(verdict for verdict in ordered if verdict in verdicts)
