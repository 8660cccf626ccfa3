"""How a claim is judged: comparisons of networks by our records, with margins.

The arithmetic and the rules for the verdicts are in `statistics`. Standard library only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

from .grid import PAPER_DATA_SETS
from .rows import DATA_NAMES, Configuration, Row, network_name
from .statistics import Deviation, Difference, Verdict, pooled_deviation, verdict_on_comparisons, verdict_over_data_sets

Pair = tuple[Configuration, Configuration]
"""Two configurations, of which the first is claimed to be better."""

#: Standard deviation over seeds, in points, if no network was trained twice: about that of 10,000 test images.
ASSUMED_DEVIATION = 0.5

OUTCOMES: dict[Verdict, str] = {
    "true": "holds",
    "false": "**does not hold**",
    "inconclusive": "within the margin",
    "untested": "not run",
}


@dataclass(frozen=True)
class Comparison:
    """One comparison of a claim: two networks on one data set.

    Attributes:
        data: the data set; "" if the comparison does not depend on one.
        text: the two networks and their figures.
        verdict: "untested" if one of the networks was not run. Exact counts are "true" or "false".
        difference: the difference of accuracies; None for exact counts.
        by_chance: whether the comparison is "false", but not once the level is shared among all of the claim's
            comparisons.
    """

    data: str
    text: str
    verdict: Verdict
    difference: Difference | None = None
    by_chance: bool = False

    @property
    def outcome(self) -> str:
        """The verdict in words."""
        return "does not hold, but may be chance among many comparisons" if self.by_chance else OUTCOMES[self.verdict]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, our rule for it, and our comparisons.

    Attributes:
        section: the paper's section.
        text: the claim.
        rule: how it is judged.
        comparisons: the comparisons on all data sets.
        mean: by data set, the mean difference over all comparisons that were run, if the claim is about a kind of
            network. Empty if every comparison must hold.
    """

    section: str
    text: str
    rule: str
    comparisons: tuple[Comparison, ...]
    mean: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The verdict over all data sets; `decided_on` says which ones decided it."""
        return verdict_over_data_sets([self.verdict_on(data) for data in self.data_sets()])

    def verdict_on(self, data: str) -> Verdict:
        """The verdict on one data set."""
        comparisons = [each for each in self.comparisons if each.data == data]
        refuted = any(each.verdict == "false" and not each.by_chance for each in comparisons)
        verdicts = [each.verdict for each in comparisons]
        return verdict_on_comparisons(verdicts, refuted=refuted, mean=self.mean.get(data))

    def data_sets(self) -> list[str]:
        """The data sets of its comparisons."""
        return list(dict.fromkeys(each.data for each in self.comparisons))

    def decided_on(self) -> list[str]:
        """The data sets with the same verdict as the whole claim."""
        return [data for data in self.data_sets() if self.verdict_on(data) == self.verdict]

    def summary(self) -> str:
        """Our figures in one line."""
        return "; ".join(
            f"{DATA_NAMES[data]}: {self._figures(data)}" if data else self._figures(data) for data in self.data_sets()
        )

    def _figures(self, data: str) -> str:
        all_pairs = [each for each in self.comparisons if each.data == data]
        run = [each for each in all_pairs if each.verdict != "untested"]
        if not run:
            return "not run"
        notes = [f"{len(run)} of {len(all_pairs)} run"] if len(run) < len(all_pairs) else []
        differences = [each.difference for each in run if each.difference is not None]
        if len(all_pairs) == 1:
            return run[0].text.rpartition(": ")[2]
        if data in self.mean:
            figures, against = f"{self.mean[data]}", sum(each.verdict == "false" for each in run)
            notes += [f"{against} of them {'does' if against == 1 else 'do'} not hold"] if against else []
        elif differences:
            figures = f"{min(differences, key=lambda each: each.points)} against the best of the others"
        else:
            figures = f"{sum(each.verdict == 'true' for each in run)} of {len(run)} comparisons hold"
        return f"{figures} ({', '.join(notes)})" if notes else figures


class Judge:
    """Compares rows, with margins from the standard deviation over seeds.

    Args:
        all_rows: rows in the order of `rows.rows`: the first row of a configuration counts.
    """

    def __init__(self, all_rows: Sequence[Row]) -> None:
        self._rows = {(row.data, row.configuration): row for row in reversed(all_rows)}  # the first one wins
        self._measured = {
            data: pooled_deviation(row.accuracies for row in self._rows.values() if row.data == data)
            for data in PAPER_DATA_SETS
        }

    def row(self, data: str, configuration: Configuration) -> Row | None:
        """The row of a configuration that counts."""
        return self._rows.get((data, configuration))

    def deviation(self, data: str) -> Deviation:
        """Standard deviation over seeds, pooled over the rows that count and have two or more seeds.

        If the data set has no such row, that of the other data set; if there is none at all, `ASSUMED_DEVIATION`.
        """
        source = self.deviation_source(data)
        measured = self._measured[source] if source else None
        return measured or Deviation(ASSUMED_DEVIATION, None)

    def deviation_source(self, data: str) -> str | None:
        """The data set on which `deviation` was measured; None if it is assumed."""
        return next((each for each in (data, *PAPER_DATA_SETS) if self._measured[each]), None)

    def difference(self, pairs: Sequence[tuple[Row, Row]], tests: int = 1) -> Difference:
        """The mean difference in accuracy, first minus second, over pairs of rows of one data set.

        It is a sum of independent means, one per row, each with a coefficient. A row that is in several pairs has the
        sum of its coefficients there: 0 in the middle of a chain of deltas. `tests` is as for `Deviation.quantile`.
        """
        coefficients: defaultdict[Configuration, float] = defaultdict(float)
        sizes: dict[Configuration, int] = {}
        for pair in pairs:
            for row, sign in zip(pair, (1, -1), strict=True):
                coefficients[row.configuration] += sign / len(pairs)
                sizes[row.configuration] = row.n
        terms = [(coefficient, sizes[each]) for each, coefficient in coefficients.items()]
        points = mean(one.accuracy - other.accuracy for one, other in pairs)
        return Difference(points, self.deviation(pairs[0][0].data).margin(terms, tests))

    def compare(self, data: str, pair: Pair, least: float, tests: int) -> Comparison:
        """Whether the first configuration is more accurate than the second by more than `least` points.

        `least` may be negative. `tests` is the number of comparisons of the claim.
        """
        one, other = self.row(data, pair[0]), self.row(data, pair[1])
        text = f"{DATA_NAMES[data]}, {network_name(pair[0])} against {network_name(pair[1])}"
        if one is None or other is None:
            return Comparison(data, text, "untested")
        difference = self.difference([(one, other)])
        verdict = difference.verdict(least)
        by_chance = verdict == "false" and self.difference([(one, other)], tests).verdict(least) != "false"
        figures = f"{one.accuracy:.1f} and {other.accuracy:.1f}, {difference}"
        claimed = f", claimed at least {least:+g}" if least else ""
        return Comparison(data, f"{text}: {figures}{claimed}{_unequal(one, other)}", verdict, difference, by_chance)

    def claim(
        self,
        section: str,
        text: str,
        rule: str,
        pairs: Mapping[str, Sequence[Pair]],
        *,
        least: float = 0.0,
        about_kind: bool = False,
        tests: Mapping[str, int] | None = None,
    ) -> Claim:
        """Judge a claim that some networks are more accurate than others.

        Args:
            section: the paper's section.
            text: the claim.
            rule: how it is judged, in words.
            pairs: by data set, the pairs of which the first is claimed to be more accurate.
            least: the claimed difference in points.
            about_kind: whether the claim is about a kind of network, so that the mean of the differences decides.
            tests: by data set, the number of comparisons from which `pairs` were selected by their results, if so.
        """
        comparisons: list[Comparison] = []
        means = {}
        for data, claimed in pairs.items():
            run = [
                (one, other)
                for better, worse in claimed
                if (one := self.row(data, better)) is not None and (other := self.row(data, worse)) is not None
            ]
            count = len(run) if tests is None else tests[data]
            comparisons += [self.compare(data, pair, least, count) for pair in claimed]
            if about_kind and run:
                means[data] = self.difference(run)
        return Claim(section, text, rule, tuple(comparisons), means)


def _unequal(one: Row, other: Row) -> str:
    """A note on what else differs between two rows, besides the network."""
    epochs, revisions = (one.recipe.epochs, other.recipe.epochs), (one.training, other.training)
    found = [f"{epochs[0]} against {epochs[1]} epochs"] if epochs[0] != epochs[1] else []
    found += [f"revision {revisions[0]} against {revisions[1]}"] if revisions[0] != revisions[1] else []
    return f" ({', '.join(found)})" if found else ""
