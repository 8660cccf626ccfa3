"""A pointwise convolution together with the batch normalisation and the ReLU on either side, where a CPU trains."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .batch_norm import is_training_on_cpu
from .fast_path import is_plain

#: Channels, in and out, that the CPU kernel takes at a time.
CHANNELS = 16


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether `conv` multiplies each pixel by its weights, and nothing else."""
    return (
        is_plain(conv, nn.Conv2d)
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
        and conv.bias is None
    )


def can_fuse(x: Tensor, before: nn.BatchNorm2d, conv: nn.Conv2d, behind: nn.BatchNorm2d) -> bool:
    """Whether `fused_convolution` serves, ReLUs provided."""
    return (
        is_training_on_cpu(x, before)
        and is_training_on_cpu(x, behind)
        and is_pointwise(conv)
        and conv.weight.dtype == x.dtype
        and conv.weight.is_cpu
        and x.shape[1] == before.num_features == conv.in_channels
        and conv.out_channels == behind.num_features
        and conv.in_channels % CHANNELS == conv.out_channels % CHANNELS == 0
    )


def fused_convolution(x: Tensor, before: nn.BatchNorm2d, conv: nn.Conv2d, behind: nn.BatchNorm2d) -> Tensor:
    """``relu(behind(conv(relu(before(x)))))`` with fewer maps in memory: faster, and training takes less of it.

    Args:
        x: (N, C, H, W), floating point, fastest in channels-last memory format; `can_fuse` must hold.
        before: its running statistics change as in torch.
        conv: pointwise.
        behind: as `before`.

    Returns:
        (N, C_out, H, W).
    """
    x = x.contiguous(memory_format=torch.channels_last)
    for norm in (before, behind):
        cast(Tensor, norm.num_batches_tracked).add_(1)
    parameters = before.weight, before.bias, conv.weight, behind.weight, behind.bias
    return cast(Tensor, _FusedConvolution.apply(x, *parameters, before, behind))  # type: ignore[no-untyped-call]


class _FusedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        from .kernels.cpu import pointwise as kernel  # numba takes long to load
        from .kernels.cpu.batch_norm import Norm

        _, _, weight, _, _, before, behind = rest
        matrix = weight.flatten(1)
        done = kernel.forward(x, Norm.of(before), matrix, Norm.of(behind))
        ctx.save_for_backward(x, matrix, *done[1:])
        return done.y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from .kernels.cpu import pointwise as kernel

        x, matrix, convolved, *norms = ctx.saved_tensors
        # Hooks on saved tensors may have laid them out anew.
        gradient, x, convolved = (
            maps.contiguous(memory_format=torch.channels_last) for maps in (gradient, x, convolved)
        )
        dx, of_before, of_matrix, of_behind = kernel.backward(gradient, x, matrix, convolved, *norms)
        return dx, of_before[1], of_before[0], of_matrix[:, :, None, None], of_behind[1], of_behind[0], None, None
