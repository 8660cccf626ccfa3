"""What the paper's sections III and IV claim, and our rule for each claim.

Source: Chen and Su, "The Enhanced Hybrid MobileNet", 2018 (arXiv 1712.04698). Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..network.architecture import CONVOLUTIONS, Family, resolve
from ..network.cost import mult_adds_ratio, network_mult_adds, network_parameters
from .grid import BASELINE, CONFIGURATIONS, DATA_SETS, PAPER_DATA_SETS
from .judge import Claim, Comparison, Judge, Pair
from .rows import DATA_NAMES, Configuration, network_name
from .statistics import Verdict

#: "Similar" accuracy, in points: the paper's own example is 1.8 below its baseline.
SIMILAR = 2.0
#: "Much higher" accuracy, in points: the paper's own example is 5.4 above its baseline.
MUCH = 5.0
#: "Few" more Mult-Adds: at most this fraction. The paper's own examples are 0.5 to 3.7 %.
FEW = 0.15
#: "Huge" amount of Mult-Adds: at least this factor. The paper's own examples are 6 times.
HUGE = 4.0
#: "Equal" cost: a strided network may cost up to this fraction more than the pooled one.
NEAR = 1 / 3

STRIDED = tuple(each for each in CONFIGURATIONS if each[0] == "mobilenet")


def claims(judge: Judge) -> list[Claim]:
    """The paper's claims, in its order, judged."""
    half: Configuration = ("mobilenet", 2, 0.5)
    mp3: Configuration = ("mp3", 2, 0.5)
    fmp: Configuration = ("fmp", 2, 0.25)
    margin = "More accurate by more than the margin."
    on_average = "More accurate on average by more than the margin, and no pair may fail."
    block = mult_adds_ratio(3, 64, 128, (32, 32), alpha=0.5, delta=2)
    return [
        Claim(
            "III.A",
            "With delta 2 and alpha 0.5, a depthwise-separable block has 0.53 of its parameters and cost.",
            "Equations 1 to 4 for M = 64, N = 128, the paper's example: the same to two decimals.",
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
            f"At most {SIMILAR:g} points below, by more than the margin. The paper's own examples are 1.8 and 0.9 "
            "points below.",
            _on_both([(half, BASELINE)]),
            least=-SIMILAR,
        ),
        judge.claim(
            "III.A, IV.A",
            "Accuracy grows with delta, which extracts more than one feature from a channel.",
            f"The larger delta against the smaller, at the same family and alpha. {on_average}",
            _on_both(_pairs_of_deltas()),
            about_kind=True,
        ),
        judge.claim(
            "III.B, IV.B",
            "Max pooling in place of strides raises the accuracy, since it keeps more features.",
            f"MP3 against MobileNet at the same delta and alpha. {on_average}",
            _on_both(_same_but_family("mp3")),
            about_kind=True,
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
            "More values of feature maps (outputs of convolutions for one image) than MP3 at the same delta and alpha, "
            "counted exactly. The number of channels is the same, but the maps stay large for longer.",
            tuple(_more_values(one, other) for one, other in _same_but_family("fmp", "mp3")),
        ),
        judge.claim(
            "IV.C",
            "Fractional max pooling in place of strides raises the accuracy.",
            f"FMP against MobileNet at the same delta and alpha. {on_average}",
            _on_both(_same_but_family("fmp")),
            about_kind=True,
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
            f"At least {MUCH:g} points above, by more than the margin. The paper's own examples are 5.4 and 11.7 "
            "points above.",
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
            "FMP is the most accurate of Table 7's four networks.",
            f"FMP above each of the others. {margin}",
            _on_both([(fmp, other) for other in (mp3, BASELINE, half)]),
        ),
        judge.claim(
            "IV.D",
            "MP3 is the most accurate of Table 7's other three networks.",
            f"MP3 above the baseline, and above MobileNet with delta 2 and alpha 0.5. {margin}",
            _on_both([(mp3, other) for other in (BASELINE, half)]),
        ),
        judge.claim(
            "III.B, III.C",
            "Pooling is more accurate than strides at equal cost (implied by the tables).",
            "Each pooled network against the most accurate strided network that costs at most a third more and at "
            f"least half as much. {on_average} Selecting the most accurate by its result biases this slightly against "
            "the claim.",
            {data: _at_equal_cost(judge, data) for data in PAPER_DATA_SETS},
            about_kind=True,
            tests={data: _candidates(judge, data) for data in PAPER_DATA_SETS},
        ),
    ]


def _on_both(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    chosen = list(pairs)
    return {data: list(chosen) for data in PAPER_DATA_SETS}


def _counted(holds: bool) -> Verdict:
    return "true" if holds else "false"


def _pairs_of_deltas() -> Iterator[Pair]:
    """Pairs of the larger and the smaller delta."""
    for family, delta, alpha in CONFIGURATIONS:
        if (family, 2 * delta, alpha) in CONFIGURATIONS:
            yield (family, 2 * delta, alpha), (family, delta, alpha)


def _same_but_family(family: Family, other: Family = "mobilenet") -> Iterator[Pair]:
    """Pairs of two families at the same delta and alpha."""
    for each, delta, alpha in CONFIGURATIONS:
        if each == family:
            yield (family, delta, alpha), (other, delta, alpha)


def _near(pooled: Configuration) -> list[Configuration]:
    """The strided configurations of about the same cost."""
    cost = _mult_adds(pooled)
    return [each for each in STRIDED if cost / 2 <= _mult_adds(each) <= cost * (1 + NEAR)]


def _at_equal_cost(judge: Judge, data: str) -> list[Pair]:
    """Pairs of a pooled configuration and the most accurate strided one of about the same cost."""
    found = []
    for pooled in CONFIGURATIONS:
        near = _near(pooled)
        if pooled not in STRIDED and near:
            # A network that was not run may be the most accurate: then the pair is untested.
            candidates = [judge.row(data, each) for each in near]
            accuracy = {each: row.accuracy if row else float("inf") for each, row in zip(near, candidates, strict=True)}
            found.append((pooled, max(near, key=accuracy.__getitem__)))
    return found


def _candidates(judge: Judge, data: str) -> int:
    """Number of comparisons from which `_at_equal_cost` selected the pairs that were run."""
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
