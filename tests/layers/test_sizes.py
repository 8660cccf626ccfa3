"""Sizes of maps after strided convolutions and fractional pooling."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from hybrid_mobilenet.layers.sizes import fractional_size, strided_size
from hybrid_mobilenet.network.architecture import FMP_RATIO


@given(st.integers(1, 5000), st.integers(1, 4))
def test_strides_round_up(size: int, stride: int) -> None:
    assert strided_size(size, stride) == math.ceil(size / stride)


@given(st.integers(1, 100_000))
def test_fractional_pooling_rounds_down_in_exact_arithmetic(size: int) -> None:
    assert FMP_RATIO == 1.44
    assert fractional_size(size, FMP_RATIO) == max(1, size * 100 // 144)


def test_fractional_pooling_never_asks_for_more_than_regions_of_two_pixels() -> None:
    assert [fractional_size(size, 2.0) for size in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]
    assert [fractional_size(size, 1.0) for size in (1, 2, 3, 4, 5)] == [1, 2, 3, 4, 5]
