"""Batch normalisation with the ReLU behind it: torch's function, faster in training."""

from __future__ import annotations

from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .kernels import has_triton


def batch_norm(x: Tensor, norm: nn.BatchNorm2d, relu: bool) -> Tensor:
    """What `norm` makes of maps, cut off at zero if `relu`.

    Args:
        x: (N, C, H, W), floating point, fastest in channels-last memory format.
        norm: the layer; its running statistics change as in torch.
        relu: whether a ReLU follows.

    Returns:
        (N, C, H, W).
    """
    if is_training_on_cpu(x, norm) or _is_training_on_cuda(x, norm):
        x = x.contiguous(memory_format=torch.channels_last)
        cast(Tensor, norm.num_batches_tracked).add_(1)
        return cast(Tensor, _BatchNorm.apply(x, norm.weight, norm.bias, norm, relu))  # type: ignore[no-untyped-call]
    x = norm(x)
    return F.relu(x, inplace=True) if relu else x


def is_training_on_cpu(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether the CPU's kernel does what torch does here."""
    return (
        _is_plain(x, norm)
        and x.device.type == "cpu"
        and x.dtype == norm.weight.dtype
        and x.dtype in (torch.float32, torch.float64)
    )


def _is_training_on_cuda(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    return _is_plain(x, norm) and x.is_cuda and norm.weight.is_cuda and x.is_floating_point() and has_triton()


def _is_plain(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether it is training as usual. A subclass, such as SyncBatchNorm, does something else."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.momentum is not None
        and norm.running_mean is not None
        and norm.affine
        and x.shape[0] * x.shape[2] * x.shape[3] > 1
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def _kernel(device: torch.device) -> ModuleType:
    """Imported where it is needed: numba and triton take long to load."""
    if device.type == "cuda":
        from .kernels import cuda_batch_norm

        return cuda_batch_norm
    from .kernels import batch_norm

    return batch_norm


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, _weight: Tensor, _bias: Tensor, norm: nn.BatchNorm2d, relu: bool) -> Tensor:
        y, saved = _kernel(x.device).forward(x, norm, relu)
        ctx.save_for_backward(x, saved)
        ctx.relu = relu
        return cast(Tensor, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, saved = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        dx, (of_bias, of_weight) = _kernel(x.device).backward(gradient, x, saved, ctx.relu)
        return dx, of_weight, of_bias, None, None
