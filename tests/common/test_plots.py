"""What all plots share, in a confusion matrix: names in any script and of any length."""

from __future__ import annotations

from pathlib import Path

from hybrid_mobilenet.training.plots import draw_confusion
from pictures import picture


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
