"""docs/FRONTIER.md: accuracy against cost, our networks beside those of others, written from the records alone."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from ..common.files import write_atomically
from .grid import PAPER_DATA_SETS
from .plots import Point, draw_frontier
from .recorded import RECORDED_FILE, RecipeKind, Recorded, encoded
from .records import Record, read_records
from .report_tables import table
from .rows import DATA_NAMES, Row, configuration_name, rows

PAGE_FILE = "FRONTIER.md"
PUBLISHED_FILE = "published.json"

#: Mult-Adds in millions, in steps between which there are published networks.
BUDGETS = (2, 4, 7, 11, 20, 30, 45, 70, 100, 150)

#: What the page calls the series of its tables and pictures.
SERIES = {"tuned": "ours", "paper": "ours, the paper's recipe", "published": "others"}


@dataclass(frozen=True)
class Entry:
    """A network on one data set.

    Attributes:
        data: "cifar10" or "cifar100".
        name: of the network.
        series: whose it is: a key of `SERIES`.
        mult_adds: Mult-Adds in millions.
        parameters: in millions.
        accuracy: in percent, the mean over seeds.
        deviation: standard deviation over seeds in points; None for a single run, or if it is not published.
        seeds: number of runs; None if it is not published.
        epoch: whose accuracy it is: "last", "best" for the best on the test images, or "not stated".
        distilled: whether it was trained with a teacher.
        source: Markdown: where the accuracy is from.
        command: the command line that trains it; empty for networks of others.
    """

    data: str
    name: str
    series: Literal["tuned", "paper", "published"]
    mult_adds: float
    parameters: float
    accuracy: float
    deviation: float | None
    seeds: int | None
    epoch: str
    distilled: bool
    source: str
    command: str = ""

    @property
    def title(self) -> str:
        """The name, and whether it is distilled."""
        return f"{self.name}, distilled" if self.distilled else self.name


@dataclass(frozen=True)
class Frontier:
    """All that the page shows.

    Attributes:
        tuned: rows of our runs with a recipe that was tuned for accuracy.
        paper: rows of our runs with the recipe of the reproduction, one per network.
        published: the networks of others, as in published.json.
    """

    tuned: tuple[Row, ...]
    paper: tuple[Row, ...]
    published: tuple[Entry, ...]

    @classmethod
    def read(cls, results: Path) -> Frontier:
        """Read the records in frontier/ and reproduce/, and published.json.

        Raises:
            ValueError: if a record is damaged, or a run is recorded twice.
            OSError: if a file cannot be read.
        """
        reproduced = [record for record in read_records(results / "reproduce") if record.data in PAPER_DATA_SETS]
        paper: dict[tuple[object, ...], Row] = {}
        for row in rows(reproduced):  # the first row of a network is that of today's recipe
            paper.setdefault((row.data, row.configuration), row)
        tuned = tuned_rows(read_records(results / "frontier"))
        return cls(tuned, tuple(paper.values()), read_published(results / PUBLISHED_FILE))

    def entries(self, data: str) -> list[Entry]:
        """All networks on a data set, the cheapest first."""
        ours = [_entry(row, "tuned") for row in self.tuned] + [_entry(row, "paper") for row in self.paper]
        found = [each for each in (*ours, *self.published) if each.data == data]
        return sorted(found, key=lambda each: (each.mult_adds, each.accuracy))

    def recorded(self) -> list[Recorded]:
        """The accuracies that come with the package: of each network on each data set, that of the best recipe."""
        every = [Recorded.of(row, "tuned") for row in self.tuned] + [Recorded.of(row, "paper") for row in self.paper]
        best: dict[tuple[object, ...], Recorded] = {}
        for each in sorted(every, key=lambda each: -each.accuracy):
            best.setdefault((each.data, each.configuration), each)
        return sorted(best.values(), key=lambda each: (each.data, *each.configuration))


def tuned_rows(records: Iterable[Record]) -> tuple[Row, ...]:
    """Group records into rows: runs that differ in their seeds alone.

    Raises:
        ValueError: if two records are of the same run.
    """

    def key(record: Record) -> tuple[Any, ...]:
        teacher = json.dumps(record.teacher) if record.teacher else ""
        return record.data, record.mult_adds, record.family, record.delta, record.alpha, record.fingerprint, teacher

    found = []
    for _, group in groupby(sorted(records, key=lambda record: (*key(record), record.seed)), key):
        row = Row.of(tuple(group))
        seeds = [record.seed for record in row.records]
        if len(set(seeds)) < len(seeds):
            raise ValueError(
                f"{configuration_name(row.configuration)} on {row.data} has two records with the same recipe and seed "
                f"(seeds {', '.join(map(str, seeds))}): delete one of them"
            )
        found.append(row)
    return tuple(found)


def read_published(path: Path) -> tuple[Entry, ...]:
    """Read the networks of others.

    Raises:
        ValueError: if a field is missing or unknown.
        OSError: if the file cannot be read.
    """
    found = []
    for network in json.loads(path.read_text(encoding="utf-8"))["networks"]:
        about = {key: network[key] for key in ("name", "epoch", "distilled")}
        source = (
            f"[{network['by']}]({network['url']}), {network['looked_up']}" + "; cost: our count" * network["counted"]
        )
        found += [
            Entry(data, series="published", deviation=None, seeds=None, source=source, **about, **network[data])
            for data in PAPER_DATA_SETS
            if data in network
        ]
    return tuple(found)


def _entry(row: Row, series: RecipeKind) -> Entry:
    first, name = row.records[0], configuration_name(row.configuration)
    family, delta, alpha = row.configuration
    command = first.command or (
        f"hybrid-mobilenet reproduce --data {row.data} --family {family} --delta {delta} --alpha {alpha:g}"
        + f" --seeds {row.n}" * (row.n > 1)
    )
    return Entry(
        row.data,
        name,
        series,
        first.mult_adds / 1e6,
        first.parameters / 1e6,
        row.accuracy,
        row.deviation,
        row.n,
        "last",
        row.is_distilled,
        "[command](#commands)",
        command,
    )


def write_frontier(results: Path, docs: Path, recorded: Path = RECORDED_FILE) -> tuple[Path, ...]:
    """Write the page, its pictures and the accuracies that come with the package, and return the files.

    Args:
        results: folder with frontier/ and reproduce/.
        docs: folder of the page.
        recorded: file of the accuracies.

    Raises:
        ValueError: if a record is damaged, or a run is recorded twice.
        OSError: if a file cannot be read or written.
    """
    frontier = Frontier.read(results)
    docs.mkdir(parents=True, exist_ok=True)
    for data in PAPER_DATA_SETS:
        points = [
            Point(SERIES[each.series], each.name, each.mult_adds, each.parameters, each.accuracy, each.distilled)
            for each in frontier.entries(data)
        ]
        draw_frontier(points, [*SERIES.values()], DATA_NAMES[data], docs / picture(data))
    write_atomically(docs / PAGE_FILE, render(frontier).encode())
    write_atomically(recorded, encoded(frontier.recorded()))
    return docs / PAGE_FILE, *(docs / picture(data) for data in PAPER_DATA_SETS), recorded


def picture(data: str) -> str:
    """Name of the picture of a data set."""
    return f"frontier-{data}.png"


def render(frontier: Frontier) -> str:
    """The page as Markdown. The same records give the same text."""
    entries = {data: frontier.entries(data) for data in PAPER_DATA_SETS}
    parts = [
        "# Accuracy at a given cost",
        "<!-- Written by benchmarks/frontier.py from results/. Do not edit by hand. -->",
        "Small networks for CIFAR, ours beside those of others. All are trained on CIFAR's training images alone.",
        "- **Ours**: the last epoch, on the 10,000 test images, in one pass with fixed pooling regions. Neither epochs "
        "nor settings are chosen by test images.\n"
        "- **Others**: as published. Many are the accuracy of the epoch that is best on the test images, which is "
        "higher than that of the last one. The tables say which.\n"
        "- **Mult-Adds** are for one image. **Parameters** of ours count the moving statistics of batch normalisation, "
        "which others leave out: about 2 % more.\n"
        "- **Distilled** networks also learnt from the outputs of a larger one, the teacher.",
        "`hybrid-mobilenet select` lists our networks within a budget, and `hybrid-mobilenet train DATA --budget 10M` "
        "trains the best of them.",
        "## The best network within a budget",
        _budgets(entries),
        *(
            part
            for data, found in entries.items()
            for part in (
                f"## {DATA_NAMES[data]}",
                f"![Accuracy on {DATA_NAMES[data]} against Mult-Adds and parameters]({picture(data)})",
                _networks(found),
            )
        ),
        "## Commands",
        "The commands that train our networks. With several seeds, the others differ in `--seed` alone.",
        _commands(entries, "tuned"),
        "With the paper's recipe:" if frontier.tuned else "",
        _commands(entries, "paper"),
        f"The records are in {'[results/frontier](../results/frontier) and ' if frontier.tuned else ''}"
        "[results/reproduce](../results/reproduce), the figures of others in "
        f"[results/{PUBLISHED_FILE}](../results/{PUBLISHED_FILE}).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def best(entries: Iterable[Entry], series: Collection[str], mult_adds: float) -> Entry | None:
    """The most accurate network of some series with at most so many million Mult-Adds; the cheaper one of equals."""
    within = [each for each in entries if each.series in series and each.mult_adds <= mult_adds]
    return max(within, key=lambda each: (each.accuracy, -each.mult_adds), default=None)


def _budgets(entries: dict[str, list[Entry]]) -> str:
    def cells(data: str, budget: float) -> list[str]:
        ours, others = best(entries[data], ("tuned", "paper"), budget), best(entries[data], ("published",), budget)
        higher = max((each.accuracy for each in (ours, others) if each), default=0)
        return [
            "-" if each is None else f"{each.title}: {_bold(f'{each.accuracy:.1f} %', each.accuracy == higher)}"
            for each in (ours, others)
        ]

    lines = [
        f"| {budget} M | " + " | ".join(cell for data in PAPER_DATA_SETS for cell in cells(data, budget)) + " |"
        for budget in BUDGETS
    ]
    names = [f"{DATA_NAMES[data]}, {whose}" for data in PAPER_DATA_SETS for whose in ("ours", "others")]
    return table(f"| Mult-Adds, at most | {' | '.join(names)} |", "|---:|---|---|---|---|", lines)


def _networks(entries: Sequence[Entry]) -> str:
    lines = []
    for each in entries:
        deviation = "" if each.deviation is None else f" ({each.deviation:.2f})"
        cells = (
            _bold(each.name, each.series == "tuned"),
            SERIES[each.series],
            f"{each.mult_adds:.2f}",
            f"{each.parameters:.2f}",
            f"{each.accuracy:.2f}{deviation}",
            each.seeds or "",
            each.epoch,
            "yes" if each.distilled else "",
            each.source,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    header = (
        "| Network | Whose | Mult-Adds, M | Parameters, M | Accuracy, % (sd) | Seeds | Epoch | Distilled | Source |"
    )
    return table(header, "|---|---|---:|---:|---:|---:|---|---|---|", lines)


def _commands(entries: dict[str, list[Entry]], series: str) -> str:
    return "\n".join(
        f"- {each.title}, {DATA_NAMES[data]}: `{each.command}`"
        for data, found in entries.items()
        for each in found
        if each.series == series
    )


def _bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text
