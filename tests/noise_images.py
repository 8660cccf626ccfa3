"""Images of noise, and folders and tables of them, for the tests of data."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from hybrid_mobilenet.data.dataset import ImageDataset


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_16(values: NDArray[np.integer[Any]], *chunks: bytes) -> bytes:
    """A 16-bit PNG, greyscale (h, w), or with 2 to 4 channels (h, w, c), which Pillow cannot write."""
    height, width = values.shape[:2]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[values[0, 0].size]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    content = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(content)


def image_folder(root: Path, counts: dict[str, int], size: int = 8, seed: int = 0) -> Path:
    """A folder with `counts[name]` different noise images of each class; with another seed, other images."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(noise(size, size, seed=100_000 * seed + 1000 * label + i)).save(root / name / f"{i:03}.png")
    return root


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(
    path: Path,
    labels: list[Any],
    *,
    names: list[str] | None = None,
    image_column: str = "image",
    label_column: str = "label",
    seed: int = 0,
    **more: list[Any],
) -> Path:
    """A table of 8x8 noise images in the Hub's layout. `names` declares the label column as a ClassLabel."""
    images = [{"bytes": encoded(Image.fromarray(noise(8, 8, seed=seed + i))), "path": None} for i in range(len(labels))]
    table = pa.table({image_column: pa.array(images, IMAGE), label_column: labels, **more})
    if names is not None:
        features = {image_column: {"_type": "Image"}, label_column: {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def all_pixels(dataset: ImageDataset) -> torch.Tensor:
    return dataset.batch(torch.arange(len(dataset)))


GOOD_PNG = encoded(Image.fromarray(noise(64, 64)))


def class_labels(dataset: ImageDataset) -> list[int]:
    return sorted(set(dataset.labels.tolist()))
