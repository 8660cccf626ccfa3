"""Draw docs/data-flow.png: the way of an image from its source to a prediction on a device.

Usage: python docs/draw_data_flow.py
"""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from hybrid_mobilenet.common.files import write_atomically

PICTURE = Path(__file__).with_name("data-flow.png")

#: Title, file, and one line on what it does, in the order in which data passes: training above, deployment below.
STEPS = (
    ("source", "data/sources.py", "folder, Parquet,\nHub, digits"),
    ("data set", "data/splits.py, dataset.py", "splits; uint8 images\nand labels in batches"),
    ("step", "training/step.py", "forward, loss,\nbackward, update"),
    ("checkpoint", "training/checkpoint.py", "state on disk,\nfor --resume"),
    ("evaluation", "training/evaluate.py", "accuracy and\nconfusion matrix"),
    ("deployed network", "deploy/deployed.py", "normalisation folded,\nstandard operators"),
    ("exported file", "deploy/onnx.py, ...", "float32 or int8,\nchecked"),
    ("runtime", "deploy/runtimes.py", "bytes in,\nprobabilities out"),
)
PER_ROW = 4
WIDTH, HEIGHT, GAP = 2.3, 1.25, 0.55


def draw(path: Path) -> None:
    """Write the picture to `path` as PNG."""
    rows = -(-len(STEPS) // PER_ROW)
    width, height = PER_ROW * (WIDTH + GAP) - GAP + 0.2, rows * (HEIGHT + GAP) - GAP + 0.2
    figure = Figure(figsize=(width, height), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-0.1, width - 0.1)
    axes.set_ylim(-0.1, height - 0.1)
    axes.axis("off")
    corners = [
        (number % PER_ROW * (WIDTH + GAP), (rows - 1 - number // PER_ROW) * (HEIGHT + GAP))
        for number in range(len(STEPS))
    ]
    for (title, file, purpose), (x, y) in zip(STEPS, corners, strict=True):
        colour = "#dbe9f6" if file.startswith("data") else "#e3f1df" if file.startswith("training") else "#fbe8d3"
        axes.add_patch(FancyBboxPatch((x, y), WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", fc=colour))
        axes.text(x + WIDTH / 2, y + HEIGHT - 0.22, title, ha="center", va="center", weight="bold", size=11)
        axes.text(x + WIDTH / 2, y + HEIGHT - 0.5, file, ha="center", va="center", size=9, family="monospace")
        axes.text(x + WIDTH / 2, y + 0.35, purpose, ha="center", va="center", size=9)
    for (x, y), (next_x, next_y) in pairwise(corners):
        same_row = y == next_y
        start = (x + WIDTH, y + HEIGHT / 2) if same_row else (x + WIDTH / 2, y)
        end = (next_x, next_y + HEIGHT / 2) if same_row else (next_x + WIDTH / 2, next_y + HEIGHT)
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black"})
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


if __name__ == "__main__":
    draw(PICTURE)
