"""Forward and backward of what torch has not, or not fast.

Fractional max pooling is here once per kind of device, as the same two functions: in `reference`, which is the one to
read first, `cpu` and `cuda`. `depthwise`, `batch_norm` and `pointwise` make training fast on a CPU, and
`cuda_depthwise` and `cuda_batch_norm` on a GPU; elsewhere torch's own serve.
"""

from functools import cache
from importlib.util import find_spec


@cache
def has_triton() -> bool:
    """Whether the kernels for CUDA can be compiled: triton comes with torch for CUDA on Linux only."""
    return find_spec("triton") is not None
