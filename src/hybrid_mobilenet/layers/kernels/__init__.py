"""Forward and backward passes of operations that torch lacks, or runs slowly.

`reference` is fractional max pooling in plain PyTorch, for every device: read it first. `cpu` has kernels compiled by
numba, and `cuda` kernels compiled by triton.
"""
