"""`reproduce` and `report` from the command line: what they print and write, and how they fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from command_line import invoke
from hybrid_mobilenet.study import reproduce
from hybrid_mobilenet.study.grid import select
from hybrid_mobilenet.study.records import read_record, read_records, record_path, write_record
from hybrid_mobilenet.study.report import render
from hybrid_mobilenet.study.reproduce import Folders, RunState
from hybrid_mobilenet.study.rows import rows
from hybrid_mobilenet.training.setup import TrainingDiverged
from paper_records import as_the_paper
from sweeps import chosen, options


@pytest.mark.usefixtures("large_batches")
def test_the_command(finished: tuple[Folders, list[RunState]]) -> None:
    folders, _ = finished
    # The recipe's 40 epochs are not what these records were made with: --epochs must be given again.
    result = invoke("reproduce", *options(folders, "mobilenet", "fmp"), "--epochs", "2")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.replace("\n", "") == f"2 of 2 runs are recorded in {folders.results}"
    result = invoke("reproduce", *options(folders, "mobilenet", "fmp"), "--epochs", "2", "--json")
    assert json.loads(result.stdout) == [
        {
            "run": run.name,
            "state": "recorded",
            "record": str(record_path(folders.results, run)),
            "accuracy": {
                str(passes): score.accuracy
                for passes, score in read_record(record_path(folders.results, run)).test.items()
            },
        }
        for run in chosen("mobilenet", "fmp")
    ]


def test_the_command_tells_and_fails(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_arguments: object) -> None:
        raise TrainingDiverged("training diverged")

    monkeypatch.setattr(reproduce, "train", diverge)
    result = invoke("reproduce", *options(folders, "mobilenet"))
    assert result.exit_code == 2
    name = "digits-mobilenet-d2-a0.25-seed0"
    assert result.stderr.splitlines() == [
        f"{name}  failed  training diverged  [0 of 1 runs finished, 1 failed]",
        f"error: {name}: training diverged",
    ]
    assert result.stdout.replace("\n", "") == f"0 of 1 runs are recorded in {folders.results}"


@pytest.mark.usefixtures("large_batches")
def test_epochs_never_replace_a_record(finished: tuple[Folders, list[RunState]]) -> None:
    folders, _ = finished
    result = invoke("reproduce", *options(folders, "mobilenet"), "--epochs", "1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: --epochs 1 would replace 1 records of other recipes in {folders.results}, such as that of "
        "digits-mobilenet-d2-a0.25-seed0: choose another folder with --results\n"
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--family", "vgg"], "--family is 'vgg', but must be one or more of mobilenet, mp3, fmp, separated by commas"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--epochs", "0"], "epochs is 0"),
        (["--jobs", "0"], "--jobs is 0, but must be 1 or more"),
    ],
)
def test_the_command_refuses(arguments: list[str], part: str) -> None:
    result = invoke("reproduce", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert part in result.stderr


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    for each, run in zip(as_the_paper(tables=[7], data=["cifar10"]), select(tables=[7], data=["cifar10"]), strict=True):
        write_record(record_path(folder, run), each)
    return folder


def test_the_command_writes_the_report_and_its_pictures(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke("report", "--results", results, "--out", out, "--json")
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
    result = invoke("report", "--results", tmp_path / "results", "--out", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: there is no record of CIFAR-10 or CIFAR-100 in {tmp_path / 'results'}: run hybrid-mobilenet reproduce "
        "first, or name their folder with --results\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]
