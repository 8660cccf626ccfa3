"""Draw docs/fmp.png: fractional max pooling of an image, compared with 2x2 max pooling.

Usage: python docs/draw_fmp.py
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from hybrid_mobilenet.common.files import write_atomically
from hybrid_mobilenet.layers.pooling import fractional_max_pool2d, random_sequence
from hybrid_mobilenet.layers.sizes import fractional_size
from hybrid_mobilenet.network.architecture import FMP_RATIO

PICTURE = Path(__file__).with_name("fmp.png")
CROP = (135, 45, 495, 405)  # of scikit-learn's flower.jpg: left, top, right, bottom
SIDE = 32
STEPS = 3
SEEDS = (1, 2)
OUTLINED = 7, 4  # row and column of the outlined pixel in the second map


def draw(path: Path) -> None:
    """Write the picture to `path` as PNG: a row for 2x2 max pooling, and one for each draw of regions."""
    figure = Figure(figsize=(9.2, 7.7), layout="constrained")
    panels = figure.subplots(1 + len(SEEDS), 1 + STEPS)
    draw_row(panels[0], "2 x 2 max pooling", None)
    for row, seed, which in zip(panels[1:], SEEDS, ("one draw of regions", "another draw"), strict=True):
        draw_row(row, f"Fractional max pooling\n{which}", torch.Generator().manual_seed(seed))
    figure.suptitle(
        "White lines cut a map into regions. The maximum of each becomes one pixel of the next map (one is outlined).\n"
        "In fractional max pooling, regions 1 and 2 pixels wide are mixed at random: maps shrink by "
        f"{FMP_RATIO}, not by 2,\n"
        "so that a network has room for more layers, and each training step sees other shapes.",
        fontsize=11,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_atomically(path, buffer.getvalue())


def draw_row(panels: list[Axes], name: str, generator: torch.Generator | None) -> None:
    """Draw the image and its maps after each of `STEPS` poolings: FMP with `generator`, or 2x2 pooling without it."""
    maps = sample_image()
    for step, axes in enumerate(panels):
        n = maps.shape[-1]
        axes.imshow(maps[0].permute(1, 2, 0).numpy(), extent=(0, n, n, 0), interpolation="nearest")
        axes.set(xticks=[], yticks=[], title=f"{n} x {n}")
        axes.spines[:].set_visible(False)
        if step == 0:
            axes.set_ylabel(name, fontsize=11)
        if step < STEPS:
            rows, columns = sequence(n, generator), sequence(n, generator)
            axes.hlines(rows.tolist(), 0, n, "white", linewidth=0.6)
            axes.vlines(columns.tolist(), 0, n, "white", linewidth=0.6)
            maps = fractional_max_pool2d(maps, rows, columns)
            if step == 0:
                i, j = OUTLINED
                outline(axes, rows[i : i + 2], columns[j : j + 2])
                outline(panels[1], torch.tensor([i, i + 1]), torch.tensor([j, j + 1]))


def outline(axes: Axes, rows: Tensor, columns: Tensor) -> None:
    """Outline a rectangle of pixels, given the bounds of its rows and columns."""
    (top, bottom), (left, right) = rows.tolist(), columns.tolist()
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color="cyan", linewidth=2, zorder=3))


def sequence(n: int, generator: torch.Generator | None) -> Tensor:
    """Bounds of the regions along an axis of `n` pixels. Without a generator, all regions are two pixels wide."""
    return random_sequence(n, n // 2 if generator is None else fractional_size(n, FMP_RATIO), generator)


def sample_image() -> Tensor:
    """A photo of a flower, (1, 3, SIDE, SIDE) in 0..1."""
    flower = Image.fromarray(load_sample_image("flower.jpg")).crop(CROP).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(flower.tobytes()), dtype=torch.uint8)
    return pixels.view(1, SIDE, SIDE, 3).permute(0, 3, 1, 2).float() / 255


if __name__ == "__main__":
    draw(PICTURE)
