"""The report: the records and nothing else decide what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from hybrid_mobilenet import cli
from hybrid_mobilenet.claims import ASSUMED_DEVIATION, Claim, Judge, claims, rows
from hybrid_mobilenet.cost import network_mult_adds, network_parameters
from hybrid_mobilenet.grid import Run, select
from hybrid_mobilenet.paper import RESULTS, TABLE_7
from hybrid_mobilenet.recipe import Recipe
from hybrid_mobilenet.records import Record, Score, read_records, record_path, write_record
from hybrid_mobilenet.report import render

ROOT = Path(__file__).parents[1]
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


def as_the_paper(*only: str, seeds: int = 1, change: Callable[[Run], float] = lambda _: 0.0) -> list[Record]:
    """Records of all legible rows, with the paper's accuracy plus `change`."""
    found = [(run, PAPER[run.family, run.delta, run.alpha, run.network.classes]) for run in select(only, seeds)]
    return [record(run, float(accuracy) + change(run)) for run, accuracy in found if accuracy is not None]


def judged(records: list[Record]) -> dict[str, Claim]:
    return {claim.text: claim for claim in claims(Judge(rows(records)))}


def the(claim: str, records: list[Record]) -> Claim:
    (found,) = (each for text, each in judged(records).items() if claim in text)
    return found


# Verdicts


def test_the_paper_s_own_figures_bear_out_its_claims() -> None:
    verdicts = {text: claim.verdict for text, claim in judged(as_the_paper()).items()}
    assert {text for text, verdict in verdicts.items() if verdict != "true"} == {
        # 77.3 and 76.7: within the margin of two single runs.
        "MP3 with delta 2 and alpha 0.5 is more accurate than the baseline.",
    }


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


def test_similar_is_two_points() -> None:
    text = "accuracy is similar to the baseline's"
    for change, verdict in ((-0.1, "true"), (-0.3, "false")):  # the paper's is 1.8 below on CIFAR-10
        records = as_the_paper("table=7", change=lambda run, by=change: by if run.alpha == 0.5 else 0)  # type: ignore[misc]
        assert the(text, records).verdict == verdict


def test_one_comparison_against_a_claim_of_many_refutes_it() -> None:
    text = "Accuracy grows with delta"
    assert the(text, as_the_paper()).verdict == "true"
    against = as_the_paper(change=lambda run: -12 if (run.name.startswith("cifar10-mp3-d4-a1-")) else 0)
    claim = the(text, against)
    assert claim.verdict == "false"
    assert [each.text.partition(":")[0] for each in claim.comparisons if each.outcome == "**does not hold**"] == [
        "CIFAR-10, MP3 d4 a1 against MP3 d2 a1"
    ]


def test_a_small_difference_of_single_runs_neither_holds_nor_refutes() -> None:
    claim = the("Accuracy grows with delta", as_the_paper("data=cifar10"))
    (small,) = (
        each for each in claim.comparisons if "FMP d4 a1 against FMP d2 a1" in each.text and each.data == "cifar10"
    )
    assert small.outcome == "within the margin"  # 89.6 and 88.9
    assert small.margin == pytest.approx(2 * ASSUMED_DEVIATION * 2**0.5)
    assert claim.verdict == "true"


def test_less_than_half_of_the_comparisons_is_no_test() -> None:
    # On CIFAR-100 Table 7's rows are one of the six pairs of MP3 and MobileNet.
    claim = the("Max pooling in place of strides raises", as_the_paper("table=7"))
    assert [each.outcome for each in claim.comparisons].count("not run") == 10
    assert claim.verdict == "untested"
    assert "CIFAR-100: +2.8" in claim.summary()
    assert "(1 of 6 run)" in claim.summary()


def test_the_margin_shrinks_with_seeds_and_knows_their_scatter() -> None:
    scatter = [-0.3, 0.0, 0.3]
    seeds = rows(as_the_paper("data=cifar10", seeds=3, change=lambda run: scatter[run.seed]))
    judge = Judge(seeds)
    assert judge.deviation("cifar10") == pytest.approx(0.3)
    assert judge.deviation("cifar100") == pytest.approx(0.3)  # from the other data set
    assert judge.margin(seeds[0], seeds[1]) == pytest.approx(2 * 0.3 * (2 / 3) ** 0.5)
    assert seeds[0].accuracy == pytest.approx(76.7)
    assert seeds[0].deviation == pytest.approx(0.3)
    assert Judge(rows(as_the_paper())).deviation("cifar10") == ASSUMED_DEVIATION


def test_feature_maps_are_counted() -> None:
    claim = the("keeps more feature maps", [])
    # Table 2 at delta 2 and alpha 1: a map of height, width and channels for each convolution, by hand.
    mp3 = 32 * 32 * 32 + 16 * 16 * (64 + 64) + 8 * 8 * (128 + 128 + 256 + 128) + 4 * 4 * (256 + 256 + 512 + 256)
    mp3 += 2 * 2 * (512 + 512 + 5 * (1024 + 512)) + 1024 + 1024 + 2048 + 1024
    assert f"MP3 d2 a1 {mp3:,}" in claim.comparisons[0].text


# Rows


def test_a_row_has_one_recipe_and_the_longest_is_judged() -> None:
    (run,) = select(["data=cifar10", "family=fmp", "delta=2", "alpha=0.25"])
    short = replace(run, recipe=replace(run.recipe, epochs=2, fixed_epochs=0), seed=1)
    found = rows([record(short, 60), record(run, 84), record(replace(run, seed=2), 86)])
    assert [(row.recipe.epochs, row.n, row.accuracy) for row in found] == [(run.recipe.epochs, 2, 85.0), (2, 1, 60.0)]
    assert Judge(found).row("cifar10", ("fmp", 2, 0.25)) is found[0]
    text = render(found)
    assert "## Runs with another recipe" in text
    assert "| CIFAR-10 | FMP d2 a0.25 | 60.0 | - | 1 | - | 62.0 | B |" in text
    assert "| epochs | - | 40 | 2 |" in text or f"| epochs | - | {run.recipe.epochs} | 2 |" in text


def test_the_recipe_of_today_is_judged_before_a_longer_one() -> None:
    (run,) = select(["data=cifar10", "family=fmp", "delta=2", "alpha=0.25"])
    earlier = replace(run, recipe=run.recipe.with_epochs(2 * run.recipe.epochs))
    found = rows([record(earlier, 90.0), record(run, 80.0)])
    assert [(row.recipe, row.accuracy) for row in found] == [(run.recipe, 80.0), (earlier.recipe, 90.0)]


# Text


def line(text: str, start: str, after: str) -> str:
    """The first line with this start behind a heading."""
    return next(each for each in text.split(after, 1)[1].splitlines() if each.startswith(start))


def test_the_first_screen_says_whether_the_paper_holds_up() -> None:
    first = "\n".join(render(rows(as_the_paper())).splitlines()[:30])
    assert "**Of the 16 claims of its sections III and IV, 15 hold in our runs and 1 do not.**" in first
    assert "trained 31 of the 38 rows" in first
    assert "accuracy of 31 of these is legible; 31 of them reach or pass it" in first
    assert first.count("| **true** |") == 15


def test_the_first_screen_says_how_far_each_family_is_from_the_paper() -> None:
    by = {"mobilenet": 2.0, "mp3": -1.0, "fmp": 0.5}
    text = render(rows(as_the_paper(change=lambda run: by[run.family])))
    assert "Ours differ from the paper's by +2.0 (MobileNet), -1.0 (MP3), +0.5 (FMP) points on average." in text


def test_tables_stand_beside_the_paper_s() -> None:
    scatter = [0.5, 1.5]
    text = render(rows(as_the_paper("table=7", "data=cifar10", seeds=2, change=lambda run: scatter[run.seed])))
    assert line(text, "| FMP d2 a0.25", "## Table 6") == (
        "| FMP d2 a0.25 | 9.577 | 9.5 | 0.433 | 0.43 | 82.1 | 83.1 | 0.71 | 2 | +1.0 | 85.1 | B |"
    )
    assert line(text, "| FMP d2 a0.25", "(Table 7)").startswith("| FMP d2 a0.25 | 9.577 | 4.8 | 0.433 | 0.22 | 82.1 |")
    assert line(text, "| the baseline", "## Table 4") == (
        "| the baseline | 11.596 | 11.58 | 3.239 | 3.23 | 76.7 | 77.7 | 0.71 | 2 | +1.0 | - | A |"
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
        "- CIFAR-10, MP3 d2 a1: 3.0 points below, more than twice the standard error of our mean (1.0); training "
        "accuracy in the last epoch 90.0%."
    ) in below
    assert "reaches it." in render(rows(as_the_paper()))


def test_every_setting_of_the_recipe_stands_there() -> None:
    text = render(rows(as_the_paper("table=7")))
    settings = text.split("## What the paper leaves unstated", 1)[1]
    for name in Recipe.__dataclass_fields__:
        assert f"| {name.replace('_', ' ')} | " in settings


# The command


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    for each, run in zip(as_the_paper("table=7", "data=cifar10"), select(["table=7", "data=cifar10"]), strict=True):
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
