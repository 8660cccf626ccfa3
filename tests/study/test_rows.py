"""Rows: one recipe and one revision of the code each, and which of several counts."""

from __future__ import annotations

from dataclasses import replace

from hybrid_mobilenet.study.grid import select
from hybrid_mobilenet.study.judge import Judge
from hybrid_mobilenet.study.report import render
from hybrid_mobilenet.study.rows import rows
from paper_records import line, record


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
    assert judge.deviation("cifar10").degrees_of_freedom is None  # of the row that counts
    text = render(found)
    others = text.split("## Runs with another recipe or older code, which do not count above", 1)[1]
    assert line(text, "| FMP d2 a0.25", "(Table 7)").endswith("| 85.0 | - | 1 | +2.9 | 87.0 | A | 2: a |")
    assert "| CIFAR-10 | FMP d2 a0.25 | 81.0 | 1.00 | 3 | - | 83.0 | A | 1: c c c |" in others
    assert "| Rows of Tables 4 to 6 that we trained | 1 of 38 |\n| Training runs of these rows | 1 |\n" in text


def test_the_recipe_of_today_is_judged_before_a_longer_one() -> None:
    (run,) = select(data=["cifar10"], families=["fmp"], deltas=[2], alphas=[0.25])
    earlier = replace(run, recipe=run.recipe.with_epochs(2 * run.recipe.epochs))
    found = rows([record(earlier, 90.0), record(run, 80.0)])
    assert [(row.recipe, row.accuracy) for row in found] == [(run.recipe, 80.0), (earlier.recipe, 90.0)]
