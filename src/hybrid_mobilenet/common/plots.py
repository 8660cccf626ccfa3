"""What all plots share: fonts for names in any script, and writing PNG files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names

from .files import write_atomically

#: Matplotlib's default font, then fonts of Linux, macOS and Windows for scripts that it lacks.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Arial Unicode MS", "Microsoft YaHei")


@contextmanager
def plain_names() -> Iterator[None]:
    """Allow names of classes and files in any script and of any length, and take dollar signs literally."""
    installed = get_font_names()
    fonts = [font for font in FONTS if font in installed]
    with (
        # "tight": the picture grows with the names instead of the axes shrinking.
        mpl.rc_context({"text.parse_math": False, "font.family": fonts, "savefig.bbox": "tight"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box
        yield


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG.

    Raises:
        OSError: if the file cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
