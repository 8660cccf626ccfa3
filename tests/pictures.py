"""Reads the pictures that the package draws."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image


def picture(path: Path) -> Image.Image:
    image = Image.open(io.BytesIO(path.read_bytes()))
    image.load()
    assert image.format == "PNG"
    assert len(set(image.convert("L").tobytes())) > 10  # not blank
    return image
