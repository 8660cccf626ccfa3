"""A pointwise convolution together with the batch normalisation and the ReLU before it, where a CPU trains."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .batch_norm import is_training_on_cpu

#: Channels, in and out, that the CPU kernel takes at a time.
CHANNELS = 16


def can_normalise(x: Tensor, norm: nn.BatchNorm2d, conv: nn.Conv2d) -> bool:
    """Whether `normalised_convolution` serves."""
    return (
        is_training_on_cpu(x, norm)
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.groups == 1
        and conv.bias is None
        and conv.weight.dtype == x.dtype
        and conv.in_channels % CHANNELS == conv.out_channels % CHANNELS == 0
    )


def normalised_convolution(x: Tensor, norm: nn.BatchNorm2d, conv: nn.Conv2d) -> Tensor:
    """``conv(relu(norm(x)))`` without the normalised maps in memory: faster, and training takes less of it.

    Args:
        x: (N, C, H, W), floating point, fastest in channels-last memory format; `can_normalise` must hold.
        norm: its running statistics change as in torch.
        conv: pointwise.

    Returns:
        (N, C_out, H, W).
    """
    x = x.contiguous(memory_format=torch.channels_last)
    cast(Tensor, norm.num_batches_tracked).add_(1)
    return cast(
        Tensor,
        _NormalisedConvolution.apply(x, norm.weight, norm.bias, norm, conv.weight),  # type: ignore[no-untyped-call]
    )


class _NormalisedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, kernels: Tensor) -> Tensor:
        from .kernels import pointwise as kernel  # numba takes long to load

        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.momentum is not None
        matrix = kernels.flatten(1)
        y, saved = kernel.forward(x, weight, bias, norm.running_mean, norm.running_var, norm.momentum, norm.eps, matrix)
        ctx.save_for_backward(x, saved, matrix)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, Tensor]:
        from .kernels import pointwise as kernel

        gradient = gradient.contiguous(memory_format=torch.channels_last)
        dx, (of_bias, of_weight), of_kernels = kernel.backward(gradient, *ctx.saved_tensors)
        return dx, of_weight, of_bias, None, of_kernels[:, :, None, None]
