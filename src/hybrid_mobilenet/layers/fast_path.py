"""Forward and backward of what torch has not, or not fast.

Fractional max pooling is here once per kind of device, as the same two functions: in `reference`, which is the one to
read first, `cpu` and `cuda`. `depthwise`, `batch_norm` and `pointwise` make training fast on a CPU, and
`cuda_depthwise` and `cuda_batch_norm` on a GPU; elsewhere torch's own serve.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)

#: What weights may be. What a subclass of Tensor does is its own, and so is what it keeps in memory.
TENSORS = (nn.Parameter, Tensor, type(None))


@cache
def has_triton() -> bool:
    """Whether the kernels for CUDA can be compiled: triton comes with torch for CUDA on Linux only."""
    return find_spec("triton") is not None


def _is_traced() -> bool:
    """Whether a compiler or an exporter writes down what is called."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()


def serve(x: Tensor) -> bool:
    """Whether the kernels of training may take `x`: gradients are recorded, and nobody else follows torch's operators.

    Compilers, exporters, torch.func and whatever counts or fakes operators would not see what a kernel does.
    """
    return (
        torch.is_grad_enabled()
        and type(x) in TENSORS
        and not _is_traced()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
    )


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` does what its `kind` does, and nothing else, so that a faster function may stand for it.

    Subclasses (a parametrised module is one), hooks of its own or of all modules (pruning and the old weight
    normalisation work by them), a forward put in place of its class's, and weights that are no plain tensors are
    reasons to call it. A compiler sees the calls too.
    """
    if type(module) is not kind or _is_traced():
        return False
    own = module.__dict__  # asked for one by one, a module's attributes take three times as long
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
