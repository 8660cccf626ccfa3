"""Plots of a run: any number of classes, with and without a validation split."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_mobilenet.training.plots import draw_confusion, draw_curves
from pictures import picture


@pytest.mark.parametrize("classes", [2, 10, 30, 100])
def test_a_confusion_matrix_of_any_size(tmp_path: Path, classes: int) -> None:
    path = tmp_path / "confusion.png"
    confusion = [[5 * (i == j) + (j == 0) for j in range(classes)] for i in range(classes)]
    draw_confusion(confusion, [f"class {index}" for index in range(classes)], "Title", path)
    width, height = picture(path).size
    assert 400 < height < width < 2000


@pytest.mark.parametrize("epochs", [1, 2, 60])
@pytest.mark.parametrize("validation", [False, True])
def test_curves(tmp_path: Path, epochs: int, validation: bool) -> None:
    keys = ["loss", "accuracy", *(["validation_loss", "validation_accuracy"] if validation else [])]
    history = [{"epoch": epoch + 1} | dict.fromkeys(keys, 1 / (epoch + 1)) for epoch in range(epochs)]
    draw_curves(history, tmp_path / "curves.png")
    assert picture(tmp_path / "curves.png").size == (1080, 432)
