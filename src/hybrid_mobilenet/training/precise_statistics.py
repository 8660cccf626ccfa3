"""Statistics of batch normalisation, recomputed for the present weights.

In training, the running statistics follow changing weights, one batch at a time. After few steps they lag far behind,
and a network that classifies every training image correctly may be at chance in eval().

Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021 (arXiv 2105.07576), section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..data.dataset import ImageDataset
from ..network.architecture import CONVOLUTIONS
from ..network.model import HybridMobileNet
from .evaluate import ALONE, BATCH_SIZE, in_eval
from .processes import Processes

#: Training images used at the end of a run. docs/LOG.md has the results of other numbers.
FINAL_IMAGES = 4096
#: Training images used before each validation. Both together take under 2 % of a run on CIFAR-10.
VALIDATION_IMAGES = 512


@torch.no_grad()
def set_precise_statistics(
    model: HybridMobileNet, dataset: ImageDataset, images: int, seed: int = 0, processes: Processes = ALONE
) -> None:
    """Replace the running statistics of batch normalisation by those of the present weights over training images.

    Pooling regions are fixed and dropout is off, as in eval(), but batch normalisation uses each batch, as in train().

    Args:
        model: on any device; only its running statistics change.
        dataset: the training images.
        images: number of images, 2 or more, drawn at random; all if there are fewer.
        seed: of the draw.
        processes: share the work, and end with the same statistics.

    Raises:
        DataError: if an image that is not kept cannot be read.
    """
    layers = [layer for layer in model.network.layers if layer.kind in CONVOLUTIONS]
    norms = [norm for _, norm in model.convolutions().values()]
    channels = [norm.num_features for norm in norms]
    momenta = [norm.momentum for norm in norms]
    # Pixels per image of the map that each channel's statistics are taken over.
    pixels = torch.tensor([math.prod(layer.out_size) for layer in layers]).repeat_interleave(torch.tensor(channels))
    drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:images]
    # Batches of equal size: a last batch of one or two images would give poor statistics.
    batches = drawn.to(dataset.labels.device).tensor_split(math.ceil(len(drawn) / BATCH_SIZE))
    sums = torch.zeros(2, sum(channels), dtype=torch.float64)
    try:
        with in_eval(model):
            for norm in norms:
                norm.train()
                norm.momentum = 1.0  # the running statistics become those of the batch
            for batch in batches[processes.rank :: processes.size]:
                model(dataset.batch(batch).to(model.mean.device))
                mean, variance = (_gathered(norms, name).cpu().double() for name in ("running_mean", "running_var"))
                count = len(batch) * pixels
                # torch's running variance has Bessel's correction, but training normalises by the plain variance of the
                # batch. Over many layers the difference adds up.
                sums += len(batch) * torch.stack((mean, variance * (count - 1) / count + mean.square()))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    mean, square = processes.gather(sums).sum(0) / len(drawn)
    variance = (square - mean.square()).clamp_min(0)
    for norm, new_mean, new_variance in zip(norms, mean.split(channels), variance.split(channels), strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(new_mean.to(norm.running_mean.dtype))  # converted on the CPU: MPS lacks float64
        norm.running_var.copy_(new_variance.to(norm.running_var.dtype))


def _gathered(norms: list[nn.BatchNorm2d], name: str) -> Tensor:
    return torch.cat([getattr(norm, name) for norm in norms])
