"""docs/FRONTIER.md and `benchmarks/frontier.py`: records of our runs beside published figures."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.core import TyperGroup

from cifar_runs import RESULTS, change
from hybrid_mobilenet.cli.app import app
from hybrid_mobilenet.study.frontier import BUDGETS, Frontier, best, render, tuned_rows
from hybrid_mobilenet.study.grid import PAPER_DATA_SETS, Run
from hybrid_mobilenet.study.recorded import encoded
from hybrid_mobilenet.study.records import Record, read_record
from hybrid_mobilenet.training.recipe import Recipe, paper_recipe
from paper_records import record
from scripts import script

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "FRONTIER.md").read_text(encoding="utf-8")
COMMAND = "hybrid-mobilenet train cifar100 --epochs 2 --validation 0"


def tuned(percent: float, seed: int = 0, epochs: int = 300, data: str = "cifar100") -> Record:
    run = Run(data, "fmp", 2, 0.25, seed, Recipe(epochs=epochs))
    return replace(record(run, percent), command=f"hybrid-mobilenet train {data} --epochs {epochs} --seed {seed}")


def frontier(*records: Record) -> Frontier:
    return replace(Frontier.read(RESULTS), tuned=tuned_rows(records))


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_the_committed_page_is_what_the_committed_records_give() -> None:
    assert render(Frontier.read(RESULTS)) == PAGE, "run: python benchmarks/frontier.py"


def test_page_and_pictures_are_written_anew(tmp_path: Path) -> None:
    result = frontier_script("--docs", tmp_path, "--recorded", tmp_path / "recorded.json")
    assert (result.returncode, result.stderr) == (0, "")
    names = ["FRONTIER.md", "frontier-cifar10.png", "frontier-cifar100.png", "recorded.json"]
    assert [Path(line).name for line in result.stdout.splitlines()] == names
    assert (tmp_path / "FRONTIER.md").read_text(encoding="utf-8") == PAGE
    for data in PAPER_DATA_SETS:
        name = f"frontier-{data}.png"
        with Image.open(tmp_path / name) as drawn, Image.open(ROOT / "docs" / name) as committed:
            assert drawn.size == committed.size
            colors = {color for _, color in drawn.convert("RGB").getcolors(maxcolors=10**6) or ()}
            assert drawn.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
        assert {(255, 127, 14), (138, 184, 224)} <= colors  # others, and the paper's recipe


def test_a_row_has_cost_accuracy_epoch_source_and_command() -> None:
    text = render(frontier(tuned(70), tuned(71, seed=1), tuned(69, data="cifar10")))
    (row,) = lines(text, "| **FMP d2 a0.25** | ours | 9.60 |")
    assert row == "| **FMP d2 a0.25** | ours | 9.60 | 0.46 | 70.50 (0.71) | 2 | last |  | [command](#commands) |"
    assert lines(text, "- FMP d2 a0.25, CIFAR-100: `hybrid-mobilenet train") == [
        "- FMP d2 a0.25, CIFAR-100: `hybrid-mobilenet train cifar100 --epochs 300 --seed 0`"
    ]
    assert "- FMP d2 a0.25, CIFAR-100: `hybrid-mobilenet reproduce --data cifar100 --family fmp" in text
    assert "[results/frontier](../results/frontier)" in text
    assert "[results/frontier](../results/frontier)" not in render(frontier())
    (other,) = lines(text, "| ShuffleNetV2 x0.5 | others | 10.99 |")
    assert re.fullmatch(r".*\| 0.44 \| 67.82 \|  \| best \|  \| \[.*\]\(https://.*\), \d{4}-\d\d-\d\d \|", other)


def test_distilled_networks_are_rows_of_their_own() -> None:
    teacher: dict[str, str | None] = {"network": "FMP d2 a0.5", "fingerprint": "ab"}
    found = frontier(tuned(70), replace(tuned(73), teacher=teacher))
    assert [(row.n, row.is_distilled, row.accuracy) for row in found.tuned] == [(1, False, 70.0), (1, True, 73.0)]
    text = render(found)
    assert lines(text, "| **FMP d2 a0.25** | ours | 9.60 | 0.46 | 73.00 | 1 | last | yes |")
    assert "FMP d2 a0.25, distilled: **73.0 %**" in lines(text, "| 11 M |")[0]
    key = ("cifar100", ("fmp", 2, 0.25))
    (recorded,) = [each for each in found.recorded() if (each.data, each.configuration) == key]
    assert (recorded.recipe, recorded.distilled, recorded.accuracies) == ("tuned", True, (0.73,))


@pytest.mark.parametrize(
    ("records", "recipe", "accuracy"),
    [((tuned(40),), "paper", 0.532), ((tuned(70), tuned(71, epochs=200)), "tuned", 0.71)],
)
def test_the_better_recipe_comes_with_the_package(records: tuple[Record, ...], recipe: str, accuracy: float) -> None:
    key = ("cifar100", ("fmp", 2, 0.25))
    (found,) = [each for each in frontier(*records).recorded() if (each.data, each.configuration) == key]
    assert (found.recipe, found.accuracies) == (recipe, (accuracy,))


def test_a_run_is_recorded_once() -> None:
    with pytest.raises(ValueError, match=r"FMP d2 a0.25 on cifar100 has two records .* \(seeds 0, 0\): delete one"):
        tuned_rows([tuned(70), tuned(71)])


def test_the_first_table_compares_at_equal_cost() -> None:
    entries = Frontier.read(RESULTS).entries("cifar10")
    found = best(entries, ["published"], 45)
    assert found
    assert (found.name, found.accuracy) == ("ResNet-20", 94.03)
    assert best(entries, ["published"], 10) is None
    rows = [line.split(" | ") for line in PAGE.splitlines() if re.match(r"\| \d+ M \|", line)]
    assert [row[0] for row in rows] == [f"| {budget} M" for budget in BUDGETS]
    (row,) = [row for row in rows if row[0] == "| 11 M"]
    assert ["**" in cell for cell in row[1:]] == [False, True, False, True]  # the better one of each data set


def test_published_figures_name_their_source() -> None:
    networks = json.loads((RESULTS / "published.json").read_text())["networks"]
    for network in networks:
        assert network["url"].startswith("https://"), network["name"]
        assert network["epoch"] in ("last", "best", "not stated")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", network["looked_up"])
        assert set(network) & set(PAPER_DATA_SETS)
        for data in set(network) & set(PAPER_DATA_SETS):
            assert 30 < network[data]["accuracy"] < 100
            assert 1 < network[data]["mult_adds"] < 200
            assert 0.1 < network[data]["parameters"] < 10


def test_the_page_s_commands_are_ones_the_program_takes() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    commands = re.findall(r"`hybrid-mobilenet ([^`]+)`", PAGE)
    assert len(commands) > 20
    for name, *arguments in map(shlex.split, commands):
        group.commands[name].make_context(name, arguments)


def frontier_script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks" / "frontier.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of the results, to which records can be added."""
    (tmp_path / "results").mkdir()
    shutil.copy(RESULTS / "published.json", tmp_path / "results")
    shutil.copytree(RESULTS / "reproduce", tmp_path / "results" / "reproduce")
    return tmp_path / "results"


def test_one_command_adds_a_run_and_another_shows_it(cifar_run: Path, results: Path, tmp_path: Path) -> None:
    command = f"{COMMAND} --batch-size 719"
    added = frontier_script("--results", results, "add", cifar_run, "one", "--command", command)
    assert (added.returncode, added.stderr, added.stdout) == (0, "", f"{results / 'frontier' / 'one.json'}\n")
    assert read_record(results / "frontier" / "one.json").command == command
    drawn = frontier_script("--results", results, "--docs", tmp_path / "docs", "--recorded", tmp_path / "recorded.json")
    assert drawn.returncode == 0, drawn.stderr
    text = (tmp_path / "docs" / "FRONTIER.md").read_text()
    assert lines(text, "| **FMP d2 a0.25** | ours | 9.60 | 0.46 | 70.00 | 1 | last |  |")
    assert f"- FMP d2 a0.25, CIFAR-100: `{command}`" in text
    assert (tmp_path / "recorded.json").read_bytes() == encoded(Frontier.read(results).recorded())

    again = frontier_script("--results", results, "add", cifar_run, "two", "--command", command)
    assert (again.returncode, again.stdout) == (1, "")
    assert re.fullmatch(r"error: FMP d2 a0.25 on cifar100 has two records .*\n", again.stderr)
    assert [path.name for path in (results / "frontier").iterdir()] == ["one.json"]


def test_a_run_with_validation_is_refused(cifar_run: Path, results: Path) -> None:
    fields = {"validation": 0.1, "validation_fingerprint": "ab", "images": 45_000}
    change(cifar_run, "config.json", lambda config: config["training"].update(fields))
    added = frontier_script("--results", results, "add", cifar_run, "one", "--command", COMMAND)
    assert (added.returncode, added.stderr) == (
        1,
        f"error: validation of the run in {cifar_run} is 0.1, but must be 0: train on all images with --validation 0\n",
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train cifar100", "must start with hybrid-mobilenet train"),
        (COMMAND + " --epoch 2", "which the program does not take: .*--epoch"),
        (COMMAND.replace("100", "10"), "--command has the data 'cifar10', but the run was trained with 'cifar100'"),
        (COMMAND + " --alpha 0.5", "--command has the alpha 0.5, but the run was trained with 0.25"),
        (COMMAND + " --seed 1", "--command has the seed 1, but the run was trained with 0"),
        (COMMAND + " --batch-size 32", "--command gives the batch_size 32, but the run was trained with 64"),
        (COMMAND + " --augmentation light", "--command gives the augmentation .*shift=0.125.*, but the run was"),
        (COMMAND.replace(" --epochs 2", ""), "--command gives the epochs 25, but the run was trained with 2"),
        (COMMAND + " --from runs/one", "--command has the start 'runs/one', but the run was trained with None"),
        (COMMAND + " --teacher runs/large", "the teacher of the run is None"),
        ("hybrid-mobilenet train cifar100 --epochs 2", "--command has the validation None, but .* with 0"),
    ],
)
def test_a_command_must_be_that_of_the_run(command: str, message: str) -> None:
    check = script("benchmarks/frontier.py").check_command
    trained = replace(tuned(70), recipe=paper_recipe("fmp", "cifar100").with_epochs(2))
    check(replace(trained, command=COMMAND))
    with pytest.raises(ValueError, match=message):
        check(replace(trained, command=command))


def test_the_command_of_a_distilled_network_is_checked_with_its_teacher() -> None:
    check = script("benchmarks/frontier.py").check_command
    recipe = replace(paper_recipe("fmp", "cifar100").with_epochs(2), fixed_epochs=2)  # as `train --teacher` chooses
    trained = replace(tuned(70), recipe=recipe, teacher={"network": "FMP d2 a0.5", "fingerprint": "ab"})
    check(replace(trained, command=f"{COMMAND} --teacher runs/large"))
    with pytest.raises(ValueError, match="but the teacher of the run is"):
        check(replace(trained, command=COMMAND))
