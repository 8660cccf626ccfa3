"""`--dry-run`: how long a sweep would take, measured and near the truth."""

from __future__ import annotations

import json

import pytest

from command_line import invoke
from hybrid_mobilenet.study.records import read_record, record_path
from hybrid_mobilenet.study.reproduce import Folders, RunState
from sweeps import chosen, options

pytestmark = pytest.mark.usefixtures("large_batches")


@pytest.mark.slow
def test_a_dry_run_measures_and_runs_nothing(folders: Folders, finished: tuple[Folders, list[RunState]]) -> None:
    folders = Folders(finished[0].results, folders.runs)
    arguments = [*options(folders, "mobilenet", "fmp"), "--epochs", "2", "--seeds", "2"]
    record = json.loads(invoke("reproduce", *arguments, "--dry-run", "--json").stdout)
    assert [run["run"] for run in record["runs"]] == [
        "digits-mobilenet-d2-a0.25-seed1",
        "digits-fmp-d2-a0.25-seed1",
    ]
    for run in record["runs"]:
        assert (run["epochs"], run["is_begun"]) == (2, False)
        assert run["seconds"] > 2 * 2 * 700 / run["images_per_second"]
    assert record["seconds"] == pytest.approx(sum(run["seconds"] for run in record["runs"]))
    assert not folders.runs.exists()
    lines = invoke("reproduce", *arguments, "--dry-run").stdout.splitlines()
    assert lines[0].split()[:7] == ["Data", "Family", "Delta", "Alpha", "Runs", "begun", "Epochs"]
    assert lines[0].split()[7:] == ["images/s", "a", "run", "all"]
    assert [line.split()[:5] for line in lines[2:4]] == [
        ["digits", "mobilenet", "2", "0.25", "1"],
        ["digits", "fmp", "2", "0.25", "1"],
    ]
    assert lines[4].startswith("2 of 4 runs are recorded; the others take about ")


@pytest.mark.slow
def test_an_estimate_is_near_the_truth(finished: tuple[Folders, list[RunState]]) -> None:
    from hybrid_mobilenet.study.estimate import measure

    run = chosen("fmp")[0]
    speed = measure(run)
    took = read_record(record_path(finished[0].results, run)).epochs[-1]["step_seconds"] / 2
    assert took / 5 < speed.step < took * 5  # the machine may be busy with something else at either time
