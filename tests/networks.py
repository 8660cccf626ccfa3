"""Networks as if trained, and images, for the tests of exports."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.layers.sizes import Size
from hybrid_mobilenet.network.architecture import Family


def images(count: int, size: Size = (32, 32), channels: int = 3, seed: int = 0) -> Tensor:
    """Random images with large and small structures, as photographs have."""
    generator = torch.Generator().manual_seed(seed)
    layers = (torch.randn(count, channels, side, side, generator=generator) for side in (2, 4, 8, 16))
    pixels = sum(nn.functional.interpolate(layer, size, mode="bicubic") for layer in layers)
    assert isinstance(pixels, Tensor)
    return (128 + 50 * pixels).clamp(0, 255).to(torch.uint8)


def network(
    family: Family, alpha: float = 0.25, delta: int = 2, classes: int = 10, size: Size = (32, 32), **options: Any
) -> HybridMobileNet:
    """A network as if trained: statistics of images, scales and shifts of its own, logits that depend on the image."""
    torch.manual_seed(0)
    model = HybridMobileNet(family, alpha, delta, classes, 3, size, **options).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = 1.0
    some = images(32, size)
    with torch.no_grad():
        model(some)
        model.get_parameter("classifier.linear.weight").div_(2 * model.eval()(some).std())
        nn.init.normal_(model.get_parameter("classifier.linear.bias"))
    return model


def trained(family: Family, **options: Any) -> HybridMobileNet:
    """A network that has begun to tell digits of 16x16 pixels: with random weights, rounding would drown the logits."""
    torch.manual_seed(0)
    model = HybridMobileNet(family, 0.25, 2, 10, 3, 16, **options).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    digits = load_data("digits", image_size=16).train
    for step in range(100):
        batch = torch.arange(64 * step, 64 * step + 64) % len(digits)
        loss = nn.functional.cross_entropy(model(digits.batch(batch)), digits.labels[batch])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return model.eval()
