"""Distillation: a network also learns from the outputs of a trained one, its teacher (Hinton, Vinyals and Dean, 2015).

The outputs of the teacher are computed once, for a number of augmented views of each training image, and stored. Every
step then draws one of the views of each of its images. A large teacher thus costs little, however long training is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..common.files import cache_folder, write_atomically
from ..data.dataset import ImageDataset
from ..network.model import HybridMobileNet
from .augmentation import DRAWS, augment, draw
from .evaluate import probabilities
from .recipe import Augmentation

#: Stored views of each image; one is enough without augmentation.
VIEWS = 32
#: Passes with random pooling regions whose probabilities are averaged, if the teacher was trained with such regions.
PASSES = 4
#: Images of a forward pass of the teacher.
BATCH_SIZE = 256

#: Of the softmax of standardised logits, and the weights of the two losses, as in Sun, Ren, Li, Wang and Cao, "Logit
#: Standardization in Knowledge Distillation", CVPR 2024.
TEMPERATURE = 2.0
TEACHER_WEIGHT = 9.0
LABEL_WEIGHT = 0.1

#: Standardised logits of few classes say little: of two classes, only which is larger. Then logits are divided by a
#: temperature, as Hinton does.
FEWEST_STANDARDISED = 5
PLAIN_TEMPERATURE = 4.0


def distillation_loss(logits: Tensor, cross_entropy: Tensor, teacher_logits: Tensor) -> Tensor:
    """The loss of a student: the divergence from its teacher's probabilities, and a little cross-entropy.

    Args:
        logits: of the student, (N, classes).
        cross_entropy: of the student with the labels, a scalar.
        teacher_logits: (N, classes).

    Returns:
        A scalar.
    """
    if logits.shape[1] < FEWEST_STANDARDISED:
        ours, theirs, temperature = logits, teacher_logits, PLAIN_TEMPERATURE
    else:
        ours, theirs, temperature = standardised(logits), standardised(teacher_logits), TEMPERATURE
    divergence = F.kl_div(
        F.log_softmax(ours / temperature, 1),
        F.log_softmax(theirs / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return LABEL_WEIGHT * cross_entropy + TEACHER_WEIGHT * temperature**2 * divergence


def standardised(logits: Tensor) -> Tensor:
    """Logits, (N, classes), with mean 0 and standard deviation 1 over the classes."""
    std, mean = torch.std_mean(logits, 1, keepdim=True)
    return (logits - mean) / (std + 1e-7)


class TeacherOutputs:
    """What a teacher says of a number of views of each training image.

    Args:
        logits: float16 (views, images, classes).
        table: random numbers of the views, (views, DRAWS).
        offsets: added to those of the views of each image, (images, DRAWS).
    """

    def __init__(self, logits: Tensor, table: Tensor, offsets: Tensor) -> None:
        self._logits, self._table, self._offsets = logits, table, offsets

    @classmethod
    def compute(
        cls,
        teacher: HybridMobileNet,
        images: ImageDataset,
        augmentation: Augmentation,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> TeacherOutputs:
        """Compute the outputs of a teacher, or read those that were stored.

        They are stored view by view in the user's cache folder, so that computing them can be interrupted, and several
        students can share them.

        Args:
            teacher: on any device; its classes are those of the images, in any order.
            images: the training images of the student.
            augmentation: how the views vary them.
            progress: called with the number of views done, in images.

        Raises:
            OSError: if they cannot be stored.
        """
        views = VIEWS if augmentation else 1
        generator = torch.Generator().manual_seed(0)  # the views are those of every student
        table, offsets = draw(views, generator=generator), draw(len(images), generator=generator)
        folder = cache_folder() / "teachers" / _key(teacher, images, augmentation)
        total = views * len(images)
        logits = torch.empty(views, len(images), len(teacher.class_names), dtype=torch.float16)
        for view in range(views):
            file = folder / f"{view:02}.safetensors"
            if not _read(file, logits[view]):
                with torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(view)  # of the pooling regions

                    def report(done: int, start: int = view * len(images)) -> None:
                        if progress is not None:
                            progress("computing the teacher's outputs for", start + done, total)

                    numbers = _varied(table[view], offsets)
                    logits[view] = _view(teacher, images, augmentation, numbers, report)
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(file, save({"logits": logits[view].contiguous()}))
        return cls(logits, table, offsets)

    @property
    def views(self) -> int:
        """The number of views of each image."""
        return len(self._table)

    def draws(self, images: Tensor, views: Tensor) -> Tensor:
        """The random numbers of the augmentation, (*shape, DRAWS), for views of images, int64 (*shape)."""
        return _varied(self._table[views], self._offsets[images])

    def logits(self, images: Tensor, views: Tensor) -> Tensor:
        """The logits, float32 (N, classes), for views of images, int64 (N,)."""
        return self._logits[views, images].float()


def _varied(table: Tensor, offsets: Tensor) -> Tensor:
    """Random numbers, uniform in [0, 1), shifted by those of an image."""
    return (table + offsets).remainder(1)


@torch.no_grad()
def _view(
    teacher: HybridMobileNet,
    images: ImageDataset,
    augmentation: Augmentation,
    numbers: Tensor,
    report: Callable[[int], None],
) -> Tensor:
    """The logarithms of a teacher's probabilities for one view of every image, (images, classes).

    They differ from logits by a number for each image, which makes no difference to the loss.
    """
    passes = PASSES if _knows_random_regions(teacher) else 1
    order = [teacher.class_names.index(name) for name in images.class_names]
    found = []
    for indices in torch.split(torch.arange(len(images)), BATCH_SIZE):
        batch, labels = images.labelled(indices.to(images.labels.device))
        varied, _ = augment(batch, labels, augmentation, len(images.class_names), numbers[indices].to(batch.device))
        found.append(probabilities(teacher, varied, passes)[:, order].clamp_min(1e-30).log())
        report(int(indices[-1]) + 1)
    return torch.cat(found)


def _knows_random_regions(teacher: HybridMobileNet) -> bool:
    """Whether a teacher was trained with random pooling regions. Trained with fixed ones, it needs those."""
    recipe = teacher.training_record.get("recipe", {})
    return bool(teacher.fractional_max_pools()) and recipe.get("fixed_epochs") != recipe.get("epochs")


def teacher_fingerprint(teacher: HybridMobileNet) -> str:
    """SHA-256 over the configuration and the weights of a teacher."""
    digest = hashlib.sha256(repr(teacher.config()).encode())
    for tensor in teacher.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _key(teacher: HybridMobileNet, images: ImageDataset, augmentation: Augmentation) -> str:
    """A name for the outputs of a teacher that changes with everything that they depend on."""
    parts = (teacher_fingerprint(teacher), images.fingerprint, augmentation, VIEWS, PASSES, DRAWS)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _read(file: Path, logits: Tensor) -> bool:
    """Read the logits of a view; False if they are not stored, or damaged."""
    try:
        logits.copy_(load_file(file)["logits"])
    except (OSError, SafetensorError, KeyError, RuntimeError):
        return False
    return True
