"""The project's own networks and training step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning_fabric import Fabric

from hybrid_mobilenet.common.machine import keep_freed_memory
from hybrid_mobilenet.network.architecture import Network
from hybrid_mobilenet.network.model import HybridMobileNet
from hybrid_mobilenet.training.run import train_step

VERSION = f"torch {torch.__version__}"


def training_step(network: Network, batch: int, threads: int) -> Callable[[], object]:
    """A training step on a batch of uint8 images, which the model normalises."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as `train` does
    torch.manual_seed(0)
    model = HybridMobileNet(network).train()
    fabric = Fabric(accelerator="cpu", devices=1)
    module, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters(), fused=True))
    images = torch.randint(256, (batch, network.in_channels, *network.image_size), dtype=torch.uint8)
    labels = torch.randint(network.classes, (batch,))
    return lambda: train_step(fabric, module, optimizer, images, labels)
