"""What the kernels for CUDA ask of the maps they are given."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor


def pixels_of(maps: Tensor) -> int:
    """Pixels of all maps, (N, C, H, W), of one channel."""
    return len(maps) * maps.shape[2] * maps.shape[3]


def wide(maps: Tensor) -> torch.dtype:
    """In which precision is summed and compared: half precisions exactly in float32."""
    return torch.float64 if maps.dtype == torch.float64 else torch.float32


def triton_wide(maps: Tensor) -> Any:
    """The same, as triton calls it."""
    return tl.float64 if wide(maps) == torch.float64 else tl.float32
