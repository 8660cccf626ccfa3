"""Probabilities, accuracy and confusion of a model, with Graham's averaging over random pooling regions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.dataset import ImageDataset, numbered
from ..network.model import HybridMobileNet
from .processes import Processes
from .recipe import check_seed

#: Images per forward pass: large enough for full speed on a CPU, and a few hundred MB of maps for the widest network.
BATCH_SIZE = 256

ALONE = Processes()


@dataclass(frozen=True)
class Evaluation:
    """How a model did on a data set. ``confusion[i][j]`` counts the images of class i that were taken for class j."""

    class_names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    loss: float
    passes: int

    @property
    def images(self) -> int:
        return sum(map(sum, self.confusion))

    @property
    def correct(self) -> int:
        return sum(row[index] for index, row in enumerate(self.confusion))

    @property
    def accuracy(self) -> float:
        """Fraction of all images whose most probable class is their own."""
        return self.correct / self.images

    @property
    def absent(self) -> tuple[str, ...]:
        """The classes without images."""
        return tuple(name for name, row in zip(self.class_names, self.confusion, strict=True) if not any(row))

    def per_class(self) -> dict[str, dict[str, float | None]]:
        """Precision, recall, F1 and number of images of each class; None for what the images cannot tell.

        That is all three of a class without images, and precision and F1 where no image is of another class, so that
        none could be mistaken for it.
        """
        has_others = len(self.class_names) - len(self.absent) > 1
        report: dict[str, dict[str, float | None]] = {}
        for index, name in enumerate(self.class_names):
            hits, of_class = self.confusion[index][index], sum(self.confusion[index])
            taken = sum(row[index] for row in self.confusion)
            is_told = of_class > 0 and has_others
            report[name] = {
                "precision": (hits / taken if taken else 0.0) if is_told else None,
                "recall": hits / of_class if of_class else None,
                "f1": 2 * hits / (taken + of_class) if is_told else None,
                "images": of_class,
            }
        return report

    def record(self) -> dict[str, Any]:
        """All of it as JSON: what evaluation.json holds."""
        return {
            "accuracy": self.accuracy,
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
        model: put into eval() while this runs.
        images: (N, C, H, W), uint8 or floating point in 0..1, on any device.
        passes: 1 for the fixed regions; more for the mean of the softmax outputs over that many passes, each with fresh
            random regions (Graham 2014, section 4), drawn from torch's default generator.

    Returns:
        (N, classes), on the CPU, rows summing to 1.

    Raises:
        ValueError: where `passes` is below 1, or above 1 for a network without fractional max pooling.
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
        # The sum of equal passes is exact in float64, so that averaging cannot blur a tie; not every device has it.
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

    On a CPU that is faster in a process that keeps freed memory (`memory.keep_freed_memory`), as the command
    line's does.

    Args:
        model: the model, on any device.
        dataset: its images and labels; see `tally` for its classes.
        passes: see `probabilities`.
        seed: of the random regions, 0 to 2**64 - 1; the default generators are left as they were.
        on_images: called with the number of images done, for progress.
        processes: those that share the work: each takes other batches, and all return the result over all images.

    Raises:
        ValueError: where images are of no class of the model's, or not of its shape, or `passes` or `seed` is out of
            range.
    """
    check_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's, which regions are drawn from
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
    """Evaluate what classifies images, a model or an exported file, on every image of a data set.

    Args:
        class_names: in the order of the probabilities.
        classify: from images, uint8 (N, C, H, W), to probabilities, (N, classes).
        dataset: its images and labels. Its classes are matched by name, may lack some and stand in another order.
        passes: that `classify` averages, for the record.
        on_images: called with the number of images done, for progress.
        processes: as for `evaluate`.

    Raises:
        ValueError: where images are of a class of another name, which it tells, or there are none.
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
    """The model in eval(), and its modules back in their modes behind it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
