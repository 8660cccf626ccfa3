"""A model by its name, ready to classify: an exported file in its runtime, a run folder in the fastest there is."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ..common.devices import choose_device
from ..layers.sizes import Size
from ..network.model import HybridMobileNet
from .runtimes import FileClassifier, OnnxClassifier, is_exported, open_file


def load_classifier(source: str, passes: int = 1, device: str = "auto") -> HybridMobileNet | FileClassifier:
    """A model in PyTorch on its device, or in another runtime on the CPU.

    On the CPU one pass of a run folder or of a model on the Hub is computed in ONNX Runtime where it is installed:
    twice as fast as PyTorch on many images, and many times on one.

    Args:
        source: an exported file, a run folder, or a model on the Hub.
        passes: that will be averaged; exported files have fixed regions, and give one.
        device: as `choose_device` takes it.

    Raises:
        ValueError: where the source is not a model, its runtime is not installed, it cannot do several passes, or the
            device is not there, or not for exported files.
    """
    chosen = choose_device(device)
    if is_exported(source):
        if passes != 1:
            raise ValueError(
                f"passes is {passes}, but an exported file has fixed pooling regions and gives one: "
                "name the run folder it was exported from"
            )
        if device not in ("auto", "cpu"):
            raise ValueError(
                f"--device is {device!r}, but an exported file runs on the CPU: leave it out, or name the run folder "
                "that it was exported from"
            )
        return open_file(Path(source))
    model = HybridMobileNet.from_pretrained(source)
    if chosen.type != "cpu":
        return model.to(chosen)
    if passes != 1 or not OnnxClassifier.installed() or find_spec("onnx") is None:
        return model
    from .onnx import onnx_bytes

    return OnnxClassifier(onnx_bytes(model), source)


def image_shape(classifier: HybridMobileNet | FileClassifier) -> tuple[Size, int]:
    """Size and channels of the images it takes."""
    if isinstance(classifier, FileClassifier):
        return classifier.image_size, classifier.in_channels
    return classifier.network.image_size, classifier.network.in_channels
