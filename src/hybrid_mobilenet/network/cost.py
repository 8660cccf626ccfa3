"""What a network costs: Equations 1 to 4 of the paper, per layer and in total. Standard library only.

Mult-Adds: one multiplication with its addition counts as one, for one image. Convolutions and the fully connected
layer are counted; batch normalisation, activations, pooling, biases and softmax are left out. This is the paper's
counting, inferred from its Tables 4 to 6 (`paper.DEVIATIONS` lists the figures that disagree with it).

Parameters: the weights of convolutions (which have no bias) and of the fully connected layer (which has one), and for
each batch-normalised channel, depending on the convention,

- "paper": four numbers, the totals of Keras: scale, shift, and the moving mean and variance;
- "trainable": two numbers, what PyTorch's ``sum(p.numel() for p in model.parameters())`` gives: scale and shift.

Source: Chen and Su, "The Enhanced Hybrid MobileNet", 2018 (arXiv 1712.04698), section III.A.
"""

from __future__ import annotations

from typing import Literal, get_args

from ..layers.sizes import Size
from .architecture import Layer, Network, scaled

Convention = Literal["paper", "trainable"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)

_NUMBERS_PER_NORMALISED_CHANNEL: dict[Convention, int] = {"paper": 4, "trainable": 2}


def depthwise_parameters(kernel: int, in_channels: int, alpha: float = 1.0, delta: int = 1) -> int:
    """Equation 1, D_K * D_K * (alpha M * delta): weights of a depthwise convolution.

    Args:
        kernel: D_K, the side of the filters in pixels.
        in_channels: M, before alpha.
        alpha: width multiplier.
        delta: depth multiplier.

    Raises:
        ValueError: if alpha M is not a whole number.
    """
    return kernel * kernel * scaled(in_channels, alpha) * delta


def pointwise_parameters(in_channels: int, out_channels: int, alpha: float = 1.0, delta: int = 1) -> int:
    """Equation 2, (alpha M * delta) * alpha N: weights of the pointwise convolution after a depthwise one.

    Args:
        in_channels: M, before alpha: the channels that the depthwise convolution reads.
        out_channels: N, before alpha.
        alpha: width multiplier.
        delta: depth multiplier.

    Raises:
        ValueError: if alpha M or alpha N is not a whole number.
    """
    return scaled(in_channels, alpha) * delta * scaled(out_channels, alpha)


def depthwise_mult_adds(kernel: int, in_channels: int, map_size: Size, alpha: float = 1.0, delta: int = 1) -> int:
    """Equation 3, D_K * D_K * (alpha M * delta) * D_F * D_F: Equation 1 for each pixel of the output map.

    `map_size` is (height, width) in pixels, (D_F, D_F) in the paper; the rest is as in `depthwise_parameters`.
    """
    return depthwise_parameters(kernel, in_channels, alpha, delta) * _pixels(map_size)


def pointwise_mult_adds(in_channels: int, out_channels: int, map_size: Size, alpha: float = 1.0, delta: int = 1) -> int:
    """Equation 4, (alpha M * delta) * alpha N * D_F * D_F: Equation 2 for each pixel of the output map.

    `map_size` is (height, width) in pixels, (D_F, D_F) in the paper; the rest is as in `pointwise_parameters`.
    """
    return pointwise_parameters(in_channels, out_channels, alpha, delta) * _pixels(map_size)


def parameter_ratio(kernel: int, in_channels: int, out_channels: int, *, alpha: float, delta: int) -> float:
    """Ratio (a) of section III.A: parameters of a depthwise-separable block to those at alpha = delta = 1.

    Equations 1 + 2 over the same at alpha = delta = 1: (alpha D_K^2 + alpha^2 N) delta / (D_K^2 + N), about
    alpha^2 delta. Batch normalisation is left out. The paper's worked example:

    >>> round(parameter_ratio(kernel=3, in_channels=64, out_channels=128, alpha=0.5, delta=2), 2)
    0.53
    """

    def block(alpha: float, delta: int) -> int:
        return depthwise_parameters(kernel, in_channels, alpha, delta) + pointwise_parameters(
            in_channels, out_channels, alpha, delta
        )

    return block(alpha, delta) / block(1.0, 1)


def mult_adds_ratio(
    kernel: int, in_channels: int, out_channels: int, map_size: Size, *, alpha: float, delta: int
) -> float:
    """Ratio (b) of section III.A: Mult-Adds of a depthwise-separable block to those at alpha = delta = 1.

    Equations 3 + 4 over the same at alpha = delta = 1. The map's size cancels, so it equals ratio (a). The paper's
    worked example:

    >>> round(mult_adds_ratio(kernel=3, in_channels=64, out_channels=128, map_size=(32, 32), alpha=0.5, delta=2), 2)
    0.53
    """

    def block(alpha: float, delta: int) -> int:
        return depthwise_mult_adds(kernel, in_channels, map_size, alpha, delta) + pointwise_mult_adds(
            in_channels, out_channels, map_size, alpha, delta
        )

    return block(alpha, delta) / block(1.0, 1)


def layer_mult_adds(layer: Layer) -> int:
    """Mult-Adds of one layer for one image; 0 for pooling."""
    return _weights(layer) * _pixels(layer.out_size)


def layer_parameters(layer: Layer, convention: Convention = "paper") -> int:
    """Parameters of one layer, with those of the batch normalisation that follows a convolution.

    Raises:
        ValueError: if `convention` is neither "paper" nor "trainable".
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}, but must be one of {', '.join(CONVENTIONS)}")
    match layer.kind:
        case "convolution" | "depthwise" | "pointwise":
            return _weights(layer) + _NUMBERS_PER_NORMALISED_CHANNEL[convention] * layer.out_channels
        case "fully_connected":
            return _weights(layer) + layer.out_channels
        case _:
            return 0


def network_mult_adds(network: Network) -> int:
    """Mult-Adds of a network for one image of its size: the sum over its layers."""
    return sum(map(layer_mult_adds, network.layers))


def network_parameters(network: Network, convention: Convention = "paper") -> int:
    """Parameters of a network: the sum over its layers. See `layer_parameters`."""
    return sum(layer_parameters(layer, convention) for layer in network.layers)


def weight_bytes(network: Network, number: Literal["float32", "int8"]) -> int:
    """Bytes of the weights of the exported network, in which batch normalisation is folded into the convolutions.

    Every convolution and the fully connected layer have one bias per output channel. In int8, a weight is one byte, and
    each output channel also has a scale. The graph and its metadata are not counted: 10 to 30 kB of a file.

    >>> from hybrid_mobilenet import resolve
    >>> weight_bytes(resolve("fmp", alpha=0.25, delta=2), "float32")
    1686120
    """
    layers = [layer for layer in network.layers if _weights(layer)]
    weights, channels = sum(map(_weights, layers)), sum(layer.out_channels for layer in layers)
    return 4 * (weights + channels) if number == "float32" else weights + 8 * channels


def _weights(layer: Layer) -> int:
    # The channels of a resolved layer include alpha and delta: for a pointwise layer, M is alpha M delta.
    match layer.kind:
        case "convolution":
            return layer.kernel**2 * layer.in_channels * layer.out_channels
        case "depthwise":
            return depthwise_parameters(layer.kernel, layer.out_channels)
        case "pointwise" | "fully_connected":
            return pointwise_parameters(layer.in_channels, layer.out_channels)
        case _:
            return 0


def _pixels(size: Size) -> int:
    height, width = size
    return height * width
