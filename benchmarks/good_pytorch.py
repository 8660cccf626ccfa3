"""The networks as a good PyTorch user writes them: the same stock modules, channels-last, with fused Adam.

Fractional max pooling is torch's own here too, since that is the one there is. It knows no channels-last maps: it
returns NCHW, and the next convolution goes back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import plain_pytorch
from hybrid_mobilenet.network.architecture import Network

VERSION = plain_pytorch.VERSION


def training_step(network: Network, batch: int, threads: int, *, compiled: bool = False) -> Callable[[], object]:
    """A whole training step on one batch of normalised images; with the model through torch.compile, if asked for."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = plain_pytorch.build(network).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images, labels = plain_pytorch.data(network, batch)
    images = images.to(memory_format=torch.channels_last)
    return plain_pytorch.step(torch.compile(model) if compiled else model, optimizer, images, labels)
