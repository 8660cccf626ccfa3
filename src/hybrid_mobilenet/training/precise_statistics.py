"""Batch normalisation's statistics, computed anew for the weights as they are.

In training the running statistics follow weights that change, a batch at a time: after few steps they lag far behind,
and a network that is right on every training image may then be at chance in eval().

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

#: Training images that the statistics are of: at the end of a run, and before each evaluation on validation images.
#: docs/LOG.md has what other numbers give; together they take under 2 % of a run on CIFAR-10.
FINAL_IMAGES, VALIDATION_IMAGES = 4096, 512


@torch.no_grad()
def set_precise_statistics(
    model: HybridMobileNet, dataset: ImageDataset, images: int, seed: int = 0, processes: Processes = ALONE
) -> None:
    """Make the running statistics of batch normalisation those of the present weights over training images.

    They are of maps as in eval(), with fixed pooling regions and without dropout, but for batch normalisation itself,
    which goes by each batch.

    Args:
        model: on any device; only its running statistics change.
        dataset: the training images.
        images: so many of them, drawn at random, or all if there are fewer; 2 or more.
        seed: of that draw.
        processes: those that share the work; the statistics are of the images of all.

    Raises:
        DataError: where an image of a streamed data set cannot be read.
    """
    layers = [layer for layer in model.network.layers if layer.kind in CONVOLUTIONS]
    norms = [norm for _, norm in model.convolutions().values()]
    channels = [norm.num_features for norm in norms]
    momenta = [norm.momentum for norm in norms]
    # Of how many pixels of each layer's maps an image's share of the statistics is.
    pixels = torch.tensor([math.prod(layer.out_size) for layer in layers]).repeat_interleave(torch.tensor(channels))
    drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:images]
    # In equal parts: statistics of a last batch of one or two images would be no estimate.
    batches = drawn.to(dataset.labels.device).tensor_split(math.ceil(len(drawn) / BATCH_SIZE))
    sums = torch.zeros(2, sum(channels), dtype=torch.float64)
    try:
        with in_eval(model):
            for norm in norms:
                norm.train()
                norm.momentum = 1.0  # the running statistics become the batch's
            for batch in batches[processes.rank :: processes.size]:
                model(dataset.batch(batch).to(model.mean.device))
                mean, variance = (_gathered(norms, name).cpu().double() for name in ("running_mean", "running_var"))
                count = len(batch) * pixels
                # torch's running variance is corrected for the size of a batch, which adds up over many layers: what
                # an image is normalised by in training is the variance of the batch itself.
                sums += len(batch) * torch.stack((mean, variance * (count - 1) / count + mean.square()))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    mean, square = processes.gather(sums).sum(0) / len(drawn)
    variance = (square - mean.square()).clamp_min(0)
    for norm, its_mean, its_variance in zip(norms, mean.split(channels), variance.split(channels), strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(its_mean.to(norm.running_mean.dtype))  # here: not every device has float64
        norm.running_var.copy_(its_variance.to(norm.running_var.dtype))


def _gathered(norms: list[nn.BatchNorm2d], name: str) -> Tensor:
    return torch.cat([getattr(norm, name) for norm in norms])
