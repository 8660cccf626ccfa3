"""Equations 1 to 4, and the exact counts of whole networks."""

from __future__ import annotations

import doctest
from fractions import Fraction
from typing import Any, Literal

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from hybrid_mobilenet.deploy.onnx import onnx_bytes
from hybrid_mobilenet.deploy.onnx_int8 import onnx_int8_bytes
from hybrid_mobilenet.network import cost
from hybrid_mobilenet.network.architecture import CONVOLUTIONS, FAMILIES, Family, Layer, resolve
from hybrid_mobilenet.network.cost import (
    Convention,
    depthwise_mult_adds,
    depthwise_parameters,
    layer_mult_adds,
    layer_parameters,
    mult_adds_ratio,
    network_mult_adds,
    network_parameters,
    parameter_ratio,
    pointwise_mult_adds,
    pointwise_parameters,
)
from hybrid_mobilenet.network.model import HybridMobileNet

# Every channel count in the tables is a multiple of 32, so that every multiple of 1/32 is an alpha.
alphas = st.integers(1, 32).map(lambda parts: parts / 32)
channels = st.integers(1, 32).map(lambda multiple: 32 * multiple)
deltas = st.integers(1, 8)
kernels = st.sampled_from([1, 3, 5])
sides = st.integers(1, 64)


def test_the_equations_by_hand() -> None:
    # The worked example of section III.A: N = 128, M = 64, D_K = 3, D_F = 32, alpha = 0.5, delta = 2.
    assert depthwise_parameters(3, 64, 0.5, 2) == 3 * 3 * (32 * 2) == 576
    assert pointwise_parameters(64, 128, 0.5, 2) == (32 * 2) * 64 == 4096
    assert depthwise_mult_adds(3, 64, (32, 32), 0.5, 2) == 576 * 32 * 32
    assert pointwise_mult_adds(64, 128, (32, 32), 0.5, 2) == 4096 * 32 * 32
    assert depthwise_mult_adds(3, 64, (4, 6)) == 576 * 24


def test_the_worked_example() -> None:
    ratio = parameter_ratio(3, 64, 128, alpha=0.5, delta=2)
    assert ratio == (0.5 * 9 + 0.25 * 128) * 2 / (9 + 128) == 73 / 137
    assert f"{ratio:.2f}" == f"{mult_adds_ratio(3, 64, 128, (32, 32), alpha=0.5, delta=2):.2f}" == "0.53"
    failures, attempts = doctest.testmod(cost)
    assert (failures, attempts) == (0, 4)


@given(kernel=kernels, m=channels, n=channels, side=sides, alpha=alphas, delta=deltas)
def test_both_ratios_have_the_closed_form_of_the_paper(
    kernel: int, m: int, n: int, side: int, alpha: float, delta: int
) -> None:
    a = Fraction(alpha)
    closed = float((a * kernel**2 + a**2 * n) * delta / (kernel**2 + n))
    assert parameter_ratio(kernel, m, n, alpha=alpha, delta=delta) == closed
    assert mult_adds_ratio(kernel, m, n, (side, side), alpha=alpha, delta=delta) == closed


def test_channels_must_come_out_whole() -> None:
    with pytest.raises(ValueError, match=r"alpha is 0\.3,"):
        depthwise_parameters(3, 64, alpha=0.3)


# Worked out by hand from Tables 1 to 3; the parameters of the first, fourth and fifth are also what Keras counts.
@pytest.mark.parametrize(
    ("family", "delta", "alpha", "classes", "mult_adds", "parameters", "trainable"),
    [
        ("mobilenet", 1, 1.0, 10, 11_596_288, 3_239_114, 3_217_226),
        ("mobilenet", 1, 1.0, 100, 11_688_448, 3_331_364, 3_309_476),
        ("mobilenet", 2, 1.0, 10, 22_961_152, 6_443_178, 6_411_370),
        ("mobilenet", 2, 0.5, 10, 5_975_552, 1_651_802, 1_635_898),
        ("mobilenet", 2, 0.25, 10, 1_611_520, 433_458, 425_506),
        ("mobilenet", 4, 1.0, 10, 45_690_880, 12_851_306, 12_799_658),
        ("mobilenet", 4, 0.5, 10, 11_835_392, 3_286_074, 3_260_250),
        ("mobilenet", 4, 0.25, 10, 3_165_184, 858_146, 845_234),
        ("mp3", 2, 1.0, 10, 23_624_704, 6_443_178, 6_411_370),
        ("mp3", 2, 0.5, 10, 6_307_328, 1_651_802, 1_635_898),
        ("fmp", 2, 1.0, 10, 139_007_232, 6_443_178, 6_411_370),
        ("fmp", 2, 0.25, 10, 9_576_768, 433_458, 425_506),
        ("fmp", 1, 0.25, 10, 4_900_256, 221_114, 215_642),
    ],
)
def test_exact_counts(
    family: Family, delta: int, alpha: float, classes: int, mult_adds: int, parameters: int, trainable: int
) -> None:
    network = resolve(family, alpha, delta, classes)
    assert network_mult_adds(network) == mult_adds
    assert network_parameters(network) == network_parameters(network, "paper") == parameters
    assert network_parameters(network, "trainable") == trainable


@pytest.mark.parametrize(
    ("layer", "mult_adds", "paper", "trainable"),
    [
        (Layer("a", "convolution", 3, 8, (9, 6), (5, 3), 3, 2), 9 * 3 * 8 * 15, 9 * 3 * 8 + 32, 9 * 3 * 8 + 16),
        (Layer("a", "depthwise", 8, 16, (5, 3), (5, 3), 3), 9 * 16 * 15, 9 * 16 + 64, 9 * 16 + 32),
        (Layer("a", "pointwise", 16, 4, (5, 3), (5, 3)), 16 * 4 * 15, 16 * 4 + 16, 16 * 4 + 8),
        (Layer("a", "max_pool", 4, 4, (5, 3), (3, 2), 3, 2), 0, 0, 0),
        (Layer("a", "fractional_max_pool", 4, 4, (5, 3), (3, 2)), 0, 0, 0),
        (Layer("a", "global_average_pool", 4, 4, (5, 3), (1, 1)), 0, 0, 0),
        (Layer("a", "fully_connected", 4, 10, (1, 1), (1, 1)), 40, 50, 50),
    ],
    ids=lambda value: value.kind if isinstance(value, Layer) else "",
)
def test_each_kind_of_layer(layer: Layer, mult_adds: int, paper: int, trainable: int) -> None:
    assert layer_mult_adds(layer) == mult_adds
    assert layer_parameters(layer, "paper") == paper
    assert layer_parameters(layer, "trainable") == trainable


def test_an_unknown_convention_is_refused() -> None:
    convention: Any = "keras"
    with pytest.raises(ValueError, match="convention is 'keras', but must be one of paper, trainable"):
        network_parameters(resolve("fmp"), convention)


families = st.sampled_from(FAMILIES)
image_sizes = st.tuples(st.integers(8, 96), st.integers(8, 96))


@given(families, alphas, deltas, image_sizes)
def test_blocks_are_linear_in_delta(family: Family, alpha: float, delta: int, image_size: tuple[int, int]) -> None:
    def blocks(delta: int) -> list[int]:
        layers = resolve(family, alpha, delta, image_size=image_size).layers
        return [layer_mult_adds(layer) for layer in layers if layer.kind in ("depthwise", "pointwise")]

    assert blocks(delta) == [delta * mult_adds for mult_adds in blocks(1)]


@given(families, alphas, deltas, st.integers(2, 1000))
def test_a_class_costs_one_weight_per_channel_and_one_bias(
    family: Family, alpha: float, delta: int, classes: int
) -> None:
    last = int(1024 * alpha)
    fewer, more = resolve(family, alpha, delta, classes), resolve(family, alpha, delta, classes + 1)
    assert network_mult_adds(more) - network_mult_adds(fewer) == last
    convention: Convention
    for convention in cost.CONVENTIONS:
        assert network_parameters(more, convention) - network_parameters(fewer, convention) == last + 1


@given(alphas, deltas, st.integers(2, 100), image_sizes)
def test_parameters_depend_on_neither_family_nor_image_size(
    alpha: float, delta: int, classes: int, image_size: tuple[int, int]
) -> None:
    counts = {network_parameters(resolve(family, alpha, delta, classes, 3, image_size)) for family in FAMILIES}
    assert counts == {network_parameters(resolve("mobilenet", alpha, delta, classes))}


@given(families, alphas, deltas)
def test_the_conventions_differ_by_two_numbers_per_normalised_channel(family: Family, alpha: float, delta: int) -> None:
    network = resolve(family, alpha, delta)
    normalised = sum(
        layer.out_channels for layer in network.layers if layer.kind in ("convolution", "depthwise", "pointwise")
    )
    assert network_parameters(network, "paper") - network_parameters(network, "trainable") == 2 * normalised


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", ["float32", "int8"])
def test_weight_bytes_are_those_of_the_exported_file(family: Family, number: Literal["float32", "int8"]) -> None:
    """Besides weights, biases and scales, a file has the graph, and the indices of pooling regions."""
    network = resolve(family, 0.25, 2)
    model = HybridMobileNet(**network.choices()).eval()
    images = torch.randint(0, 256, (128, 3, 32, 32), dtype=torch.uint8)
    content = onnx_bytes(model) if number == "float32" else onnx_int8_bytes(model, images)
    stored = {each.name: numpy_helper.to_array(each) for each in onnx.load_from_string(content).graph.initializer}
    layers = {layer.name for layer in network.layers if layer.kind in CONVOLUTIONS}
    weights = sum(value.nbytes for name, value in stored.items() if name.partition(".")[0] in layers | {"classifier"})
    scale = 4 * 10 if number == "int8" else 0  # of the classifier's bias, which is an integer
    assert weights - scale == cost.weight_bytes(network, number)
    assert 0 < len(content) - weights < 35_000
