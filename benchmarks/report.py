"""What a benchmark found: tables for the terminal, records for the JSON file, README's section on speed.

python benchmarks/report.py prints that section as results/bench.json has it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent.parent / "results" / "bench.json"

#: What training is compared with: its name in the record, and how it is written.
SIDES = {
    "plain PyTorch": "plain PyTorch, as one writes it first: NCHW, grouped convolutions, Adam by its defaults",
    "good PyTorch": "good PyTorch: the same modules channels-last, fused Adam, and torch.compile where that is faster",
    "Keras": "Keras on TensorFlow, its step compiled to a graph",
}


@dataclass(frozen=True)
class Figure:
    """A measured figure beside what it should reach. An aim is only reported; missing a target fails `--check`.

    `limit` is what it cannot exceed: above it, the measurement is wrong.
    """

    value: float
    target: float
    unit: str = "x"
    at_most: bool = False
    aim: bool = False
    limit: float | None = None

    @property
    def reached(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target

    def __str__(self) -> str:
        sign, kind = "<=" if self.at_most else ">=", "aim " if self.aim else ""
        verdict = "[green]pass[/]" if self.reached else "[red]miss[/]"
        return f"{self.value:.3g}{self.unit} ({kind}{sign} {self.target:g}{self.unit}) {verdict}"


Cell = Figure | float | str | None


@dataclass(frozen=True)
class Section:
    """One table: rows with equal keys. None stands for what could not be measured."""

    title: str
    rows: list[dict[str, Cell]]

    def missed(self) -> bool:
        """Whether a figure misses its target (not merely an aim)."""
        figures = [cell for row in self.rows for cell in row.values() if isinstance(cell, Figure)]
        return any(not figure.reached and not figure.aim for figure in figures)

    def errors(self) -> list[str]:
        """What cannot be, a line for each figure."""
        return [
            f"{self.title}: {name} of {next(iter(row.values()))} is {cell.value:.4g}{cell.unit}, above the "
            f"{cell.limit:g}{cell.unit} that nothing can exceed: measure again on a quiet machine"
            for row in self.rows
            for name, cell in row.items()
            if isinstance(cell, Figure) and cell.limit is not None and cell.value > cell.limit
        ]

    def show(self, console: Console) -> None:
        table = Table(*self.rows[0], title=self.title, title_justify="left", title_style="bold")
        for row in self.rows:
            table.add_row(*map(_text, row.values()))
        console.print(table)

    def record(self) -> dict[str, Any]:
        return {"title": self.title, "rows": [{key: _json(cell) for key, cell in row.items()} for row in self.rows]}


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    return (
        f"{cell:.3g}"
        if isinstance(cell, float) and cell < 100
        else f"{cell:.0f}"
        if isinstance(cell, float)
        else str(cell)
    )


def _json(cell: Cell) -> Any:
    return asdict(cell) | {"reached": cell.reached} if isinstance(cell, Figure) else cell


def speed(record: Mapping[str, Any]) -> str:
    """README's section on speed, in Markdown: the record alone has its figures.

    Args:
        record: what bench.py wrote after a full run.
    """

    def rows(title: str) -> list[dict[str, Any]]:
        """Of the sections whose titles begin so."""
        return [row for section in record["sections"] if section["title"].startswith(title) for row in section["rows"]]

    training = {threads: rows(f"Training, images/s, batch 128, {threads} thread") for threads in (1, 2)}
    sides = [side for side in SIDES if training[1][0].get(side) is not None]
    pooling, environment = rows("Fractional max pooling"), record["environment"]
    scaling = _range(rows("Training on two threads"), "two threads over one", ".1f")
    faster = _listed([f"{row['faster than torch']['value']:.0f}" for row in pooling])
    channels = _listed([row["map"].partition(" ")[0] for row in pooling])
    first = _range(pooling, "times, first pass", ".0f")
    machine = ", ".join([environment["processor"], *(environment["vector_instructions"] or [])])
    day, cores = environment["date"][:10], environment["processors"]
    text = (
        "All take their framework's own fractional max pooling. The second thread makes a step "
        f"{scaling} times as fast. The pooling layer alone, forward and backward on one thread, is {faster} times as "
        f"fast as torch's ({channels} channels), and {first} times at its first pass behind torch's, in a cold cache. "
        f"All figures are medians of one `make bench` ({day}) on {cores} cores: {machine}. "
        "[results/bench.json](results/bench.json) has them with their environment."
    )
    return "\n".join(
        [
            "Training steps on a CPU in float32, batch 128, beside the same networks on the same cores, in turns:",
            "",
            *(
                _wrapped(f"- {SIDES[side]}{_compiling(rows('Good PyTorch')) if side == 'good PyTorch' else ''}", "  ")
                for side in sides
            ),
            "",
            f"| Network | Threads | images/s |{''.join(f' over {side} |' for side in sides)}",
            f"|---|---:|---:|{'---:|' * len(sides)}",
            *(
                f"| {row['network']} | {threads} | {row['ours']:.0f} |"
                + "".join(f" {row['over ' + side]['value']:.1f}x |" for side in sides)
                for threads, networks in training.items()
                for row in networks
            ),
            "",
            _wrapped(text),
        ]
    )


def _compiling(rows: list[dict[str, Any]]) -> str:
    """What torch.compile did for good PyTorch."""
    compiled = [row for row in rows if row["compiled"] is not None]
    counts = sum(row["counts"] == "compiled" for row in rows)
    took = f" (its first step takes {_range(compiled, 'first step, compiling, s', '.0f')} s)" if compiled else ""
    failed = f"; it failed for {len(rows) - len(compiled)}" if len(compiled) < len(rows) else ""
    return f", as for {counts} of these {len(rows)}{took}{failed}"


def _range(rows: list[dict[str, Any]], key: str, form: str) -> str:
    """The lowest and the highest of a column."""
    values = [row[key]["value"] if isinstance(row[key], dict) else row[key] for row in rows]
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _listed(values: list[str]) -> str:
    return f"{', '.join(values[:-1])} and {values[-1]}"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


if __name__ == "__main__":
    print(speed(json.loads(RESULTS.read_text(encoding="utf-8"))))
