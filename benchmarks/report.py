"""What a benchmark found: tables for the terminal, records for the JSON file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """A measured figure beside what it should reach. An aim is only reported; missing a target fails `--check`."""

    value: float
    target: float
    unit: str = "x"
    at_most: bool = False
    aim: bool = False

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
