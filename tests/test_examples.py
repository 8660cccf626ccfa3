"""The examples of running an exported file read images as the package does, and give the same classes."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hybrid_mobilenet import HybridMobileNet, predict
from hybrid_mobilenet.data import images
from hybrid_mobilenet.deploy.export import export_file
from networks import network
from noise_images import encoded, noise, png_16
from scripts import ROOT, script

EXAMPLES = [f"examples/run_{runtime}.py" for runtime in ("onnx", "litert", "executorch")]


def pictures(folder: Path) -> list[Path]:
    """A picture of each kind, larger than the network's input, with structures of all sizes."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(noise(4, 6)).resize((60, 40), Image.Resampling.BICUBIC)
    colour = np.asarray(coarse)
    exif = Image.Exif()
    deep = colour.astype(np.uint16) * 257
    alpha = rng.integers(0, 256, (40, 60, 1)).astype(np.uint8)
    rgba = np.concatenate([colour, alpha], 2)
    palette = coarse.quantize(16)
    files: dict[str, bytes] = {
        "rgb.png": encoded(coarse),
        "grey.png": encoded(coarse.convert("L")),
        "bilevel.png": encoded(coarse.convert("1")),
        "palette.png": encoded(palette),
        "transparent palette.png": encoded(palette, transparency=3),
        "transparent colour.png": encoded(coarse, transparency=tuple(colour[0, 0].tolist())),
        "rgba.png": encoded(Image.fromarray(rgba)),
        "rgba.webp": encoded(Image.fromarray(rgba), "WEBP", lossless=True),
        "grey and alpha.png": encoded(Image.fromarray(rgba[..., 2:])),
        "cmyk.jpg": encoded(coarse.convert("CMYK"), "JPEG"),
        "cmyk.tif": encoded(coarse.convert("CMYK"), "TIFF"),
        "animation.gif": encoded(palette, "GIF"),
    }
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        files[f"rotated {orientation}.jpg"] = encoded(coarse, "JPEG", exif=exif)
    files["rotated.png"] = encoded(coarse, exif=exif)
    files["rotated 16 bits.png"] = encoded(Image.fromarray(deep[..., 0]), exif=exif)
    for bits in (8, 12, 14, 16):
        values = deep >> (16 - bits)
        opacity = np.full((40, 60, 1), 2**bits - 1, np.uint16)
        opacity[:20] = 2 ** (bits - 1)
        files[f"grey of {bits} bits.png"] = png_16(values[..., 0])
        files[f"colour of {bits} bits.png"] = png_16(values)
        files[f"colour and alpha of {bits} bits.png"] = png_16(np.concatenate([values, opacity], 2))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return sorted(folder.iterdir())


def test_examples_share_their_preprocessing() -> None:
    for name in ("scaled", "read_image"):
        assert len({inspect.getsource(getattr(script(path), name)) for path in EXAMPLES}) == 1


@pytest.mark.parametrize("path", EXAMPLES)
@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_are_those_of_training(path: str, channels: int, tmp_path: Path) -> None:
    assert "hybrid_mobilenet" not in (ROOT / path).read_text()
    read: Any = script(path).read_image
    files = pictures(tmp_path)
    assert len(files) == 34
    for file in files:
        wanted = images.read_image(file, (16, 20), channels)
        assert torch.equal(torch.tensor(read(str(file), 16, 20, channels))[0].permute(2, 0, 1), wanted), file.name


def run(
    *call: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments."""
    command = [sys.executable, *map(str, call)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_run_onnx_gives_the_classes_of_predict(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    model: HybridMobileNet = network("fmp", classes=4, size=(16, 16), class_names=("cat", "dog", "owl", "fox"))
    export_file(model, "onnx", tmp_path / "model.onnx")
    pictures(tmp_path / "images")
    names = ["rotated 6.jpg", "rgba.png", "colour of 12 bits.png", "cmyk.jpg", "transparent palette.png", "grey.png"]
    files = [tmp_path / "images" / name for name in names]
    # Outside the checkout, and without the package.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    seen = []
    for file, expected in zip(files, predict(tmp_path / "model.onnx", files), strict=True):
        done = run(ROOT / "examples/run_onnx.py", "model.onnx", file, cwd=tmp_path, environment=environment)
        assert done.stdout == f"{expected.class_name} {expected.probabilities[expected.class_name]:.1%}\n"
        seen.append(done.stdout)
    assert len(set(seen)) > 3, json.dumps(seen)  # the image matters
    (tmp_path / "damaged.png").write_bytes(b"")
    for name, reason in (("missing.png", "No such file"), ("damaged.png", "cannot identify image file")):
        done = run(ROOT / "examples/run_onnx.py", "model.onnx", name, cwd=tmp_path, environment=environment)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("path", EXAMPLES)
def test_an_example_shows_its_usage(path: str) -> None:
    done = run(ROOT / path, "model")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"usage: python {Path(path).name} model.")
