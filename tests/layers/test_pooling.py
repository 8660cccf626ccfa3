"""Fractional max pooling against a brute-force oracle, TensorFlow's and Paddle's operators, and its own promises."""

from __future__ import annotations

import copy
import doctest
import itertools
import json
import operator
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hybrid_mobilenet.layers import pooling
from hybrid_mobilenet.layers.kernels import reference
from hybrid_mobilenet.layers.pooling import (
    FractionalMaxPool2d,
    fixed_grid,
    fractional_max_pool2d,
    pool_grid,
    pseudorandom_sequence,
    random_sequence,
)
from hybrid_mobilenet.layers.sizes import fractional_size
from processes import run_python

GOLDEN = json.loads((Path(__file__).parent / "golden" / "fractional_max_pool.json").read_text())
PAIRS = [(n_in, n_out) for n_in in range(1, 41) for n_out in range(1, n_in + 1) if n_in <= 2 * n_out]
MODES = list(itertools.product(("random", "pseudorandom"), (False, True)))
modes = pytest.mark.parametrize(("sequence", "overlapping"), MODES)
both_regions = pytest.mark.parametrize("overlapping", [False, True])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(n_in: int, n_out: int, sequence: str, generator: torch.Generator) -> Tensor:
    if sequence == "random":
        return random_sequence(n_in, n_out, generator)
    return pseudorandom_sequence(n_in, n_out, float(torch.rand((), generator=generator).clamp(0.01, 0.99)))


def oracle(x: Tensor, weight: Tensor, rows: Tensor, columns: Tensor, overlapping: bool) -> tuple[Tensor, Tensor]:
    """Output, and gradient of sum(output * weight), region by region from the definition.

    Of tied maxima the first takes the gradient, column by column: hence the transposed window.
    """
    values = x.double().numpy().reshape(-1, *x.shape[2:])
    a, b = rows.tolist(), columns.tolist()
    output = np.empty((len(values), len(a) - 1, len(b) - 1))
    weights = weight.double().numpy().reshape(output.shape)
    gradient = np.zeros_like(values)
    maps = np.arange(len(values))
    for i, j in np.ndindex(*output.shape[1:]):
        window = values[:, a[i] : a[i + 1] + overlapping, b[j] : b[j + 1] + overlapping]
        column, row = divmod(window.transpose(0, 2, 1).reshape(len(values), -1).argmax(1), window.shape[1])
        output[:, i, j] = window[maps, row, column]
        gradient[maps, a[i] + row, b[j] + column] += weights[:, i, j]
    out_shape = (*x.shape[:2], len(a) - 1, len(b) - 1)
    return torch.from_numpy(output).view(out_shape), torch.from_numpy(gradient).view(x.shape)


def pooled(x: Tensor, weight: Tensor, rows: Tensor, columns: Tensor, overlapping: bool) -> tuple[Tensor, Tensor]:
    """Output, and gradient of sum(output * weight), from the operator under test."""
    x = x.detach().requires_grad_()
    output = fractional_max_pool2d(x, rows, columns, overlapping)
    (gradient,) = torch.autograd.grad(output, x, weight)
    return output.detach(), gradient


def small_integers(*shape: int, below: int = 4, seed: int = 0) -> Tensor:
    """Float32 integers from 0, few of them, so that most regions have tied maxima."""
    return torch.randint(below, shape, generator=seeded(seed)).float()


@pytest.fixture
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# --- sequences ------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.data())
def test_sequences_rise_from_0_to_n_in_by_ones_and_twos(n_out: int, data: st.DataObject) -> None:
    n_in = data.draw(st.integers(n_out, 2 * n_out))
    u = data.draw(st.floats(0, 1, exclude_min=True, exclude_max=True))
    for sequence in (pseudorandom_sequence(n_in, n_out, u), random_sequence(n_in, n_out, seeded())):
        assert sequence.dtype == torch.int64
        assert sequence.shape == (n_out + 1,)
        assert sequence[0] == 0
        assert sequence[-1] == n_in
        assert set(sequence.diff().tolist()) <= {1, 2}


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 2**20 - 1), st.data())
def test_pseudorandom_sequence_is_the_papers_formula_in_exact_arithmetic(
    n_out: int, numerator: int, data: st.DataObject
) -> None:
    n_in = data.draw(st.integers(n_out, 2 * n_out))
    u = Fraction(numerator, 2**20)
    ceiling = [-((-n_in * (i + u)) // n_out) for i in range(n_out + 1)]
    assert pseudorandom_sequence(n_in, n_out, float(u)).tolist() == [value - ceiling[0] for value in ceiling]


@pytest.mark.parametrize(("n_in", "n_out", "arrangements"), [(6, 4, 6), (7, 5, 10)])
def test_each_arrangement_of_ones_and_twos_is_equally_likely(n_in: int, n_out: int, arrangements: int) -> None:
    draws, generator = 4000, seeded()
    counts = Counter(tuple(random_sequence(n_in, n_out, generator).diff().tolist()) for _ in range(draws))
    assert len(counts) == arrangements
    expected = draws / arrangements
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < {6: 20.5, 10: 27.9}[arrangements]  # the 99.9 % quantiles for 5 and 9 degrees of freedom


def test_random_sequence_follows_its_generator_or_torchs() -> None:
    first, again = random_sequence(200, 130, seeded(3)), random_sequence(200, 130, seeded(3))
    assert torch.equal(first, again)
    assert not torch.equal(first, random_sequence(200, 130, seeded(4)))
    torch.manual_seed(3)
    assert torch.equal(first, random_sequence(200, 130))
    untouched = torch.get_rng_state()
    random_sequence(200, 130, seeded(3))
    assert torch.equal(torch.get_rng_state(), untouched)


@pytest.mark.parametrize(("n_in", "n_out"), [(5, 6), (11, 5), (4, 0), (0, 0), (3, -1)])
def test_sizes_that_regions_of_one_or_two_cannot_cut_are_refused(n_in: int, n_out: int) -> None:
    message = rf"n_in is {n_in} and n_out is {n_out}, but .*n_out <= n_in <= 2 \* n_out.*: choose"
    with pytest.raises(ValueError, match=message):
        random_sequence(n_in, n_out)
    with pytest.raises(ValueError, match=message):
        pseudorandom_sequence(n_in, n_out, 0.5)


@pytest.mark.parametrize("u", [0.0, 1.0, -0.3, 7.0, float("nan")])
def test_u_outside_0_to_1_is_refused(u: float) -> None:
    with pytest.raises(ValueError, match=rf"u is {u}, but must .*: try 0\.5"):
        pseudorandom_sequence(7, 5, u)


# --- the operator against its definition and other implementations --------------------------------------------------


@modes
@pytest.mark.slow
def test_every_size_up_to_40_against_the_oracle(sequence: str, overlapping: bool) -> None:
    # Rows go through all pairs of sizes, and so do columns, in another order: both axes, and few squares.
    generator = seeded()
    order = torch.randperm(len(PAIRS), generator=generator).tolist()
    for (height, out_height), k in zip(PAIRS, order, strict=True):
        width, out_width = PAIRS[k]
        rows, columns = draw(height, out_height, sequence, generator), draw(width, out_width, sequence, generator)
        channels = 8 if k % 2 else 3  # the CPU kernel treats eight at once where it can
        x = torch.randint(-2, 2, (2, channels, height, width), generator=generator).float()
        weight = torch.randint(1, 9, (2, channels, out_height, out_width), generator=generator).float()
        expected, expected_gradient = oracle(x, weight, rows, columns, overlapping)
        plain, winners = reference.forward(x, rows, columns, overlapping)
        plain_gradient = reference.backward(weight, winners, rows, columns, overlapping, height, width)
        for output, gradient in (pooled(x, weight, rows, columns, overlapping), (plain, plain_gradient)):
            assert torch.equal(output.double(), expected), (rows, columns)
            assert torch.equal(gradient.double(), expected_gradient), (rows, columns)


def golden_integers(shape: tuple[int, ...], modulus: int, multiplier: int) -> npt.NDArray[np.int64]:
    """The recipe of make_fractional_max_pool.py for inputs and weights."""
    index = np.arange(np.prod(shape), dtype=np.int64)
    return ((index * index * multiplier + index * 7919) % 10007 % modulus).reshape(shape)


@pytest.mark.parametrize(
    "case",
    GOLDEN["cases"],
    ids=lambda case: f"{case['shape']}-{'pseudo' * case['pseudorandom']}random-{'over' * case['overlapping']}lapping",
)
def test_equal_to_tensorflow_for_its_sequences(case: dict[str, Any]) -> None:
    rows, columns = torch.tensor(case["rows"]), torch.tensor(case["columns"])
    x = torch.from_numpy(golden_integers(case["shape"], case["modulus"], 31)).float()
    out_shape = (*x.shape[:2], len(rows) - 1, len(columns) - 1)
    weight = torch.from_numpy(golden_integers(out_shape, 9, 17) + 1).float()

    assert torch.equal(
        fractional_max_pool2d(x, rows, columns, case["overlapping"]),
        torch.tensor(case["output"]).float().view(out_shape),
    )
    # Of tied maxima TensorFlow takes the first row by row, we the first column by column: equal for transposed maps.
    _, gradient = pooled(x.mT, weight.mT, columns, rows, case["overlapping"])
    assert torch.equal(gradient.mT, torch.tensor(case["gradient"]).float().view(x.shape))


def test_paddles_documented_example() -> None:
    x = torch.tensor([2.0, 4, 3, 1, 5, 2, 3])
    sequence, one = pseudorandom_sequence(7, 5, 0.3), torch.tensor([0, 1])
    assert sequence.tolist() == [0, 1, 3, 4, 6, 7]
    assert fractional_max_pool2d(x.view(1, 1, 1, 7), one, sequence).flatten().tolist() == [2, 4, 1, 5, 3]
    assert fractional_max_pool2d(x.view(1, 1, 7, 1), sequence, one).flatten().tolist() == [2, 4, 1, 5, 3]


def test_overlapping_regions_share_the_pixel_where_the_next_begins() -> None:
    x = torch.tensor([20.0, 5, 16, 3, 7]).view(1, 1, 1, 5)
    sequence, one = torch.tensor([0, 2, 4, 5]), torch.tensor([0, 1])
    output, gradient = pooled(x, torch.tensor([1.0, 10, 100]).view(1, 1, 1, 3), one, sequence, True)
    assert output.flatten().tolist() == [20, 16, 7]
    assert gradient.flatten().tolist() == [1, 0, 10, 0, 100]
    output, gradient = pooled(x.flip(3), torch.tensor([1.0, 10, 100]).view(1, 1, 1, 3), one, sequence, True)
    assert output.flatten().tolist() == [16, 20, 20]
    assert gradient.flatten().tolist() == [0, 0, 1, 0, 110]


def test_of_tied_maxima_the_first_takes_the_gradient_column_by_column() -> None:
    x = torch.tensor([[0.0, 1, 1], [1, 1, 1], [1, 1, 1]]).view(1, 1, 3, 3)
    two = torch.tensor([0, 2, 3])
    weight = torch.tensor([[1.0, 2], [3, 4]]).view(1, 1, 2, 2)
    disjoint, overlapping = (pooled(x, weight, two, two, overlapping)[1].view(3, 3) for overlapping in (False, True))
    assert disjoint.tolist() == [[0, 0, 2], [1, 0, 0], [3, 0, 4]]
    assert overlapping.tolist() == [[0, 0, 2], [1, 0, 0], [3, 0, 4]]
    minus_infinity = torch.full((1, 1, 3, 3), -torch.inf)
    output, gradient = pooled(minus_infinity, weight, two, two, True)
    assert output.flatten().tolist() == [-torch.inf] * 4
    assert gradient.view(3, 3).tolist() == [[1, 0, 2], [0, 0, 0], [3, 0, 4]]


@both_regions
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_choose_the_regions_of_float32(dtype: torch.dtype, overlapping: bool) -> None:
    x = small_integers(3, 5, 32, 22, below=256)  # bfloat16 holds integers up to 256 exactly
    rows, columns = random_sequence(32, 22, seeded(1)), random_sequence(22, 15, seeded(2))
    weight = small_integers(3, 5, 22, 15, below=16)
    expected = pooled(x, weight, rows, columns, overlapping)
    actual = pooled(x.to(dtype), weight.to(dtype), rows, columns, overlapping)
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == dtype
        assert torch.equal(got.float(), wanted)


@both_regions
def test_float64_keeps_what_float32_cannot(overlapping: bool) -> None:
    x = torch.tensor([1.0, 1 + 2**-40], dtype=torch.float64).view(1, 1, 1, 2)
    output, gradient = pooled(
        x, torch.ones(1, 1, 1, 1).double(), torch.tensor([0, 1]), torch.tensor([0, 2]), overlapping
    )
    assert output.item() == 1 + 2**-40
    assert gradient.flatten().tolist() == [0, 1]


@both_regions
def test_gradcheck(overlapping: bool) -> None:
    x = torch.randperm(2 * 3 * 9 * 7, generator=seeded()).double().view(2, 3, 9, 7).requires_grad_()
    rows, columns = random_sequence(9, 6, seeded(1)), random_sequence(7, 4, seeded(2))
    assert torch.autograd.gradcheck(lambda x: fractional_max_pool2d(x, rows, columns, overlapping), (x,))


@both_regions
@pytest.mark.parametrize("shape", [(2, 3, 9, 7), (2, 1, 9, 7), (0, 3, 9, 7)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.slow
def test_opcheck(shape: tuple[int, ...], memory_format: torch.memory_format, overlapping: bool) -> None:
    x = torch.rand(shape, generator=seeded()).contiguous(memory_format=memory_format)
    rows, columns = random_sequence(9, 6, seeded(1)), random_sequence(7, 4, seeded(2))
    operators = torch.ops.hybrid_mobilenet
    torch.library.opcheck(
        operators.fractional_max_pool2d.default, (x.clone().requires_grad_(), rows, columns, overlapping)
    )
    weight = torch.rand(*shape[:2], 6, 4, generator=seeded())
    _, winners = operators.fractional_max_pool2d(x, rows, columns, overlapping)
    arguments = (weight, winners, rows, columns, overlapping, *shape[2:])
    torch.library.opcheck(operators.fractional_max_pool2d_backward.default, arguments)


@both_regions
@pytest.mark.parametrize("channels", [8, 12, 16, 31, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 128])  # 128: large enough to be stored past the cache
@pytest.mark.slow
def test_eager_path_and_operator_are_equal_to_the_plain_kernel(
    batch: int, dtype: torch.dtype, channels: int, overlapping: bool
) -> None:
    x = small_integers(batch, channels, 25, 20, below=6).to(dtype)
    x[0, channels // 2, 3, 4] = torch.nan
    rows, columns = random_sequence(25, 17, seeded(1)), random_sequence(20, 14, seeded(2))
    weight = small_integers(batch, channels, 17, 14, below=9, seed=1).to(dtype)
    expected, winners = reference.forward(x, rows, columns, overlapping)
    expected_gradient = reference.backward(weight, winners, rows, columns, overlapping, 25, 20)

    leaf = x.clone().requires_grad_()
    eager = fractional_max_pool2d(leaf, rows, columns, overlapping)
    by_operator, operator_winners = torch.ops.hybrid_mobilenet.fractional_max_pool2d(leaf, rows, columns, overlapping)
    assert torch.equal(operator_winners, winners)
    for output in (eager, by_operator):
        torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(torch.autograd.grad(output, leaf, weight)[0], expected_gradient)


@both_regions
def test_output_may_be_changed_in_place(overlapping: bool) -> None:
    x, sequence = small_integers(2, 8, 9, 9).sub(1).requires_grad_(), random_sequence(9, 6, seeded())
    expected = torch.autograd.grad(fractional_max_pool2d(x, sequence, sequence, overlapping).relu().sum(), x)
    actual = torch.autograd.grad(fractional_max_pool2d(x, sequence, sequence, overlapping).relu_().sum(), x)
    assert torch.equal(actual[0], expected[0])


def test_fake_tensors_get_fake_results() -> None:
    sequence = random_sequence(9, 6, seeded())
    with FakeTensorMode() as mode:
        x = mode.from_tensor(torch.rand(2, 3, 9, 9)).requires_grad_()
        output = fractional_max_pool2d(x, mode.from_tensor(sequence), mode.from_tensor(sequence))
    assert isinstance(output, FakeTensor)
    assert output.shape == (2, 3, 6, 6)


@both_regions
def test_second_derivative_is_refused(overlapping: bool) -> None:
    x, sequence = torch.rand(2, 3, 9, 9).requires_grad_(), random_sequence(9, 6, seeded())
    output = fractional_max_pool2d(x, sequence, sequence, overlapping)
    (gradient,) = torch.autograd.grad((output**2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(gradient.sum() + x.sum(), x)


@both_regions
def test_nan_spreads_over_its_regions_and_no_further(overlapping: bool) -> None:
    rows, columns = random_sequence(12, 8, seeded(1)), random_sequence(9, 6, seeded(2))
    for row, column in itertools.product(range(12), range(9)):
        x = small_integers(1, 2, 12, 9)
        clean = fractional_max_pool2d(x, rows, columns, overlapping)
        x[0, 1, row, column] = torch.nan
        output = fractional_max_pool2d(x, rows, columns, overlapping)
        holds_row, holds_column = (
            (a[:-1] <= place) & (place < a[1:] + int(overlapping)) for a, place in ((rows, row), (columns, column))
        )
        expected = clean.clone()
        expected[0, 1][holds_row[:, None] & holds_column] = torch.nan
        assert torch.equal(output.nan_to_num(-1), expected.nan_to_num(-1))


@both_regions
def test_nan_takes_no_gradient_twice(overlapping: bool) -> None:
    x = torch.full((1, 4, 9, 9), torch.nan)
    rows = random_sequence(9, 6, seeded(1))
    weight = small_integers(1, 4, 6, 6)
    assert pooled(x, weight, rows, rows, overlapping)[1].sum((2, 3)).equal(weight.sum((2, 3)))


# --- layouts, shapes and threads ------------------------------------------------------------------------------------


@both_regions
@pytest.mark.parametrize(
    ("batch", "channels", "height", "width"),
    [(3, 5, 8, 10), (2, 1, 8, 10), (1, 3, 1, 1), (4, 1, 1, 1), (2, 3, 1, 6), (2, 2055, 4, 5), (1, 4, 90, 70)],
)
def test_layouts_give_equal_results(batch: int, channels: int, height: int, width: int, overlapping: bool) -> None:
    x = small_integers(batch, channels, height, width)
    rows, columns = (random_sequence(n, fractional_size(n, 1.44), seeded(n)) for n in (height, width))
    weight = small_integers(batch, channels, len(rows) - 1, len(columns) - 1, below=9, seed=1)
    expected, expected_gradient = oracle(x, weight, rows, columns, overlapping)

    wider = torch.full((batch, channels + 1, height + 2, 2 * width), 9.0)
    wider[:, 1:, 1:-1, ::2] = x
    layouts = {
        "NCHW": x,
        "channels-last": x.contiguous(memory_format=torch.channels_last),
        "slice": wider[:, 1:, 1:-1, ::2],
        "transposed": x.mT.contiguous().mT,
        "flipped weight": x,
    }
    for name, layout in layouts.items():
        layout_weight = weight.mT.contiguous().mT if name == "flipped weight" else weight
        output, gradient = pooled(layout, layout_weight, rows, columns, overlapping)
        assert output.is_contiguous(memory_format=torch.channels_last), name
        assert gradient.is_contiguous(memory_format=torch.channels_last), name
        assert torch.equal(output.double(), expected), name
        assert torch.equal(gradient.double(), expected_gradient), name
    expanded = small_integers(batch, 1, height, width).expand(-1, channels, -1, -1)
    assert torch.equal(
        fractional_max_pool2d(expanded, rows, columns, overlapping),
        fractional_max_pool2d(expanded.contiguous(), rows, columns, overlapping),
    )


@both_regions
def test_expanded_gradient(overlapping: bool) -> None:
    # The gradient of a sum or a mean arrives as one number with strides of 0.
    x = small_integers(2, 3, 7, 7).requires_grad_()
    sequence = random_sequence(7, 5, seeded())
    (gradient,) = torch.autograd.grad(fractional_max_pool2d(x, sequence, sequence, overlapping).sum(), x)
    _, expected = oracle(x.detach(), torch.ones(2, 3, 5, 5), sequence, sequence, overlapping)
    assert torch.equal(gradient.double(), expected)


@both_regions
def test_empty_batch(overlapping: bool) -> None:
    x = torch.empty(0, 3, 7, 7, requires_grad=True)
    output = FractionalMaxPool2d(1.44, overlapping=overlapping)(x)
    output.sum().backward()
    assert output.shape == (0, 3, 4, 4)
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_no_gradient_where_none_is_wanted() -> None:
    layer = FractionalMaxPool2d(1.44)
    assert not layer(torch.rand(1, 1, 7, 7)).requires_grad
    with torch.no_grad():
        assert not layer(torch.rand(1, 1, 7, 7, requires_grad=True)).requires_grad
    with torch.inference_mode():
        assert layer(torch.rand(1, 1, 7, 7)).shape == (1, 1, 4, 4)


@modes
def test_input_is_left_alone(sequence: str, overlapping: bool) -> None:
    x = small_integers(2, 3, 7, 7).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    same = draw(7, 7, sequence, seeded())  # a ratio of 1 copies, and a copy must not be a view
    output = fractional_max_pool2d(x, same, same, overlapping)
    if not overlapping:
        assert torch.equal(output, x)
    output.zero_()
    assert torch.equal(x, before)


@both_regions
@pytest.mark.parametrize("batch", [2, 7])
@pytest.mark.usefixtures("restore_threads")
def test_threads_change_nothing(batch: int, overlapping: bool) -> None:
    x, weight = small_integers(batch, 32, 64, 32), small_integers(batch, 32, 40, 22, seed=1)  # 64 k numbers a map
    rows, columns = random_sequence(64, 40, seeded(1)), random_sequence(32, 22, seeded(2))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(pooled(x, weight, rows, columns, overlapping))
    for output, gradient in results[1:]:
        assert torch.equal(output, results[0][0])
        assert torch.equal(gradient, results[0][1])


@both_regions
@pytest.mark.usefixtures("restore_threads")
def test_calls_from_several_threads_at_once(overlapping: bool) -> None:
    torch.set_num_threads(2)
    rows, columns = random_sequence(32, 22, seeded(1)), random_sequence(32, 22, seeded(2))
    weight = small_integers(4, 32, 22, 22, seed=1)

    def run(seed: int) -> tuple[Tensor, Tensor]:
        return pooled(small_integers(4, 32, 32, 32, seed=seed), weight, rows, columns, overlapping)

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(run, range(12)))
    for seed, (output, gradient) in enumerate(together):
        alone = run(seed)
        assert torch.equal(output, alone[0])
        assert torch.equal(gradient, alone[1])


# --- the layer ------------------------------------------------------------------------------------------------------


@cache
def pseudorandom_sequences(n_in: int, n_out: int) -> frozenset[tuple[int, ...]]:
    """All of them: between two multiples of 1 / n_in the sequence does not depend on u."""
    us = ((k + 0.5) / n_in for k in range(n_in))
    return frozenset(tuple(pseudorandom_sequence(n_in, n_out, u).tolist()) for u in us)


def drawn_regions(layer: FractionalMaxPool2d, height: int, width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sequences that one forward of a layer of disjoint regions uses: in a rising map the last pixel is largest."""
    last = layer(torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width))[0, 0].long()
    rows, columns = last[:, 0] // width + 1, last[0] % width + 1
    assert torch.equal(last, (rows[:, None] - 1) * width + columns - 1)
    return (0, *rows.tolist()), (0, *columns.tolist())


@modes
def test_train_draws_once_per_forward_for_the_whole_batch(sequence: Any, overlapping: bool) -> None:
    torch.manual_seed(0)
    layer = FractionalMaxPool2d(1.44, sequence=sequence, overlapping=overlapping)
    x = torch.rand(1, 1, 32, 32, generator=seeded()).expand(5, 7, -1, -1)
    first, second = layer(x), layer(x)
    assert first.shape == (5, 7, 22, 22)
    assert torch.equal(first, first[:1, :1].expand_as(first))
    assert not torch.equal(first, second)


def test_random_layer_draws_rows_and_columns_apart_and_evenly() -> None:
    layer = FractionalMaxPool2d(1.5, generator=seeded())
    draws = [drawn_regions(layer, 6, 7) for _ in range(1500)]
    counts = Counter(draws)
    assert len(counts) == 6 * 4  # 6 -> 4 and 7 -> 4: six and four arrangements, in every combination
    expected = len(draws) / len(counts)
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 49.7  # 99.9 %, 23 degrees of freedom


def test_pseudorandom_layer_draws_every_pseudorandom_sequence_and_no_other() -> None:
    layer = FractionalMaxPool2d(1.44, sequence="pseudorandom", generator=seeded())
    draws = [drawn_regions(layer, 10, 15) for _ in range(400)]
    assert {rows for rows, _ in draws} == pseudorandom_sequences(10, 6)
    assert {columns for _, columns in draws} == pseudorandom_sequences(15, 10)


@modes
def test_eval_is_fixed(sequence: Any, overlapping: bool) -> None:
    layer = FractionalMaxPool2d(1.44, sequence=sequence, overlapping=overlapping).eval()
    x = torch.rand(2, 3, 32, 22, generator=seeded())
    randomness = torch.get_rng_state()
    first, second = layer(x), layer(x)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), randomness)
    rows, columns = pseudorandom_sequence(32, 22, 0.5), pseudorandom_sequence(22, 15, 0.5)
    assert torch.equal(first, fractional_max_pool2d(x, rows, columns, overlapping))


@pytest.mark.parametrize(("n_in", "n_out"), PAIRS)
def test_eval_regions_are_those_of_u_one_half(n_in: int, n_out: int) -> None:
    layer = FractionalMaxPool2d(n_in / n_out).eval()
    # n / (n / m) may come out a hair below m; the layer follows fractional_size all the same.
    reached = fractional_size(n_in, n_in / n_out)
    expected = tuple(pseudorandom_sequence(n_in, reached, 0.5).tolist())
    assert drawn_regions(layer, n_in, n_in) == (expected, expected)


@pytest.mark.parametrize("sequence", ["random", "pseudorandom"])
def test_generator_or_manual_seed_makes_training_reproducible(sequence: Any) -> None:
    def draws(generator: torch.Generator | None) -> list[Any]:
        layer = FractionalMaxPool2d(1.44, sequence=sequence, generator=generator)
        return [drawn_regions(layer, 32, 32) for _ in range(3)]

    torch.manual_seed(0)
    randomness = torch.get_rng_state()
    with_generator = draws(seeded(5))
    assert with_generator == draws(seeded(5))
    assert with_generator != draws(seeded(6))
    assert torch.equal(torch.get_rng_state(), randomness)
    torch.manual_seed(7)
    default = draws(None)
    torch.manual_seed(7)
    assert default == draws(None)


@pytest.mark.parametrize(
    ("size", "sizes"), [(32, [22, 15, 10, 6, 4, 2, 1, 1]), (40, [27, 18, 12, 8, 5, 3, 2, 1])], ids=str
)
def test_the_papers_sizes(size: int, sizes: list[int]) -> None:
    layer, x = FractionalMaxPool2d(ratio=1.44), torch.rand(1, 2, size, size)
    for expected in sizes:
        x = layer(x)
        assert x.shape == (1, 2, expected, expected)


def test_height_and_width_have_ratios_of_their_own() -> None:
    assert FractionalMaxPool2d((1.0, 2.0))(torch.rand(1, 2, 10, 10)).shape == (1, 2, 10, 5)
    assert FractionalMaxPool2d((2, 1))(torch.rand(1, 2, 10, 11)).shape == (1, 2, 5, 11)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("output_size", [7, (7, 7), (6, 10), (10, 5)], ids=str)
def test_output_size_instead_of_ratio(output_size: int | tuple[int, int], training: bool) -> None:
    pool = FractionalMaxPool2d(output_size=output_size, generator=seeded()).train(training)
    height, width = output_size if isinstance(output_size, tuple) else (output_size, output_size)
    x = torch.rand(2, 3, 10, 10, generator=seeded())
    rows, columns = drawn_regions(pool, 10, 10)
    assert (len(rows) - 1, len(columns) - 1) == (height, width)
    assert pool(x).shape == (2, 3, height, width)
    if not training:
        fixed_rows, fixed_columns = (pseudorandom_sequence(10, n_out, 0.5) for n_out in (height, width))
        assert torch.equal(pool(x), fractional_max_pool2d(x, fixed_rows, fixed_columns))


def test_output_size_and_ratio_that_mean_the_same_draw_the_same() -> None:
    by_size = FractionalMaxPool2d(output_size=22, generator=seeded(3))
    by_ratio = FractionalMaxPool2d(1.44, generator=seeded(3))
    x = torch.rand(2, 3, 32, 32, generator=seeded())
    assert torch.equal(by_size(x), by_ratio(x))


def test_repr_has_the_size_that_was_given() -> None:
    end = "sequence='random', overlapping=False)"
    assert repr(FractionalMaxPool2d(1.44)) == f"FractionalMaxPool2d(ratio=(1.44, 1.44), {end}"
    assert repr(FractionalMaxPool2d(output_size=(5, 6))) == f"FractionalMaxPool2d(output_size=(5, 6), {end}"


@both_regions
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_one_image_without_a_batch(requires_grad: bool, training: bool, overlapping: bool) -> None:
    x = small_integers(3, 9, 7).requires_grad_(requires_grad)
    pool, twin = (
        FractionalMaxPool2d(1.44, overlapping=overlapping, generator=seeded(2)).train(training) for _ in range(2)
    )
    batch = x.detach().unsqueeze(0).requires_grad_(requires_grad)
    y, expected = pool(x), twin(batch)
    assert y.shape == (3, 6, 4)
    assert torch.equal(y, expected[0])
    if requires_grad:
        (gradient,), (expected_gradient,) = (
            torch.autograd.grad(output.square().sum(), leaf) for output, leaf in ((y, x), (expected, batch))
        )
        assert torch.equal(gradient, expected_gradient[0])


@both_regions
def test_operator_takes_one_image_without_a_batch(overlapping: bool) -> None:
    x, rows, columns = small_integers(3, 9, 7), random_sequence(9, 6, seeded(1)), random_sequence(7, 4, seeded(2))
    y = fractional_max_pool2d(x, rows, columns, overlapping)
    assert torch.equal(y, fractional_max_pool2d(x.unsqueeze(0), rows, columns, overlapping)[0])
    y.relu_().zero_()
    assert torch.equal(x, small_integers(3, 9, 7))


@pytest.mark.parametrize("training", [True, False])
def test_given_regions_are_used_within_the_block(training: bool) -> None:
    pool = FractionalMaxPool2d(1.44, generator=seeded()).train(training)
    x = torch.rand(2, 3, 32, 22, generator=seeded())
    inner, outer = ((random_sequence(32, 22, seeded(n)), random_sequence(22, 15, seeded(n + 1))) for n in (1, 5))
    with pool.using(*outer):
        with pool.using(*inner):
            assert torch.equal(pool(x), fractional_max_pool2d(x, *inner))
            assert torch.equal(pool(x[0]), fractional_max_pool2d(x[0], *inner))
        assert torch.equal(pool(x), fractional_max_pool2d(x, *outer))
    again = FractionalMaxPool2d(1.44, generator=seeded()).train(training)
    assert torch.equal(pool(x), again(x))  # nothing was drawn in the block, and it has ended


def test_given_regions_end_with_the_block_where_it_raises() -> None:
    pool, regions = FractionalMaxPool2d(1.44).eval(), (random_sequence(9, 6, seeded(1)), random_sequence(9, 6))
    x = torch.rand(1, 2, 9, 9)
    expected = pool(x)
    with pytest.raises(KeyError), pool.using(*regions):
        raise KeyError
    assert torch.equal(pool(x), expected)


def test_ratio_2_is_plain_max_pooling() -> None:
    x = torch.rand(2, 3, 10, 8, generator=seeded())
    assert torch.equal(FractionalMaxPool2d(2)(x), nn.functional.max_pool2d(x, 2))


@pytest.mark.parametrize("generator", [None, seeded(3)], ids=["default", "generator"])
def test_deepcopy_and_state_dict(generator: torch.Generator | None) -> None:
    layer = FractionalMaxPool2d((1.44, 1.8), sequence="pseudorandom", overlapping=True, generator=generator)
    twin = copy.deepcopy(layer)
    assert repr(twin) == repr(layer)
    assert "1.44" in repr(layer)
    assert "pseudorandom" in repr(layer)
    x = torch.rand(1, 1, 20, 20)
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    assert torch.equal(twin(x), first)

    model = nn.Sequential(nn.Conv2d(1, 2, 3), layer)
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    model.load_state_dict(model.state_dict())


# --- compilation and export -----------------------------------------------------------------------------------------


@both_regions
@pytest.mark.slow
def test_compiles_in_one_graph(overlapping: bool) -> None:
    layer = FractionalMaxPool2d(1.44, overlapping=overlapping).eval()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = small_integers(2, 3, 22, 15).requires_grad_()
    expected = layer(x)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
    actual = compiled(x)
    (gradient,) = torch.autograd.grad(actual.square().sum(), x)
    assert torch.equal(actual, expected)
    assert torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize("sequence", ["random", "pseudorandom"])
@pytest.mark.slow
def test_compiled_training_keeps_drawing(sequence: Any) -> None:
    torch.manual_seed(0)
    compiled = torch.compile(FractionalMaxPool2d(1.44, sequence=sequence), fullgraph=True, backend="aot_eager")
    x = torch.rand(1, 1, 32, 32)
    assert not torch.equal(compiled(x), compiled(x))


@both_regions
def test_the_fixed_grid_pools_as_the_layer_does(overlapping: bool) -> None:
    for n_in, n_out in PAIRS:
        pixels = torch.tensor(fixed_grid(n_in, n_out, overlapping))
        window = 3 if overlapping else 2
        assert pixels.shape == (window * n_out,)
        sequence = pseudorandom_sequence(n_in, n_out, 0.5)
        x = small_integers(2, 3, n_in, n_in)
        expected = fractional_max_pool2d(x, sequence, sequence, overlapping)
        assert torch.equal(pool_grid(x, pixels, pixels, window), expected), (n_in, n_out)


class Pooled(nn.Module):
    """A user's model that calls the operator with sequences of its own."""

    rows: Tensor
    columns: Tensor

    def __init__(self, overlapping: bool) -> None:
        super().__init__()
        self.register_buffer("rows", random_sequence(30, 21, seeded(1)))
        self.register_buffer("columns", random_sequence(30, 16, seeded(2)))
        self.overlapping = overlapping

    def forward(self, x: Tensor) -> Tensor:
        return fractional_max_pool2d(x, self.rows, self.columns, self.overlapping)


#: Pooling layers for maps of 30 pixels.
EXPORTED: dict[str, Any] = {
    "ratio": lambda: FractionalMaxPool2d(1.44),
    "overlapping": lambda: FractionalMaxPool2d(1.44, overlapping=True),
    "pseudorandom": lambda: FractionalMaxPool2d((1.8, 1.2), sequence="pseudorandom"),
    "output_size": lambda: FractionalMaxPool2d(output_size=(20, 16)),
    "halved": lambda: FractionalMaxPool2d(2),
    "operator": lambda: Pooled(False),
    "overlapping operator": lambda: Pooled(True),
}
exported = pytest.mark.parametrize("pool", EXPORTED)
# torch's own, from copying its tree specifications
torch_warns = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")


def users_model(pool: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), EXPORTED[pool](), nn.Conv2d(8, 4, 3)).eval()


def assert_has_standard_operators_only(program: torch.export.ExportedProgram) -> None:
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    operators = [target for target in targets if target is not operator.getitem]
    assert len(operators) > 3
    for target in operators:
        assert isinstance(target, torch._ops.OpOverload)
        assert target.namespace == "aten", target
        assert torch.Tag.data_dependent_output not in target.tags, target
        assert torch.Tag.dynamic_output_shape not in target.tags, target


@exported
@torch_warns
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.slow
def test_torch_export_gives_core_aten(pool: str, strict: bool) -> None:
    model, x = users_model(pool), torch.rand(2, 3, 32, 32, generator=seeded())
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (x,), strict=strict, dynamic_shapes=({0: batch},))
    assert_has_standard_operators_only(program)
    core = program.run_decompositions()
    assert_has_standard_operators_only(core)
    for node in core.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            assert torch.Tag.core in node.target.tags, node.target
    for size in (1, 2, 5):
        several = torch.rand(size, 3, 32, 32, generator=seeded(size))
        torch.testing.assert_close(program.module()(several), model(several), rtol=0, atol=1e-6)
        torch.testing.assert_close(core.module()(several), model(several), rtol=0, atol=1e-6)


@torch_warns
@both_regions
def test_the_exported_layer_alone_is_exact(overlapping: bool) -> None:
    layer, x = FractionalMaxPool2d(1.44, overlapping=overlapping).eval(), small_integers(3, 22, 15)
    x[1, 3, 4] = torch.nan
    x[0] = -torch.inf
    program = torch.export.export(layer, (x,))  # without a batch
    torch.testing.assert_close(program.module()(x), layer(x), rtol=0, atol=0, equal_nan=True)


@torch_warns
def test_given_regions_are_exported() -> None:
    layer, x = FractionalMaxPool2d(1.44).eval(), torch.rand(2, 3, 32, 32, generator=seeded())
    with layer.using(random_sequence(32, 22, seeded(1)), random_sequence(32, 22, seeded(2))):
        program, expected = torch.export.export(layer, (x,)), layer(x)
    assert_has_standard_operators_only(program)
    assert torch.equal(program.module()(x), expected)
    assert not torch.equal(expected, layer(x))


def test_height_and_width_are_fixed_in_an_export() -> None:
    layer, side = FractionalMaxPool2d(1.44).eval(), torch.export.Dim("side", min=4, max=64)
    with pytest.raises(Exception, match="side"):
        torch.export.export(layer, (torch.rand(2, 3, 32, 32),), dynamic_shapes=({2: side},))


@torch_warns
@exported
@pytest.mark.parametrize("batch", ["fixed", "dynamic"])
@pytest.mark.slow
def test_torch_onnx_export_runs_in_onnx_runtime(pool: str, batch: str, tmp_path: Path) -> None:
    onnx, runtime = (
        pytest.importorskip(name, reason="needs the extra: pip install 'hybrid-mobilenet[export]'")
        for name in ("onnx", "onnxruntime")
    )
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it: pip install onnxscript")
    model, path = users_model(pool), tmp_path / "model.onnx"
    shapes = ({0: torch.export.Dim("batch")},) if batch == "dynamic" else None
    torch.onnx.export(model, (torch.rand(1, 3, 32, 32),), path, dynamo=True, dynamic_shapes=shapes, verbose=False)

    content = onnx.load(path)
    onnx.checker.check_model(content, full_check=True)
    assert {node.domain for node in content.graph.node} == {""}
    assert [opset.domain for opset in content.opset_import] == [""]
    assert not content.functions
    session = runtime.InferenceSession(path)
    for size in (1, 5) if batch == "dynamic" else (1,):
        x = torch.rand(size, 3, 32, 32, generator=seeded(size))
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), model(x).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("strict", [False, True])
def test_export_in_train_is_refused(strict: bool) -> None:
    model = users_model("ratio").train()
    with pytest.raises(Exception, match=r"in train\(\) draws new regions .*call model\.eval\(\)") as error:
        torch.export.export(model, (torch.rand(2, 3, 32, 32),), strict=strict)
    assert strict or type(error.value) is RuntimeError


# --- what is imported -------------------------------------------------------------------------------------------------


def third_party_modules(script: str) -> set[str]:
    """The packages that a script imports in a process of its own, besides the standard library."""
    end = "import sys; print(*{name.partition('.')[0] for name in sys.modules} - {*sys.stdlib_module_names})"
    done = run_python("-c", f"{script}\n{end}")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.slow
def test_the_layer_alone_needs_torch_and_numpy_only() -> None:
    layer = "import torch\nfrom hybrid_mobilenet import FractionalMaxPool2d\npool = FractionalMaxPool2d(1.44)"
    least = third_party_modules("import torch, numpy")
    assert third_party_modules(layer) - least == {"hybrid_mobilenet"}
    called = third_party_modules(f"{layer}\npool(torch.rand(1, 1, 8, 8))") - least
    assert "numba" in called
    assert not called & {"triton", "datasets", "safetensors", "matplotlib", "rich", "typer"}


# --- what users get wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ratio",
    [0.9, 2.1, 0, -1.44, float("nan"), float("inf"), "1.44", True, (1.44,), (1.44, 1.44, 1.44), (1.44, 2.5), [3]],
    ids=str,
)
def test_wrong_ratio_is_refused(ratio: Any) -> None:
    with pytest.raises(ValueError, match=r"^ratio is .*, but must lie in \[1, 2\].*: ") as error:
        FractionalMaxPool2d(ratio)
    assert repr(ratio) in str(error.value)


@pytest.mark.parametrize("size", [0, -3, 2.5, "5", True, (5,), (5, 5, 5), (5, 0), [5, 5]], ids=str)
def test_wrong_output_size_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=r"^output_size is .*, but must be an int of 1 or more.*: ") as error:
        FractionalMaxPool2d(output_size=size)
    assert repr(size) in str(error.value)


@pytest.mark.parametrize("arguments", [{}, {"ratio": 1.44, "output_size": 5}, {"ratio": None}], ids=str)
def test_exactly_one_of_ratio_and_output_size_is_needed(arguments: dict[str, Any]) -> None:
    both = {"ratio": None, "output_size": None} | arguments
    with pytest.raises(
        ValueError,
        match=rf"^ratio is {both['ratio']} and output_size is {both['output_size']}, but exactly one of them must be",
    ):
        FractionalMaxPool2d(**arguments)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(10, 12), (4, 8), (11, 8)], ids=str)
def test_output_size_that_does_not_fit_is_refused(size: tuple[int, int], training: bool) -> None:
    pool = FractionalMaxPool2d(output_size=5).train(training)
    least = -(-size[0] // 2), -(-size[1] // 2)
    message = f"output_size is (5, 5), but x has height and width {size}, .*choose it between {least} and {size}"
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        pool(torch.rand(2, 3, *size))


def test_given_regions_of_another_size_or_kind_are_refused() -> None:
    pool, regions = FractionalMaxPool2d(1.44), (random_sequence(9, 6, seeded(1)), random_sequence(9, 5, seeded(2)))
    with (
        pool.using(*regions),
        pytest.raises(ValueError, match=r"^rows and columns have 6 and 5 regions, but .* \(9, 9\) have \(6, 6\)"),
    ):
        pool(torch.rand(1, 2, 9, 9))
    shifted = regions[0] + 1
    with pool.using(shifted, shifted), pytest.raises(ValueError, match=r"^rows is .*, but must be int64 and rise"):
        pool(torch.rand(1, 2, 9, 9))
    for wrong in (regions[0].float(), regions[0][None]):
        with (
            pytest.raises(ValueError, match=r"^columns has shape .*, but must be int64 and of one dimension: draw"),
            pool.using(regions[0], wrong),
        ):
            pass
    pool(torch.rand(1, 2, 9, 9))


def test_wrong_kind_of_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^sequence is 'pseudo', but must be one of random, pseudorandom"):
        FractionalMaxPool2d(1.44, sequence="pseudo")  # type: ignore[arg-type]


@pytest.mark.parametrize("x", [torch.rand(8, 8), torch.rand(8), torch.rand(1, 1, 3, 8, 8)], ids=lambda x: x.dim())
@pytest.mark.parametrize("training", [True, False])
def test_wrong_number_of_dimensions_is_refused(x: Tensor, training: bool) -> None:
    sequence = torch.tensor([0, 2, 4, 6, 8])
    layer = FractionalMaxPool2d(1.44).train(training)
    for call in (layer, lambda x: fractional_max_pool2d(x, sequence, sequence)):
        with pytest.raises(ValueError, match=r"^x has shape .*, but must .*\(N, C, H, W\) or \(C, H, W\): ") as error:
            call(x)
        assert str(tuple(x.shape)) in str(error.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_wrong_dtype_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(
        ValueError, match=rf"^x has .*{dtype}, but must be a floating-point tensor.*: use .*x\.float\(\)"
    ):
        FractionalMaxPool2d(1.44)(torch.zeros(1, 1, 8, 8, dtype=dtype))


@pytest.mark.parametrize(
    "sequence",
    [[0, 1, 3], [0, 2, 4, 6], [1, 3, 5], [0, 3, 5], [0, 2, 2, 4, 5], [0, 2, 1, 3, 5], [0], [], [0, 5]],
    ids=str,
)
@pytest.mark.parametrize("axis", ["rows", "columns"])
@pytest.mark.parametrize("kernels", ["cpu", "every other device's"])
def test_wrong_sequence_is_refused(
    sequence: list[int], axis: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels != "cpu":
        monkeypatch.setattr(pooling, "_kernels", lambda _device: reference)
    x, right, wrong = torch.rand(1, 1, 5, 5), torch.tensor([0, 2, 4, 5]), torch.tensor(sequence, dtype=torch.int64)
    rows, columns = (wrong, right) if axis == "rows" else (right, wrong)
    with pytest.raises(
        ValueError, match=rf"^{axis} is .*, but must be int64 and rise from 0 to 5 in steps of 1 or 2: make it"
    ) as error:
        fractional_max_pool2d(x, rows, columns)
    assert str(sequence) in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [torch.tensor([0.0, 1.5, 3, 5]), torch.tensor([[0, 2, 4, 5]]), torch.tensor(5)],
    ids=["float", "2-D", "0-D"],
)
def test_sequence_of_another_kind_is_refused(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^columns "):
        fractional_max_pool2d(torch.rand(1, 1, 5, 5), torch.tensor([0, 2, 4, 5]), wrong)


def test_docstring_example_is_true() -> None:
    failed, attempted = doctest.testmod(pooling)
    assert failed == 0
    assert attempted > 0


# --- torch.func -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_torch_func_gives_what_a_loop_gives(training: bool, overlapping: bool) -> None:
    pool = FractionalMaxPool2d(1.44, overlapping=overlapping).train(training)

    def loss(sample: Tensor) -> Tensor:
        result: Tensor = pool(sample[None]).square().sum()
        return result

    def by_autograd(sample: Tensor) -> Tensor:
        torch.manual_seed(0)
        leaf = sample.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
        return gradient

    samples = torch.rand(4, 3, 9, 9, generator=seeded())
    expected = torch.stack([by_autograd(sample) for sample in samples])
    torch.manual_seed(0)
    assert torch.equal(torch.func.grad(loss)(samples[0]), expected[0])
    torch.manual_seed(0)
    assert torch.equal(torch.func.vmap(torch.func.grad(loss), randomness="same")(samples), expected)
    torch.manual_seed(0)
    pooled_once = torch.func.vmap(lambda sample: pool(sample[None])[0], randomness="same")(samples)
    torch.manual_seed(0)
    assert torch.equal(pooled_once, pool(samples))
    torch.manual_seed(0)
    jacobian = torch.func.jacrev(pool)(samples[:1, :1, :4, :4])
    torch.manual_seed(0)
    row_by_row = torch.autograd.functional.jacobian(pool, samples[:1, :1, :4, :4])  # type: ignore[no-untyped-call]
    assert torch.equal(jacobian, row_by_row)


def test_torch_vmap_draws_regions_for_each_where_asked_to() -> None:
    pool = FractionalMaxPool2d(1.44)
    same = torch.rand(1, 1, 1, 30, 30, generator=seeded()).expand(8, 1, 1, 30, 30)
    results = torch.func.vmap(pool, randomness="different")(same)
    assert len({tuple(result.flatten().tolist()) for result in results}) > 1
    with pytest.raises(RuntimeError, match="random"):
        torch.func.vmap(pool)(same)
