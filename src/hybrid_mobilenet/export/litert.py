"""LiteRT (TensorFlow Lite): converted by litert-torch, checked in LiteRT's interpreter before it is written."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from ..files import write_atomically
from ..model import HybridMobileNet
from ..runtimes import METADATA_FILE, LiteRTClassifier, silenced
from .check import Parity, float_parity
from .deployed import Deployed, single_image_metadata


def export_litert(model: HybridMobileNet, path: Path, images: Tensor | None = None) -> Parity:
    """Write a model for LiteRT, after running it there.

    The model takes one image, uint8 (1, H, W, C), RGB or grey, 0..255, and gives logits and probabilities, float32
    (1, classes), in this order. With a batch of any size the pooling would not run in XNNPACK. Class names and
    preprocessing are in metadata.json, in a zip archive behind the model in the same file: any zip program opens it.

    Args:
        model: the model; its fractional max pooling is exported with the fixed regions of eval().
        path: the file.
        images: uint8 (n, C, H, W), real images that both are run on; scikit-learn's digits if None.

    Raises:
        ExportError: where the results differ; no file is written then.
        OSError: where the file cannot be written.
    """
    content = litert_bytes(model)
    parity = float_parity(model, LiteRTClassifier(content), images)
    write_atomically(path, content)
    return parity


def litert_bytes(model: HybridMobileNet) -> bytes:
    """The content of the LiteRT file of a model, not run yet."""
    with silenced():
        import litert_torch

        size, channels = model.network.image_size, model.network.in_channels
        example = torch.zeros(1, *size, channels, dtype=torch.uint8)
        file = io.BytesIO(litert_torch.convert(Deployed(model), (example,)).model_content())
    with zipfile.ZipFile(file, "a") as archive:  # "a": its offsets count from the start of the file
        archive.writestr(zipfile.ZipInfo(METADATA_FILE), json.dumps(single_image_metadata(model), indent=2))
    return file.getvalue()
