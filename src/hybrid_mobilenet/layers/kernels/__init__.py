"""What torch lacks or runs slowly: `reference` in plain PyTorch (read it first), `cpu` by numba, `cuda` by triton."""
