"""Pointwise (1x1) convolution: as a matrix product, and fused with the layers around it in training on a CPU."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .batch_norm import is_training_on_cpu
from .fast_path import is_plain

#: The CPU kernel processes input and output channels in groups of this size.
CHANNELS = 16

#: Maps of at most this many pixels are multiplied by the weights as a plain matrix product; on a GPU all maps are.
MATRIX_PRODUCT_PIXELS = 4


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether all that `conv` does is multiply the channels of each pixel by its weights."""
    return (
        is_plain(conv, nn.Conv2d)
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
        and conv.bias is None
    )


def pointwise_convolution(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The result of `conv`, computed as a matrix product where that is faster.

    Args:
        x: (N, C, H, W), floating point, fastest in channels-last memory format.
        conv: a pointwise convolution; any other module is called.

    Returns:
        (N, C_out, H, W).
    """
    if is_pointwise(conv) and (x.is_cuda or x.shape[2] * x.shape[3] <= MATRIX_PRODUCT_PIXELS):
        return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1)).permute(0, 3, 1, 2)
    return cast(Tensor, conv(x))


def can_fuse(x: Tensor, before: nn.BatchNorm2d, conv: nn.Conv2d, after: nn.BatchNorm2d) -> bool:
    """Whether `fused_convolution` can replace these layers, provided that a ReLU follows each normalisation."""
    return (
        is_training_on_cpu(x, before)
        and is_training_on_cpu(x, after)
        and is_pointwise(conv)
        and conv.weight.dtype == x.dtype
        and conv.weight.is_cpu
        and x.shape[1] == before.num_features == conv.in_channels
        and conv.out_channels == after.num_features
        and conv.in_channels % CHANNELS == conv.out_channels % CHANNELS == 0
    )


def fused_convolution(x: Tensor, before: nn.BatchNorm2d, conv: nn.Conv2d, after: nn.BatchNorm2d) -> Tensor:
    """``relu(after(conv(relu(before(x)))))``, faster and with fewer maps kept in memory for backward.

    Args:
        x: (N, C, H, W), floating point, fastest in channels-last memory format; `can_fuse` must be true.
        before: the normalisation before the convolution; its running statistics are updated as in PyTorch.
        conv: a pointwise convolution.
        after: the normalisation after the convolution, likewise updated.

    Returns:
        (N, C_out, H, W).
    """
    x = x.contiguous(memory_format=torch.channels_last)
    for norm in (before, after):
        cast(Tensor, norm.num_batches_tracked).add_(1)
    parameters = before.weight, before.bias, conv.weight, after.weight, after.bias
    return cast(Tensor, _FusedConvolution.apply(x, *parameters, before, after))  # type: ignore[no-untyped-call]


class _FusedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        from .kernels.cpu import pointwise as kernel  # numba is slow to import
        from .kernels.cpu.batch_norm import Norm

        _, _, weight, _, _, before, after = rest
        matrix = weight.flatten(1)
        result = kernel.forward(x, Norm.of(before), matrix, Norm.of(after))
        ctx.save_for_backward(x, matrix, *result[1:])
        return result.y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from .kernels.cpu import pointwise as kernel

        x, matrix, convolved, *norms = ctx.saved_tensors
        # Saved-tensor hooks may have changed the memory format.
        gradient, x, convolved = (
            maps.contiguous(memory_format=torch.channels_last) for maps in (gradient, x, convolved)
        )
        dx, (bias_before, weight_before), d_matrix, (bias_after, weight_after) = kernel.backward(
            gradient, x, matrix, convolved, *norms
        )
        return dx, weight_before, bias_before, d_matrix[:, :, None, None], weight_after, bias_after, None, None
