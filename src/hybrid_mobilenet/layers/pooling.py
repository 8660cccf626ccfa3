"""Fractional max pooling as Graham defined it (2014, arXiv 1412.6071): sequences, the operator, and the layer.

One axis of `n_in` pixels becomes `n_out` by an increasing sequence ``a_0 = 0 < a_1 < ... < a_n_out = n_in`` with steps
of 1 or 2. Region ``i`` is ``[a_{i-1}, a_i - 1]`` (disjoint: one or two pixels) or ``[a_{i-1}, a_i]`` clipped at the
edge (overlapping: two or three). The two-dimensional pool is the product of two axes.

torch.nn.FractionalMaxPool2d is another thing: windows of a fixed size, pseudorandom only, a draw per sample and
channel, still random in eval().
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from types import ModuleType
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from .fast_path import has_triton
from .kernels import reference
from .kernels.reference import check_sequence
from .sizes import PoolingSequence, Size, fractional_size

#: u is a multiple of 1 / U_STEPS, so that the pseudorandom sequence is exact integer arithmetic in every precision.
U_STEPS = 2**24


def random_sequence(n_in: int, n_out: int, generator: torch.Generator | None = None) -> Tensor:
    """A random pooling sequence: the right number of ones and twos in random order, each order as likely as any other.

    Args:
        n_in: pixels of the axis.
        n_out: regions to cut it into; ``n_out <= n_in <= 2 * n_out``.
        generator: source of randomness; torch's default generator if None.

    Returns:
        int64 tensor of shape (n_out + 1,), from 0 to `n_in`.

    Raises:
        ValueError: where `n_in` pixels cannot be cut into `n_out` regions of one or two.
    """
    _check_sizes(n_in, n_out)
    order = torch.randperm(n_out, generator=generator, device=generator.device if generator else None)
    if order.is_cpu and not torch.compiler.is_compiling() and not _are_transformed():
        # Plain integers: each of torch's operations takes longer than all of these, and torch.tensor twice as long.
        values = [0, *accumulate(1 + (place < n_in - n_out) for place in order.tolist())]
        return torch.frombuffer(array("q", values), dtype=torch.int64)
    steps = 1 + (order < n_in - n_out)
    return torch.cat((steps.new_zeros(1), steps.cumsum(0)))


def pseudorandom_sequence(n_in: int, n_out: int, u: float) -> Tensor:
    """The pseudorandom pooling sequence ``ceil(n_in / n_out * (i + u))``, shifted to start at 0.

    Args:
        n_in: pixels of the axis.
        n_out: regions to cut it into; ``n_out <= n_in <= 2 * n_out``.
        u: offset in (0, 1), rounded to a multiple of 2**-24.

    Returns:
        int64 tensor of shape (n_out + 1,), from 0 to `n_in`.

    Raises:
        ValueError: where `u` or the sizes are out of range.
    """
    _check_sizes(n_in, n_out)
    if not 0 < u < 1:
        raise ValueError(f"u is {u!r}, but must lie between 0 and 1, both excluded: try 0.5")
    return _pseudorandom(n_in, n_out, torch.tensor(round(u * U_STEPS)))


def _pseudorandom(n_in: int, n_out: int, u: Tensor) -> Tensor:
    i = torch.arange(n_out + 1, device=u.device)
    ceiling = -(-n_in * (i * U_STEPS + u) // (n_out * U_STEPS))
    return ceiling - ceiling[0]


def _draw(n_in: int, n_out: int, sequence: PoolingSequence, generator: torch.Generator | None) -> Tensor:
    if sequence == "random":
        return random_sequence(n_in, n_out, generator)
    device = generator.device if generator else None
    return _pseudorandom(n_in, n_out, torch.randint(1, U_STEPS, (), generator=generator, device=device))


def _fixed(n_in: int, n_out: int) -> Tensor:
    """The pseudorandom sequence of u = 1/2, from plain integers: torch.export takes it for a constant."""
    ceiling = [-(-n_in * (2 * i + 1) // (2 * n_out)) for i in range(n_out + 1)]
    return torch.tensor([value - ceiling[0] for value in ceiling])


def _are_transformed() -> bool:
    """Whether torch.func transforms what is computed here: values may then stand for many, and have no memory."""
    return bool(torch._C._are_functorch_transforms_active())


def _is_ratio(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 2


def _check_sizes(n_in: int, n_out: int) -> None:
    if not 1 <= n_out <= n_in <= 2 * n_out:
        raise ValueError(
            f"n_in is {n_in} and n_out is {n_out}, but regions are one or two pixels wide, so that "
            "n_out <= n_in <= 2 * n_out must hold: choose a ratio between 1 and 2"
        )


@cache
def _kernels(device: str) -> ModuleType:
    """The module of `kernels` for a kind of device, imported where it first runs: numba and triton load slowly."""
    if device == "cpu":
        from .kernels.cpu import pooling

        return pooling
    if device == "cuda" and has_triton():
        from .kernels.cuda import pooling as cuda

        return cuda
    return reference


@torch.library.custom_op("hybrid_mobilenet::fractional_max_pool2d", mutates_args=())
def _pool(x: Tensor, rows: Tensor, columns: Tensor, overlapping: bool) -> tuple[Tensor, Tensor]:
    return cast(tuple[Tensor, Tensor], _kernels(x.device.type).forward(x, rows, columns, overlapping))


@torch.library.custom_op("hybrid_mobilenet::fractional_max_pool2d_backward", mutates_args=())
def _pool_backward(
    gradient: Tensor, winners: Tensor, rows: Tensor, columns: Tensor, overlapping: bool, height: int, width: int
) -> Tensor:
    kernels = _kernels(gradient.device.type)
    return cast(Tensor, kernels.backward(gradient, winners, rows, columns, overlapping, height, width))


@_pool.register_fake
def _pool_shapes(x: Tensor, rows: Tensor, columns: Tensor, _overlapping: bool) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], x.shape[1], rows.shape[0] - 1, columns.shape[0] - 1)
    pooled = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return pooled, torch.empty_like(pooled, dtype=torch.uint8)


@_pool_backward.register_fake
def _pool_backward_shape(
    gradient: Tensor, winners: Tensor, _rows: Tensor, _columns: Tensor, _overlapping: bool, height: int, width: int
) -> Tensor:
    shape = (winners.shape[0], winners.shape[1], height, width)
    return torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, rows, columns, overlapping = inputs
    ctx.save_for_backward(output[1], rows, columns)
    ctx.overlapping, ctx.size = overlapping, x.shape[2:]


def _gradient(ctx: Any, gradient: Tensor, _of_winners: Tensor | None) -> tuple[Tensor, None, None, None]:
    spread = _pool_backward(gradient, *ctx.saved_tensors, ctx.overlapping, *ctx.size)
    return spread, None, None, None


_pool.register_autograd(_gradient, setup_context=_keep)


def _for_all(
    info: Any,
    in_dims: tuple[int | None, ...],
    operator: Callable[..., Any],
    maps: tuple[Tensor, ...],
    sequences: tuple[Tensor, ...],
    rest: tuple[Any, ...],
) -> tuple[Tensor, ...]:
    """An operator over a dimension that torch.vmap adds to some of its tensors; it is the first of every result.

    With the same regions for all it becomes a part of the batch; with regions of their own they go one by one.
    """

    def results(*inputs: Tensor) -> tuple[Tensor, ...]:
        done = operator(*inputs, *rest)
        return done if isinstance(done, tuple) else (done,)

    maps = tuple(
        (each.expand(info.batch_size, *each.shape) if at is None else each.movedim(at, 0))
        for each, at in zip(maps, in_dims, strict=False)
    )
    dims = in_dims[len(maps) :]
    if dims[0] is None and dims[1] is None:
        done = results(*(each.flatten(0, 1) for each in maps), *sequences)
        return tuple(each.view(info.batch_size, -1, *each.shape[1:]) for each in done)
    sequences = tuple(
        (each.expand(info.batch_size, -1) if at is None else each.movedim(at, 0))
        for each, at in zip(sequences, dims, strict=False)
    )
    each_done = [results(*inputs) for inputs in zip(*maps, *sequences, strict=True)]
    return tuple(torch.stack(each) for each in zip(*each_done, strict=True))


class _EagerPool(torch.autograd.Function):
    """The operator without its dispatch, which takes as long as the pooling of a small batch."""

    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        output = _kernels(inputs[0].device.type).forward(*inputs)
        _keep(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():  # create_graph: the operator refuses a second derivative
            return _gradient(ctx, gradient, None)
        arguments = (gradient, *ctx.saved_tensors, ctx.overlapping, *ctx.size)
        return _kernels(gradient.device.type).backward(*arguments), None, None, None


class _TransformedPool(torch.autograd.Function):
    """The operator for torch.func, whose transforms ask for this form; it takes longer."""

    @staticmethod
    def forward(*inputs):  # type: ignore[no-untyped-def]
        return _kernels(inputs[0].device.type).forward(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.mark_non_differentiable(output[1])
        _keep(ctx, inputs, output)

    @staticmethod
    def backward(ctx, gradient, _of_winners):  # type: ignore[no-untyped-def]
        arguments = (gradient, *ctx.saved_tensors, ctx.overlapping, *ctx.size)
        return _TransformedGradient.apply(*arguments), None, None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
        return _for_all(info, in_dims, _TransformedPool.apply, inputs[:1], inputs[1:3], inputs[3:]), (0, 0)


class _TransformedGradient(torch.autograd.Function):
    """The operator's gradient for torch.func."""

    @staticmethod
    def forward(*inputs):  # type: ignore[no-untyped-def]
        return _kernels(inputs[0].device.type).backward(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        pass

    @staticmethod
    def backward(_ctx, _gradient):  # type: ignore[no-untyped-def]
        raise NotImplementedError("fractional max pooling has no second derivative: its first is constant by pieces")

    @staticmethod
    def vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
        (result,) = _for_all(info, in_dims, _TransformedGradient.apply, inputs[:2], inputs[2:4], inputs[4:])
        return result, 0


def fractional_max_pool2d(x: Tensor, rows: Tensor, columns: Tensor, overlapping: bool = False) -> Tensor:
    """Max pooling over the regions that two pooling sequences cut.

    Where several pixels of a region are the maximum, the gradient goes to one of them: the first, column by column. NaN
    in a region gives NaN.

    Args:
        x: floating-point tensor of shape (N, C, H, W); fastest in channels-last memory format.
        rows: int64 tensor of shape (H_out + 1,), from 0 to H with steps of 1 or 2.
        columns: the same for W.
        overlapping: whether a region also holds the first pixel of the next one.

    Returns:
        Tensor of shape (N, C, H_out, W_out), of x's dtype, in channels-last memory format.

    Raises:
        ValueError: where `x` is not a floating-point tensor of four dimensions, or a sequence does not fit its axis.
    """
    _check_input(x)
    for name, sequence, size in (("rows", rows, x.shape[2]), ("columns", columns, x.shape[3])):
        has_values = type(sequence) is Tensor and sequence.device.type != "meta" and not _are_transformed()
        if has_values and not torch.compiler.is_compiling():
            check_sequence(sequence, size, name)
    return _pooled(x, rows, columns, overlapping)


def _pooled(x: Tensor, rows: Tensor, columns: Tensor, overlapping: bool) -> Tensor:
    """`fractional_max_pool2d` without a look at the sequences, for which a GPU would be waited for."""
    # A blocking copy of the drawn regions would make the host wait for all steps that the GPU has not finished yet.
    if x.device != rows.device or x.device != columns.device:
        rows, columns = (regions.to(x.device, non_blocking=x.is_cuda) for regions in (rows, columns))
    inputs = x, rows, columns, overlapping
    # Compilers, exporters and tensor subclasses, fake ones among them, see the operator.
    if _are_transformed():
        return cast(Tensor, _TransformedPool.apply(*inputs)[0])  # type: ignore[no-untyped-call]
    if x.requires_grad and type(x) in (Tensor, nn.Parameter) and not torch.compiler.is_compiling():
        return cast(Tensor, _EagerPool.apply(*inputs))  # type: ignore[no-untyped-call]
    return cast(Tensor, _pool(*inputs)[0])


def _check_input(x: Tensor) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            f"x has shape {tuple(x.shape)} and dtype {x.dtype}, but must be a floating-point tensor of shape "
            "(N, C, H, W): use x.unsqueeze(0) for a single image and x.float() for integers"
        )


class FractionalMaxPool2d(nn.Module):
    """Fractional max pooling (Graham 2014): shrinks maps by a ratio between 1 and 2, over random regions.

    In train() each forward draws one row and one column sequence for the whole batch and all channels. In eval() the
    regions are fixed: the pseudorandom sequence of u = 1/2, the most even one, so that passes are equal and the layer
    exports as gathers and maxima. To average over random regions at test time, as Graham does, leave the model in
    eval() and put its FractionalMaxPool2d layers in train().

    Args:
        ratio: n_in / n_out of an axis, in [1, 2], or a pair for height and width. The output has floor(n / ratio)
            pixels, and at least ceil(n / 2), which regions of one or two pixels can just cover.
        sequence: "random" or "pseudorandom".
        overlapping: whether a region also holds the first pixel of the next one (two or three pixels wide).
        generator: source of the random draws; torch's default generator if None.

    Shape:
        - Input: (N, C, H, W), floating point; fastest in channels-last memory format.
        - Output: (N, C, H_out, W_out) in channels-last memory format.

    Raises:
        ValueError: where `ratio` lies outside [1, 2] or `sequence` is unknown.

    Example:
        >>> import torch
        >>> from hybrid_mobilenet import FractionalMaxPool2d
        >>> pool = FractionalMaxPool2d(ratio=1.44)
        >>> pool(torch.rand(8, 16, 32, 32)).shape
        torch.Size([8, 16, 22, 22])
    """

    def __init__(
        self,
        ratio: float | tuple[float, float],
        *,
        sequence: PoolingSequence = "random",
        overlapping: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        ratios = ratio if isinstance(ratio, tuple) else (ratio, ratio)
        if len(ratios) != 2 or not all(_is_ratio(value) for value in ratios):
            raise ValueError(
                f"ratio is {ratio!r}, but must lie in [1, 2], or be a pair of such numbers: the paper's is 1.44"
            )
        if sequence not in get_args(PoolingSequence):
            raise ValueError(f"sequence is {sequence!r}, but must be one of {', '.join(get_args(PoolingSequence))}")
        self.ratio = (float(ratios[0]), float(ratios[1]))
        self.sequence: PoolingSequence = sequence
        self.overlapping = overlapping
        self.generator = generator
        #: Regions that were drawn before, as `regions` gives them: forward takes these where they are given.
        self.given: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        _check_input(x)
        rows, columns = self.given or self.regions((x.shape[-2], x.shape[-1]))
        return _pooled(x, rows, columns, self.overlapping)

    def regions(self, size: Size) -> tuple[Tensor, Tensor]:
        """The pooling sequences of rows and of columns for maps of this height and width: drawn, or those of eval()."""
        rows, columns = (self._sequence(n_in, ratio) for n_in, ratio in zip(size, self.ratio, strict=True))
        return rows, columns

    def _sequence(self, n_in: int, ratio: float) -> Tensor:
        n_out = fractional_size(n_in, ratio)
        if self.training:
            return _draw(n_in, n_out, self.sequence, self.generator)
        return _fixed(n_in, n_out)

    def extra_repr(self) -> str:
        return f"ratio={self.ratio}, sequence={self.sequence!r}, overlapping={self.overlapping}"
