"""The tables of the report: our rows beside the paper's, and what made them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hybrid_mobilenet.study.paper import RESULTS, TABLE_7
from hybrid_mobilenet.study.records import read_records
from hybrid_mobilenet.study.report import render
from hybrid_mobilenet.study.report_tables import REVISIONS
from hybrid_mobilenet.study.rows import rows
from hybrid_mobilenet.training.recipe import Recipe
from paper_records import as_the_paper, line

ROOT = Path(__file__).parents[2]


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
        assert f"| {number} | {what} |" in section
    assert section.rstrip().splitlines()[-3:] == [
        "| a | 2 | 0+unknown | unknown | 3 |",
        "| b | 1 | 1.2.3 | aaa | 8 |",
        "| c | 1 | 1.2.3 | bbb | 4 |",
    ]


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
    assert "\n| CIFAR-10 | MP3 d2 a1 | 3.0 | 1.0 | beyond | 90.0% |\n" in below
    twice = as_the_paper(
        data=["cifar10"], seeds=2, change=lambda run: (0.2 * run.seed - 0.1) + (-1 if run.family == "mp3" else 0)
    )
    one_degree = [each for each in twice if each.seed == 0 or (each.family, each.delta, each.alpha) == ("mp3", 2, 1.0)]
    assert "| MP3 d2 a1 | 1.0 | 1.3 | within |" in render(rows(one_degree))
    assert "reaches it." in render(rows(as_the_paper()))


def test_every_setting_of_the_recipe_stands_there() -> None:
    text = render(rows(as_the_paper(tables=[7])))
    settings = text.split("## What the paper leaves unstated", 1)[1]
    for name in Recipe.__dataclass_fields__:
        assert f"| {name.replace('_', ' ')} | " in settings


def test_the_revisions_of_the_committed_records_are_explained() -> None:
    assert {each.training for each in read_records(ROOT / "results" / "reproduce")} <= set(REVISIONS)
