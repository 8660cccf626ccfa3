"""The networks as a PyTorch user would first write them.

NCHW, grouped convolutions for the depth multiplier, torch's own fractional max pooling, Adam with defaults.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_mobilenet.network.architecture import Layer, Network

VERSION = f"torch {torch.__version__}"


def training_step(network: Network, batch: int, threads: int) -> Callable[[], object]:
    """A complete training step on one batch of normalised images."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build(network).train()
    return step(model, torch.optim.Adam(model.parameters()), *data(network, batch))


def data(network: Network, batch: int) -> tuple[Tensor, Tensor]:
    """Normalised images (N, C, H, W) and labels (N,)."""
    images = torch.randn(batch, network.in_channels, *network.image_size)
    return images, torch.randint(network.classes, (batch,))


def step(
    model: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> Callable[[], Tensor]:
    """A function that takes one step and returns the loss."""

    def take() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return take


def build(network: Network) -> nn.Sequential:
    return nn.Sequential(*(module for layer in network.layers for module in modules(layer)))


def modules(layer: Layer) -> list[nn.Module]:
    match layer.kind:
        case "max_pool":
            return [nn.MaxPool2d(layer.kernel, layer.stride, padding=layer.kernel // 2)]
        case "fractional_max_pool":
            return [nn.FractionalMaxPool2d(2, output_size=layer.out_size)]
        case "global_average_pool":
            return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        case "fully_connected":
            return [nn.Dropout(0.1), nn.Linear(layer.in_channels, layer.out_channels)]
        case _:
            convolution = nn.Conv2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel,
                layer.stride,
                padding=layer.kernel // 2,
                groups=layer.in_channels if layer.kind == "depthwise" else 1,
                bias=False,
            )
            return [convolution, nn.BatchNorm2d(layer.out_channels), nn.ReLU()]
