"""Fractional max pooling (Graham 2014, arXiv 1412.6071): pooling sequences, the operator, and the layer.

One axis of `n_in` pixels becomes `n_out` by an increasing sequence ``a_0 = 0 < a_1 < ... < a_n_out = n_in`` with steps
of 1 or 2. Region ``i`` is ``[a_{i-1}, a_i - 1]`` (disjoint, one or two pixels) or ``[a_{i-1}, a_i]`` clipped at the
edge (overlapping, two or three pixels). Two-dimensional pooling is the product of two axes.

torch.nn.FractionalMaxPool2d is a different operation: its windows have a fixed size, it has pseudorandom sequences
only, draws them per sample and channel, and is still random in eval().
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import accumulate, pairwise
from types import ModuleType
from typing import Any, TypeVar, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fast_path import has_triton, is_eager, kernels
from .kernels import reference
from .kernels.reference import check_sequence
from .sizes import PoolingSequence, Size, fractional_size

#: u is a multiple of 1 / U_STEPS, which makes the pseudorandom sequence exact integer arithmetic in every precision.
U_STEPS = 2**24

_Integers = TypeVar("_Integers", int, Tensor)


def random_sequence(n_in: int, n_out: int, generator: torch.Generator | None = None) -> Tensor:
    """A random pooling sequence: the right number of ones and twos, every order being equally likely.

    Args:
        n_in: pixels of the axis.
        n_out: number of regions; ``n_out <= n_in <= 2 * n_out``.
        generator: source of randomness; torch's default generator if None.

    Returns:
        int64 tensor of shape (n_out + 1,), from 0 to `n_in`.

    Raises:
        ValueError: if `n_in` pixels cannot be divided into `n_out` regions of one or two.

    Example:
        >>> import torch
        >>> from hybrid_mobilenet.layers.pooling import random_sequence
        >>> sequence = random_sequence(7, 5, torch.Generator().manual_seed(0))
        >>> sorted(sequence.diff().tolist())
        [1, 1, 1, 2, 2]
    """
    _check_sizes(n_in, n_out)
    order = torch.randperm(n_out, generator=generator, device=generator.device if generator else None)
    if order.is_cpu and not torch.compiler.is_compiling() and not _are_transformed():
        # Python integers are faster here: a single torch operation takes longer than all of this, and torch.tensor
        # twice as long.
        values = [0, *accumulate(1 + (place < n_in - n_out) for place in order.tolist())]
        return torch.frombuffer(array("q", values), dtype=torch.int64)
    steps = 1 + (order < n_in - n_out)
    return torch.cat((steps.new_zeros(1), steps.cumsum(0)))


def pseudorandom_sequence(n_in: int, n_out: int, u: float) -> Tensor:
    """The pseudorandom pooling sequence ``ceil(n_in / n_out * (i + u))``, shifted to start at 0.

    Args:
        n_in: pixels of the axis.
        n_out: number of regions; ``n_out <= n_in <= 2 * n_out``.
        u: offset in (0, 1), rounded to a multiple of 2**-24.

    Returns:
        int64 tensor of shape (n_out + 1,), from 0 to `n_in`.

    Raises:
        ValueError: if `u` or the sizes are out of range.

    Example:
        >>> from hybrid_mobilenet.layers.pooling import pseudorandom_sequence
        >>> pseudorandom_sequence(7, 5, 0.3)
        tensor([0, 1, 3, 4, 6, 7])
    """
    _check_sizes(n_in, n_out)
    if not 0 < u < 1:
        raise ValueError(f"u is {u!r}, but must lie between 0 and 1, both excluded: try 0.5")
    return torch.tensor(_pseudorandom(n_in, n_out, round(u * U_STEPS)))


def fixed_grid(n_in: int, n_out: int, overlapping: bool) -> list[int]:
    """The pixels of the regions that the layer uses in eval(), along one axis and equally many per region.

    Disjoint regions have two pixels each and overlapping ones three; a narrower region repeats its last pixel. Pooling
    thus becomes a gather and plain max pooling over windows of two or three (`pool_grid`).

    Args:
        n_in: pixels of the axis.
        n_out: number of regions; ``n_out <= n_in <= 2 * n_out``.
        overlapping: whether a region also holds the first pixel of the next one.

    Returns:
        ``2 * n_out`` or ``3 * n_out`` pixel numbers.
    """
    places = range(3 if overlapping else 2)
    lasts = [
        (first, min(following - 1 + overlapping, n_in - 1))
        for first, following in pairwise(_pseudorandom(n_in, n_out, U_STEPS // 2))
    ]
    return [min(first + place, last) for first, last in lasts for place in places]


def pool_grid(x: Tensor, rows: Tensor, columns: Tensor, window: int) -> Tensor:
    """Gather the pixels of all regions and take the maximum of each, with standard operators only.

    Args:
        x: (N, C, H, W).
        rows: int64 (H_out * window,), the input row of each row of the grid, as given by `fixed_grid`.
        columns: the same for columns.
        window: rows and columns of a region, 2 or 3.

    Returns:
        (N, C, H_out, W_out).
    """
    # In NHWC, whole pixels are copied.
    grid = x.permute(0, 2, 3, 1).index_select(1, rows).index_select(2, columns)
    return F.max_pool2d(grid.permute(0, 3, 1, 2), window)


def _pseudorandom(n_in: int, n_out: int, offset: int) -> list[int]:
    values = [_ceiling(n_in, n_out, i, offset) for i in range(n_out + 1)]
    return [value - values[0] for value in values]


def _ceiling(n_in: int, n_out: int, i: _Integers, offset: _Integers) -> _Integers:
    """``ceil(n_in / n_out * (i + u))`` for ``u = offset / U_STEPS``, in exact integer arithmetic."""
    return -(-n_in * (i * U_STEPS + offset) // (n_out * U_STEPS))


def _draw(n_in: int, n_out: int, sequence: PoolingSequence, generator: torch.Generator | None) -> Tensor:
    if sequence == "random":
        return random_sequence(n_in, n_out, generator)
    device = generator.device if generator else None
    # u stays a tensor: compilers and torch.vmap cannot read its value.
    offset = torch.randint(1, U_STEPS, (), generator=generator, device=device)
    values = _ceiling(n_in, n_out, torch.arange(n_out + 1, device=device), offset)
    return values - values[0]


def _are_transformed() -> bool:
    """Whether a torch.func transform is active: a tensor may then stand for many, without memory of its own."""
    return bool(torch._C._are_functorch_transforms_active())


def _check_sizes(n_in: int, n_out: int) -> None:
    if not 1 <= n_out <= n_in <= 2 * n_out:
        raise ValueError(
            f"n_in is {n_in} and n_out is {n_out}, but regions are one or two pixels wide, so that "
            "n_out <= n_in <= 2 * n_out must hold: choose a ratio between 1 and 2"
        )


@cache
def _kernels(device: str) -> ModuleType:
    """The kernels for a kind of device: compiled ones, or plain PyTorch."""
    has_kernels = device == "cpu" or (device == "cuda" and has_triton())
    return kernels("pooling", device) if has_kernels else reference


@torch.library.custom_op("hybrid_mobilenet::fractional_max_pool2d", mutates_args=())
def _pool(x: Tensor, rows: Tensor, columns: Tensor, overlapping: bool) -> tuple[Tensor, Tensor]:
    return cast(tuple[Tensor, Tensor], _kernels(x.device.type).forward(x, rows, columns, overlapping))


@torch.library.custom_op("hybrid_mobilenet::fractional_max_pool2d_backward", mutates_args=())
def _pool_backward(
    gradient: Tensor, winners: Tensor, rows: Tensor, columns: Tensor, overlapping: bool, height: int, width: int
) -> Tensor:
    backward = _kernels(gradient.device.type).backward
    return cast(Tensor, backward(gradient, winners, rows, columns, overlapping, height, width))


@_pool.register_fake
def _fake_pool(x: Tensor, rows: Tensor, columns: Tensor, _overlapping: bool) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], x.shape[1], rows.shape[0] - 1, columns.shape[0] - 1)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return y, torch.empty_like(y, dtype=torch.uint8)


@_pool_backward.register_fake
def _fake_pool_backward(
    gradient: Tensor, winners: Tensor, _rows: Tensor, _columns: Tensor, _overlapping: bool, height: int, width: int
) -> Tensor:
    shape = (winners.shape[0], winners.shape[1], height, width)
    return torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, rows, columns, overlapping = inputs
    ctx.save_for_backward(output[1], rows, columns)
    ctx.overlapping, ctx.size = overlapping, x.shape[2:]


def _operator_backward(ctx: Any, gradient: Tensor, _winners: Tensor | None) -> tuple[Tensor, None, None, None]:
    return _pool_backward(gradient, *ctx.saved_tensors, ctx.overlapping, *ctx.size), None, None, None


_pool.register_autograd(_operator_backward, setup_context=_save_for_backward)


def _vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    operator: Callable[..., Any],
    maps: tuple[Tensor, ...],
    sequences: tuple[Tensor, ...],
    constants: tuple[Any, ...],
) -> tuple[Tensor, ...]:
    """Apply an operator over the dimension that torch.vmap adds; it becomes the first one of every result.

    If all samples have the same regions, the dimension is merged with the batch. Otherwise the operator is called once
    per sample.
    """

    def results(*tensors: Tensor) -> tuple[Tensor, ...]:
        output = operator(*tensors, *constants)
        return output if isinstance(output, tuple) else (output,)

    maps = tuple(
        (each.expand(info.batch_size, *each.shape) if dim is None else each.movedim(dim, 0))
        for each, dim in zip(maps, in_dims, strict=False)
    )
    sequence_dims = in_dims[len(maps) :]
    if sequence_dims[0] is None and sequence_dims[1] is None:
        merged = results(*(each.flatten(0, 1) for each in maps), *sequences)
        return tuple(each.view(info.batch_size, -1, *each.shape[1:]) for each in merged)
    sequences = tuple(
        (each.expand(info.batch_size, -1) if dim is None else each.movedim(dim, 0))
        for each, dim in zip(sequences, sequence_dims, strict=False)
    )
    per_sample = [results(*sample) for sample in zip(*maps, *sequences, strict=True)]
    return tuple(torch.stack(each) for each in zip(*per_sample, strict=True))


class _EagerPool(torch.autograd.Function):
    """The operator without its dispatch, which takes as long as pooling a small batch."""

    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        output = _kernels(inputs[0].device.type).forward(*inputs)
        _save_for_backward(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():  # create_graph=True: the operator refuses a second derivative
            return _operator_backward(ctx, gradient, None)
        arguments = (gradient, *ctx.saved_tensors, ctx.overlapping, *ctx.size)
        return _kernels(gradient.device.type).backward(*arguments), None, None, None


class _TransformedPool(torch.autograd.Function):
    """The operator for torch.func, whose transforms need this slower form."""

    @staticmethod
    def forward(*inputs):  # type: ignore[no-untyped-def]
        return _kernels(inputs[0].device.type).forward(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.mark_non_differentiable(output[1])
        _save_for_backward(ctx, inputs, output)

    @staticmethod
    def backward(ctx, gradient, _winners):  # type: ignore[no-untyped-def]
        arguments = (gradient, *ctx.saved_tensors, ctx.overlapping, *ctx.size)
        return _TransformedPoolBackward.apply(*arguments), None, None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
        return _vmap(info, in_dims, _TransformedPool.apply, inputs[:1], inputs[1:3], inputs[3:]), (0, 0)


class _TransformedPoolBackward(torch.autograd.Function):
    """The operator's gradient for torch.func."""

    @staticmethod
    def forward(*inputs):  # type: ignore[no-untyped-def]
        return _kernels(inputs[0].device.type).backward(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        pass

    @staticmethod
    def backward(_ctx, _gradient):  # type: ignore[no-untyped-def]
        raise NotImplementedError(
            "fractional max pooling has no second derivative: its first one is piecewise constant"
        )

    @staticmethod
    def vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
        (result,) = _vmap(info, in_dims, _TransformedPoolBackward.apply, inputs[:2], inputs[2:4], inputs[4:])
        return result, 0


def fractional_max_pool2d(x: Tensor, rows: Tensor, columns: Tensor, overlapping: bool = False) -> Tensor:
    """Max pooling over the regions given by two pooling sequences.

    If several pixels of a region are the maximum, the first one, column by column, receives the gradient. A NaN in a
    region gives NaN.

    Args:
        x: floating-point tensor of shape (N, C, H, W) or (C, H, W); fastest in channels-last memory format.
        rows: int64 tensor of shape (H_out + 1,), from 0 to H with steps of 1 or 2.
        columns: the same for W.
        overlapping: whether a region also holds the first pixel of the next one.

    Returns:
        Tensor of shape (N, C, H_out, W_out) or (C, H_out, W_out), of x's dtype, in channels-last memory format.

    Raises:
        ValueError: if `x` is not a floating-point tensor of three or four dimensions, or a sequence does not fit its
            axis.

    Example:
        >>> import torch
        >>> from hybrid_mobilenet.layers.pooling import fractional_max_pool2d
        >>> x = torch.arange(9.0).view(1, 3, 3)
        >>> fractional_max_pool2d(x, torch.tensor([0, 1, 3]), torch.tensor([0, 2, 3]))
        tensor([[[1., 2.],
                 [7., 8.]]])
    """
    _check_input(x)
    if x.dim() == 3:
        return fractional_max_pool2d(x.unsqueeze(0), rows, columns, overlapping).squeeze(0)
    for name, sequence, size in (("rows", rows, x.shape[2]), ("columns", columns, x.shape[3])):
        has_values = type(sequence) is Tensor and sequence.device.type != "meta" and not _are_transformed()
        if has_values and not torch.compiler.is_compiling():
            check_sequence(sequence, size, name)
    return _pooled(x, rows, columns, overlapping)


def _pooled(x: Tensor, rows: Tensor, columns: Tensor, overlapping: bool) -> Tensor:
    """`fractional_max_pool2d` without checking the values of the sequences, which would wait for a GPU."""
    # A blocking copy of the regions would make the host wait for all steps that the GPU has not finished yet.
    if x.device != rows.device or x.device != columns.device:
        rows, columns = (regions.to(x.device, non_blocking=x.is_cuda) for regions in (rows, columns))
    inputs = x, rows, columns, overlapping
    if torch.compiler.is_exporting():
        window = 3 if overlapping else 2
        row_grid, column_grid = (
            torch.stack(reference.places(each, overlapping)[:window], 1).flatten() for each in (rows, columns)
        )
        return pool_grid(x, row_grid, column_grid, window)
    if _are_transformed():
        return cast(Tensor, _TransformedPool.apply(*inputs)[0])  # type: ignore[no-untyped-call]
    if is_eager(x) and not x.is_meta:
        return cast(Tensor, _EagerPool.apply(*inputs))  # type: ignore[no-untyped-call]
    return cast(Tensor, _pool(*inputs)[0])


def _check_input(x: Tensor) -> None:
    if x.dim() not in (3, 4) or not x.is_floating_point():
        raise ValueError(
            f"x has shape {tuple(x.shape)} and dtype {x.dtype}, but must be a floating-point tensor of shape "
            "(N, C, H, W) or (C, H, W): use x.float() for integers"
        )


class FractionalMaxPool2d(nn.Module):
    """Fractional max pooling (Graham 2014): shrinks maps by a ratio between 1 and 2, over random regions.

    In train(), each forward draws one row and one column sequence for the whole batch and all channels. In eval(), the
    regions are fixed: the pseudorandom sequence of u = 1/2, which is the most even one. To average over random regions
    at test time, as Graham does, leave the model in eval() and put its FractionalMaxPool2d layers in train().

    A model in eval() exports with torch.export and torch.onnx.export(dynamo=True): the layer becomes gathers and a
    plain max pooling, so that every runtime has its operators. The batch size may be dynamic; height and width are
    fixed in the exported model. In train() the layer cannot be exported.

    Args:
        ratio: n_in / n_out of an axis, in [1, 2], or a pair for height and width. The output has floor(n / ratio)
            pixels, but at least ceil(n / 2), the fewest regions of one or two pixels that cover the axis.
        output_size: pixels of the output, instead of `ratio`: an int, or a pair for height and width.
        sequence: "random" or "pseudorandom".
        overlapping: whether a region also holds the first pixel of the next one (two or three pixels wide).
        generator: source of the random draws; torch's default generator if None.

    Shape:
        - Input: (N, C, H, W) or (C, H, W), floating point; fastest in channels-last memory format.
        - Output: (N, C, H_out, W_out) or (C, H_out, W_out), in channels-last memory format.

    Raises:
        ValueError: if not exactly one of `ratio` and `output_size` is given, one of them or `sequence` is out of range,
            or the input does not fit.
        RuntimeError: if the layer is exported in train().

    Example:
        >>> import torch
        >>> from hybrid_mobilenet import FractionalMaxPool2d
        >>> pool = FractionalMaxPool2d(ratio=1.44)
        >>> pool(torch.rand(8, 16, 32, 32)).shape
        torch.Size([8, 16, 22, 22])
        >>> pool = FractionalMaxPool2d(output_size=(20, 24))
        >>> pool(torch.rand(16, 32, 32)).shape
        torch.Size([16, 20, 24])
    """

    def __init__(
        self,
        ratio: float | tuple[float, float] | None = None,
        *,
        output_size: int | Size | None = None,
        sequence: PoolingSequence = "random",
        overlapping: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if (ratio is None) == (output_size is None):
            raise ValueError(
                f"ratio is {ratio!r} and output_size is {output_size!r}, but exactly one of them must be given: "
                "the paper's is ratio=1.44"
            )
        ratios: tuple[Any, ...] = ratio if isinstance(ratio, tuple) else (ratio, ratio)
        if ratio is not None and (len(ratios) != 2 or not all(_is_ratio(value) for value in ratios)):
            raise ValueError(
                f"ratio is {ratio!r}, but must lie in [1, 2], or be a pair of such numbers: the paper's is 1.44"
            )
        sizes: tuple[Any, ...] = output_size if isinstance(output_size, tuple) else (output_size, output_size)
        if output_size is not None and (len(sizes) != 2 or not all(_is_size(value) for value in sizes)):
            raise ValueError(
                f"output_size is {output_size!r}, but must be an int of 1 or more, or a pair of them: "
                "try 22 for maps of 32 pixels"
            )
        if sequence not in get_args(PoolingSequence):
            raise ValueError(f"sequence is {sequence!r}, but must be one of {', '.join(get_args(PoolingSequence))}")
        self.ratio = None if ratio is None else (float(ratios[0]), float(ratios[1]))
        self.output_size = None if output_size is None else (int(sizes[0]), int(sizes[1]))
        self.sequence: PoolingSequence = sequence
        self.overlapping = overlapping
        self.generator = generator
        self._regions: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        _check_input(x)
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        size = x.shape[2], x.shape[3]
        if torch.compiler.is_exporting() and self._regions is None:
            return self._exported(x, size)
        rows, columns = self._regions or self.regions(size)
        if self._regions and (len(rows) - 1, len(columns) - 1) != self._output_size(size):
            raise ValueError(
                f"rows and columns have {len(rows) - 1} and {len(columns) - 1} regions, but maps of height and width "
                f"{size} have {self._output_size(size)} in this layer: draw them with regions({size})"
            )
        return _pooled(x, rows, columns, self.overlapping)

    def regions(self, size: Size) -> tuple[Tensor, Tensor]:
        """The pooling sequences for maps of a size: drawn in train(), the fixed ones in eval().

        Args:
            size: height and width of the maps.

        Returns:
            The sequences of rows and of columns, int64 of shape (H_out + 1,) and (W_out + 1,).

        Raises:
            ValueError: if maps of this size cannot be pooled to `output_size`.
        """
        rows, columns = (self._sequence(*axis) for axis in zip(size, self._output_size(size), strict=True))
        return rows, columns

    @contextmanager
    def using(self, rows: Tensor, columns: Tensor) -> Iterator[None]:
        """Pool over the given regions within the block, whether in train() or in eval().

        This is for regions drawn in advance, and for several passes over the same regions. Their values are checked on
        a CPU only, because checking them on a GPU would wait for it.

        Args:
            rows: int64 tensor of shape (H_out + 1,), as given by `regions`.
            columns: the same for W.

        Raises:
            ValueError: if one is not an int64 tensor of one dimension. In the block, forward raises it for maps that
                the regions do not fit.

        Example:
            >>> import torch
            >>> from hybrid_mobilenet import FractionalMaxPool2d
            >>> pool, x = FractionalMaxPool2d(1.44), torch.rand(8, 16, 32, 32)
            >>> with pool.using(*pool.regions((32, 32))):
            ...     print(torch.equal(pool(x), pool(x)))
            True
        """
        for name, sequence in (("rows", rows), ("columns", columns)):
            if sequence.dtype != torch.int64 or sequence.dim() != 1:
                raise ValueError(
                    f"{name} has shape {tuple(sequence.shape)} and dtype {sequence.dtype}, but must be int64 and of "
                    "one dimension: draw it with regions(size)"
                )
        before, self._regions = self._regions, (rows, columns)
        try:
            yield
        finally:
            self._regions = before

    def _exported(self, x: Tensor, size: Size) -> Tensor:
        if self.training:
            raise RuntimeError(
                "a FractionalMaxPool2d in train() draws new regions in each forward and cannot be exported: "
                "call model.eval() before the export"
            )
        rows, columns = (
            # From Python integers: torch.export takes the tensors for constants.
            torch.tensor(fixed_grid(*axis, self.overlapping), device=x.device)
            for axis in zip(size, self._output_size(size), strict=True)
        )
        return pool_grid(x, rows, columns, 3 if self.overlapping else 2)

    def _output_size(self, size: Size) -> Size:
        if self.ratio is not None:
            return fractional_size(size[0], self.ratio[0]), fractional_size(size[1], self.ratio[1])
        assert self.output_size is not None
        if not all(n_out <= n_in <= 2 * n_out for n_in, n_out in zip(size, self.output_size, strict=True)):
            least = fractional_size(size[0], 2), fractional_size(size[1], 2)
            raise ValueError(
                f"output_size is {self.output_size}, but x has height and width {size}, and regions are one or two "
                f"pixels wide: choose it between {least} and {size}"
            )
        return self.output_size

    def _sequence(self, n_in: int, n_out: int) -> Tensor:
        if self.training:
            return _draw(n_in, n_out, self.sequence, self.generator)
        return pseudorandom_sequence(n_in, n_out, 0.5)

    def extra_repr(self) -> str:
        size = f"output_size={self.output_size}" if self.ratio is None else f"ratio={self.ratio}"
        return f"{size}, sequence={self.sequence!r}, overlapping={self.overlapping}"


def _is_ratio(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 2


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
