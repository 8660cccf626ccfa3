"""The plot of latencies: its labels are legible, and long names leave it room."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from hybrid_mobilenet.deploy import plots


@pytest.mark.parametrize("slowest", [2e-4, 3e-3, 0.02, 0.2])
def test_numbers_at_the_axis_of_times_do_not_overlap(
    slowest: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _path: figures.append(figure))
    times = [{"median": time, "lower": 0.9 * time, "upper": 1.1 * time} for time in (1e-4, slowest)]
    name = "runs/cifar10/export/model.int8.onnx"
    plots.draw_latencies(
        [{"model": name, "runtime": "ONNX Runtime", "threads": 2, "latency": t} for t in times], tmp_path
    )
    (figure,) = figures
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_xlim()
    shown = [
        label.get_window_extent()
        for place, label in zip(figure.axes[0].get_xticks(), figure.axes[0].get_xticklabels(), strict=True)
        if low <= place <= high
    ]
    assert len(shown) >= 2
    assert all(left.x1 < right.x0 for left, right in pairwise(shown))


def test_long_names_leave_the_axis_of_times_its_width(tmp_path: Path) -> None:
    record = {"runtime": "PyTorch", "threads": 1, "latency": {"median": 1e-3, "lower": 9e-4, "upper": 2e-3}}
    widths = []
    for name in ("runs/short", "/a/very/long/path" * 20):
        plots.draw_latencies([record | {"model": name}], tmp_path / "benchmark.png")
        with Image.open(tmp_path / "benchmark.png") as picture:
            widths.append(picture.width)
    assert widths[1] > widths[0] + 1000
