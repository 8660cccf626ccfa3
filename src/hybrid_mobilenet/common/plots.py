"""Pictures of a run: its curves, and the confusion of its classes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.ticker import LogLocator, NullLocator

from .files import write_atomically

CURVES_FILE = "curves.png"
CONFUSION_FILE = "confusion.png"

#: More classes than this leave no room for the numbers in the cells, nor, beyond twice as many, for the names.
NUMBERED_CLASSES = 20

#: Matplotlib's own font, then fonts of Linux, macOS and Windows for scripts that it lacks.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Arial Unicode MS", "Microsoft YaHei")


@contextmanager
def _names_as_they_are() -> Iterator[None]:
    """Names of classes and files in any script and of any length; dollar signs are not formulas here."""
    installed = get_font_names()
    fonts = [font for font in FONTS if font in installed]
    with (
        # The picture grows with the names, and not the axes shrink.
        mpl.rc_context({"text.parse_math": False, "font.family": fonts, "savefig.bbox": "tight"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
        yield


def draw_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss and accuracy per epoch, training beside validation where there is one, as PNG.

    Args:
        history: the records of metrics.jsonl.
        path: where the picture is written.

    Raises:
        OSError: where it cannot be written.
    """
    epochs = [record["epoch"] for record in history]
    marker = "o" if len(epochs) == 1 else None  # a line of one point shows nothing
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, key, scale, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), ("Cross-entropy", "Accuracy (%)"), strict=True
    ):
        for prefix, name in (("", "training"), ("validation_", "validation")):
            if f"{prefix}{key}" in history[0]:
                values = [scale * record[f"{prefix}{key}"] for record in history]
                axes.plot(epochs, values, marker=marker, label=f"{name}, last {values[-1]:.3g}")
        axes.set(xlabel="Epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    _write(figure, path)


@_names_as_they_are()
def draw_confusion(confusion: Sequence[Sequence[int]], class_names: Sequence[str], title: str, path: Path) -> None:
    """The confusion matrix as PNG: rows are true classes, columns predicted ones, shades the share of the row.

    Args:
        confusion: counts; row i, column j: images of class i taken for class j.
        class_names: of the rows and columns.
        title: written above.
        path: where the picture is written.

    Raises:
        OSError: where it cannot be written.
    """
    classes = len(class_names)
    side = min(3.2 + 0.42 * classes, 14)
    figure = Figure(figsize=(side + 0.8, side))
    axes = figure.subplots()
    shares = [[count / max(sum(row), 1) for count in row] for row in confusion]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title=title, xlabel="Predicted class", ylabel="True class")
    if classes <= 2 * NUMBERED_CLASSES:
        axes.set_xticks(range(classes), class_names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(classes), class_names)
    if classes <= NUMBERED_CLASSES:
        for i, row in enumerate(confusion):
            for j, count in enumerate(row):
                if count:
                    color = "white" if shares[i][j] > 0.5 else "black"
                    axes.text(j, i, str(count), ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, ax=axes, label="Share of the true class", fraction=0.046)
    _write(figure, path)


@dataclass(frozen=True)
class Mark:
    """A point of `draw_tradeoff`: whose, of which family, its cost in millions, its accuracy in percent."""

    whose: Literal["ours", "the paper"]
    family: str
    cost: float
    accuracy: float


def draw_tradeoff(panels: Mapping[str, Sequence[Mark]], cost: str, path: Path) -> None:
    """Accuracy against a cost, ours beside the paper's, a panel for each data set, as PNG.

    Args:
        panels: title and marks of each.
        cost: label of the cost's axis, which is logarithmic.
        path: where the picture is written.

    Raises:
        OSError: where it cannot be written.
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
    _write(figure, path)


@_names_as_they_are()
def draw_latencies(measurements: Sequence[dict[str, Any]], path: Path) -> None:
    """The time for one image of every model, runtime and number of threads, as PNG.

    Args:
        measurements: records of `benchmark.Measurement`.
        path: where the picture is written.

    Raises:
        OSError: where it cannot be written.
    """
    figure = Figure(figsize=(6, 1.2 + 0.35 * len(measurements)))
    axes = figure.subplots()
    for place, record in enumerate(measurements):
        median, lower, upper = (1e6 * record["latency"][key] for key in ("median", "lower", "upper"))
        error, colour = [[median - lower], [upper - median]], f"C{record['threads'] % 10}"
        axes.errorbar(median, place, xerr=error, fmt="o", color=colour, capsize=3)
    names = [f"{r['model']}, {r['runtime']}, {r['threads']} thr." for r in measurements]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    # Runtimes differ by tens, files in one of them by tenths.
    axes.set(xscale="log", xlabel="Microseconds for one image: median and quartiles")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
