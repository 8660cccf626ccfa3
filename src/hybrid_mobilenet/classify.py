"""A model by its name, ready to classify: an exported file in its runtime, a run folder in the fastest there is."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from .architecture import Size
from .model import HybridMobileNet
from .runtimes import FileClassifier, OnnxClassifier, is_exported, open_file


def load_classifier(source: str, passes: int = 1) -> HybridMobileNet | FileClassifier:
    """A model in PyTorch, or in another runtime.

    One pass of a run folder or of a model on the Hub is computed in ONNX Runtime where it is installed: on a CPU twice
    as fast as PyTorch on many images, and many times on one.

    Args:
        source: an exported file, a run folder, or a model on the Hub.
        passes: that will be averaged; exported files have fixed regions, and give one.

    Raises:
        ValueError: where the source is not a model, its runtime is not installed, or it cannot do several passes.
    """
    if is_exported(source):
        if passes != 1:
            raise ValueError(
                f"passes is {passes}, but an exported file has fixed pooling regions and gives one: "
                "name the run folder it was exported from"
            )
        return open_file(Path(source))
    model = HybridMobileNet.from_pretrained(source)
    if passes != 1 or not OnnxClassifier.installed() or find_spec("onnx") is None:
        return model
    from .export.onnx import onnx_bytes

    return OnnxClassifier(onnx_bytes(model), source)


def image_shape(classifier: HybridMobileNet | FileClassifier) -> tuple[Size, int]:
    """Size and channels of the images it takes."""
    if isinstance(classifier, FileClassifier):
        return classifier.image_size, classifier.in_channels
    return classifier.network.image_size, classifier.network.in_channels
