"""Tables 1 to 3 of the paper as data, and `resolve`, which turns one into concrete layers.

The network is declared here and nowhere else: `model` builds its modules from the resolved layers, `cost` sums over
them, and `tables` prints them. Standard library only, so that the tables are printed without importing torch.

Source: Chen and Su, "The Enhanced Hybrid MobileNet", 2018 (arXiv 1712.04698).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..layers.sizes import Size, fractional_size, strided_size

Family = Literal["mobilenet", "mp3", "fmp"]
FAMILIES: tuple[Family, ...] = get_args(Family)

#: The activation after batch normalisation: the paper does not say which.
Activation = Literal["relu", "relu6"]

#: The paper prints "stride 1.4", but the map sizes of Table 3 (32, 22, 15, 10, 6, 4, 2, 1) need a ratio in
#: (1.4286, 1.4545]. 1.44 is the value of TensorFlow's documented example and gives all of them.
FMP_RATIO = 1.44

#: Below this the maps are one pixel wide before the network has shrunk them three times, and convolution is pointless.
MINIMUM_IMAGE_SIDE = 8


@dataclass(frozen=True)
class Convolution:
    """A standard 3x3 convolution, with batch normalisation and activation."""

    channels: int
    stride: int = 1


@dataclass(frozen=True)
class Separable:
    """A depthwise-separable block: 3x3 depthwise (`stride`), then 1x1 pointwise to `channels`; `repeat` of them."""

    channels: int
    stride: int = 1
    repeat: int = 1


@dataclass(frozen=True)
class MaxPool:
    """Max pooling, 3x3 window, stride 2: the "MP" rows of Table 2."""


@dataclass(frozen=True)
class FractionalMaxPool:
    """Fractional max pooling with ratio `FMP_RATIO`: the "FMP / s1.4" rows of Table 3."""


Row = Convolution | Separable | MaxPool | FractionalMaxPool

#: Channels are those of alpha = 1. Every table ends with global average pooling and a fully connected layer.
TABLE_1: tuple[Row, ...] = (  # MobileNet
    Convolution(32, stride=2),
    Separable(64),
    Separable(128, stride=2),
    Separable(128),
    Separable(256, stride=2),
    Separable(256),
    Separable(512, stride=2),
    Separable(512, repeat=5),
    Separable(1024, stride=2),
    Separable(1024),
)
TABLE_2: tuple[Row, ...] = (  # MobileNet+MP3
    Convolution(32),
    MaxPool(),
    Separable(64),
    MaxPool(),
    Separable(128),
    Separable(128),
    MaxPool(),
    Separable(256),
    Separable(256),
    MaxPool(),
    Separable(512),
    Separable(512, repeat=5),
    MaxPool(),
    Separable(1024),
    Separable(1024),
)
TABLE_3: tuple[Row, ...] = (  # MobileNet+FMP
    Convolution(32),
    FractionalMaxPool(),
    Separable(64),
    Separable(128),
    FractionalMaxPool(),
    Separable(128),
    Separable(256),
    FractionalMaxPool(),
    Separable(256),
    Separable(512),
    FractionalMaxPool(),
    Separable(512, repeat=2),
    FractionalMaxPool(),
    # The next rows are unreadable in the copies we know. Two blocks at 4x4 and one at 2x2 is the only split of the
    # five that gives Table 6's Mult-Adds (139.007 M for "139" at delta = 2, alpha = 1).
    Separable(512, repeat=2),
    FractionalMaxPool(),
    Separable(512),
    Separable(1024),
    FractionalMaxPool(),
    Separable(1024),
)
TABLES: dict[Family, tuple[Row, ...]] = {"mobilenet": TABLE_1, "mp3": TABLE_2, "fmp": TABLE_3}

LayerKind = Literal[
    "convolution", "depthwise", "pointwise", "max_pool", "fractional_max_pool", "global_average_pool", "fully_connected"
]
#: Layers that are followed by batch normalisation and activation.
CONVOLUTIONS: tuple[LayerKind, ...] = ("convolution", "depthwise", "pointwise")


@dataclass(frozen=True)
class Layer:
    """One concrete layer: what `model` builds, `cost` counts and `tables` prints.

    The nodes of exported files are named after `name`. A depthwise layer has ``out_channels == delta * in_channels``.
    `stride` is 1 for everything but strided convolutions and max pooling.
    """

    name: str
    kind: LayerKind
    in_channels: int
    out_channels: int
    in_size: Size
    out_size: Size
    kernel: int = 1
    stride: int = 1

    @property
    def shrinks(self) -> bool:
        """Whether it reduces the resolution of its maps, unless they are a single pixel already."""
        return self.stride > 1 or self.kind == "fractional_max_pool"


@dataclass(frozen=True)
class Network:
    """A resolved network: its choices and its layers, in the order in which they run."""

    family: Family
    alpha: float
    delta: int
    classes: int
    in_channels: int
    image_size: Size
    layers: tuple[Layer, ...]

    def choices(self) -> dict[str, Any]:
        """The arguments with which `resolve` gives this network.

        >>> resolve("fmp", alpha=0.25, delta=2).choices()
        {'family': 'fmp', 'alpha': 0.25, 'delta': 2, 'classes': 10, 'in_channels': 3, 'image_size': (32, 32)}
        """
        return {name: value for name, value in vars(self).items() if name != "layers"}

    def blocks(self) -> Iterator[tuple[str, tuple[Layer, ...]]]:
        """The layers by block, with the name of each block.

        A depthwise layer and the pointwise layer after it are one block. Every other layer is a block of its own.

        >>> [name for name, _ in resolve("mp3").blocks()][:5]
        ['conv', 'pool1', 'block1', 'pool2', 'block2']
        """
        layers = iter(self.layers)
        for layer in layers:
            if layer.kind == "depthwise":
                yield layer.name.removesuffix("_depthwise"), (layer, next(layers))
            else:
                yield layer.name, (layer,)


def resolve(
    family: Family,
    alpha: float = 1.0,
    delta: int = 1,
    classes: int = 10,
    in_channels: int = 3,
    image_size: int | Size = 32,
) -> Network:
    """The concrete layers of a family for given multipliers, classes, input channels and image size.

    Args:
        family: "mobilenet" (Table 1), "mp3" (Table 2) or "fmp" (Table 3).
        alpha: width multiplier: scales every channel count but the image's. The scaled counts must be whole.
        delta: depth multiplier: each input channel of a depthwise convolution yields `delta` outputs. This is Keras's
            `depth_multiplier`; the word also stands for the width (TF-slim) and for repeated layers (timm) elsewhere.
        classes: outputs of the classifier.
        in_channels: 3 for RGB, 1 for greyscale.
        image_size: side in pixels, or (height, width). The paper's resolution multiplier rho is this over 32.

    Raises:
        ValueError: naming the argument, its value, the rule and the remedy.

    Example:
        >>> from hybrid_mobilenet import resolve
        >>> network = resolve("fmp", alpha=0.25, delta=2)
        >>> network.layers[0].name, network.layers[0].out_size, network.layers[0].out_channels
        ('conv', (32, 32), 8)
    """
    size = _checked_size(family, delta, classes, in_channels, image_size)
    layers: list[Layer] = []
    channels = in_channels

    def add(name: str, kind: LayerKind, out_channels: int, out_size: Size, kernel: int = 1, stride: int = 1) -> None:
        nonlocal channels, size
        layers.append(Layer(name, kind, channels, out_channels, size, out_size, kernel, stride))
        channels, size = out_channels, out_size

    def strided(stride: int) -> Size:
        return strided_size(size[0], stride), strided_size(size[1], stride)

    blocks = pools = 0
    for row in TABLES[family]:
        match row:
            case Convolution():
                add("conv", "convolution", scaled(row.channels, alpha), strided(row.stride), 3, row.stride)
            case Separable():
                for _ in range(row.repeat):
                    blocks += 1
                    add(f"block{blocks}_depthwise", "depthwise", channels * delta, strided(row.stride), 3, row.stride)
                    add(f"block{blocks}_pointwise", "pointwise", scaled(row.channels, alpha), size)
            case MaxPool():
                pools += 1
                add(f"pool{pools}", "max_pool", channels, strided(2), 3, 2)
            case FractionalMaxPool():
                pools += 1
                out = fractional_size(size[0], FMP_RATIO), fractional_size(size[1], FMP_RATIO)
                add(f"pool{pools}", "fractional_max_pool", channels, out)
    add("average", "global_average_pool", channels, (1, 1))
    add("classifier", "fully_connected", classes, (1, 1))
    return Network(family, alpha, delta, classes, in_channels, layers[0].in_size, tuple(layers))


def _checked_size(family: Family, delta: int, classes: int, in_channels: int, image_size: int | Size) -> Size:
    """Height and width of the images, after checking all arguments of `resolve` but alpha, which `scaled` checks."""
    if family not in TABLES:
        raise ValueError(f"family is {family!r}, but must be one of {', '.join(FAMILIES)}")
    if not _is_whole(delta) or delta < 1:
        raise ValueError(f"delta is {delta!r}, but must be a whole number of 1 or more: the paper uses 1, 2 and 4")
    if not _is_whole(classes) or classes < 2:
        raise ValueError(f"classes is {classes!r}, but must be a whole number of 2 or more")
    if not _is_whole(in_channels) or in_channels < 1:
        raise ValueError(
            f"in_channels is {in_channels!r}, but must be a whole number of 1 or more: 3 for RGB, 1 for greyscale"
        )
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2 or not all(map(_is_whole, sides)):
        raise ValueError(f"image_size is {image_size!r}, but must be a whole number of pixels or (height, width)")
    height, width = sides
    if min(height, width) < MINIMUM_IMAGE_SIDE:
        raise ValueError(
            f"image_size is {height}x{width}, but each side must be {MINIMUM_IMAGE_SIDE} or more: "
            "choose a larger size, and images are resized to it"
        )
    return height, width


def scaled(channels: int, alpha: float) -> int:
    """`channels` times `alpha`, which must come out whole.

    Raises:
        ValueError: if it does not. Rounding, as other MobileNets do, would break the exact counts.
    """
    # Every count in the tables is a power of two, so the product is exact; NaN and infinity are not integers.
    product = float(channels * alpha)
    if not product.is_integer() or product < 1:
        raise ValueError(
            f"alpha is {alpha!r}, but {channels} * alpha must be a whole number of channels, 1 or more: "
            "choose a multiple of 1/32, such as 0.25, 0.5 or 1"
        )
    return int(product)


def _is_whole(value: object) -> bool:
    # True is an int in Python, and would pass for 1 from a JSON file.
    return isinstance(value, int) and not isinstance(value, bool)
