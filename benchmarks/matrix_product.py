"""A large float32 matrix product, computed by torch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hybrid_mobilenet.network.architecture import Network

VERSION = f"torch {torch.__version__}"

SIDE = 2048
MULT_ADDS = SIDE**3


def training_step(_network: Network, _batch: int, threads: int) -> Callable[[], object]:
    """One product of `MULT_ADDS` Mult-Adds in place of a network's step."""
    torch.set_num_threads(threads)
    a, b, out = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE), torch.empty(SIDE, SIDE)
    return lambda: torch.mm(a, b, out=out)
