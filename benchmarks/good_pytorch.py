"""The networks as an experienced PyTorch user writes them: stock modules, channels-last, fused Adam.

Fractional max pooling is torch's own. It does not support channels-last: its output is NCHW, and the next convolution
converts it back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import plain_pytorch
from hybrid_mobilenet.network.architecture import Network

VERSION = plain_pytorch.VERSION


def training_step(network: Network, batch: int, threads: int, *, compiled: bool = False) -> Callable[[], object]:
    """A complete training step on one batch of normalised images, optionally with torch.compile."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = plain_pytorch.build(network).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images, labels = plain_pytorch.data(network, batch)
    images = images.to(memory_format=torch.channels_last)
    return plain_pytorch.step(torch.compile(model) if compiled else model, optimizer, images, labels)
