"""Depthwise 3x3 convolution with a depth multiplier, several times faster in training than PyTorch's."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .fast_path import has_triton, is_plain, kernels, kernels_apply

#: The CPU kernel processes channels in groups of this size.
CHANNELS = 8


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether `depthwise_convolution`, with the weights and the stride of `conv`, can replace `conv`."""
    return (
        is_plain(conv, nn.Conv2d)
        and conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel_size == (3, 3)
        and conv.stride[0] == conv.stride[1]
        and conv.padding == conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.bias is None
    )


def depthwise_convolution(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve each map with `multiplier` filters, padded by one pixel on every side.

    Output ``m * C + c`` is the m-th map of input channel c. Where our kernel does not apply, the input channels are
    repeated and every copy is convolved. Up to the order of channels this equals a grouped convolution, and it is
    several times faster.

    Args:
        x: (N, C, H, W), floating point, fastest in channels-last memory format.
        weight: (C * multiplier, 1, 3, 3).
        stride: 1 or more.

    Returns:
        (N, C * multiplier, ceil(H / stride), ceil(W / stride)).
    """
    if _is_training_on_cpu(x, weight) or _is_training_on_cuda(x, weight):
        x = x.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, _DepthwiseConvolution.apply(x, weight, stride))  # type: ignore[no-untyped-call]
    x = repeat_channels(x, len(weight) // x.shape[1])
    return F.conv2d(x, weight, stride=stride, padding=1, groups=len(weight))


def repeat_channels(x: Tensor, copies: int) -> Tensor:
    """Repeat all channels, one copy after another: (N, C, H, W) to (N, copies * C, H, W)."""
    return torch.cat([x] * copies, 1) if copies > 1 else x  # faster than x.repeat


def _is_training_on_cpu(x: Tensor, weight: Tensor) -> bool:
    return (
        x.is_cpu
        and weight.is_cpu
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and x.shape[1] % CHANNELS == 0
        and len(weight) % x.shape[1] == 0
        and kernels_apply(x)
    )


def _is_training_on_cuda(x: Tensor, weight: Tensor) -> bool:
    return (
        x.is_cuda
        and weight.is_cuda
        and x.is_floating_point()
        and len(weight) % x.shape[1] == 0
        and kernels_apply(x)
        and has_triton()
    )


class _DepthwiseConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        by_place = weight.reshape(len(weight), -1).t()
        if x.device.type == "cpu":
            by_place = by_place.contiguous()
        ctx.save_for_backward(x, by_place)
        ctx.stride = stride
        return cast(Tensor, kernels("depthwise", x.device.type).forward(x, by_place, stride))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, by_place = ctx.saved_tensors
        x = x.contiguous(memory_format=torch.channels_last)  # saved-tensor hooks may have changed it
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        dx, d_weight = kernels("depthwise", x.device.type).backward(
            gradient, x, by_place, ctx.stride, ctx.needs_input_grad[0]
        )
        return dx, d_weight.t().reshape(-1, 1, 3, 3), None
