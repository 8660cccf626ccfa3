"""Plots of accuracy against cost: ours and the paper's in the report, ours and others' in docs/FRONTIER.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

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


@dataclass(frozen=True)
class Point:
    """A point of `draw_frontier`: its series, name, Mult-Adds and parameters in millions, accuracy in percent."""

    series: str
    name: str
    mult_adds: float
    parameters: float
    accuracy: float
    is_distilled: bool


#: Colour, marker and size of each series of `draw_frontier`, in their order: the paper's recipe is the paler of ours.
STYLES = (("C0", "o", 7.0), ("#8ab8e0", "o", 5.0), ("C1", "s", 5.0))

#: Where a name may stand: its offset from the point in points, and how it is aligned.
PLACES = (
    ((-5, 3), "right", "bottom"),
    ((5, 3), "left", "bottom"),
    ((5, -3), "left", "top"),
    ((-5, -3), "right", "top"),
    ((0, 7), "center", "bottom"),
    ((0, -7), "center", "top"),
)


def draw_frontier(points: Sequence[Point], series: Sequence[str], title: str, path: Path) -> None:
    """Draw accuracy against Mult-Adds and against parameters as PNG, on white. Names stand where there is room.

    Args:
        points: the networks. Those that are distilled are hollow.
        series: names of the series, each with one of `STYLES`. Names of earlier ones are placed first.
        title: of the picture.
        path: the PNG file.

    Raises:
        OSError: if the file cannot be written.
    """
    figure = Figure(figsize=(13, 6.5), layout="constrained", facecolor="white")
    figure.suptitle(title)
    for axes, cost in zip(figure.subplots(1, 2, sharey=True), ("mult_adds", "parameters"), strict=True):
        for name, (color, marker, size) in zip(series, STYLES, strict=True):
            for is_distilled in (False, True):
                drawn = [each for each in points if (each.series, each.is_distilled) == (name, is_distilled)]
                axes.plot(
                    [getattr(each, cost) for each in drawn],
                    [each.accuracy for each in drawn],
                    marker,
                    color=color,
                    markersize=size,
                    markerfacecolor="white" if is_distilled else color,
                    label=_legend(name, is_distilled=is_distilled, is_empty=not drawn),
                )
        axes.set(xlabel={"mult_adds": "Mult-Adds (millions)", "parameters": "Parameters (millions)"}[cost])
        axes.set(xscale="log")
        for each_axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            each_axis(FuncFormatter(_cost_label))
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel="Test accuracy (%)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.draw_without_rendering()  # settles the layout, in which the names are placed
    for axes, cost in zip(figure.axes, ("mult_adds", "parameters"), strict=True):
        _place_names(axes, points, series, cost)
    save_figure(figure, path)


def _legend(series: str, *, is_distilled: bool, is_empty: bool) -> str:
    """The name of points in the legend, which leaves out names that start with "_"."""
    if is_distilled:
        return "_" if is_empty else f"{series}, distilled"
    return f"{series} (none)" if is_empty else series


def _cost_label(cost: float, _position: int) -> str:
    """Label 1, 2, 5, 10, ... of a logarithmic axis."""
    return f"{cost:g}" if f"{cost:e}"[0] in "125" else ""


def _place_names(axes: Axes, points: Sequence[Point], series: Sequence[str], cost: str) -> None:
    """Write the names of the points, where they cover neither a point nor another name. Others are left out."""
    inside = axes.get_window_extent()
    centres = axes.transData.transform([(getattr(each, cost), each.accuracy) for each in points])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in centres.tolist()]
    for each in sorted(points, key=lambda each: (series.index(each.series), -each.accuracy)):
        for offset, horizontal, vertical in PLACES:
            text = axes.annotate(
                each.name,
                (getattr(each, cost), each.accuracy),
                offset,
                textcoords="offset points",
                horizontalalignment=horizontal,
                verticalalignment=vertical,
                fontsize=7.5,
                color=STYLES[series.index(each.series)][0],
            )
            box = text.get_window_extent()
            is_inside = inside.x0 < box.x0 and box.x1 < inside.x1 and inside.y0 < box.y0 and box.y1 < inside.y1
            if is_inside and not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()
