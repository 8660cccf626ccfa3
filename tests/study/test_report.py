"""The report: its text is made from the records and nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hybrid_mobilenet.study.records import read_records
from hybrid_mobilenet.study.report import render
from hybrid_mobilenet.study.rows import rows
from paper_records import as_the_paper, judged

ROOT = Path(__file__).parents[2]


def test_a_scatter_that_is_assumed_is_said_to_be() -> None:
    text = render(rows(as_the_paper()))
    assert "| CIFAR-10 | 0.50 | assumed | 1.96 | 1.4 | 0.8 |" in text
    assert "Every verdict on accuracies depends on this assumption." in text
    assert "assum" not in render(rows(as_the_paper(seeds=2, change=lambda run: 0.1 * run.seed)))


def first_screen(text: str) -> dict[str, str]:
    """The rows of the tables of the first screen."""
    cells = [each.strip("| ").split(" | ") for each in text.splitlines() if each.startswith("|")]
    return {row[0]: row[1] for row in cells if len(row) == 2 and row[0] != "Verdict"}


def test_the_first_screen_says_whether_the_paper_holds_up() -> None:
    first, claims = render(rows(as_the_paper())).split("## The networks that the paper compares")[0].split("\n## ")
    assert "judged the 16 claims of its sections III and IV" in first
    assert first_screen(first) == {
        "**true**": "**15**",
        "true, shown on one data set only": "5 of these",
        "**false**": "**0**",
        "inconclusive: the differences may be chance": "1",
        "untested": "0",
        "Rows of Tables 4 to 6 that we trained": "31 of 38",
        "Training runs of these rows": "31",
        "Rows whose accuracy is legible in the paper": "31",
        "Rows that reach the paper's accuracy": "31 of 31",
        "Mean difference from the paper, MobileNet": "+0.0 points",
        "Mean difference from the paper, MP3": "+0.0 points",
        "Mean difference from the paper, FMP": "+0.0 points",
    }
    assert len(first.splitlines()) <= 30
    assert (claims.count("| **true** |"), claims.count("| **true** on CIFAR-10")) == (10, 5)


def test_the_first_screen_counts_all_four_verdicts() -> None:
    worse = as_the_paper(tables=[7], data=["cifar10"], change=lambda run: -20 if run.family == "fmp" else 0)
    counts = Counter(claim.verdict for claim in judged(worse).values())
    assert min(counts[verdict] for verdict in ("true", "false", "inconclusive", "untested")) > 0
    shown = first_screen(render(rows(worse)).split("\n## ")[0])
    assert {name: shown[name] for name in ("**true**", "**false**", "untested")} == {
        "**true**": f"**{counts['true']}**",
        "**false**": f"**{counts['false']}**",
        "untested": str(counts["untested"]),
    }
    assert shown["inconclusive: the differences may be chance"] == str(counts["inconclusive"])


def test_the_first_screen_says_how_far_each_family_is_from_the_paper() -> None:
    by = {"mobilenet": 2.0, "mp3": -1.0, "fmp": 0.5}
    text = render(rows(as_the_paper(change=lambda run: by[run.family])))
    shown = first_screen(text.split("\n## ")[0])
    found = {name: shown[f"Mean difference from the paper, {name}"] for name in ("MobileNet", "MP3", "FMP")}
    assert found == {"MobileNet": "+2.0 points", "MP3": "-1.0 points", "FMP": "+0.5 points"}


def test_the_committed_report_is_what_the_committed_records_give() -> None:
    report, records = ROOT / "docs" / "REPRODUCTION.md", read_records(ROOT / "results" / "reproduce")
    assert report.exists() == bool(records)
    if records:
        assert report.read_text() == render(rows(records)), "run: hybrid-mobilenet report"
