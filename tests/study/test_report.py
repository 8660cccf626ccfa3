"""The report: its text is made from the records and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.study.grid import select
from hybrid_mobilenet.study.paper import RESULTS, TABLE_7
from hybrid_mobilenet.study.records import read_record, read_records, record_path, write_record
from hybrid_mobilenet.study.report import render
from hybrid_mobilenet.study.rows import rows
from hybrid_mobilenet.study.tables import REVISIONS
from hybrid_mobilenet.training.recipe import Recipe
from paper_records import as_the_paper, judged, line

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
        "Mean difference to the paper, MobileNet": "+0.0 points",
        "Mean difference to the paper, MP3": "+0.0 points",
        "Mean difference to the paper, FMP": "+0.0 points",
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


def test_the_first_screen_says_how_far_each_family_is_from_the_paper() -> None:
    by = {"mobilenet": 2.0, "mp3": -1.0, "fmp": 0.5}
    text = render(rows(as_the_paper(change=lambda run: by[run.family])))
    shown = first_screen(text.split("\n## ")[0])
    found = {name: shown[f"Mean difference to the paper, {name}"] for name in ("MobileNet", "MP3", "FMP")}
    assert found == {"MobileNet": "+2.0 points", "MP3": "-1.0 points", "FMP": "+0.5 points"}


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
