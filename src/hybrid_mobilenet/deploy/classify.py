"""Classify images with a model from any source: a model in memory, a run folder, the Hub, or an exported file."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.devices import choose_device
from ..data.dataset import ImageDataset, OnProgress
from ..data.held_out import Evaluated, RunImages, load_to_evaluate, run_file
from ..data.images import DataError, read_image
from ..data.patterns import find_images
from ..data.source import AUTOMATIC, SourceOptions
from ..data.sources import resolved_name
from ..layers.sizes import Size
from ..network.model import CONFIG_FILE, HybridMobileNet
from ..training.evaluate import Evaluation, evaluate, probabilities, tally
from .runtimes import FileClassifier, OnnxClassifier, SingleImageClassifier, is_exported, open_file

#: Images of a forward pass. The first passes have 1, 2, 4, ... images, so that the first result is there at once.
LARGEST_BATCH = 32
#: Images that are decoded ahead.
AHEAD = 2 * LARGEST_BATCH


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
        images: an image file, a folder of images, a pattern such as ``"photos/*.jpg"``, or several of them. Folders are
            searched to any depth.
        passes: forward passes to average, each with new random pooling regions (Graham, 2014); 1 uses the fixed
            regions. More than 1 needs a model with fractional max pooling that is not an exported file.
        top: number of classes in a prediction; all if None.
        device: "auto" for a GPU if there is one, "cpu", "cuda", "cuda:1" or "mps". A model that is passed as an object
            runs on its own device, and needs "auto".

    Returns:
        One prediction per file, in the order of `images`; the files in a folder are sorted by name.

    Raises:
        DataError: if a file does not exist or is not a readable image, or a folder or pattern has no images.
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
    results = []
    for result in predictions(classifier, find_images(several), passes, top):
        if isinstance(result, DataError):
            raise result
        results.append(result)
    return results


def predictions(
    classifier: HybridMobileNet | FileClassifier, files: Iterable[Path], passes: int = 1, top: int | None = None
) -> Generator[Prediction | DataError, None, None]:
    """Predict the classes of image files as they are found, in their order.

    The next images are decoded in threads meanwhile. Images are classified in batches, except by runtimes for single
    images, and where several passes draw random regions.

    Args:
        classifier: from `load_classifier`.
        files: the images, which may be a generator.
        passes: as for `predict`.
        top: as for `predict`.

    Yields:
        For each file its prediction, or the error if it cannot be read.
    """
    single = passes > 1 or isinstance(classifier, SingleImageClassifier)
    size = 1
    batch: list[tuple[Path, Tensor | DataError]] = []
    with closing(_decoded(files, *image_shape(classifier))) as images:
        for image in images:
            batch.append(image)
            if len(batch) == size:
                yield from _classified(classifier, batch, passes, top)
                batch, size = [], 1 if single else min(2 * size, LARGEST_BATCH)
        yield from _classified(classifier, batch, passes, top)


def _decoded(
    files: Iterable[Path], size: Size, channels: int
) -> Generator[tuple[Path, Tensor | DataError], None, None]:
    """Each file with its image, uint8 (channels, height, width), or its error; decoded ahead in threads."""

    def read(file: Path) -> Tensor | DataError:
        try:
            return read_image(file, size, channels)
        except DataError as error:
            return error

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")
    ahead: deque[tuple[Path, Future[Tensor | DataError]]] = deque()
    try:
        for file in files:
            ahead.append((file, pool.submit(read, file)))
            if len(ahead) > AHEAD:
                first, image = ahead.popleft()
                yield first, image.result()
        for file, image in ahead:
            yield file, image.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _classified(
    classifier: HybridMobileNet | FileClassifier,
    batch: Sequence[tuple[Path, Tensor | DataError]],
    passes: int,
    top: int | None,
) -> Iterator[Prediction | DataError]:
    """The predictions and errors of a batch of `_decoded` images."""
    images = [image.permute(1, 2, 0) for _, image in batch if isinstance(image, Tensor)]
    p = torch.empty(0)
    if images:
        together = torch.stack(images).permute(0, 3, 1, 2)  # channels-last, as in training
        if isinstance(classifier, FileClassifier):
            p = classifier.probabilities(together)
        else:
            p = probabilities(classifier, together, passes)
    rows = iter(p)
    for file, image in batch:
        yield image if isinstance(image, DataError) else _prediction(file, next(rows), classifier.class_names, top)


def _prediction(file: Path, p: Tensor, class_names: Sequence[str], top: int | None) -> Prediction:
    ranked = torch.argsort(p, descending=True, stable=True)[:top].tolist()
    by_name = {class_names[index]: p[index].item() for index in ranked}
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
    options: SourceOptions = AUTOMATIC,
    skip_bad: bool = False,
    progress: OnProgress | None = None,
) -> Evaluated:
    """The images of a source on which to evaluate a model, in the size that it takes; see `load_to_evaluate`.

    Args:
        source: as for `load_data`.
        model: the run folder or exported file of the classifier, whose run may have held images out.
        classifier: the loaded model.
        skip_bad: as for `load_data`.
        progress: as for `load_data`.
        options: how to read the source.

    Raises:
        DataError, ValueError, OSError: as `load_to_evaluate`.
    """
    size, channels = image_shape(classifier)
    names, run = classifier.class_names, RunImages.read(model)
    return load_to_evaluate(
        source,
        run,
        names,
        options=options,
        image_size=size,
        channels=channels,
        skip_bad=skip_bad,
        progress=progress,
    )


def training_record(model: str) -> dict[str, Any]:
    """The training record of a run folder or an exported file in one; empty if there is none."""
    file = run_file(model, CONFIG_FILE)
    try:
        return {} if file is None else dict(json.loads(file.read_bytes())["training"])
    except (ValueError, KeyError, TypeError):  # another program's config.json
        return {}


def recorded_options(record: dict[str, Any], source: str | None) -> SourceOptions:
    """How the run of a model read the data that it was trained on; `AUTOMATIC` if `source` is other data.

    Args:
        record: the training record of the model.
        source: name or path of the data; None for the data of the run.
    """
    data = record.get("data")
    if source is not None and (data is None or resolved_name(source) != resolved_name(data)):
        return AUTOMATIC
    return SourceOptions(**{each.name: record.get(each.name) for each in fields(SourceOptions)})


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
