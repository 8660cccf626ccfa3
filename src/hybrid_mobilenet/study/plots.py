"""Plots of the report: accuracy against cost, ours and the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from ..common.plots import save_figure


@dataclass(frozen=True)
class Mark:
    """A point of `draw_tradeoff`: whose result, the family, cost in millions, accuracy in percent."""

    whose: Literal["ours", "the paper"]
    family: str
    cost: float
    accuracy: float


def draw_tradeoff(panels: Mapping[str, Sequence[Mark]], cost: str, path: Path) -> None:
    """Draw accuracy against a cost, ours and the paper's, with one panel per data set, as PNG.

    Args:
        panels: the marks of each panel, by its title.
        cost: label of the cost axis, which is logarithmic.
        path: the PNG file.

    Raises:
        OSError: if the file cannot be written.
    """
    figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
    families = list(dict.fromkeys(mark.family for marks in panels.values() for mark in marks))
    for axes, (title, marks) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for index, family in enumerate(families):
            for whose, line, filled in (("the paper", "--", False), ("ours", "-", True)):
                points = sorted(
                    (mark.cost, mark.accuracy) for mark in marks if (mark.family, mark.whose) == (family, whose)
                )
                color = f"C{index}"
                axes.plot(
                    [point[0] for point in points],
                    [point[1] for point in points],
                    marker="os^"[index % 3],
                    linestyle=line,
                    linewidth=1,
                    color=color,
                    markerfacecolor=color if filled else "white",
                    label=f"{family}, {whose}" + ("" if points else " (none)"),
                )
        axes.set(title=title, xlabel=cost, ylabel="Test accuracy (%)", xscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)
