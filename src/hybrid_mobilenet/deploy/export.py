"""`export`: one network to one target, checked in its runtime, with size, parity, accuracy and latency."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.files import write_atomically
from ..data.dataset import ImageDataset
from ..network.model import HybridMobileNet
from ..training.evaluate import tally
from .calibration import calibration_images
from .deployed import ExportError
from .latency import latency
from .parity import CHECKED_IMAGES, Parity, float_parity, int8_parity
from .runtimes import CLASSIFIERS, FileClassifier, OnnxClassifier, open_file
from .targets import CALIBRATED, FILES


@dataclass(frozen=True)
class Exported:
    """An exported file and how it performs in its runtime.

    Attributes:
        target: a key of `FILES`.
        path: the file; a folder for the web page.
        size: in bytes.
        parity: the difference between its logits and PyTorch's.
        accuracy: on the test images, 0 to 1; None without test images.
        microseconds: median latency of one image on one thread.
    """

    target: str
    path: Path
    size: int
    parity: Parity
    accuracy: float | None
    microseconds: float

    def record(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self) | {"path": str(self.path)}


def export(
    model: HybridMobileNet,
    to: str,
    folder: str | Path = "export",
    *,
    calibration: ImageDataset | None = None,
    test: ImageDataset | None = None,
    on_images: Callable[[int], None] | None = None,
) -> Exported:
    """Export a model to a file that another runtime runs: bytes in, probabilities out.

    The file is run on real images before it is written, and must agree with PyTorch. Fractional max pooling is exported
    with the fixed regions of eval(). While a file for ExecuTorch or LiteRT is made, the output of the whole process is
    discarded, because their converters print a lot.

    Args:
        model: the model. It is left unchanged.
        to: "onnx", "onnx-int8", "executorch", "executorch-int8", "litert", "litert-int8" or "web".
        folder: folder of the file, created if it does not exist. `FILES` has the file's name.
        calibration: training images, from which int8 targets take the ranges of the feature maps. Other targets ignore
            them.
        test: images for the accuracy and for the comparison with PyTorch. Without them the comparison uses the
            built-in handwritten digits.
        on_images: called with the number of images classified since the last call, for a progress bar.

    Raises:
        ExportError: if the target is unknown, the exported model disagrees with PyTorch, or an int8 target has no or
            too few calibration images. No file is written then.
        RuntimeFileError: if the runtime or the converter of the target is not installed.
        OSError: if the file cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from hybrid_mobilenet import HybridMobileNet, export
        >>> model = HybridMobileNet("fmp", alpha=0.25, delta=1, in_channels=1, image_size=8)
        >>> with TemporaryDirectory() as folder:
        ...     exported = export(model, "onnx", folder)
        ...     exported.path.name, exported.path.stat().st_size == exported.size
        ('model.onnx', True)
        >>> exported.parity.difference < 1e-4
        True
    """
    if to not in FILES:
        raise ExportError(f"to is {to!r}, but must be one of {', '.join(FILES)}")
    path = Path(folder) / FILES[to]
    images = None if test is None else test.batch(torch.arange(min(CHECKED_IMAGES, len(test))))
    with ExitStack() as running:
        if to == "web":
            OnnxClassifier.require(exporting=True)
            from .web.export import export_web
            from .web.onnxruntime_web import WebClassifier

            path.parent.mkdir(parents=True, exist_ok=True)
            parity = export_web(model, path, images)
            classifier: FileClassifier = running.enter_context(WebClassifier(path))
        else:
            CLASSIFIERS[path.suffix].require(exporting=True)
            ranges = _calibration_images(to, calibration) if to in CALIBRATED else None
            path.parent.mkdir(parents=True, exist_ok=True)
            parity = export_file(model, to, path, images, ranges)
            classifier = open_file(path, threads=1)
        accuracy = None
        if test is not None:
            accuracy = tally(model.class_names, classifier.probabilities, test, on_images=on_images).accuracy
        microseconds = 1e6 * latency(classifier).median
    size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    return Exported(to, path, size, parity, accuracy, microseconds)


def export_file(
    model: HybridMobileNet,
    target: str,
    path: Path,
    images: Tensor | None = None,
    calibration: Tensor | None = None,
) -> Parity:
    """Write the file of any target but the web, after running it in its runtime.

    Args:
        model: the model.
        target: a key of `FILES` other than "web".
        path: the file; its suffix is that of the target.
        images: uint8 (n, C, H, W), real images for the comparison with PyTorch; the handwritten digits if None.
        calibration: uint8 (n, C, H, W), training images, for int8 targets.

    Raises:
        ExportError: if the file disagrees with PyTorch. No file is written then.
        OSError: if the file cannot be written.
    """
    content = _content(model, target, calibration)
    compare = int8_parity if target in CALIBRATED else float_parity
    parity = compare(model, CLASSIFIERS[path.suffix](content), images)
    write_atomically(path, content)
    return parity


def _content(model: HybridMobileNet, target: str, calibration: Tensor | None) -> bytes:
    # Each exporter is imported when it is used: the packages that it needs may not be installed.
    match target:
        case "onnx":
            from .onnx import onnx_bytes

            return onnx_bytes(model)
        case "onnx-int8":
            from .onnx_int8 import onnx_int8_bytes

            assert calibration is not None
            return onnx_int8_bytes(model, calibration)
        case "executorch" | "executorch-int8":
            from .executorch import executorch_bytes

            return executorch_bytes(model, calibration)
        case "litert" | "litert-int8":
            from .litert import litert_bytes

            return litert_bytes(model, calibration)
    raise AssertionError(target)


def _calibration_images(target: str, dataset: ImageDataset | None) -> Tensor:
    if dataset is None:
        raise ExportError(
            f"calibration is None, but {target} takes the ranges of the feature maps from training images: "
            "pass the training images, for example load_data(...).train"
        )
    return calibration_images(dataset)
