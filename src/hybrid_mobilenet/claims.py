"""What the paper's sections III and IV claim, each judged by our records with a rule that stands beside the verdict.

Accuracies are in percent, of one pass over fixed regions, the mean over seeds. `Claim.verdict` has the rule.

Source: Chen and Su, "The Enhanced Hybrid MobileNet", 2018 (arXiv 1712.04698). Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import sqrt
from statistics import mean, stdev
from typing import Literal

from .architecture import Family, resolve
from .cost import mult_adds_ratio, network_mult_adds, network_parameters
from .grid import BASELINE, CONFIGURATIONS, DATA_SETS, PAPER_DATA_SETS
from .recipe import Recipe, paper_recipe
from .records import Record

Configuration = tuple[Family, int, float]
Verdict = Literal["true", "false", "untested"]

#: Standard deviation over seeds, in points, where no network was trained twice: about what 10,000 test images give.
ASSUMED_DEVIATION = 0.5
#: "Similar" accuracy, in points: the paper's own example is 1.8 below its baseline.
SIMILAR = 2.0
#: "Much higher" accuracy, in points: the paper's own example is 5.4 above its baseline.
MUCH = 5.0
#: "Few" more Mult-Adds: at most so much of the whole. The paper's own examples are 0.5 to 3.7 %.
FEW = 0.15
#: "Huge" more Mult-Adds: at least so many times as many. The paper's own examples are 6 times.
HUGE = 4.0
#: At equal cost: a strided network may cost so much more than the pooled one that it is compared with.
NEAR = 1 / 3


@dataclass(frozen=True)
class Row:
    """All runs of one configuration on one data set with one recipe.

    `accuracies` and `averaged` are in percent, per seed: of one pass, and of the mean of several (empty without).
    """

    data: str
    configuration: Configuration
    recipe: Recipe
    records: tuple[Record, ...]

    @property
    def accuracies(self) -> list[float]:
        return [100 * record.test[1].correct / record.test[1].images for record in self.records]

    @property
    def averaged(self) -> list[float]:
        return [100 * record.test[max(record.test)].accuracy for record in self.records if max(record.test) > 1]

    @property
    def n(self) -> int:
        return len(self.records)

    @property
    def accuracy(self) -> float:
        scores = [record.test[1] for record in self.records]  # whole counts: 767 of 1000 is 76.7 %, not a bit less
        return 100 * sum(score.correct for score in scores) / sum(score.images for score in scores)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds, None for a single run."""
        return stdev(self.accuracies) if self.n > 1 else None


@dataclass(frozen=True)
class Comparison:
    """A part of a claim: two networks compared on one data set.

    Attributes:
        data: "" where what is compared depends on no data set.
        text: the figures, for a person.
        holds: None where one of them was not run.
        difference, margin: of two accuracies, in points, where the claim is that the first is larger; else None. It
            holds where the difference exceeds the margin, and speaks against the claim where it is below minus that.
    """

    data: str
    text: str
    holds: bool | None
    difference: float | None = None
    margin: float | None = None

    @property
    def outcome(self) -> str:
        """In words."""
        if self.holds is None:
            return "not run"
        if not self.holds and self.difference is not None and self.margin is not None:
            return AGAINST if self.difference < -self.margin else "within the margin"
        return "holds" if self.holds else AGAINST


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, our rule for it, and what our numbers say."""

    section: str
    text: str
    rule: str
    comparisons: tuple[Comparison, ...]

    @property
    def verdict(self) -> Verdict:
        """True where it holds on each data set on which at least half was run, false where not, else untested.

        It holds where each comparison does. Where one network is claimed to be more accurate than another, no
        comparison may speak against it, and the mean of the differences must exceed its own margin: a small difference
        between single runs says nothing.
        """
        verdicts = [verdict for data in self.data_sets() if (verdict := self._holds(data)) is not None]
        if not verdicts:
            return "untested"
        return "true" if all(verdicts) else "false"

    def data_sets(self) -> list[str]:
        """The data sets of its comparisons."""
        return list(dict.fromkeys(each.data for each in self.comparisons))

    def _holds(self, data: str) -> bool | None:
        of_data = [each for each in self.comparisons if each.data == data]
        run = [each for each in of_data if each.holds is not None]
        if 2 * len(run) < len(of_data):
            return None
        difference, margin = self.mean_difference(data)
        if difference is None or margin is None:
            return all(each.holds for each in run)
        return difference > margin and not any(each.outcome == AGAINST for each in run)

    def mean_difference(self, data: str) -> tuple[float | None, float | None]:
        """Mean of the differences in accuracy on a data set, and its margin; None where it is not of that kind."""
        pairs = [
            (each.difference, each.margin)
            for each in self.comparisons
            if each.data == data and each.difference is not None and each.margin is not None
        ]
        if not pairs:
            return None, None
        return mean(pair[0] for pair in pairs), sqrt(sum(pair[1] ** 2 for pair in pairs)) / len(pairs)

    def summary(self) -> str:
        """Our numbers on one line."""
        return "; ".join(
            f"{DATA_NAMES[data]}: {self._figures(data)}" if data else self._figures(data) for data in self.data_sets()
        )

    def _figures(self, data: str) -> str:
        of_data = [each for each in self.comparisons if each.data == data]
        run = [each for each in of_data if each.holds is not None]
        if not run:
            return "not run"
        difference, margin = self.mean_difference(data)
        if difference is not None and margin is not None:
            some = f" ({len(run)} of {len(of_data)} run)" if len(run) < len(of_data) else ""
            return f"{difference:+.1f} \N{PLUS-MINUS SIGN} {margin:.1f}{some}"
        if len(of_data) == 1:
            return run[0].text.rpartition(": ")[2]
        return f"{sum(bool(each.holds) for each in run)} of {len(run)} comparisons hold"


def rows(records: Iterable[Record]) -> list[Row]:
    """Records grouped: one row per data set, configuration and recipe, in the paper's order.

    Of one configuration with several recipes, that of `paper_recipe` comes first; then most epochs, then most seeds.
    """

    def place(record: Record) -> tuple[int, int, str]:
        configuration = (record.family, record.delta, record.alpha)
        return [*DATA_SETS].index(record.data), CONFIGURATIONS.index(configuration), record.fingerprint

    grouped = [tuple(each) for _, each in groupby(sorted(records, key=place), place)]
    found = [
        Row(each[0].data, (each[0].family, each[0].delta, each[0].alpha), each[0].recipe, each) for each in grouped
    ]
    return sorted(
        found,
        key=lambda row: (
            *place(row.records[0])[:2],
            row.recipe != paper_recipe(row.configuration[0], row.data),
            -row.recipe.epochs,
            -row.n,
        ),
    )


class Judge:
    """Compares rows, and knows how much seeds scatter."""

    def __init__(self, all_rows: Sequence[Row]) -> None:
        self._rows = {(row.data, row.configuration): row for row in reversed(all_rows)}  # the first of each wins
        self._deviations = {data: _pooled(row for row in all_rows if row.data == data) for data in PAPER_DATA_SETS}
        self._anywhere = _pooled(all_rows)

    def row(self, data: str, configuration: Configuration) -> Row | None:
        """The row that is judged, of those of this configuration."""
        return self._rows.get((data, configuration))

    def deviation(self, data: str) -> float:
        """Standard deviation of an accuracy over seeds, in points, pooled over all rows with two or more seeds.

        Those of the data set; without such, those of the other; without any, `ASSUMED_DEVIATION`.
        """
        return self._deviations[data] or self._anywhere or ASSUMED_DEVIATION

    def margin(self, one: Row, other: Row) -> float:
        """What a difference of means must exceed: twice its standard error."""
        return 2 * self.deviation(one.data) * sqrt(1 / one.n + 1 / other.n)

    def more_accurate(self, data: str, better: Configuration, than: Configuration) -> Comparison:
        """Whether one configuration beats another by more than the margin."""
        one, other = self.row(data, better), self.row(data, than)
        text = f"{DATA_NAMES[data]}, {network_name(better)} against {network_name(than)}"
        if one is None or other is None:
            return Comparison(data, text, None)
        difference, margin = one.accuracy - other.accuracy, self.margin(one, other)
        figures = f"{one.accuracy:.1f} and {other.accuracy:.1f}, {difference:+.1f}, margin {margin:.1f}"
        return Comparison(data, f"{text}: {figures}{_unequal(one, other)}", difference > margin, difference, margin)

    def at_least(self, points: float, data: str, one: Configuration, other: Configuration) -> Comparison:
        """Whether one configuration's accuracy is at least another's plus `points`, which may be negative."""
        ours, theirs = self.row(data, one), self.row(data, other)
        text = f"{DATA_NAMES[data]}, {network_name(one)} against {network_name(other)}"
        if ours is None or theirs is None:
            return Comparison(data, text, None)
        difference = ours.accuracy - theirs.accuracy
        figures = f"{ours.accuracy:.1f} and {theirs.accuracy:.1f}, {difference:+.1f}{_unequal(ours, theirs)}"
        return Comparison(data, f"{text}: {figures}", difference >= points)


AGAINST = "**does not hold**"
DATA_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "digits"}
FAMILY_NAMES: dict[Family, str] = {"mobilenet": "MobileNet", "mp3": "MP3", "fmp": "FMP"}
STRIDED = tuple(each for each in CONFIGURATIONS if each[0] == "mobilenet")


def network_name(configuration: Configuration) -> str:
    """For example "FMP d2 a0.25"."""
    family, delta, alpha = configuration
    return "the baseline" if configuration == BASELINE else f"{FAMILY_NAMES[family]} d{delta} a{alpha:g}"


def claims(judge: Judge) -> list[Claim]:
    """The paper's claims in its order, judged."""
    half: Configuration = ("mobilenet", 2, 0.5)
    mp3: Configuration = ("mp3", 2, 0.5)
    fmp: Configuration = ("fmp", 2, 0.25)
    margin = "More accurate by more than the margin."
    block = mult_adds_ratio(3, 64, 128, (32, 32), alpha=0.5, delta=2)
    return [
        Claim(
            "III.A",
            "With delta 2 and alpha 0.5, a depthwise-separable block has 0.53 of its parameters and cost.",
            "Equations 1 to 4 for M = 64, N = 128, as in the paper's example; the same to two decimals.",
            (Comparison("", f"{block:.4f} of both", f"{block:.2f}" == "0.53"),),
        ),
        Claim(
            "IV.A",
            "With delta 2 and alpha 0.5, parameters and cost of the whole network are reduced by half.",
            "At most 0.55 of the baseline's, counted exactly.",
            tuple(_cheaper(data, half, BASELINE, 0.55) for data in PAPER_DATA_SETS),
        ),
        Claim(
            "IV.A",
            "With delta 2 and alpha 0.5, the accuracy is similar to the baseline's.",
            f"At most {SIMILAR:g} points below: the paper's own examples are 1.8 and 0.9 below.",
            tuple(judge.at_least(-SIMILAR, data, half, BASELINE) for data in PAPER_DATA_SETS),
        ),
        Claim(
            "III.A, IV.A",
            "Accuracy grows with delta, which extracts more than one feature from a channel.",
            f"The larger delta, at the same family and alpha. {margin}",
            tuple(
                judge.more_accurate(data, larger, smaller)
                for data in PAPER_DATA_SETS
                for smaller, larger in _pairs_of_deltas()
            ),
        ),
        Claim(
            "III.B, IV.B",
            "Max pooling in place of strides raises the accuracy, since it keeps more features.",
            f"MP3 against MobileNet at the same delta and alpha. {margin}",
            tuple(judge.more_accurate(data, *pair) for data in PAPER_DATA_SETS for pair in _same_but_family("mp3")),
        ),
        Claim(
            "IV.B",
            "Max pooling in place of strides adds few Mult-Adds.",
            f"At most {FEW:.0%} more, counted exactly.",
            tuple(_dearer(*pair, most=FEW) for pair in _same_but_family("mp3")),
        ),
        Claim(
            "IV.B",
            "MP3 with delta 2 and alpha 0.5 is more accurate than the baseline.",
            margin,
            tuple(judge.more_accurate(data, mp3, BASELINE) for data in PAPER_DATA_SETS),
        ),
        Claim(
            "IV.B",
            "MP3 with delta 2 and alpha 0.5 has less cost and fewer parameters than the baseline.",
            "Less than the baseline's, counted exactly.",
            tuple(_cheaper(data, mp3, BASELINE, 1) for data in PAPER_DATA_SETS),
        ),
        Claim(
            "III.C",
            "Fractional max pooling keeps more feature maps than general pooling.",
            "Feature maps as values that convolutions compute for one image: more than with MP3 at the same delta and "
            "alpha, counted exactly. (The number of channels is the same: it keeps them large for longer.)",
            tuple(_more_values(one, other) for one, other in _same_but_family("fmp", "mp3")),
        ),
        Claim(
            "IV.C",
            "Fractional max pooling in place of strides raises the accuracy.",
            f"FMP against MobileNet at the same delta and alpha. {margin}",
            tuple(judge.more_accurate(data, *pair) for data in PAPER_DATA_SETS for pair in _same_but_family("fmp")),
        ),
        Claim(
            "IV.C",
            "Fractional max pooling in place of strides costs a huge amount of computation.",
            f"At least {HUGE:g} times the Mult-Adds, counted exactly.",
            tuple(_dearer(*pair, least=HUGE - 1) for pair in _same_but_family("fmp")),
        ),
        Claim(
            "IV.C",
            "FMP with delta 2 and alpha 0.25 is much more accurate than the baseline.",
            f"At least {MUCH:g} points: the paper's own examples are 5.4 and 11.7 above.",
            tuple(judge.at_least(MUCH, data, fmp, BASELINE) for data in PAPER_DATA_SETS),
        ),
        Claim(
            "IV.C",
            "FMP with delta 2 and alpha 0.25 has less cost and fewer parameters than the baseline.",
            "Less than the baseline's, counted exactly.",
            tuple(_cheaper(data, fmp, BASELINE, 1) for data in PAPER_DATA_SETS),
        ),
        Claim(
            "IV.D",
            "Of Table 7's four networks FMP is the most accurate.",
            f"FMP above each of the others. {margin}",
            tuple(judge.more_accurate(data, fmp, other) for data in PAPER_DATA_SETS for other in (mp3, BASELINE, half)),
        ),
        Claim(
            "IV.D",
            "Of Table 7's other three networks MP3 is the most accurate.",
            f"MP3 above the baseline, and above MobileNet with delta 2 and alpha 0.5. {margin}",
            tuple(judge.more_accurate(data, mp3, other) for data in PAPER_DATA_SETS for other in (BASELINE, half)),
        ),
        Claim(
            "III.B, III.C",
            "Pooling is more accurate than strides at equal cost (unsaid, but what the tables are to show).",
            f"Each pooled network against the most accurate strided one that costs at most a third more, where one "
            f"costs at least half as much. {margin}",
            tuple(
                judge.more_accurate(data, pooled, strided)
                for data in PAPER_DATA_SETS
                for pooled, strided in _at_equal_cost(judge, data)
            ),
        ),
    ]


def _pairs_of_deltas() -> Iterator[tuple[Configuration, Configuration]]:
    for family, delta, alpha in CONFIGURATIONS:
        if (family, 2 * delta, alpha) in CONFIGURATIONS:
            yield (family, delta, alpha), (family, 2 * delta, alpha)


def _same_but_family(family: Family, other: Family = "mobilenet") -> Iterator[tuple[Configuration, Configuration]]:
    for each, delta, alpha in CONFIGURATIONS:
        if each == family:
            yield (family, delta, alpha), (other, delta, alpha)


def _at_equal_cost(judge: Judge, data: str) -> Iterator[tuple[Configuration, Configuration]]:
    """Each pooled configuration with the strided one that it has to beat."""
    for pooled in CONFIGURATIONS:
        cost = _mult_adds(pooled)
        near = [each for each in STRIDED if cost / 2 <= _mult_adds(each) <= cost * (1 + NEAR)]
        if pooled not in STRIDED and near:
            # One that was not run could be the most accurate: then nothing can be said.
            found = [judge.row(data, each) for each in near]
            accuracy = {each: row.accuracy if row else float("inf") for each, row in zip(near, found, strict=True)}
            yield pooled, max(near, key=accuracy.__getitem__)


def _mult_adds(configuration: Configuration, data: str = "cifar10") -> int:
    return network_mult_adds(resolve(*_ordered(configuration), classes=DATA_SETS[data].classes))


def _ordered(configuration: Configuration) -> tuple[Family, float, int]:
    family, delta, alpha = configuration
    return family, alpha, delta


def _cheaper(data: str, one: Configuration, other: Configuration, most: float) -> Comparison:
    networks = [resolve(*_ordered(each), classes=DATA_SETS[data].classes) for each in (one, other)]
    mult_adds = [network_mult_adds(network) for network in networks]
    parameters = [network_parameters(network) for network in networks]
    return Comparison(
        data,
        f"{DATA_NAMES[data]}: {mult_adds[0] / mult_adds[1]:.3f} of the baseline's Mult-Adds, "
        f"{parameters[0] / parameters[1]:.3f} of its parameters",
        mult_adds[0] < most * mult_adds[1] and parameters[0] < most * parameters[1],
    )


def _dearer(one: Configuration, other: Configuration, *, least: float = 0.0, most: float = float("inf")) -> Comparison:
    more = _mult_adds(one) / _mult_adds(other) - 1
    figure = f"{more:+.1%}" if most < 1 else f"{more + 1:.1f} times"
    return Comparison(
        "", f"{network_name(one)} against {network_name(other)}: {figure} Mult-Adds", least <= more <= most
    )


def _more_values(one: Configuration, other: Configuration) -> Comparison:
    def values(configuration: Configuration) -> int:
        layers = resolve(*_ordered(configuration)).layers
        kinds = ("convolution", "depthwise", "pointwise")
        return sum(each.out_channels * each.out_size[0] * each.out_size[1] for each in layers if each.kind in kinds)

    ours, theirs = values(one), values(other)
    return Comparison("", f"{network_name(one)} {ours:,}, {network_name(other)} {theirs:,}", ours > theirs)


def _unequal(one: Row, other: Row) -> str:
    epochs = one.recipe.epochs, other.recipe.epochs
    return "" if epochs[0] == epochs[1] else f" ({epochs[0]} against {epochs[1]} epochs)"


def _pooled(some: Iterable[Row]) -> float | None:
    """The standard deviation within rows, pooled over those with two or more runs; None where there are none."""
    repeated = [(row.n - 1, row.deviation**2) for row in some if row.deviation is not None]
    freedom = sum(weight for weight, _ in repeated)
    return sqrt(sum(weight * variance for weight, variance in repeated) / freedom) if freedom else None
