"""Batch normalisation with the ReLU that follows it, faster in training than PyTorch's."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .fast_path import has_triton, is_plain, kernels, kernels_apply


def batch_norm(x: Tensor, norm: nn.BatchNorm2d, relu: bool) -> Tensor:
    """The result of `norm`, followed by a ReLU if `relu` is set.

    Args:
        x: (N, C, H, W), floating point, fastest in channels-last memory format.
        norm: a BatchNorm2d, whose running statistics are updated as in PyTorch; any other module is called.
        relu: whether a ReLU follows.

    Returns:
        (N, C, H, W).
    """
    if (is_training_on_cpu(x, norm) or _is_training_on_cuda(x, norm)) and norm.num_features == x.shape[1]:
        x = x.contiguous(memory_format=torch.channels_last)
        cast(Tensor, norm.num_batches_tracked).add_(1)
        return cast(Tensor, _BatchNorm.apply(x, norm.weight, norm.bias, norm, relu))  # type: ignore[no-untyped-call]
    x = norm(x)
    # In place only where nothing else can hold x, such as a hook or a layer that keeps its result for backward.
    return F.relu(x, inplace=is_plain(norm, nn.BatchNorm2d)) if relu else x


def is_training_on_cpu(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether the CPU kernel gives what PyTorch gives, provided that `x` has as many channels as the layer."""
    return x.is_cpu and x.dtype in (torch.float32, torch.float64) and _is_training(x, norm)


def _is_training_on_cuda(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    return x.is_cuda and x.is_floating_point() and has_triton() and _is_training(x, norm)


def _is_training(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether `norm` trains in the usual way, with tensors whose memory the kernels can read and write."""
    if not (
        kernels_apply(x)
        and is_plain(norm, nn.BatchNorm2d)
        and norm.training
        and norm.track_running_stats
        and norm.momentum is not None
        and x.shape[0] * x.shape[2] * x.shape[3] > 1
    ):
        return False
    parameters, buffers, on_cpu = norm._parameters, norm._buffers, x.is_cpu
    for tensor in (parameters["weight"], parameters["bias"], buffers["running_mean"], buffers["running_var"]):
        if (
            tensor is None
            or tensor.numel() != norm.num_features
            or not tensor.is_contiguous()
            or tensor.is_cpu != on_cpu
            or (on_cpu and tensor.dtype != x.dtype)
        ):
            return False
    return True


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, _weight: Tensor, _bias: Tensor, norm: nn.BatchNorm2d, relu: bool) -> Tensor:
        y, saved = kernels("batch_norm", x.device.type).forward(x, norm, relu)
        ctx.save_for_backward(x, saved)
        ctx.relu = relu
        return cast(Tensor, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, saved = ctx.saved_tensors
        x = x.contiguous(memory_format=torch.channels_last)  # saved-tensor hooks may have changed it
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        dx, (d_bias, d_weight) = kernels("batch_norm", x.device.type).backward(gradient, x, saved, ctx.relu)
        return dx, d_weight, d_bias, None, None
