"""One target exported and checked, with what the table of `export` says of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data import ImageDataset
from ..evaluate import tally
from ..latency import latency
from ..model import HybridMobileNet
from ..runtimes import open_file
from . import FILES
from .check import CHECKED_IMAGES
from .onnx import export_onnx
from .onnxruntime_web import WebClassifier
from .web import export_web


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how it does in its runtime.

    Attributes:
        target: of `FILES`.
        file: where it is; a folder for the web.
        bytes: its size.
        difference: largest difference of a logit to PyTorch's.
        accuracy: on the test images, or None without data.
        microseconds: for one image on one thread, the median.
    """

    target: str
    file: str
    bytes: int
    difference: float
    accuracy: float | None
    microseconds: float


def export(
    model: HybridMobileNet,
    target: str,
    folder: Path,
    test: ImageDataset | None,
    on_images: Callable[[int], None] | None = None,
) -> Exported:
    """Export a model to one target.

    Args:
        model: the model.
        target: of `FILES`.
        folder: where the file is put; made if need be.
        test: images for the comparison with PyTorch and for the accuracy, if there are any.
        on_images: called with the number of images classified, for progress.

    Raises:
        ExportError: where the target's runtime is missing or disagrees with PyTorch.
        OSError: where the file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILES[target]
    images: Tensor | None = None
    if test is not None:
        images = test.batch(torch.arange(min(CHECKED_IMAGES, len(test))))
    web = target == "web"
    difference = (export_web if web else export_onnx)(model, path, images)
    accuracy = None
    with ExitStack() as running:
        classifier = running.enter_context(WebClassifier(path)) if web else open_file(path, threads=1)
        if test is not None:
            accuracy = tally(model.class_names, classifier.probabilities, test, on_images=on_images).accuracy
        microseconds = 1e6 * latency(classifier).median
    size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    return Exported(target, str(path), size, difference, accuracy, microseconds)
