"""Classify images with a model from any source: a model in memory, a run folder, the Hub, or an exported file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from ..common.devices import choose_device
from ..data.dataset import ImageDataset, OnProgress
from ..data.held_out import Evaluated, RunImages, load_to_evaluate
from ..data.images import image_files, read_image
from ..data.source import AUTOMATIC, SourceOptions
from ..layers.sizes import Size
from ..network.model import HybridMobileNet
from ..training.evaluate import Evaluation, evaluate, probabilities, tally
from .runtimes import FileClassifier, OnnxClassifier, is_exported, open_file


@dataclass(frozen=True)
class Prediction:
    """The predicted classes of an image file.

    Attributes:
        file: the image.
        class_name: the most probable class.
        probabilities: by class name, most probable first.
    """

    file: Path
    class_name: str
    probabilities: dict[str, float]

    def record(self) -> dict[str, object]:
        """The prediction as JSON, for `predict --json`."""
        return {"file": str(self.file), "class": self.class_name, "probabilities": self.probabilities}


def predict(
    model: HybridMobileNet | str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    passes: int = 1,
    top: int | None = None,
    device: str = "auto",
) -> list[Prediction]:
    """Predict the classes of image files.

    Images of any size and mode are resized and converted as in training; see `read_image`.

    Args:
        model: a model, a run folder, a model on the Hub as "owner/name", or an exported file.
        images: an image file or a folder of images, or several of them. Folders are searched to any depth.
        passes: forward passes to average, each with new random pooling regions (Graham, 2014); 1 uses the fixed
            regions. More than 1 needs a model with fractional max pooling that is not an exported file.
        top: number of classes in a prediction; all if None.
        device: "auto" for a GPU if there is one, "cpu", "cuda", "cuda:1" or "mps". A model that is passed as an object
            runs on its own device, and needs "auto".

    Returns:
        One prediction per file, in the order of `images`; the files in a folder are sorted by name.

    Raises:
        DataError: if a file does not exist or is not a readable image, or a folder holds no image.
        OSError: if a file or folder cannot be read.
        ValueError: if the model cannot be loaded, or `passes`, `top` or `device` is invalid for it.

    Example:
        >>> from PIL import Image
        >>> from hybrid_mobilenet import HybridMobileNet, predict
        >>> model = HybridMobileNet("fmp", alpha=0.25, delta=2, class_names=["cat", "dog"])  # untrained
        >>> Image.new("RGB", (64, 48)).save("photo.png")
        >>> [prediction] = predict(model, "photo.png")
        >>> prediction.file.name, sorted(prediction.probabilities)
        ('photo.png', ['cat', 'dog'])
    """
    check_top(top)
    classifier = load_classifier(model, passes, device)
    several = [images] if isinstance(images, (str, Path)) else images
    return [predict_file(classifier, path, passes, top) for path in image_files([Path(each) for each in several])]


def predict_file(
    classifier: HybridMobileNet | FileClassifier, file: Path, passes: int = 1, top: int | None = None
) -> Prediction:
    """Predict the classes of one image file; arguments and errors as for `predict`."""
    image = read_image(file, *image_shape(classifier))[None]
    if isinstance(classifier, FileClassifier):
        p = classifier.probabilities(image)[0]
    else:
        p = probabilities(classifier, image, passes)[0]
    ranked = torch.argsort(p, descending=True, stable=True)[:top].tolist()
    by_name = {classifier.class_names[index]: p[index].item() for index in ranked}
    return Prediction(file, next(iter(by_name)), by_name)


def evaluate_classifier(
    classifier: HybridMobileNet | FileClassifier,
    dataset: ImageDataset,
    passes: int = 1,
    seed: int = 0,
    on_images: Callable[[int], None] | None = None,
) -> Evaluation:
    """Evaluate a model in PyTorch or in another runtime; arguments and errors as for `evaluate`.

    An exported file has fixed pooling regions: it ignores `seed`, and `passes` must be 1.
    """
    if isinstance(classifier, FileClassifier):
        return tally(classifier.class_names, classifier.probabilities, dataset, on_images=on_images)
    return evaluate(classifier, dataset, passes, seed, on_images)


def load_classifier(
    source: HybridMobileNet | str | Path, passes: int = 1, device: str = "auto"
) -> HybridMobileNet | FileClassifier:
    """Load a model, ready to classify on a device.

    An exported file runs in its runtime, on the CPU. A run folder or a model on the Hub runs in PyTorch, with one
    exception: on a CPU and with one pass it runs in ONNX Runtime, if that is installed. This is twice as fast for many
    images, and many times as fast for one.

    Args:
        source: a model, a run folder, a model on the Hub as "owner/name", or an exported file.
        passes: forward passes that will be averaged.
        device: see `choose_device`. A model that is passed as an object is returned as it is, and needs "auto".

    Raises:
        ValueError: if `source` is not a model, its runtime is not installed, it cannot average `passes` passes, or it
            cannot run on the device.
    """
    if isinstance(source, HybridMobileNet):
        if device != "auto":
            raise ValueError(
                f"device is {device!r}, but a model that is passed as an object runs on its own device: leave device "
                f"out, and move the model with model.to({device!r})"
            )
        return source
    source = str(source)
    chosen = choose_device(device)
    if is_exported(source):
        if passes != 1:
            raise ValueError(
                f"passes is {passes}, but must be 1 for an exported file, which has fixed pooling regions: use the run "
                "folder that it was exported from"
            )
        if device not in ("auto", "cpu"):
            raise ValueError(
                f"--device is {device!r}, but an exported file runs on the CPU: leave it out, or use the run folder "
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


def load_test_images(
    source: str,
    model: str,
    classifier: HybridMobileNet | FileClassifier,
    progress: OnProgress | None = None,
    options: SourceOptions = AUTOMATIC,
) -> Evaluated:
    """The images of a source on which to evaluate a model, in the size that it takes; see `load_to_evaluate`.

    Args:
        source: as for `load_data`.
        model: the run folder or exported file of the classifier, whose run may have held images out.
        classifier: the loaded model.
        progress: as for `load_data`.
        options: how to read the source.

    Raises:
        DataError, ValueError, OSError: as `load_to_evaluate`.
    """
    size, channels = image_shape(classifier)
    names, run = classifier.class_names, RunImages.read(model)
    return load_to_evaluate(source, run, names, options=options, image_size=size, channels=channels, progress=progress)


def image_shape(classifier: HybridMobileNet | FileClassifier) -> tuple[Size, int]:
    """Size, (height, width), and channels of the images that a model takes."""
    if isinstance(classifier, FileClassifier):
        return classifier.image_size, classifier.in_channels
    return classifier.network.image_size, classifier.network.in_channels


def check_top(top: int | None) -> None:
    """Check the number of classes in a prediction.

    Raises:
        ValueError: if it is below 1.
    """
    if top is not None and top < 1:
        raise ValueError(f"top is {top}, but must be 1 or more")
