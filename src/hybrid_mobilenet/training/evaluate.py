"""Class probabilities, accuracy and confusion of a model, also averaged over random pooling regions (Graham 2014)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.dataset import ImageDataset, check_dataset
from ..data.held_out import numbered
from ..network.model import HybridMobileNet, check_model
from .processes import Processes
from .recipe import check_seed

#: Images per forward pass: enough for full speed on a CPU. The maps of the widest network take a few hundred MB.
BATCH_SIZE = 256

ALONE = Processes()


@dataclass(frozen=True)
class Evaluation:
    """The result of a model on a data set.

    Attributes:
        class_names: of the model, in its order.
        confusion: ``confusion[i][j]`` is the number of images of class i that were classified as class j.
        loss: mean cross-entropy.
        passes: over which the probabilities were averaged.
        epoch: whose weights a run kept and evaluated, where its recipe keeps the best epoch's; otherwise None.
    """

    class_names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    loss: float
    passes: int
    epoch: int | None = None

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(map(sum, self.confusion))

    @property
    def correct(self) -> int:
        """Number of correctly classified images."""
        return sum(row[index] for index, row in enumerate(self.confusion))

    @property
    def accuracy(self) -> float:
        """Fraction of the images that were classified correctly."""
        return self.correct / self.images

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that have images. Always guessing the largest class does not raise it.

        >>> Evaluation(("cat", "dog"), ((95, 0), (5, 0)), 0.2, 1).balanced_accuracy
        0.5
        """
        recalls = [row[index] / sum(row) for index, row in enumerate(self.confusion) if any(row)]
        return sum(recalls) / len(recalls)

    @property
    def absent(self) -> tuple[str, ...]:
        """The classes without images."""
        return tuple(name for name, row in zip(self.class_names, self.confusion, strict=True) if not any(row))

    def per_class(self) -> dict[str, dict[str, float | None]]:
        """Precision, recall, F1 and number of images of each class; None where the images do not define one.

        A class without images has none of the three. If all images are of one class, precision and F1 mean nothing,
        since no image could be mistaken for it.
        """
        has_others = len(self.class_names) - len(self.absent) > 1
        report: dict[str, dict[str, float | None]] = {}
        for index, name in enumerate(self.class_names):
            hits, images = self.confusion[index][index], sum(self.confusion[index])
            predicted = sum(row[index] for row in self.confusion)
            has_precision = images > 0 and has_others
            report[name] = {
                "precision": (hits / predicted if predicted else 0.0) if has_precision else None,
                "recall": hits / images if images else None,
                "f1": 2 * hits / (predicted + images) if has_precision else None,
                "images": images,
            }
        return report

    def record(self) -> dict[str, Any]:
        """The content of evaluation.json."""
        return ({} if self.epoch is None else {"epoch": self.epoch}) | {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "correct": self.correct,
            "images": self.images,
            "loss": self.loss,
            "passes": self.passes,
            "per_class": self.per_class(),
            "confusion": [list(row) for row in self.confusion],
        }


@torch.no_grad()
def probabilities(model: HybridMobileNet, images: Tensor, passes: int = 1) -> Tensor:
    """Class probabilities of a batch of images.

    Args:
        model: is in eval() during the call.
        images: (N, C, H, W), uint8 in 0..255 or floating point in 0..1, on any device.
        passes: 1 for fixed pooling regions; more for the mean of the softmax over that many passes, each with new
            random regions from torch's default generator (Graham 2014, section 4).

    Returns:
        (N, classes) on the CPU; each row sums to 1.

    Raises:
        ValueError: if `passes` is below 1, or above 1 for a network without fractional max pooling.
    """
    pools = model.fractional_max_pools()
    if passes < 1 or (passes > 1 and not pools):
        raise ValueError(
            f"passes is {passes}, but must be 1 or more, and 1 for a network without fractional max pooling, "
            f"whose passes are all equal; this network is {model.network.family}"
        )
    images = images.to(model.mean.device)
    with in_eval(model):
        if passes > 1:
            for pool in pools:
                pool.train()
        # In float64 the sum of equal passes is exact, so that averaging cannot break a tie. MPS lacks float64.
        total = sum(model(images).cpu().double().softmax(1) for _ in range(passes))
    assert isinstance(total, Tensor)
    return (total / passes).float()


def evaluate(
    model: HybridMobileNet,
    dataset: ImageDataset,
    passes: int = 1,
    seed: int = 0,
    on_images: Callable[[int], None] | None = None,
    processes: Processes = ALONE,
) -> Evaluation:
    """Evaluate a model on every image of a data set.

    On a CPU, this is faster in a process that keeps freed memory, as the command line does
    (`memory.keep_freed_memory`).

    Args:
        model: on any device; is in eval() during the call.
        dataset: images and labels. Its classes are matched by name; it may lack some, or have another order.
        passes: as for `probabilities`.
        seed: of the random regions, 0 to 2**64 - 1. The default generators are restored.
        on_images: called with the number of images of each batch, for progress.
        processes: share the batches, and return the result over all images.

    Raises:
        ValueError: if images have a class that the model lacks, or another shape, or `passes` or `seed` is out of
            range.

    Example:
        >>> from hybrid_mobilenet import HybridMobileNet, evaluate, load_data
        >>> digits = load_data("digits", image_size=8, channels=1)
        >>> model = HybridMobileNet("fmp", alpha=0.25, delta=1, classes=10, in_channels=1, image_size=8)
        >>> result = evaluate(model, digits.test, passes=3)
        >>> result.images, result.passes, 0 <= result.accuracy <= 1
        (359, 3, True)
    """
    check_model(model)
    check_dataset(dataset)
    check_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU, where regions are drawn
        return tally(
            model.class_names,
            lambda images: probabilities(model, images, passes),
            dataset,
            passes,
            on_images,
            processes,
        )


def tally(
    class_names: tuple[str, ...],
    classify: Callable[[Tensor], Tensor],
    dataset: ImageDataset,
    passes: int = 1,
    on_images: Callable[[int], None] | None = None,
    processes: Processes = ALONE,
) -> Evaluation:
    """Evaluate a classifier, such as a model or an exported file, on every image of a data set.

    Args:
        class_names: in the order of the probabilities.
        classify: from images, uint8 (N, C, H, W), to probabilities, (N, classes).
        dataset: as for `evaluate`.
        passes: over which `classify` averages, for the record.
        on_images: as for `evaluate`.
        processes: as for `evaluate`.

    Raises:
        ValueError: if there are no images, or some have a class that is not in `class_names`.
    """
    label_of = numbered(dataset, class_names)
    none = torch.empty(0, dtype=torch.int64)
    expected, predicted, log_likelihood = [none], [none], 0.0
    everything = torch.arange(len(dataset), device=dataset.labels.device)
    for indices in torch.split(everything, BATCH_SIZE)[processes.rank :: processes.size]:
        p = classify(dataset.batch(indices))
        expected.append(label_of[dataset.labels[indices].cpu()])
        predicted.append(p.argmax(1))
        log_likelihood += p.gather(1, expected[-1][:, None]).clamp_min(1e-12).log().sum().item()
        if on_images:
            on_images(len(indices))

    classes = len(class_names)
    confusion = torch.bincount(torch.cat(expected) * classes + torch.cat(predicted), minlength=classes**2)
    counts = processes.gather(confusion).sum(0).view(classes, classes)
    log_likelihood = processes.gather(torch.tensor(log_likelihood, dtype=torch.float64)).sum().item()
    rows = tuple(tuple(row) for row in counts.tolist())
    return Evaluation(class_names, rows, -log_likelihood / len(dataset), passes)


@contextmanager
def in_eval(model: HybridMobileNet) -> Iterator[None]:
    """Put the model into eval(), and restore the mode of each module afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
