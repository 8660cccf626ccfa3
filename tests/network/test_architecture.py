"""Tables 1 to 3 as resolved: map sizes, channels, and what is refused."""

from __future__ import annotations

import doctest
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_mobilenet.network import architecture
from hybrid_mobilenet.network.architecture import FAMILIES, Family, Layer, Network, resolve, scaled

# Output channels and side of the input map of every block, then of every pooling layer's input and output: read off
# Tables 1 to 3.
BLOCKS: dict[Family, list[tuple[int, int]]] = {
    "mobilenet": [(64, 16), (128, 16), (128, 8), (256, 8), (256, 4), (512, 4), *[(512, 2)] * 5, (1024, 2), (1024, 1)],
    "mp3": [(64, 16), (128, 8), (128, 8), (256, 4), (256, 4), (512, 2), *[(512, 2)] * 5, (1024, 1), (1024, 1)],
    "fmp": [
        (64, 22), (128, 22), (128, 15), (256, 15), (256, 10), (512, 10), (512, 6), (512, 6), (512, 4), (512, 4),
        (512, 2), (1024, 2), (1024, 1),
    ],
}  # fmt: skip
POOLS: dict[Family, list[tuple[int, int]]] = {
    "mobilenet": [],
    "mp3": [(32, 16), (16, 8), (8, 4), (4, 2), (2, 1)],
    "fmp": [(32, 22), (22, 15), (15, 10), (10, 6), (6, 4), (4, 2), (2, 1)],
}


def of_kind(network: Network, *kinds: str) -> list[Layer]:
    return [layer for layer in network.layers if layer.kind in kinds]


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_and_pools_are_those_of_the_paper(family: Family) -> None:
    network = resolve(family)
    depthwise, pointwise = of_kind(network, "depthwise"), of_kind(network, "pointwise")
    assert [(p.out_channels, d.in_size[0]) for d, p in zip(depthwise, pointwise, strict=True)] == BLOCKS[family]
    pools = of_kind(network, "max_pool", "fractional_max_pool")
    assert [(pool.in_size[0], pool.out_size[0]) for pool in pools] == POOLS[family]
    assert [pool.out_channels for pool in pools] == [pool.in_channels for pool in pools]


@pytest.mark.parametrize(("family", "strides"), [("mobilenet", [2, 2, 2, 2, 2]), ("mp3", []), ("fmp", [])])
def test_only_table_1_has_strided_convolutions(family: Family, strides: list[int]) -> None:
    convolutions = of_kind(resolve(family), "convolution", "depthwise", "pointwise")
    assert [layer.stride for layer in convolutions if layer.stride != 1] == strides
    assert {layer.stride for layer in of_kind(resolve(family), "pointwise")} == {1}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("delta", [1, 2, 4])
def test_multipliers_scale_channels_and_nothing_else(family: Family, alpha: float, delta: int) -> None:
    network, plain = resolve(family, alpha, delta, classes=7, in_channels=1), resolve(family)
    assert [layer.name for layer in network.layers] == [layer.name for layer in plain.layers]
    assert [layer.out_size for layer in network.layers] == [layer.out_size for layer in plain.layers]
    for layer, reference in zip(network.layers, plain.layers, strict=True):
        if layer.kind == "depthwise":
            assert layer.in_channels == alpha * reference.in_channels
            assert layer.out_channels == delta * layer.in_channels
        elif layer.kind == "pointwise":
            assert layer.in_channels == delta * alpha * reference.in_channels
            assert layer.out_channels == alpha * reference.out_channels
    first, last = network.layers[0], network.layers[-1]
    assert (first.in_channels, first.out_channels) == (1, 32 * alpha)
    assert (last.kind, last.in_channels, last.out_channels) == ("fully_connected", 1024 * alpha, 7)


@pytest.mark.parametrize("family", FAMILIES)
@given(height=st.integers(8, 300), width=st.integers(8, 300))
def test_layers_fit_together_for_any_rectangle(family: Family, height: int, width: int) -> None:
    network = resolve(family, image_size=(height, width))
    assert network.image_size == network.layers[0].in_size == (height, width)
    for before, after in pairwise(network.layers):
        assert (before.out_channels, before.out_size) == (after.in_channels, after.in_size)
    assert len({layer.name for layer in network.layers}) == len(network.layers)
    assert network.layers[-1].out_size == (1, 1)
    # Each axis goes its own way: the transposed image gives the transposed maps.
    transposed = resolve(family, image_size=(width, height))
    assert [layer.out_size[::-1] for layer in transposed.layers] == [layer.out_size for layer in network.layers]


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_hold_all_layers_in_order(family: Family) -> None:
    network = resolve(family, 0.25, 2)
    blocks = list(network.blocks())
    assert [layer for _, layers in blocks for layer in layers] == list(network.layers)
    for name, layers in blocks:
        if name.startswith("block"):
            assert [layer.name for layer in layers] == [f"{name}_depthwise", f"{name}_pointwise"]
        else:
            assert [layer.name for layer in layers] == [name]
    assert [name for name, _ in blocks if name.startswith("block")] == [f"block{number + 1}" for number in range(13)]


def test_the_choices_give_the_network_again() -> None:
    network = resolve("fmp", 0.25, 2, classes=7, in_channels=1, image_size=(24, 48))
    assert resolve(**network.choices()) == network


@pytest.mark.parametrize("image_size", [8, 32])
def test_pooling_and_strides_shrink(image_size: int) -> None:
    shrinking = {
        family: [layer.name for layer in resolve(family, image_size=image_size).layers if layer.shrinks]
        for family in FAMILIES
    }
    assert shrinking == {
        "mobilenet": ["conv", *(f"block{number}_depthwise" for number in (2, 4, 6, 12))],
        "mp3": [f"pool{number}" for number in range(1, 6)],
        "fmp": [f"pool{number}" for number in range(1, 8)],
    }


def test_the_examples_of_the_docstrings_run() -> None:
    results = doctest.testmod(architecture)
    assert results.attempted >= 2
    assert results.failed == 0


def test_a_rectangle_by_hand() -> None:
    sizes = [layer.out_size for layer in resolve("fmp", image_size=(24, 48)).layers if "pool" in layer.name]
    assert sizes == [(16, 33), (11, 22), (7, 15), (4, 10), (2, 6), (1, 4), (1, 2)]
    sizes = [layer.out_size for layer in resolve("mp3", image_size=(9, 33)).layers if "pool" in layer.name]
    assert sizes == [(5, 17), (3, 9), (2, 5), (1, 3), (1, 2)]
    assert resolve("mp3", image_size=32) == resolve("mp3", image_size=(32, 32))


def test_scaled_is_exact() -> None:
    assert [scaled(32, multiple / 32) for multiple in range(1, 65)] == list(range(1, 65))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"family": "resnet"}, ["family", "'resnet'", "mobilenet, mp3, fmp"]),
        ({"alpha": 0.3}, ["alpha", "0.3", "multiple of 1/32"]),
        ({"alpha": 0.2501}, ["alpha", "0.2501", "multiple of 1/32"]),
        ({"alpha": 0.0}, ["alpha", "0.0", "multiple of 1/32"]),
        ({"alpha": -1.0}, ["alpha", "-1.0", "multiple of 1/32"]),
        ({"alpha": math.nan}, ["alpha", "nan", "multiple of 1/32"]),
        ({"alpha": math.inf}, ["alpha", "inf", "multiple of 1/32"]),
        ({"alpha": -math.inf}, ["alpha", "-inf", "multiple of 1/32"]),
        ({"delta": 0}, ["delta", "0", "1 or more"]),
        ({"delta": True}, ["delta", "True", "whole number"]),
        ({"delta": 2.0}, ["delta", "2.0", "whole number"]),
        ({"classes": 1}, ["classes", "1", "2 or more"]),
        ({"classes": 10.0}, ["classes", "10.0", "whole number"]),
        ({"in_channels": 0}, ["in_channels", "0", "1 or more"]),
        ({"in_channels": True}, ["in_channels", "True", "whole number"]),
        ({"image_size": 7}, ["image_size", "7x7", "8 or more"]),
        ({"image_size": (32, 7)}, ["image_size", "32x7", "8 or more"]),
        ({"image_size": 32.0}, ["image_size", "32.0", "(height, width)"]),
        ({"image_size": (32, 32, 3)}, ["image_size", "(32, 32, 3)", "(height, width)"]),
        ({"image_size": (32, 32.5)}, ["image_size", "(32, 32.5)", "(height, width)"]),
    ],
    ids=str,
)
def test_mistakes_are_named_in_one_line(arguments: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        resolve(**({"family": "fmp"} | arguments))
    for name in names:
        assert name in str(error.value)
