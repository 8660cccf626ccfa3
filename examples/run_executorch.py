"""Classify an image with a model exported for ExecuTorch. Only ExecuTorch and Pillow are needed.

Usage: python run_executorch.py model.pte image.png
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


def scaled(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """16-bit values, which use 8, 12, 14 or 16 bits, as 8 bits."""
    limit = next(limit for limit in (255, 4095, 16383, 65535) if values.max(initial=0) <= limit)
    return np.rint(values * (255 / limit)).astype(np.uint8)


def read_image(path: str, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """An image as the network was trained on: uint8 (1, height, width, channels)."""
    content = Path(path).read_bytes()
    file = Image.open(io.BytesIO(content))
    layout = file.tile[0].args if file.tile else None
    image: Image.Image = file
    pixels = np.asarray(image)
    deep = None
    if image.mode.startswith("I"):  # 16-bit greyscale
        deep = scaled(pixels.astype(float))
    elif layout in ("RGB;16B", "RGBA;16B") and pixels[..., :3].max() < 64:
        # A 16-bit colour PNG that is dark. Pillow reads the high bytes, and in the other byte order the low bytes.
        again = Image.open(io.BytesIO(content))
        again.tile = [again.tile[0]._replace(args=layout[:-1] + "L")]
        values = 256.0 * pixels + np.asarray(again)
        deep = np.concatenate([scaled(values[..., :3]), scaled(values[..., 3:])], axis=-1)
    if deep is not None:
        exif = image.info.get("exif", b"")
        image = Image.fromarray(deep)
        image.info["exif"] = exif
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    if image.mode != "L":
        image = image.convert("RGB")
    image = ImageOps.fit(image.convert("RGB" if channels == 3 else "L"), (width, height))
    return np.asarray(image).reshape(1, height, width, channels)


def main(model: str, file: str) -> None:
    import torch
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(Path(model))
    about = json.loads(program.load_method("metadata").execute([])[0])
    height, width = json.loads(about["image_size"])
    pixels = read_image(file, height, width, int(about["in_channels"]))
    _, probabilities = program.load_method("forward").execute([torch.tensor(pixels)])
    best = probabilities[0].argmax()
    print(json.loads(about["class_names"])[best], f"{probabilities[0][best]:.1%}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python run_executorch.py model.pte image.png")
    try:
        main(*sys.argv[1:])
    except OSError as error:  # a missing file, or one that Pillow cannot read
        sys.exit(f"error: {error}")
