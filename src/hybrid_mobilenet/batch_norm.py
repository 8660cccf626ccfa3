"""Batch normalisation with the ReLU behind it: torch's function, faster where a CPU trains."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def batch_norm(x: Tensor, norm: nn.BatchNorm2d, relu: bool) -> Tensor:
    """What `norm` makes of maps, cut off at zero if `relu`.

    Args:
        x: (N, C, H, W), floating point, fastest in channels-last memory format.
        norm: the layer; its running statistics change as in torch.
        relu: whether a ReLU follows.

    Returns:
        (N, C, H, W).
    """
    if is_training_on_cpu(x, norm):
        x = x.contiguous(memory_format=torch.channels_last)
        cast(Tensor, norm.num_batches_tracked).add_(1)
        return cast(Tensor, _BatchNorm.apply(x, norm.weight, norm.bias, norm, relu))  # type: ignore[no-untyped-call]
    x = norm(x)
    return F.relu(x, inplace=True) if relu else x


def is_training_on_cpu(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether the kernel does what torch does here. A subclass, such as SyncBatchNorm, does something else."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.momentum is not None
        and norm.running_mean is not None
        and norm.affine
        and x.device.type == "cpu"
        and x.dtype == norm.weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and x.shape[0] * x.shape[2] * x.shape[3] > 1
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, _weight: Tensor, _bias: Tensor, norm: nn.BatchNorm2d, relu: bool) -> Tensor:
        from .kernels import batch_norm as kernel  # numba takes long to load

        y, saved = kernel.forward(x, kernel.Norm.of(norm), relu)
        ctx.save_for_backward(x, saved)
        ctx.relu = relu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        from .kernels import batch_norm as kernel

        x, saved = ctx.saved_tensors
        dx, (of_bias, of_weight) = kernel.backward(
            gradient.contiguous(memory_format=torch.channels_last), x, saved, ctx.relu
        )
        return dx, of_weight, of_bias, None, None
