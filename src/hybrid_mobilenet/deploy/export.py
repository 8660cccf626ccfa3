"""One target exported and checked, with what the table of `export` says of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.dataset import ImageDataset
from ..network.model import HybridMobileNet
from ..training.evaluate import tally
from .check import CHECKED_IMAGES, Parity
from .deployed import ExportError
from .latency import latency
from .runtimes import ExecuTorchClassifier, FileClassifier, LiteRTClassifier, OnnxClassifier, open_file
from .targets import CALIBRATED, FILES


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how it does in its runtime.

    Attributes:
        target: of `FILES`.
        file: where it is; a folder for the web.
        bytes: its size.
        parity: its logits against PyTorch's.
        accuracy: on the test images, or None without data.
        microseconds: for one image on one thread, the median.
    """

    target: str
    file: str
    bytes: int
    parity: Parity
    accuracy: float | None
    microseconds: float


def export(
    model: HybridMobileNet,
    target: str,
    folder: Path,
    calibration: Tensor | None = None,
    test: ImageDataset | None = None,
    on_images: Callable[[int], None] | None = None,
) -> Exported:
    """Export a model to one target.

    While files for ExecuTorch and LiteRT are made, nothing that the process prints is seen.

    Args:
        model: the model.
        target: of `FILES`.
        folder: where the file is put; made if need be.
        calibration: training images, uint8 (n, C, H, W), for targets of `CALIBRATED`.
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
    accuracy = None
    # Exporters are imported where they are needed: each stands on packages that may not be installed.
    with ExitStack() as running:
        match target:
            case "onnx":
                OnnxClassifier.require(exporting=True)
                from .onnx import export_onnx

                parity = export_onnx(model, path, images)
            case "onnx-int8":
                assert calibration is not None
                OnnxClassifier.require(exporting=True)
                from .onnx_int8 import export_onnx_int8

                parity = export_onnx_int8(model, path, calibration, images)
            case "executorch" | "executorch-int8":
                ExecuTorchClassifier.require(exporting=True)
                from .executorch import export_executorch

                parity = export_executorch(model, path, images, calibration if target in CALIBRATED else None)
            case "litert" | "litert-int8":
                LiteRTClassifier.require(exporting=True)
                from .litert import export_litert

                parity = export_litert(model, path, images, calibration if target in CALIBRATED else None)
            case "web":
                OnnxClassifier.require(exporting=True)
                from .web.export import export_web
                from .web.onnxruntime_web import WebClassifier

                parity = export_web(model, path, images)
                classifier: FileClassifier = running.enter_context(WebClassifier(path))
            case _:
                raise ExportError(f"target is {target!r}, but must be one of {', '.join(FILES)}")
        if target != "web":
            classifier = open_file(path, threads=1)
        if test is not None:
            accuracy = tally(model.class_names, classifier.probabilities, test, on_images=on_images).accuracy
        microseconds = 1e6 * latency(classifier).median
    size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    return Exported(target, str(path), size, parity, accuracy, microseconds)
