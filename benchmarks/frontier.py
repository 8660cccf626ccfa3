r"""docs/FRONTIER.md: accuracy against cost, our networks beside those of others.

    python benchmarks/frontier.py add runs/c100 cifar100-fmp-d2-a0.25-seed0 \
        --command "hybrid-mobilenet train cifar100 --validation 0 --seed 0"
    python benchmarks/frontier.py

`add` records a finished run on CIFAR in results/frontier/NAME.json. Without arguments, the page, its pictures and the
accuracies that come with the package (study/recorded.json) are written anew from all records.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import typer
from typer.core import TyperGroup

from hybrid_mobilenet.cli.app import app
from hybrid_mobilenet.cli.train import changed_recipe
from hybrid_mobilenet.common.errors import one_line
from hybrid_mobilenet.data.dataset import ImageDataset
from hybrid_mobilenet.study.finished import record_of_run
from hybrid_mobilenet.study.frontier import tuned_rows, write_frontier
from hybrid_mobilenet.study.recorded import RECORDED_FILE
from hybrid_mobilenet.study.records import Record, read_record, read_records, write_record
from hybrid_mobilenet.training.recipe import Recipe
from hybrid_mobilenet.training.setup import Setup, default_recipe

ROOT = Path(__file__).parents[1]


def add(run: Path, name: str, command: str, results: Path) -> Path:
    """Record a finished run, and return the record's path.

    Raises:
        ValueError: if the run is not one that the page shows, the command is not that of the run, or the run is
            recorded under another name.
        OSError: if a file cannot be read or written.
    """
    fingerprints = {record.data: record.data_fingerprint for record in read_records(results / "reproduce")}
    record = record_of_run(run, command, fingerprints)
    check_command(record)
    path = results / "frontier" / f"{name}.json"
    tuned_rows([record, *(read_record(each) for each in path.parent.glob("*.json") if each != path)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, record)
    return path


def check_command(record: Record) -> None:
    """Check that a command is one that the program takes, and trains what was trained.

    Raises:
        ValueError: if it is not.
    """
    words = shlex.split(record.command)
    if words[:2] != ["hybrid-mobilenet", "train"]:
        raise ValueError(f"--command is {record.command!r}, but must start with hybrid-mobilenet train")
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    try:
        given = group.commands["train"].make_context("train", words[2:]).params
    except Exception as error:  # typer's usage errors have no public class
        raise ValueError(
            f"--command is {record.command!r}, which the program does not take: {one_line(error)}"
        ) from None
    trained = {name: getattr(record, name) for name in ("data", "family", "alpha", "delta", "seed")}
    trained |= {"validation": 0, "start": None, "image_size": "32", "in_channels": 3}
    if wrong := [name for name, value in trained.items() if given[name] != value]:
        name = wrong[0]
        raise ValueError(f"--command has the {name} {given[name]!r}, but the run was trained with {trained[name]!r}")
    if (given["teacher"] is None) != (record.teacher is None):
        raise ValueError(f"--command is {record.command!r}, but the teacher of the run is {record.teacher!r}")
    ours, theirs = vars(commanded_recipe(record, given)), vars(record.recipe)
    if wrong := [name for name, value in theirs.items() if ours[name] != value]:
        name = wrong[0]
        raise ValueError(f"--command gives the {name} {ours[name]!r}, but the run was trained with {theirs[name]!r}")


def commanded_recipe(record: Record, given: dict[str, Any]) -> Recipe:
    """The recipe that `train` chooses with the parameters of a command line, for the network of a record."""
    teacher = None if given["teacher"] is None else str(given["teacher"])
    setup = Setup(record.data, family=record.family, alpha=record.alpha, delta=record.delta, teacher=teacher)
    recipe = default_recipe(setup, cast(ImageDataset, None))  # the images do not matter for built-in data
    settings = {name: given[name] for name in vars(recipe) if name in given}
    changes = {name: settings.pop(name) for name in ("epochs", "augmentation")}
    return changed_recipe(recipe, **changes, settings=settings, flips=given["flips"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the records")
    commands = parser.add_subparsers(dest="action", metavar="add")
    adding = commands.add_parser("add", help="record a finished run")
    adding.add_argument("run", type=Path, metavar="RUN", help="its folder")
    adding.add_argument("name", metavar="NAME", help="name of the record, such as cifar100-fmp-d2-a0.25-seed0")
    adding.add_argument("--command", required=True, help="the command line that trained it")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the page")
    parser.add_argument("--recorded", type=Path, default=RECORDED_FILE, help="file of the accuracies for the package")
    given = parser.parse_args(arguments)
    try:
        if given.action == "add":
            print(add(given.run, given.name, given.command, given.results))
        else:
            print(*write_frontier(given.results, given.docs, given.recorded), sep="\n")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    main()
