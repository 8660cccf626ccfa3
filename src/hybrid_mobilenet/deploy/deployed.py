"""The network as devices run it: bytes in, probabilities out, batch norm folded, pooling by standard operators.

Every exporter starts from `Deployed`, which equals the model in eval() up to rounding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from .. import __version__
from ..layers.depthwise import repeat_channels
from ..layers.pooling import fixed_grid, pool_grid
from ..network.architecture import Family, Layer, Network, resolve
from ..network.blocks import ACTIVATIONS
from ..network.model import HybridMobileNet


class ExportError(ValueError):
    """A model cannot be exported, or its exported form disagrees with it."""


class Normalise(nn.Module):
    """Bytes to centred maps: uint8 (N, H, W, C) to float32 (N, C, H, W).

    Only the mean is subtracted here, so that the zero padding of the first convolution stays exact. The division by the
    standard deviation is folded into that convolution.
    """

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)  # of the bytes, (C,)

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean).permute(0, 3, 1, 2)


class Repeat(nn.Module):
    """`repeat_channels` as a step."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        return repeat_channels(x, self.copies)


class GridMaxPool(nn.Module):
    """Max pooling over fixed regions: gather their pixels to a grid of equal windows, then apply plain max pooling.

    In a region narrower than `window`, the last pixel is repeated.

    Args:
        rows: int64 (H_out * window,), the input row of each row of the grid.
        columns: int64 (W_out * window,), the input column of each column of the grid.
        window: height and width of a window.
        width: width of the input.
        channels: channels of the input.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, rows: Tensor, columns: Tensor, window: int, width: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.window, self.width, self.channels = window, width, channels

    def forward(self, x: Tensor) -> Tensor:
        return pool_grid(x, self.rows, self.columns, self.window)


class Average(nn.Module):
    """Global average pooling of maps with H * W = `pixels`: (N, C, H, W) to (N, C)."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Deployed(nn.Module):
    """The steps of a model in eval(), named after its layers.

    Args:
        model: the model. It is left unchanged.

    Shape:
        - Input: (N, H, W, in_channels) uint8, RGB or grey, 0..255.
        - Output: logits and probabilities, float32 (N, classes) each.
    """

    def __init__(self, model: HybridMobileNet) -> None:
        super().__init__()
        network = model.network
        self.network = network
        self.class_names = model.class_names
        self.steps = nn.Sequential()
        convolutions = model.convolutions()
        self.steps.add_module("normalise", Normalise(255 * model.mean.detach().flatten().cpu()))
        for layer in network.layers:
            match layer.kind:
                case "max_pool":
                    pool: nn.Module = nn.MaxPool2d(layer.kernel, layer.stride, padding=layer.kernel // 2)
                    self.steps.add_module(layer.name, pool)
                case "fractional_max_pool":
                    self.steps.add_module(layer.name, fixed_pool(layer, model.overlapping))
                case "global_average_pool":
                    self.steps.add_module(layer.name, Average(layer.in_size[0] * layer.in_size[1]))
                case "fully_connected":
                    self.steps.add_module(layer.name, _copy_of(cast(nn.Linear, model.classifier.linear)))
                case _:
                    if layer.kind == "depthwise" and layer.out_channels > layer.in_channels:
                        copies = layer.out_channels // layer.in_channels
                        self.steps.add_module(f"{layer.name}_repeat", Repeat(copies))
                    self.steps.add_module(layer.name, folded(*convolutions[layer.name]))
                    self.steps.add_module(f"{layer.name}_{model.activation}", ACTIVATIONS[model.activation]())
        first = cast(nn.Conv2d, self.steps.get_submodule(network.layers[0].name))
        first.weight.data /= 255 * model.std.detach().cpu().view(1, -1, 1, 1)
        self.eval()
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.steps(images)
        return logits, logits.softmax(1)


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution with the batch normalisation that follows it folded in: the same function in eval()."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # In double precision, so that folding adds less error than the float32 arithmetic it replaces; CPUs always have it.
    mean, variance, weight, bias = (
        tensor.detach().cpu().double() for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    scale = weight / (variance + norm.eps).sqrt()
    convolution = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size[0],
        conv.stride[0],
        conv.padding[0],
        groups=conv.groups,
        device="meta",  # draws no weights, so the caller's random state is unchanged
    )
    weights = (conv.weight.detach().cpu().double() * scale.view(-1, 1, 1, 1)).float().contiguous()
    convolution.weight = nn.Parameter(weights)
    convolution.bias = nn.Parameter((bias - mean * scale).float())
    return convolution


def fixed_pool(layer: Layer, overlapping: bool) -> nn.Module:
    """A fractional max pooling layer with the fixed regions of the model in eval()."""
    sizes = list(zip(layer.in_size, layer.out_size, strict=True))
    if not overlapping and all(n_in == 2 * n_out for n_in, n_out in sizes):
        return nn.MaxPool2d(2)
    window = 3 if overlapping else 2
    rows, columns = (torch.tensor(fixed_grid(n_in, n_out, overlapping)) for n_in, n_out in sizes)
    return GridMaxPool(rows, columns, window, layer.in_size[1], layer.in_channels)


def _copy_of(linear: nn.Linear) -> nn.Linear:
    copy = nn.Linear(linear.in_features, linear.out_features, device="meta")
    copy.weight = nn.Parameter(linear.weight.detach().cpu().clone())
    copy.bias = nn.Parameter(linear.bias.detach().cpu().clone())
    return copy


def metadata(model: HybridMobileNet) -> dict[str, str]:
    """The metadata of an exported file: strings by name, lists as JSON."""
    network = model.network
    height, width = network.image_size
    colours = "RGB" if network.in_channels == 3 else f"{network.in_channels} channel(s)"
    return {
        "producer": "hybrid-mobilenet",
        "version": __version__,
        "family": network.family,
        "alpha": f"{network.alpha:g}",
        "delta": str(network.delta),
        "image_size": json.dumps(list(network.image_size)),
        "in_channels": str(network.in_channels),
        "class_names": json.dumps(list(model.class_names)),
        "preprocessing": (
            f"images: uint8 (N, {height}, {width}, {network.in_channels}), {colours}, 0..255; upright by EXIF, "
            f"composited on white, 16 bits scaled to 8; crop the centre to the shape of {height}x{width} and resize it "
            "to that size (bicubic, antialiased); normalisation is in the graph"
        ),
        "outputs": "logits and probabilities: float32 (N, classes), in the order of class_names",
    }


def network_of(properties: Mapping[str, str]) -> Network | None:
    """The network of a file with this `metadata`; None if the file is not of this project."""
    if properties.get("producer") != "hybrid-mobilenet":
        return None
    height, width = json.loads(properties["image_size"])
    family = cast(Family, properties["family"])
    classes = len(json.loads(properties["class_names"]))
    alpha, delta, in_channels = float(properties["alpha"]), int(properties["delta"]), int(properties["in_channels"])
    return resolve(family, alpha, delta, classes, in_channels, (height, width))


def single_image_metadata(model: HybridMobileNet) -> dict[str, str]:
    """The metadata of a file with batch size 1."""
    texts = metadata(model)
    return texts | {
        "preprocessing": texts["preprocessing"].replace("(N, ", "(1, "),
        "outputs": texts["outputs"].replace("(N, ", "(1, "),
    }
