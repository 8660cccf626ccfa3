"""ExecuTorch: lowered to XNNPACK, its delegate for CPUs, and checked in ExecuTorch before it is written.

The network is one subgraph of XNNPACK but for the first step, bytes to float. What XNNPACK has no operator for would
run in ExecuTorch's portable kernels, with a copy to another layout before and behind. So pixels are gathered by slices
that are put side by side, since XNNPACK knows no gather.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ..common.files import write_atomically
from ..network.model import HybridMobileNet
from .check import Parity, float_parity, int8_parity
from .deployed import Average, Deployed, GridMaxPool, Repeat, single_image_metadata
from .runtimes import METADATA_METHOD, ExecuTorchClassifier, silenced

#: Maps that XNNPACK puts side by side at once.
MOST_CONCATENATED = 5

#: Bytes that each list of weights starts at a multiple of: XNNPACK's own. ExecuTorch's 128 makes int8 files 1 % larger.
ALIGNMENT = 16


def export_executorch(
    model: HybridMobileNet, path: Path, images: Tensor | None = None, calibration: Tensor | None = None
) -> Parity:
    """Write a model for ExecuTorch, after running it there.

    The program's method `forward` takes one image, uint8 (1, H, W, C), RGB or grey, 0..255, and gives logits and
    probabilities, float32 (1, classes), in this order. Of batches of any size XNNPACK takes no slices. The
    method `metadata` returns class names and preprocessing, as JSON.

    Args:
        model: the model; its fractional max pooling is exported with the fixed regions of eval().
        path: the file.
        images: uint8 (n, C, H, W), real images that both are run on; the handwritten digits if None.
        calibration: uint8 (n, C, H, W), training images that the ranges of the maps are taken from: the file is in int8
            where they are given.

    Raises:
        ExportError: where the results differ, or in int8 have little to do with the model's; no file is written then.
        OSError: where the file cannot be written.
    """
    content = executorch_bytes(model, calibration)
    compare = float_parity if calibration is None else int8_parity
    parity = compare(model, ExecuTorchClassifier(content), images)
    write_atomically(path, content)
    return parity


def executorch_bytes(model: HybridMobileNet, calibration: Tensor | None = None) -> bytes:
    """The content of the ExecuTorch file of a model, not run yet; in int8 where there are images for calibration."""
    size, channels = model.network.image_size, model.network.in_channels
    example = (torch.zeros(1, *size, channels, dtype=torch.uint8),)
    network: nn.Module = for_xnnpack(Deployed(model))
    with silenced():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower

        if calibration is not None:
            from .pt2e import quantised

            network = quantised(network, calibration.permute(0, 2, 3, 1).contiguous(), fold=True)
        with _short_names():
            lowered = to_edge_transform_and_lower(
                torch.export.export(network, example),
                partitioner=[XnnpackPartitioner()],
                constant_methods={METADATA_METHOD: json.dumps(single_image_metadata(model))},
            )
        return bytes(lowered.to_executorch(ExecutorchBackendConfig(segment_alignment=ALIGNMENT)).buffer)


@contextmanager
def _short_names() -> Iterator[None]:
    """Have the delegate name its lists of weights, scales and biases by numbers.

    It names each twice by 64 digits of a hash, 3 % of a small network's int8 file. Equal lists still have one name.
    """
    from executorch.backends.xnnpack.operators import node_visitor

    numbers: dict[bytes, str] = {}

    def sha256(content: bytes) -> SimpleNamespace:
        number = numbers.setdefault(content, str(len(numbers)))
        return SimpleNamespace(hexdigest=lambda: number)

    # create: a later version that hashes elsewhere makes longer files, not an error.
    with patch.object(node_visitor, "hashlib", SimpleNamespace(sha256=sha256), create=True):
        yield


def for_xnnpack(deployed: Deployed) -> Deployed:
    """The deployed network, changed in place to steps that XNNPACK has."""
    for name, step in deployed.steps.named_children():
        match step:
            case Repeat():
                deployed.steps.set_submodule(name, DistinctRepeat(step.copies))
            case GridMaxPool():
                deployed.steps.set_submodule(name, SlicedMaxPool(step))
            case Average():
                deployed.steps.set_submodule(name, KeptAverage(step.pixels))
    return deployed


class DistinctRepeat(nn.Module):
    """`Repeat` of maps that are not negative, as all are behind an activation.

    XNNPACK's delegate does not take one map twice, and ExecuTorch's own kernel mistakes its layout (1.5.1). The copies
    are made other maps, by an activation that changes nothing.
    """

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        return concatenate([x, *(x.relu() for _ in range(self.copies - 1))], 1)


class SlicedMaxPool(nn.Module):
    """`GridMaxPool` with the grid put together from slices: (N, C, H, W) to (N, C, H_out, W_out)."""

    def __init__(self, pool: GridMaxPool) -> None:
        super().__init__()
        self.axes = [_slices(pixels, pool.window) for pixels in (pool.rows, pool.columns)]

    def forward(self, x: Tensor) -> Tensor:
        for axis, (slices, _) in enumerate(self.axes, start=2):
            x = concatenate([x.narrow(axis, start, length) for start, length in slices], axis)
        windows = [window for _, window in self.axes]
        return x if windows == [1, 1] else nn.functional.max_pool2d(x, windows)


def _slices(pixels: Tensor, window: int) -> tuple[list[tuple[int, int]], int]:
    """Runs of one axis and the window over them: an axis whose regions are single pixels stays as it is."""
    firsts = pixels[::window]
    if torch.equal(pixels, firsts.repeat_interleave(window)):
        return consecutive(firsts), 1
    return consecutive(pixels), window


class KeptAverage(nn.Module):
    """`Average`: XNNPACK has the mean that keeps its axes, and not the other."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        return (x.mean((2, 3), keepdim=True) if self.pixels > 1 else x).flatten(1)


def consecutive(pixels: Tensor) -> list[tuple[int, int]]:
    """Indices as runs of consecutive ones, start and length each: [0, 1, 2, 2, 3] is [(0, 3), (2, 2)]."""
    starts = [0, *(1 + index for index in (pixels.diff() != 1).nonzero().flatten().tolist()), len(pixels)]
    return [(int(pixels[start]), end - start) for start, end in pairwise(starts)]


def concatenate(maps: list[Tensor], axis: int) -> Tensor:
    """torch.cat of any number of maps by such of `MOST_CONCATENATED` at most, each map copied as rarely as can be."""
    while len(maps) > 1:
        groups = [maps[start : start + MOST_CONCATENATED] for start in range(0, len(maps), MOST_CONCATENATED)]
        maps = [torch.cat(group, axis) if len(group) > 1 else group[0] for group in groups]
    return maps[0]
