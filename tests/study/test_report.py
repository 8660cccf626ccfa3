"""The report: the records and nothing else decide what it says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from PIL import Image
from scipy.stats import t
from typer.testing import CliRunner

from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.network.architecture import Family
from hybrid_mobilenet.network.cost import network_mult_adds, network_parameters
from hybrid_mobilenet.study.claims import (
    ASSUMED_DEVIATION,
    Claim,
    Comparison,
    Configuration,
    Difference,
    Judge,
    Row,
    Verdict,
    claims,
    rows,
    student_t,
)
from hybrid_mobilenet.study.grid import BASELINE, Run, select
from hybrid_mobilenet.study.paper import RESULTS, TABLE_7
from hybrid_mobilenet.study.records import Record, Score, read_record, read_records, record_path, write_record
from hybrid_mobilenet.study.report import REVISIONS, VERDICTS, render
from hybrid_mobilenet.training.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAPER = {(each.family, each.delta, each.alpha, each.classes): each.accuracy for each in RESULTS}


def record(run: Run, percent: float) -> Record:
    """A record as `reproduce` would write it, with a given accuracy."""
    score = Score(round(percent / 100, 4), round(100 * percent), 10_000, 1.0)
    test = (
        {1: score, 12: replace(score, accuracy=round(percent / 100 + 0.02, 4))} if run.family == "fmp" else {1: score}
    )
    return Record(
        data=run.data, family=run.family, delta=run.delta, alpha=run.alpha, seed=run.seed,
        fingerprint=run.fingerprint, recipe=run.recipe, mult_adds=network_mult_adds(run.network),
        parameters=network_parameters(run.network), images=50_000, test=test, images_per_second=600.0,
        seconds={"training": 3600.0, "evaluation": 0.0}, data_fingerprint="0" * 64,
        code={"version": "1.2.3", "commit": "abcdef"},
        environment={"torch": "2.13.0", "python": "3.11", "device": "cpu", "processor": "a processor"},
        epochs=({"epoch": 1, "accuracy": 0.9},),
    )  # fmt: skip


def as_the_paper(
    *,
    data: Collection[str] = (),
    families: Collection[Family] = (),
    tables: Collection[int] = (),
    seeds: int = 1,
    change: Callable[[Run], float] = lambda _: 0.0,
) -> list[Record]:
    """Records of all legible rows, with the paper's accuracy plus `change`."""
    runs = select(data=data, families=families, tables=tables, seeds=seeds)
    found = [(run, PAPER[run.family, run.delta, run.alpha, run.network.classes]) for run in runs]
    return [record(run, float(accuracy) + change(run)) for run, accuracy in found if accuracy is not None]


def judged(records: list[Record]) -> dict[str, Claim]:
    return {claim.text: claim for claim in claims(Judge(rows(records)))}


def the(claim: str, records: list[Record]) -> Claim:
    (found,) = (each for text, each in judged(records).items() if claim in text)
    return found


# Verdicts


def test_the_paper_s_own_figures_make_no_claim_false() -> None:
    verdicts = {text: claim.verdict for text, claim in judged(as_the_paper()).items()}
    assert {text: verdict for text, verdict in verdicts.items() if verdict != "true"} == {
        # 1.8 below, where 2 are allowed: within the margin of two single runs.
        "With delta 2 and alpha 0.5, the accuracy is similar to the baseline's.": "inconclusive",
    }


def test_the_paper_s_own_figures_bear_out_its_claims_however_small_the_margin() -> None:
    scatter = [-0.01, 0.0, 0.01]
    found = judged(as_the_paper(seeds=3, change=lambda run: scatter[run.seed]))
    assert {claim.verdict for claim in found.values()} == {"true"}


def test_without_runs_only_counting_is_judged() -> None:
    claims_of_accuracy = [claim for claim in judged([]).values() if claim.verdict == "untested"]
    assert len(claims_of_accuracy) == 9
    assert all("accura" in claim.text.lower() for claim in claims_of_accuracy)
    assert {claim.verdict for claim in judged([]).values()} == {"true", "untested"}


def test_a_claim_that_our_numbers_contradict_is_false() -> None:
    worse = as_the_paper(change=lambda run: -20 if run.family == "fmp" else 0)
    verdicts = {text: claim.verdict for text, claim in judged(worse).items()}
    assert verdicts["Fractional max pooling in place of strides raises the accuracy."] == "false"
    assert verdicts["Of Table 7's four networks FMP is the most accurate."] == "false"
    assert verdicts["Max pooling in place of strides raises the accuracy, since it keeps more features."] == "true"


@pytest.mark.parametrize(
    ("change", "verdict"), [(1.5, "true"), (-0.1, "inconclusive"), (-0.3, "inconclusive"), (-3, "false")]
)
def test_similar_is_two_points_and_a_margin(change: float, verdict: Verdict) -> None:
    records = as_the_paper(tables=[7], change=lambda run: change if run.alpha == 0.5 else 0)
    assert the("accuracy is similar to the baseline's", records).verdict == verdict  # the paper's is 1.8 below


@pytest.mark.parametrize(("change", "verdict"), [(1.0, "true"), (-0.5, "inconclusive"), (-2.0, "false")])
def test_much_is_five_points_and_a_margin(change: float, verdict: Verdict) -> None:
    records = as_the_paper(tables=[7], data=["cifar10"], change=lambda run: change if run.family == "fmp" else 0)
    assert the("much more accurate", records).verdict == verdict  # the paper's is 5.4 above


def test_one_comparison_against_a_claim_of_many_refutes_it() -> None:
    text = "Accuracy grows with delta"
    assert the(text, as_the_paper()).verdict == "true"
    against = as_the_paper(change=lambda run: -12 if (run.name.startswith("cifar10-mp3-d4-a1-")) else 0)
    claim = the(text, against)
    assert claim.verdict == "false"
    assert [each.text.partition(":")[0] for each in claim.comparisons if each.outcome == "**does not hold**"] == [
        "CIFAR-10, MP3 d4 a1 against MP3 d2 a1"
    ]


def test_a_small_comparison_against_a_claim_of_many_may_be_chance() -> None:
    # -1.6 beside +0.6 to +7.6: beyond a pair's own margin of 1.4, but not beyond that of one pair in ten, 2.0.
    against = as_the_paper(
        data=["cifar10"], change=lambda run: -2.6 if run.name.startswith("cifar10-mp3-d4-a1-") else 0
    )
    claim = the("Accuracy grows with delta", against)
    (pair,) = (each for each in claim.comparisons if each.verdict == "false")
    assert (pair.by_chance, pair.outcome) == (True, "does not hold, which one of several may by chance")
    assert claim.verdict == "inconclusive"
    assert claim.mean["cifar10"].points > claim.mean["cifar10"].margin
    assert claim.summary().endswith("(1 of them does not hold); CIFAR-100: not run")


def test_a_small_difference_of_single_runs_neither_holds_nor_refutes() -> None:
    claim = the("Accuracy grows with delta", as_the_paper(data=["cifar10"]))
    (small,) = (
        each for each in claim.comparisons if "FMP d4 a1 against FMP d2 a1" in each.text and each.data == "cifar10"
    )
    assert small.outcome == "within the margin"  # 89.6 and 88.9
    assert small.difference is not None
    assert small.difference.margin == pytest.approx(1.959964 * ASSUMED_DEVIATION * 2**0.5)
    assert claim.verdict == "true"


def test_what_is_within_its_margin_is_inconclusive_not_false() -> None:
    records = as_the_paper(data=["cifar10"], change=lambda run: -1.0 if run.family == "mp3" else 0)
    claim = the("Max pooling in place of strides raises", records)  # +1.0 +- 0.6 in the paper
    assert abs(claim.mean["cifar10"].points) < claim.mean["cifar10"].margin
    assert claim.verdict == "inconclusive"
    lower = as_the_paper(data=["cifar10"], change=lambda run: -2.0 if run.family == "mp3" else 0)
    assert the("Max pooling in place of strides raises", lower).verdict == "false"


def test_a_data_set_on_which_little_is_known_makes_no_claim_false() -> None:
    def change(run: Run) -> float:
        return [-0.1, 0.0, 0.1][run.seed] - (2.0 if run.family == "mp3" and run.data == "cifar100" else 0)

    records = as_the_paper(tables=[7], seeds=3, change=change)
    single = [each for each in records if each.data == "cifar10" or each.seed == 0]
    twice = [*single, *(each for each in records if (each.data, each.delta, each.seed) == ("cifar100", 1, 2))]
    for chosen in (single, twice):
        claim = the("MP3 with delta 2 and alpha 0.5 is more accurate than the baseline", chosen)
        assert [claim.verdict_on(data) for data in claim.data_sets()] == ["true", "inconclusive"]
        assert (claim.verdict, claim.decided_on()) == ("true", ["cifar10"])


def comparison(data: str, outcome: str) -> Comparison:
    """One with this verdict; "false?" is one that may be false by chance."""
    (verdict,) = (each for each in VERDICTS if each == outcome.rstrip("?"))
    return Comparison(data, "", verdict, by_chance=outcome.endswith("?"))


@pytest.mark.parametrize(
    ("comparisons", "mean", "verdict"),
    [
        # Each has to hold.
        ("true true", None, "true"),
        ("true inconclusive", None, "inconclusive"),
        ("true false?", None, "inconclusive"),
        ("true false", None, "false"),
        ("true untested", None, "untested"),
        ("false untested", None, "false"),
        # The mean decides.
        ("true inconclusive", "true", "true"),
        ("true false?", "true", "inconclusive"),
        ("true false", "true", "false"),
        ("inconclusive inconclusive", "false", "false"),
        ("true inconclusive", "inconclusive", "inconclusive"),
        ("true untested", "true", "true"),
        ("true untested untested", "true", "untested"),
    ],
)
def test_the_verdict_on_a_data_set(comparisons: str, mean: Verdict | None, verdict: Verdict) -> None:
    means = {"true": Difference(1, 0.5), "false": Difference(-1, 0.5), "inconclusive": Difference(-1, 1.5)}
    compared = tuple(comparison("cifar10", each) for each in comparisons.split())
    assert Claim("", "", "", compared, {"cifar10": means[mean]} if mean else {}).verdict == verdict


@pytest.mark.parametrize(
    ("cifar10", "cifar100", "verdict", "on"),
    [
        ("true", "true", "true", "cifar10 cifar100"),
        ("true", "inconclusive", "true", "cifar10"),
        ("untested", "true", "true", "cifar100"),
        ("true", "false", "false", "cifar100"),
        ("false", "inconclusive", "false", "cifar10"),
        ("inconclusive", "untested", "inconclusive", "cifar10"),
        ("untested", "untested", "untested", "cifar10 cifar100"),
    ],
)
def test_the_verdict_over_both_data_sets(cifar10: str, cifar100: str, verdict: Verdict, on: str) -> None:
    claim = Claim("", "", "", (comparison("cifar10", cifar10), comparison("cifar100", cifar100)))
    assert (claim.verdict, claim.decided_on()) == (verdict, on.split())


def test_less_than_half_of_the_comparisons_is_no_test() -> None:
    # On CIFAR-100 Table 7's rows are one of the six pairs of MP3 and MobileNet.
    claim = the("Max pooling in place of strides raises", as_the_paper(tables=[7]))
    assert [each.outcome for each in claim.comparisons].count("not run") == 10
    assert claim.verdict == "untested"
    assert "CIFAR-100: +2.8" in claim.summary()
    assert "(1 of 6 run)" in claim.summary()


# Margins


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 9, 30, 101, 1000])
def test_student_s_t(freedom: int) -> None:
    for probability in (0.6, 0.975, 1 - 0.025 / 6, 1 - 0.025 / 20):
        assert student_t(probability, freedom) == pytest.approx(t.ppf(probability, freedom), rel=1e-9)


def test_the_margin_shrinks_with_seeds_and_knows_their_scatter() -> None:
    scatter = [-0.3, 0.0, 0.3]
    seeds = rows(as_the_paper(data=["cifar10"], seeds=3, change=lambda run: scatter[run.seed]))
    judge = Judge(seeds)
    assert judge.scatter("cifar10").deviation == pytest.approx(0.3)
    assert (judge.scatter("cifar10").freedom, judge.scatter("cifar10").source) == (2 * 19, "cifar10")
    assert judge.scatter("cifar100") == judge.scatter("cifar10")  # from the other data set
    assert judge.difference([(seeds[0], seeds[1])]).margin == pytest.approx(t.ppf(0.975, 38) * 0.3 * (2 / 3) ** 0.5)
    assert seeds[0].accuracy == pytest.approx(76.7)
    assert seeds[0].deviation == pytest.approx(0.3)
    assumed = Judge(rows(as_the_paper())).scatter("cifar10")
    assert (assumed.deviation, assumed.freedom, assumed.source) == (ASSUMED_DEVIATION, None, "")


def test_two_runs_of_one_network_have_one_degree_of_freedom() -> None:
    def apart(run: Run) -> float:
        return 0.3 if run.seed else -0.3

    twice = as_the_paper(tables=[7], data=["cifar10"], seeds=2, change=apart)
    found = rows([each for each in twice if each.seed == 0 or each.delta == 1])
    judge = Judge(found)
    assert judge.scatter("cifar10").freedom == 1
    baseline, half = (judge.row("cifar10", each) for each in (BASELINE, ("mobilenet", 2, 0.5)))
    assert baseline is not None
    assert half is not None
    margin = judge.difference([(baseline, half)]).margin
    assert margin == pytest.approx(12.7062 * 0.6 / 2**0.5 * (1 / 2 + 1) ** 0.5, rel=1e-5)
    text = render(found)
    assert "| CIFAR-10 | 0.42 | 1 | 12.71 | 7.6 | 4.4 |" in text
    assert "| CIFAR-100 | 0.42 | 1 | 12.71 | 7.6 | 4.4 |" in text
    assert "No network was trained twice on CIFAR-100. That it scatters there as on CIFAR-10 is assumed" in text


def test_a_scatter_that_is_assumed_is_said_to_be() -> None:
    text = render(rows(as_the_paper()))
    assert "| CIFAR-10 | 0.50 | assumed | 1.96 | 1.4 | 0.8 |" in text
    assert "every verdict on accuracies rests on that" in text
    assert "is assumed" not in render(rows(as_the_paper(seeds=2, change=lambda run: 0.1 * run.seed)))


def test_only_rows_that_count_say_how_much_seeds_scatter() -> None:
    counted = as_the_paper(tables=[7], data=["cifar10"], seeds=2, change=lambda run: 0.1 * run.seed)
    trial = [replace(run, recipe=run.recipe.with_epochs(5)) for run in select(tables=[7], data=["cifar10"], seeds=2)]
    scattered = [record(run, 40 + 20 * run.seed) for run in trial]
    assert Judge(rows(counted + scattered)).scatter("cifar10") == Judge(rows(counted)).scatter("cifar10")


def row(configuration: Configuration, *accuracies: float) -> Row:
    family, delta, alpha = configuration
    (run,) = select(data=["cifar10"], families=[family], deltas=[delta], alphas=[alpha])
    (found,) = rows([record(replace(run, seed=seed), each) for seed, each in enumerate(accuracies)])
    return found


def test_the_middle_of_a_chain_cancels() -> None:
    one, two, four = (row(("mobilenet", delta, 1.0), *[80.0 + delta] * n) for delta, n in ((1, 3), (2, 1), (4, 2)))
    mean = Judge([]).difference([(two, one), (four, two)])
    assert mean.points == pytest.approx((84 - 81) / 2)
    # Half of the last less the first; with independent pairs it would be (1/3 + 2/1 + 1/2) / 4.
    assert mean.margin == pytest.approx(1.959964 * ASSUMED_DEVIATION * ((1 / 3 + 1 / 2) / 4) ** 0.5)


def test_a_network_in_every_pair_counts_in_full() -> None:
    baseline = row(BASELINE, 80.0)
    others = [row(("mobilenet", 2, alpha), 81.0) for alpha in (1.0, 0.5, 0.25)]
    mean = Judge([]).difference([(other, baseline) for other in others])
    # (a + b + c) / 3 - d; with independent pairs it would be 2 / 3.
    assert mean.margin == pytest.approx(1.959964 * ASSUMED_DEVIATION * (3 / 9 + 1) ** 0.5)


def test_the_margin_of_a_mean_is_that_of_all_that_could_have_been() -> None:
    """Every network half a point above or below, in all combinations: the mean's deviation, enumerated."""
    text, scale = "Accuracy grows with delta", 1.959964 * ASSUMED_DEVIATION
    runs = select(data=["cifar10"], families=["mobilenet"])
    pairs = Counter[tuple[int, float]]()  # the coefficients of a claim of four pairs, by hand
    for delta, alpha in ((1, 1.0), (2, 1.0), (2, 0.5), (2, 0.25)):
        pairs[delta, alpha] -= 1
        pairs[2 * delta, alpha] += 1
    squares = [
        sum(sign * pairs[run.delta, run.alpha] / 4 for run, sign in zip(runs, signs, strict=True)) ** 2
        for signs in product((-1, 1), repeat=len(runs))
    ]
    claim = the(text, as_the_paper(data=["cifar10"], families=["mobilenet"]))
    assert claim.mean["cifar10"].margin == pytest.approx(scale * (sum(squares) / len(squares)) ** 0.5)


# Counting


def test_feature_maps_are_counted() -> None:
    claim = the("keeps more feature maps", [])
    # Table 2 at delta 2 and alpha 1: a map of height, width and channels for each convolution, by hand.
    mp3 = 32 * 32 * 32 + 16 * 16 * (64 + 64) + 8 * 8 * (128 + 128 + 256 + 128) + 4 * 4 * (256 + 256 + 512 + 256)
    mp3 += 2 * 2 * (512 + 512 + 5 * (1024 + 512)) + 1024 + 1024 + 2048 + 1024
    assert f"MP3 d2 a1 {mp3:,}" in claim.comparisons[0].text


# Rows


def test_a_row_has_one_recipe_and_the_longest_is_judged() -> None:
    (run,) = select(data=["cifar10"], families=["fmp"], deltas=[2], alphas=[0.25])
    short = replace(run, recipe=replace(run.recipe, epochs=2, fixed_epochs=0), seed=1)
    found = rows([record(short, 60), record(run, 84), record(replace(run, seed=2), 86)])
    assert [(row.recipe.epochs, row.n, row.accuracy) for row in found] == [(run.recipe.epochs, 2, 85.0), (2, 1, 60.0)]
    assert Judge(found).row("cifar10", ("fmp", 2, 0.25)) is found[0]
    text = render(found)
    assert "## Runs with another recipe" in text
    assert "| CIFAR-10 | FMP d2 a0.25 | 60.0 | - | 1 | - | 62.0 | B | 1: a |" in text
    assert "| epochs | - | 40 | 2 |" in text or f"| epochs | - | {run.recipe.epochs} | 2 |" in text


def test_a_row_has_one_revision_of_the_code_and_the_newest_is_judged() -> None:
    (run,) = select(data=["cifar10"], families=["fmp"], deltas=[2], alphas=[0.25])
    long = run.recipe.with_epochs(2 * run.recipe.epochs)
    old = [record(replace(run, seed=seed), 80 + seed) for seed in range(3)]
    new = replace(record(replace(run, seed=1), 85), training=2, code={"version": "1.3.0", "commit": "fedcba"})
    trial = replace(record(replace(run, recipe=long), 90), training=2)
    found = rows([*old, new, trial])
    assert [(each.training, each.n, each.accuracy) for each in found] == [(2, 1, 85.0), (1, 3, 81.0), (2, 1, 90.0)]
    judge = Judge(found)
    assert judge.row("cifar10", ("fmp", 2, 0.25)) is found[0]
    assert judge.scatter("cifar10").freedom is None  # of the row that counts
    text = render(found)
    others = text.split("## Runs with another recipe or older code, which do not count above", 1)[1]
    assert line(text, "| FMP d2 a0.25", "(Table 7)").endswith("| 85.0 | - | 1 | +2.9 | 87.0 | A | 2: a |")
    assert "| CIFAR-10 | FMP d2 a0.25 | 81.0 | 1.00 | 3 | - | 83.0 | A | 1: c c c |" in others
    assert "We trained 1 of the 38 rows of its Tables 4 to 6, in 1 run." in text


def test_rows_of_two_revisions_are_compared_with_a_note() -> None:
    records = [
        replace(each, training=2) if each.family == "fmp" else each
        for each in as_the_paper(tables=[7], data=["cifar10"])
    ]
    claim = the("much more accurate", records)
    assert claim.comparisons[0].text.endswith("(25 against 16 epochs, revision 2 against 1)")


def test_the_recipe_of_today_is_judged_before_a_longer_one() -> None:
    (run,) = select(data=["cifar10"], families=["fmp"], deltas=[2], alphas=[0.25])
    earlier = replace(run, recipe=run.recipe.with_epochs(2 * run.recipe.epochs))
    found = rows([record(earlier, 90.0), record(run, 80.0)])
    assert [(row.recipe, row.accuracy) for row in found] == [(run.recipe, 80.0), (earlier.recipe, 90.0)]


# Text


def line(text: str, start: str, after: str) -> str:
    """The first line with this start behind a heading."""
    return next(each for each in text.split(after, 1)[1].splitlines() if each.startswith(start))


def test_the_first_screen_says_whether_the_paper_holds_up() -> None:
    first = "\n".join(render(rows(as_the_paper())).splitlines()[:30])
    assert (
        "**Of the 16 claims of its sections III and IV, in our runs 15 are true, 0 false, 1 inconclusive and 0 "
        "untested.** Of those that are true, 5 were shown on one data set only."
    ) in first
    assert "trained 31 of the 38 rows" in first
    assert "accuracy of 31 of these is legible; 31 of them reach or pass it" in first
    assert (first.count("| **true** |"), first.count("| **true** on CIFAR-10")) == (10, 5)


def test_the_first_screen_counts_all_four_verdicts() -> None:
    worse = as_the_paper(tables=[7], data=["cifar10"], change=lambda run: -20 if run.family == "fmp" else 0)
    counts = Counter(claim.verdict for claim in judged(worse).values())
    assert min(counts[verdict] for verdict in ("true", "false", "inconclusive", "untested")) > 0
    assert (
        f"in our runs {counts['true']} are true, {counts['false']} false, {counts['inconclusive']} inconclusive and "
        f"{counts['untested']} untested.**"
    ) in render(rows(worse))


def test_the_report_says_which_code_made_each_record() -> None:
    commits = ["aaa", "bbb", "aaa"]
    records = [
        replace(each, code={"version": "1.2.3", "commit": commits[each.seed]})
        for each in as_the_paper(tables=[7], data=["cifar10"], seeds=3)
    ]
    unknown = [replace(each, training=2, code={"version": "0+unknown", "commit": None}) for each in records[:3]]
    text = render(rows([*records[::-1], *unknown]))
    assert line(text, "| the baseline", "(Table 7)").endswith("| A | 1: b c b |")
    section = text.split("## Which code made the records", 1)[1].split("\n## ", 1)[0]
    for number, what in REVISIONS.items():
        assert f"- Revision {number}: {what}" in section
    assert section.rstrip().splitlines()[-3:] == [
        "| a | 2 | 0+unknown | unknown | 3 |",
        "| b | 1 | 1.2.3 | aaa | 8 |",
        "| c | 1 | 1.2.3 | bbb | 4 |",
    ]


def test_the_first_screen_says_how_far_each_family_is_from_the_paper() -> None:
    by = {"mobilenet": 2.0, "mp3": -1.0, "fmp": 0.5}
    text = render(rows(as_the_paper(change=lambda run: by[run.family])))
    assert "Ours differ from the paper's by +2.0 (MobileNet), -1.0 (MP3), +0.5 (FMP) points on average." in text


def test_tables_stand_beside_the_paper_s() -> None:
    scatter = [0.5, 1.5]
    text = render(rows(as_the_paper(tables=[7], data=["cifar10"], seeds=2, change=lambda run: scatter[run.seed])))
    assert line(text, "| FMP d2 a0.25", "## Table 6") == (
        "| FMP d2 a0.25 | 9.577 | 9.5 | 0.433 | 0.43 | 82.1 | 83.1 | 0.71 | 2 | +1.0 | 85.1 | B | 1: a a |"
    )
    assert line(text, "| FMP d2 a0.25", "(Table 7)").startswith("| FMP d2 a0.25 | 9.577 | 4.8 | 0.433 | 0.22 | 82.1 |")
    assert line(text, "| the baseline", "## Table 4") == (
        "| the baseline | 11.596 | 11.58 | 3.239 | 3.23 | 76.7 | 77.7 | 0.71 | 2 | +1.0 | - | A | 1: a a |"
    )
    assert line(text, "| MP3 d4 a1", "## Table 5").startswith(
        "| MP3 d4 a1 | 46.354 | 45.91 | 12.851 | 12.85 | 82.3 | not run |"
    )
    rows_of_tables = [
        each for each in text.splitlines() if each.startswith(("| the baseline", "| MobileNet d", "| MP3 d", "| FMP d"))
    ]
    assert len(rows_of_tables) == len(RESULTS) + len(TABLE_7)


def test_a_row_below_the_paper_is_named_with_the_evidence() -> None:
    below = render(rows(as_the_paper(change=lambda run: -3 if run.name.startswith("cifar10-mp3-d2-a1-") else 0)))
    assert (
        "- CIFAR-10, MP3 d2 a1: 3.0 points below, more than the margin of our mean (1.0); training accuracy in the "
        "last epoch 90.0%."
    ) in below
    twice = as_the_paper(
        data=["cifar10"], seeds=2, change=lambda run: (0.2 * run.seed - 0.1) + (-1 if run.family == "mp3" else 0)
    )
    one_degree = [each for each in twice if each.seed == 0 or (each.family, each.delta, each.alpha) == ("mp3", 2, 1.0)]
    assert "MP3 d2 a1: 1.0 points below, within the margin of our mean (1.3)" in render(rows(one_degree))
    assert "reaches it." in render(rows(as_the_paper()))


def test_every_setting_of_the_recipe_stands_there() -> None:
    text = render(rows(as_the_paper(tables=[7])))
    settings = text.split("## What the paper leaves unstated", 1)[1]
    for name in Recipe.__dataclass_fields__:
        assert f"| {name.replace('_', ' ')} | " in settings


def test_a_record_says_which_revision_trained_it(tmp_path: Path) -> None:
    each, path = as_the_paper(tables=[7], data=["cifar10"])[0], tmp_path / "record.json"
    write_record(path, replace(each, training=2))
    assert json.loads(path.read_text())["training"] == 2
    assert read_record(path).training == 2
    older = {name: value for name, value in json.loads(path.read_text()).items() if name != "training"}
    path.write_text(json.dumps(older))
    assert read_record(path).training == 1


def test_the_revisions_of_the_committed_records_are_explained() -> None:
    assert {each.training for each in read_records(ROOT / "results" / "reproduce")} <= set(REVISIONS)


# The command


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    for each, run in zip(as_the_paper(tables=[7], data=["cifar10"]), select(tables=[7], data=["cifar10"]), strict=True):
        write_record(record_path(folder, run), each)
    return folder


def test_the_command_writes_the_report_and_its_pictures(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(cli.app, ["report", "--results", str(results), "--out", str(out), "--json"])
    assert (result.exit_code, result.stderr) == (0, "")
    files = ["REPRODUCTION.md", "reproduction-mult-adds.png", "reproduction-parameters.png"]
    assert json.loads(result.stdout) == [str(out / name) for name in files]
    assert sorted(path.name for path in out.iterdir()) == files
    text = (out / "REPRODUCTION.md").read_text()
    assert text == render(rows(read_records(results)))
    for name in files[1:]:
        assert f"]({name})" in text
        with Image.open(out / name) as picture:
            picture.load()
            assert picture.size[0] > picture.size[1] > 400
            assert picture.convert("RGB").getcolors(maxcolors=500) is None


def test_nothing_to_report(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    result = CliRunner().invoke(cli.app, ["report", "--results", str(tmp_path / "results"), "--out", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: there is no record of CIFAR-10 or CIFAR-100 in {tmp_path / 'results'}: run hybrid-mobilenet reproduce "
        "first, or name their folder with --results\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]


def test_the_committed_report_is_what_the_committed_records_give() -> None:
    report, records = ROOT / "docs" / "REPRODUCTION.md", read_records(ROOT / "results" / "reproduce")
    assert report.exists() == bool(records)
    if records:
        assert report.read_text() == render(rows(records)), "run: hybrid-mobilenet report"
