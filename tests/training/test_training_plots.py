"""Plots of a run: any number of classes, names in any script, with and without a validation split."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from hybrid_mobilenet.training.plots import draw_confusion, draw_curves


def picture(path: Path) -> Image.Image:
    image = Image.open(io.BytesIO(path.read_bytes()))
    image.load()
    assert image.format == "PNG"
    assert len(set(image.convert("L").tobytes())) > 10  # not blank
    return image


@pytest.mark.parametrize("classes", [2, 10, 30, 100])
def test_a_confusion_matrix_of_any_size(tmp_path: Path, classes: int) -> None:
    path = tmp_path / "confusion.png"
    confusion = [[5 * (i == j) + (j == 0) for j in range(classes)] for i in range(classes)]
    draw_confusion(confusion, [f"class {index}" for index in range(classes)], "Title", path)
    width, height = picture(path).size
    assert 400 < height < width < 2000


def test_names_are_not_taken_for_formulas(tmp_path: Path) -> None:
    names = ["$\\nonsense$", "a_b^c", "$1", "%"]
    draw_confusion([[1] * 4] * 4, names, "$\\more$ {nonsense", tmp_path / "confusion.png")
    picture(tmp_path / "confusion.png")


def test_long_names_and_those_of_any_script_fit(tmp_path: Path) -> None:
    """Nor is there a warning: in tests it would be an error."""
    path = tmp_path / "confusion.png"
    draw_confusion([[1] * 3] * 3, ["\u732b", "\U0001f408", "short"], "Title", path)
    plain = picture(path).size
    draw_confusion([[1] * 3] * 3, ["\u732b", "\U0001f408", "long" * 40], "Title", path)
    assert all(long > short + 500 for long, short in zip(picture(path).size, plain, strict=True))


@pytest.mark.parametrize("epochs", [1, 2, 60])
@pytest.mark.parametrize("validation", [False, True])
def test_curves(tmp_path: Path, epochs: int, validation: bool) -> None:
    keys = ["loss", "accuracy", *(["validation_loss", "validation_accuracy"] if validation else [])]
    history = [{"epoch": epoch + 1} | dict.fromkeys(keys, 1 / (epoch + 1)) for epoch in range(epochs)]
    draw_curves(history, tmp_path / "curves.png")
    assert picture(tmp_path / "curves.png").size == (1080, 432)
