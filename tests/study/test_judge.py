"""How claims are judged: the standard deviation over seeds, margins, and verdicts over data sets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scipy.stats import t

from hybrid_mobilenet.study.grid import BASELINE, Run, select
from hybrid_mobilenet.study.judge import ASSUMED_DEVIATION, Claim, Comparison, Judge
from hybrid_mobilenet.study.report import render
from hybrid_mobilenet.study.rows import rows
from hybrid_mobilenet.study.statistics import VERDICTS, Deviation, Difference, Verdict
from paper_records import as_the_paper, record, row


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


def test_the_margin_shrinks_with_seeds_and_knows_their_scatter() -> None:
    scatter = [-0.3, 0.0, 0.3]
    seeds = rows(as_the_paper(data=["cifar10"], seeds=3, change=lambda run: scatter[run.seed]))
    judge = Judge(seeds)
    assert judge.deviation("cifar10").points == pytest.approx(0.3)
    assert judge.deviation("cifar10").degrees_of_freedom == 2 * 19
    assert judge.deviation("cifar100") == judge.deviation("cifar10")  # from the other data set
    assert [judge.deviation_source(data) for data in ("cifar10", "cifar100")] == ["cifar10", "cifar10"]
    assert judge.difference([(seeds[0], seeds[1])]).margin == pytest.approx(t.ppf(0.975, 38) * 0.3 * (2 / 3) ** 0.5)
    assert seeds[0].accuracy == pytest.approx(76.7)
    assert seeds[0].deviation == pytest.approx(0.3)
    single = Judge(rows(as_the_paper()))
    assert (single.deviation("cifar10"), single.deviation_source("cifar10")) == (
        Deviation(ASSUMED_DEVIATION, None),
        None,
    )


def test_two_runs_of_one_network_have_one_degree_of_freedom() -> None:
    def apart(run: Run) -> float:
        return 0.3 if run.seed else -0.3

    twice = as_the_paper(tables=[7], data=["cifar10"], seeds=2, change=apart)
    found = rows([each for each in twice if each.seed == 0 or each.delta == 1])
    judge = Judge(found)
    assert judge.deviation("cifar10").degrees_of_freedom == 1
    baseline, half = (judge.row("cifar10", each) for each in (BASELINE, ("mobilenet", 2, 0.5)))
    assert baseline is not None
    assert half is not None
    margin = judge.difference([(baseline, half)]).margin
    assert margin == pytest.approx(12.7062 * 0.6 / 2**0.5 * (1 / 2 + 1) ** 0.5, rel=1e-5)
    text = render(found)
    assert "| CIFAR-10 | 0.42 | 1 | 12.71 | 7.6 | 4.4 |" in text
    assert "| CIFAR-100 | 0.42 | 1 | 12.71 | 7.6 | 4.4 |" in text
    assert "No network was trained twice on CIFAR-100. We assume the standard deviation of CIFAR-10 there." in text


def test_only_rows_that_count_say_how_much_seeds_scatter() -> None:
    counted = as_the_paper(tables=[7], data=["cifar10"], seeds=2, change=lambda run: 0.1 * run.seed)
    trial = [replace(run, recipe=run.recipe.with_epochs(5)) for run in select(tables=[7], data=["cifar10"], seeds=2)]
    scattered = [record(run, 40 + 20 * run.seed) for run in trial]
    assert Judge(rows(counted + scattered)).deviation("cifar10") == Judge(rows(counted)).deviation("cifar10")


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
