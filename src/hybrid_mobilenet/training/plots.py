"""Plots of a run: loss and accuracy per epoch, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..common.plots import plain_names, save_figure

CURVES_FILE = "curves.png"
CONFUSION_FILE = "confusion.png"

#: Up to this number of classes the cells show their counts; up to twice as many, the axes show the class names.
NUMBERED_CLASSES = 20


def draw_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw loss and accuracy per epoch, of training and (if there is one) of the validation split, as PNG.

    Args:
        history: the records of metrics.jsonl.
        path: the PNG file.

    Raises:
        OSError: if the file cannot be written.
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
    save_figure(figure, path)


@plain_names()
def draw_confusion(confusion: Sequence[Sequence[int]], class_names: Sequence[str], title: str, path: Path) -> None:
    """Draw a confusion matrix as PNG: rows are true classes, columns predicted ones, shades the fraction of the row.

    Args:
        confusion: counts; row i, column j: images of class i predicted as class j.
        class_names: names of the rows and columns.
        title: title of the plot.
        path: the PNG file.

    Raises:
        OSError: if the file cannot be written.
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
    save_figure(figure, path)
