"""When the faster functions of this folder may replace PyTorch's modules: only if nobody can see the difference.

The training kernels are for training (`kernels_apply`), and only for modules that do no more than their class does
(`is_plain`).
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)

#: Types of weights that the fast paths accept. Other subclasses of Tensor may have behaviour and memory of their own.
TENSORS = (nn.Parameter, Tensor, type(None))


@cache
def has_triton() -> bool:
    """Whether the CUDA kernels can be compiled: triton comes only with PyTorch for CUDA on Linux."""
    return find_spec("triton") is not None


@cache
def kernels(layer: str, device: str) -> ModuleType:
    """The kernels of a layer for a kind of device, "cpu" or "cuda". numba and triton are slow to import."""
    return import_module(f".kernels.{device}.{layer}", __package__)


def _is_traced() -> bool:
    """Whether a compiler or an exporter records the calls."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()


def kernels_apply(x: Tensor) -> bool:
    """Whether the training kernels may take `x`: gradients are recorded, and nothing else sees the operators."""
    return torch.is_grad_enabled() and is_eager(x)


def is_eager(x: Tensor) -> bool:
    """Whether `x` is a plain tensor and nothing but autograd follows PyTorch's operators.

    Compilers, exporters, torch.func and modes that count or fake operators would not see what a kernel does.
    """
    return (
        type(x) in TENSORS
        and not _is_traced()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
    )


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` does exactly what `kind` does, so that a faster function may replace the call.

    The module must be called if it is of a subclass (parametrised modules are), if it or all modules have hooks
    (pruning and the old weight normalisation use hooks), if its forward was replaced, if its weights are not plain
    tensors, or if a compiler or an exporter records the calls.
    """
    if type(module) is not kind or _is_traced():
        return False
    own = module.__dict__  # looking up attributes of a module one by one takes three times as long
    for weight in own["_parameters"].values():
        if type(weight) not in TENSORS:
            return False
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or _global_forward_hooks
        or _global_forward_pre_hooks
        or _global_backward_hooks
        or _global_backward_pre_hooks
        or "forward" in own
        or "_conv_forward" in own
        or "_compiled_call_impl" in own
    )
