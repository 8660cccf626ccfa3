"""Results of a benchmark: tables for the terminal, records for the JSON file, and docs/SPEED.md.

Usage: python benchmarks/report.py > docs/SPEED.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent.parent / "results" / "bench.json"

#: The sides that training is compared with, by their name in the record.
SIDES = {
    "plain PyTorch": "**Plain PyTorch**, as first written: NCHW, grouped convolutions, Adam with defaults",
    "good PyTorch": "**Good PyTorch**: the same modules, channels-last, fused Adam, torch.compile where faster",
    "Keras": "**Keras** on TensorFlow, with the training step compiled to a graph",
}


@dataclass(frozen=True)
class Figure:
    """A measured figure and its target. A missed target fails `--check`, unless it is only an aim.

    Above `limit`, the measurement itself is wrong.
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
    """One table: rows with equal keys. A cell that could not be measured is None."""

    title: str
    rows: list[dict[str, Cell]]

    def missed(self) -> bool:
        """Whether a figure misses a target that is not only an aim."""
        figures = [cell for row in self.rows for cell in row.values() if isinstance(cell, Figure)]
        return any(not figure.reached and not figure.aim for figure in figures)

    def errors(self) -> list[str]:
        """One line for each figure above its limit."""
        return [
            f"{self.title}: {name} of {next(iter(row.values()))} is {cell.value:.4g}{cell.unit}, but cannot exceed "
            f"{cell.limit:g}{cell.unit}: measure again on a quiet machine"
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
    """The text of docs/SPEED.md. All its figures come from the record.

    Args:
        record: the JSON that bench.py writes after a full run.
    """

    def rows(title: str) -> list[dict[str, Any]]:
        """Rows of the sections whose titles start with `title`."""
        return [row for section in record["sections"] if section["title"].startswith(title) for row in section["rows"]]

    training = {threads: rows(f"Training, images/s, batch 128, {threads} thread") for threads in (1, 2)}
    sides = [side for side in SIDES if training[1][0].get(side) is not None]
    environment = record["environment"]
    scaling = _range(rows("Training on two threads"), "two threads over one", ".1f")
    machine = ", ".join([environment["processor"], *(environment["vector_instructions"] or [])])
    compiled = rows("Good PyTorch")
    return "\n".join(
        [
            "# Training speed",
            "",
            "Training steps on a CPU in float32 with batches of 128 images, compared with the same networks in:",
            "",
            *(f"- {SIDES[side]}" for side in sides),
            "",
            "Each uses its own framework's fractional max pooling.",
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
            f"Two threads are {scaling}x as fast as one.",
            *_compiling(compiled),
            "",
            "## The pooling layer alone",
            "",
            "Forward and backward on one thread, compared with `torch.nn.FractionalMaxPool2d`:",
            "",
            "| Map | Speedup | First, cold-cache call |",
            "|---|---:|---:|",
            *(
                f"| {row['map']} | {row['faster than torch']['value']:.0f}x | {row['times, first pass']:.0f}x |"
                for row in rows("Fractional max pooling")
            ),
            "",
            "## How this was measured",
            "",
            f"By `make bench` on {environment['date'][:10]}, on {environment['processors']} cores: {machine}.",
            "All sides took turns on the same cores, and every figure is a median.",
            "[results/bench.json](../results/bench.json) has all figures with their environment.",
        ]
    )


def _compiling(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences on torch.compile."""
    compiled = [row for row in rows if row["compiled"] is not None]
    if not compiled:
        return []
    faster = sum(row["counts"] == "compiled" for row in rows)
    failed = len(rows) - len(compiled)
    return [
        f"torch.compile is the faster one in {faster} of these {len(rows)} cases.",
        f"Its first step takes {_range(compiled, 'first step, compiling, s', '.0f')} s.",
        *([f"It failed in {failed} cases."] if failed else []),
    ]


def _range(rows: list[dict[str, Any]], key: str, form: str) -> str:
    """Minimum and maximum of a column."""
    values = [row[key]["value"] if isinstance(row[key], dict) else row[key] for row in rows]
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    print(speed(json.loads(RESULTS.read_text(encoding="utf-8"))))
