"""Forward and backward passes of the layers, compiled for a kind of device; `reference` is plain PyTorch."""
