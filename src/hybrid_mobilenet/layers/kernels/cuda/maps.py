"""What the kernels for CUDA ask of the maps they are given."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import triton.language as tl
from torch import Tensor


def on_device_of(maps: Tensor) -> AbstractContextManager[None]:
    """Launch kernels where the maps are: triton launches them on the current GPU, which may be another."""
    return torch.cuda.device_of(maps)  # type: ignore[no-untyped-call]


def pixels_of(maps: Tensor) -> int:
    """Pixels of all maps, (N, C, H, W), of one channel."""
    return len(maps) * maps.shape[2] * maps.shape[3]


def wide(maps: Tensor) -> torch.dtype:
    """In which precision is summed and compared: half precisions exactly in float32."""
    return torch.float64 if maps.dtype == torch.float64 else torch.float32


def triton_wide(maps: Tensor) -> Any:
    """The same, as triton calls it."""
    return tl.float64 if wide(maps) == torch.float64 else tl.float32
