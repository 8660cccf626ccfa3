"""What the paper's sections III and IV claim, each judged by our records with a rule that stands beside the verdict.

Accuracies are in percent, of one pass over fixed regions, the mean over seeds. `Claim.verdict` has the rule.

Source: Chen and Su, "The Enhanced Hybrid MobileNet", 2018 (arXiv 1712.04698). Standard library only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import cos, pi, sin, sqrt, tan
from statistics import NormalDist, mean, stdev
from typing import Literal

from ..network.architecture import CONVOLUTIONS, Family, resolve
from ..network.cost import mult_adds_ratio, network_mult_adds, network_parameters
from ..training.recipe import Recipe, paper_recipe
from .grid import BASELINE, CONFIGURATIONS, DATA_SETS, PAPER_DATA_SETS
from .records import Record

Configuration = tuple[Family, int, float]
Pair = tuple[Configuration, Configuration]
Verdict = Literal["true", "false", "inconclusive", "untested"]

#: The chance, in each direction, that a difference exceeds its margin where there is none.
LEVEL = 0.025
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
    """All runs of one configuration on one data set with one recipe, by one revision of the training code.

    `accuracies` and `averaged` are in percent, per seed: of one pass, and of the mean of several (empty without).
    `records` are in the order of their seeds.
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
    def training(self) -> int:
        """Revision of the training code: see `records.Record`."""
        return self.records[0].training

    @property
    def accuracy(self) -> float:
        scores = [record.test[1] for record in self.records]  # whole counts: 767 of 1000 is 76.7 %, not a bit less
        return 100 * sum(score.correct for score in scores) / sum(score.images for score in scores)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds, None for a single run."""
        return stdev(self.accuracies) if self.n > 1 else None


def student_t(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution.

    Args:
        probability: from 0.5 to below 1: that t is below the quantile.
        freedom: degrees of freedom, 1 or more.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4, inverted by bisection.
    """
    odd = freedom % 2

    def within(angle: float) -> float:
        """The probability that the absolute value of t is at most sqrt(freedom) * tan(angle)."""
        total, term = 0.0, cos(angle) if odd else 1.0
        for factor in range(1 + odd, freedom, 2):
            total += term
            term *= cos(angle) ** 2 * factor / (factor + 1)
        return (angle + sin(angle) * total) * 2 / pi if odd else sin(angle) * total

    low, high = 0.0, pi / 2
    for _ in range(60):  # to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 2 * probability - 1 else (low, middle)
    return sqrt(freedom) * tan(low)


@dataclass(frozen=True)
class Scatter:
    """How much the accuracy of a network scatters over seeds on a data set.

    Attributes:
        deviation: standard deviation in points.
        freedom: its degrees of freedom, over the rows with two or more runs: runs less rows. None where it is assumed.
        source: the data set whose rows gave it, "" where it is assumed.
    """

    deviation: float
    freedom: int | None
    source: str

    def factor(self, tests: int = 1) -> float:
        """How many standard errors a margin has, where any one of so many may be exceeded.

        A deviation that is assumed is taken as known.
        """
        probability = 1 - LEVEL / tests
        return NormalDist().inv_cdf(probability) if self.freedom is None else student_t(probability, self.freedom)


@dataclass(frozen=True)
class Difference:
    """A difference of accuracies, or a mean of differences, and the margin within which it may be chance, in points."""

    points: float
    margin: float

    def verdict(self, least: float) -> Verdict:
        """Whether it is more than `least`: inconclusive where the two are no further apart than the margin."""
        if abs(self.points - least) <= self.margin:
            return "inconclusive"
        return "true" if self.points > least else "false"

    def __str__(self) -> str:
        return f"{self.points:+.1f} \N{PLUS-MINUS SIGN} {self.margin:.1f}"


@dataclass(frozen=True)
class Comparison:
    """A part of a claim: two networks compared on one data set.

    Attributes:
        data: "" where what is compared depends on no data set.
        text: the figures, for a person.
        verdict: "untested" where one of them was not run. What is counted exactly is true or false.
        difference: where accuracies are compared.
        by_chance: where it is "false", but by no more than one of the claim's comparisons may well be by chance.
    """

    data: str
    text: str
    verdict: Verdict
    difference: Difference | None = None
    by_chance: bool = False

    @property
    def outcome(self) -> str:
        """In words."""
        return "does not hold, which one of several may by chance" if self.by_chance else OUTCOMES[self.verdict]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, our rule for it, and what our numbers say.

    Attributes:
        mean: by data set, the mean over all comparisons that were run, where the claim is about a kind of network;
            empty where every single comparison has to hold.
    """

    section: str
    text: str
    rule: str
    comparisons: tuple[Comparison, ...]
    mean: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """False where it is false on one data set, else true where it is true on one, else inconclusive or untested.

        A data set that decides nothing speaks neither for a claim nor against it, just as one that was not run;
        `decided_on` says which ones did.
        """
        found = [self.verdict_on(data) for data in self.data_sets()]
        ordered: tuple[Verdict, ...] = ("false", "true", "inconclusive", "untested")
        return next(verdict for verdict in ordered if verdict in found)

    def verdict_on(self, data: str) -> Verdict:
        """The verdict on one data set.

        One comparison that does not hold, by more than chance may give among so many, makes the claim false. Else,
        where every comparison has to hold, it is true if all do. Where a kind of network is claimed to be more accurate
        than another, and at least half of the comparisons were run, the mean of the differences decides: false below
        minus its margin; true above its margin, if there is no comparison that does not hold. What remains is
        inconclusive, or untested where too little was run.
        """
        comparisons = [each for each in self.comparisons if each.data == data]
        verdicts = [each.verdict for each in comparisons]
        untested = verdicts.count("untested")
        if any(each.verdict == "false" and not each.by_chance for each in comparisons):
            return "false"
        if untested > (len(verdicts) / 2 if self.mean else 0) or untested == len(verdicts):
            return "untested"
        if data not in self.mean:
            return "true" if set(verdicts) == {"true"} else "inconclusive"
        of_mean = self.mean[data].verdict(0)
        return "inconclusive" if of_mean == "true" and "false" in verdicts else of_mean

    def data_sets(self) -> list[str]:
        """The data sets of its comparisons."""
        return list(dict.fromkeys(each.data for each in self.comparisons))

    def decided_on(self) -> list[str]:
        """The data sets on which its verdict was found."""
        return [data for data in self.data_sets() if self.verdict_on(data) == self.verdict]

    def summary(self) -> str:
        """Our numbers on one line."""
        return "; ".join(
            f"{DATA_NAMES[data]}: {self._figures(data)}" if data else self._figures(data) for data in self.data_sets()
        )

    def _figures(self, data: str) -> str:
        of_data = [each for each in self.comparisons if each.data == data]
        run = [each for each in of_data if each.verdict != "untested"]
        if not run:
            return "not run"
        notes = [f"{len(run)} of {len(of_data)} run"] if len(run) < len(of_data) else []
        differences = [each.difference for each in run if each.difference is not None]
        if len(of_data) == 1:
            return run[0].text.rpartition(": ")[2]
        if data in self.mean:
            figures, against = f"{self.mean[data]}", sum(each.verdict == "false" for each in run)
            notes += [f"{against} of them {'does' if against == 1 else 'do'} not hold"] if against else []
        elif differences:
            figures = f"{min(differences, key=lambda each: each.points)} against the best of the others"
        else:
            figures = f"{sum(each.verdict == 'true' for each in run)} of {len(run)} comparisons hold"
        return f"{figures} ({', '.join(notes)})" if notes else figures


def rows(records: Iterable[Record]) -> list[Row]:
    """Records grouped: one row per data set, configuration, recipe and revision of the code, in the paper's order.

    Of several rows of one configuration, that of `paper_recipe` comes first; then the newest revision of the training
    code; then most epochs, then most seeds.
    """

    def place(record: Record) -> tuple[int, int, str, int]:
        configuration = (record.family, record.delta, record.alpha)
        return (
            [*DATA_SETS].index(record.data),
            CONFIGURATIONS.index(configuration),
            record.fingerprint,
            record.training,
        )

    ordered = sorted(records, key=lambda record: (*place(record), record.seed))
    grouped = [tuple(each) for _, each in groupby(ordered, place)]
    found = [
        Row(each[0].data, (each[0].family, each[0].delta, each[0].alpha), each[0].recipe, each) for each in grouped
    ]
    return sorted(
        found,
        key=lambda row: (
            *place(row.records[0])[:2],
            row.recipe != paper_recipe(row.configuration[0], row.data),
            -row.training,
            -row.recipe.epochs,
            -row.n,
        ),
    )


class Judge:
    """Compares rows, and knows how much seeds scatter."""

    def __init__(self, all_rows: Sequence[Row]) -> None:
        self._rows = {(row.data, row.configuration): row for row in reversed(all_rows)}  # the first of each wins
        self._measured = {data: _pooled(data, self._rows.values()) for data in PAPER_DATA_SETS}

    def row(self, data: str, configuration: Configuration) -> Row | None:
        """The row that is judged, of those of this configuration."""
        return self._rows.get((data, configuration))

    def scatter(self, data: str) -> Scatter:
        """Of an accuracy over seeds, pooled over the rows of the data set that are judged and have two or more seeds.

        Without such a row it is that of the other data set; without any, `ASSUMED_DEVIATION`.
        """
        measured = [self._measured[data], *self._measured.values()]
        return next((each for each in measured if each is not None), Scatter(ASSUMED_DEVIATION, None, ""))

    def difference(self, pairs: Sequence[tuple[Row, Row]], tests: int = 1) -> Difference:
        """The mean over pairs of rows of one data set of the first's accuracy less the second's.

        It is a sum of the rows' means, each with a coefficient, and these are independent: its variance is the sum of
        coefficient ** 2 * s ** 2 / n. A row that stands in several pairs has the sum of its coefficients there, which
        is 0 for the middle one of a chain. `tests` is for `Scatter.factor`.
        """
        coefficients: defaultdict[Configuration, float] = defaultdict(float)
        sizes: dict[Configuration, int] = {}
        for pair in pairs:
            for row, sign in zip(pair, (1, -1), strict=True):
                coefficients[row.configuration] += sign / len(pairs)
                sizes[row.configuration] = row.n
        variance = sum(coefficient**2 / sizes[each] for each, coefficient in coefficients.items())
        scatter = self.scatter(pairs[0][0].data)
        points = mean(one.accuracy - other.accuracy for one, other in pairs)
        return Difference(points, scatter.factor(tests) * scatter.deviation * sqrt(variance))

    def compare(self, data: str, pair: Pair, least: float, tests: int) -> Comparison:
        """Whether the first of two configurations is more accurate than the second by more than `least` points.

        `least` may be negative. `tests` says of how many comparisons this is one.
        """
        one, other = self.row(data, pair[0]), self.row(data, pair[1])
        text = f"{DATA_NAMES[data]}, {network_name(pair[0])} against {network_name(pair[1])}"
        if one is None or other is None:
            return Comparison(data, text, "untested")
        difference = self.difference([(one, other)])
        verdict = difference.verdict(least)
        # Of many equal pairs one is far apart by chance: to refute, the level is shared among them (Bonferroni).
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
        of_kind: bool = False,
        tests: Mapping[str, int] | None = None,
    ) -> Claim:
        """A claim that one network is more accurate than another, judged.

        Args:
            section: where the paper has it.
            text: what it says.
            rule: how it is judged, in words.
            pairs: by data set, which configuration is claimed to be more accurate than which.
            least: by more than so many points.
            of_kind: whether it is about a kind of network, so that the mean of the differences decides.
            tests: by data set, from how many comparisons those in `pairs` were chosen by their result, if they were.
        """
        comparisons: list[Comparison] = []
        means = {}
        for data, of_data in pairs.items():
            run = [
                (one, other)
                for better, than in of_data
                if (one := self.row(data, better)) is not None and (other := self.row(data, than)) is not None
            ]
            among = len(run) if tests is None else tests[data]
            comparisons += [self.compare(data, pair, least, among) for pair in of_data]
            if of_kind and run:
                means[data] = self.difference(run)
        return Claim(section, text, rule, tuple(comparisons), means)


OUTCOMES: dict[Verdict, str] = {
    "true": "holds",
    "false": "**does not hold**",
    "inconclusive": "within the margin",
    "untested": "not run",
}
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
    on_average = "More accurate in the mean by more than its margin, and no pair that does not hold."
    block = mult_adds_ratio(3, 64, 128, (32, 32), alpha=0.5, delta=2)
    return [
        Claim(
            "III.A",
            "With delta 2 and alpha 0.5, a depthwise-separable block has 0.53 of its parameters and cost.",
            "Equations 1 to 4 for M = 64, N = 128, as in the paper's example; the same to two decimals.",
            (Comparison("", f"{block:.4f} of both", _counted(f"{block:.2f}" == "0.53")),),
        ),
        Claim(
            "IV.A",
            "With delta 2 and alpha 0.5, parameters and cost of the whole network are reduced by half.",
            "At most 0.55 of the baseline's, counted exactly.",
            tuple(_cheaper(data, half, BASELINE, 0.55) for data in PAPER_DATA_SETS),
        ),
        judge.claim(
            "IV.A",
            "With delta 2 and alpha 0.5, the accuracy is similar to the baseline's.",
            f"At most {SIMILAR:g} points below: the paper's own examples are 1.8 and 0.9 below. The difference is "
            "further than the margin from that.",
            _on_both([(half, BASELINE)]),
            least=-SIMILAR,
        ),
        judge.claim(
            "III.A, IV.A",
            "Accuracy grows with delta, which extracts more than one feature from a channel.",
            f"The larger delta, at the same family and alpha. {on_average}",
            _on_both(_pairs_of_deltas()),
            of_kind=True,
        ),
        judge.claim(
            "III.B, IV.B",
            "Max pooling in place of strides raises the accuracy, since it keeps more features.",
            f"MP3 against MobileNet at the same delta and alpha. {on_average}",
            _on_both(_same_but_family("mp3")),
            of_kind=True,
        ),
        Claim(
            "IV.B",
            "Max pooling in place of strides adds few Mult-Adds.",
            f"At most {FEW:.0%} more, counted exactly.",
            tuple(_dearer(*pair, most=FEW) for pair in _same_but_family("mp3")),
        ),
        judge.claim(
            "IV.B",
            "MP3 with delta 2 and alpha 0.5 is more accurate than the baseline.",
            margin,
            _on_both([(mp3, BASELINE)]),
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
        judge.claim(
            "IV.C",
            "Fractional max pooling in place of strides raises the accuracy.",
            f"FMP against MobileNet at the same delta and alpha. {on_average}",
            _on_both(_same_but_family("fmp")),
            of_kind=True,
        ),
        Claim(
            "IV.C",
            "Fractional max pooling in place of strides costs a huge amount of computation.",
            f"At least {HUGE:g} times the Mult-Adds, counted exactly.",
            tuple(_dearer(*pair, least=HUGE - 1) for pair in _same_but_family("fmp")),
        ),
        judge.claim(
            "IV.C",
            "FMP with delta 2 and alpha 0.25 is much more accurate than the baseline.",
            f"At least {MUCH:g} points: the paper's own examples are 5.4 and 11.7 above. The difference is further "
            "than the margin from that.",
            _on_both([(fmp, BASELINE)]),
            least=MUCH,
        ),
        Claim(
            "IV.C",
            "FMP with delta 2 and alpha 0.25 has less cost and fewer parameters than the baseline.",
            "Less than the baseline's, counted exactly.",
            tuple(_cheaper(data, fmp, BASELINE, 1) for data in PAPER_DATA_SETS),
        ),
        judge.claim(
            "IV.D",
            "Of Table 7's four networks FMP is the most accurate.",
            f"FMP above each of the others. {margin}",
            _on_both([(fmp, other) for other in (mp3, BASELINE, half)]),
        ),
        judge.claim(
            "IV.D",
            "Of Table 7's other three networks MP3 is the most accurate.",
            f"MP3 above the baseline, and above MobileNet with delta 2 and alpha 0.5. {margin}",
            _on_both([(mp3, other) for other in (BASELINE, half)]),
        ),
        judge.claim(
            "III.B, III.C",
            "Pooling is more accurate than strides at equal cost (unsaid, but what the tables are to show).",
            f"Each pooled network against the most accurate strided one that costs at most a third more, where one "
            f"costs at least half as much. {on_average} (To choose the most accurate by its result leans a little "
            "against the claim.)",
            {data: _at_equal_cost(judge, data) for data in PAPER_DATA_SETS},
            of_kind=True,
            tests={data: _candidates(judge, data) for data in PAPER_DATA_SETS},
        ),
    ]


def _on_both(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    chosen = list(pairs)
    return {data: list(chosen) for data in PAPER_DATA_SETS}


def _counted(holds: bool) -> Verdict:
    return "true" if holds else "false"


def _pairs_of_deltas() -> Iterator[Pair]:
    """The larger delta and the smaller one."""
    for family, delta, alpha in CONFIGURATIONS:
        if (family, 2 * delta, alpha) in CONFIGURATIONS:
            yield (family, 2 * delta, alpha), (family, delta, alpha)


def _same_but_family(family: Family, other: Family = "mobilenet") -> Iterator[Pair]:
    for each, delta, alpha in CONFIGURATIONS:
        if each == family:
            yield (family, delta, alpha), (other, delta, alpha)


def _near(pooled: Configuration) -> list[Configuration]:
    """The strided configurations that cost about as much."""
    cost = _mult_adds(pooled)
    return [each for each in STRIDED if cost / 2 <= _mult_adds(each) <= cost * (1 + NEAR)]


def _at_equal_cost(judge: Judge, data: str) -> list[Pair]:
    """Each pooled configuration with the strided one that it has to beat."""
    found = []
    for pooled in CONFIGURATIONS:
        near = _near(pooled)
        if pooled not in STRIDED and near:
            # One that was not run could be the most accurate: then nothing can be said.
            candidates = [judge.row(data, each) for each in near]
            accuracy = {each: row.accuracy if row else float("inf") for each, row in zip(near, candidates, strict=True)}
            found.append((pooled, max(near, key=accuracy.__getitem__)))
    return found


def _candidates(judge: Judge, data: str) -> int:
    """Among how many pairs `_at_equal_cost` chose those that were run."""
    run = [pooled for pooled, strided in _at_equal_cost(judge, data) if judge.row(data, strided)]
    return sum(len(_near(pooled)) for pooled in run if judge.row(data, pooled))


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
        _counted(mult_adds[0] < most * mult_adds[1] and parameters[0] < most * parameters[1]),
    )


def _dearer(one: Configuration, other: Configuration, *, least: float = 0.0, most: float = float("inf")) -> Comparison:
    more = _mult_adds(one) / _mult_adds(other) - 1
    figure = f"{more:+.1%}" if most < 1 else f"{more + 1:.1f} times"
    text = f"{network_name(one)} against {network_name(other)}: {figure} Mult-Adds"
    return Comparison("", text, _counted(least <= more <= most))


def _more_values(one: Configuration, other: Configuration) -> Comparison:
    def values(configuration: Configuration) -> int:
        layers = [each for each in resolve(*_ordered(configuration)).layers if each.kind in CONVOLUTIONS]
        return sum(each.out_channels * each.out_size[0] * each.out_size[1] for each in layers)

    ours, theirs = values(one), values(other)
    return Comparison("", f"{network_name(one)} {ours:,}, {network_name(other)} {theirs:,}", _counted(ours > theirs))


def _unequal(one: Row, other: Row) -> str:
    """What besides the network differs between two rows, for a person."""
    epochs, revisions = (one.recipe.epochs, other.recipe.epochs), (one.training, other.training)
    found = [f"{epochs[0]} against {epochs[1]} epochs"] if epochs[0] != epochs[1] else []
    found += [f"revision {revisions[0]} against {revisions[1]}"] if revisions[0] != revisions[1] else []
    return f" ({', '.join(found)})" if found else ""


def _pooled(data: str, some: Iterable[Row]) -> Scatter | None:
    """The standard deviation within rows, pooled over those with two or more runs.

    None where there are none, or where no accuracy differs from another: then it is too small to be believed.
    """
    repeated = [(row.n - 1, row.deviation**2) for row in some if row.data == data and row.deviation is not None]
    freedom = sum(weight for weight, _ in repeated)
    squares = sum(weight * variance for weight, variance in repeated)
    return Scatter(sqrt(squares / freedom), freedom, data) if squares else None
