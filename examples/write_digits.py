"""Write one handwritten digit of each class as a PNG file, for `hybrid-mobilenet predict` to read.

Usage: python examples/write_digits.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from hybrid_mobilenet.data.splits import load_data


def write_digits(folder: Path) -> None:
    """Write the first test image of each class as digit-0.png to digit-9.png, 8x8 greyscale."""
    test = load_data("digits", image_size=8, channels=1).test
    folder.mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(test.class_names):
        first = (test.labels == label).nonzero()[0]
        Image.fromarray(test.batch(first)[0, 0].numpy()).save(folder / f"digit-{name}.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write_digits(Path(sys.argv[1]))
