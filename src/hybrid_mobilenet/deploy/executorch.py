"""ExecuTorch, lowered to its CPU delegate XNNPACK.

The program's method `forward` takes one image, uint8 (1, H, W, C), RGB or grey, 0..255, and returns logits and
probabilities, float32 (1, classes), in this order; XNNPACK has no slices for a dynamic batch size. The method
`metadata` returns class names and preprocessing as JSON.

All steps but the first, uint8 to float, are one XNNPACK subgraph. Any operator that XNNPACK lacks would run in
ExecuTorch's portable kernels, with a copy to another memory layout before and after. XNNPACK has no gather, so the
pixels of a region are gathered by slices and a concatenation.
"""

from __future__ import annotations

import json
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..network.model import HybridMobileNet
from .deployed import Average, Deployed, GridMaxPool, Repeat, single_image_metadata
from .runtimes import METADATA_METHOD, silenced

#: Largest number of inputs of a concatenation in XNNPACK.
MOST_CONCATENATED = 5

#: Alignment of the weights in bytes: XNNPACK's own. ExecuTorch's default of 128 makes int8 files larger.
ALIGNMENT = 16


def executorch_bytes(model: HybridMobileNet, calibration: Tensor | None = None) -> bytes:
    """The ExecuTorch program of a model.

    Args:
        model: the model; fractional max pooling uses the fixed regions of eval().
        calibration: uint8 (n, C, H, W), training images: the program is in int8, with the ranges of the feature maps on
            them. If None, it is in float32.
    """
    size, channels = model.network.image_size, model.network.in_channels
    example = (torch.zeros(1, *size, channels, dtype=torch.uint8),)
    network: nn.Module = for_xnnpack(Deployed(model))
    with silenced():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower

        if calibration is not None:
            from .pt2e import quantised

            network = quantised(network, calibration, fold=True)
        lowered = to_edge_transform_and_lower(
            torch.export.export(network, example),
            partitioner=[XnnpackPartitioner()],
            constant_methods={METADATA_METHOD: json.dumps(single_image_metadata(model))},
        )
        return bytes(lowered.to_executorch(ExecutorchBackendConfig(segment_alignment=ALIGNMENT)).buffer)


def for_xnnpack(deployed: Deployed) -> Deployed:
    """Replace, in place, the steps of a deployed network that XNNPACK has no operator for."""
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
    """`Repeat` for non-negative maps, such as the outputs of an activation.

    XNNPACK's delegate rejects a concatenation of the same map twice, and ExecuTorch's own kernel gets its memory layout
    wrong (1.5.1). A ReLU, which leaves non-negative values as they are, makes each copy a different map.
    """

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        return concatenate([x, *(x.relu() for _ in range(self.copies - 1))], 1)


class SlicedMaxPool(nn.Module):
    """`GridMaxPool` with the grid built from slices: (N, C, H, W) to (N, C, H_out, W_out)."""

    def __init__(self, pool: GridMaxPool) -> None:
        super().__init__()
        self.axes = [_slices(pixels, pool.window) for pixels in (pool.rows, pool.columns)]

    def forward(self, x: Tensor) -> Tensor:
        for axis, (slices, _) in enumerate(self.axes, start=2):
            x = concatenate([x.narrow(axis, start, length) for start, length in slices], axis)
        windows = [window for _, window in self.axes]
        return x if windows == [1, 1] else nn.functional.max_pool2d(x, windows)


def _slices(pixels: Tensor, window: int) -> tuple[list[tuple[int, int]], int]:
    """The slices of one axis and the pooling window over them; 1 if every region is a single pixel."""
    firsts = pixels[::window]
    if torch.equal(pixels, firsts.repeat_interleave(window)):
        return consecutive(firsts), 1
    return consecutive(pixels), window


class KeptAverage(nn.Module):
    """`Average` for XNNPACK, which only has the mean with keepdim=True."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        return (x.mean((2, 3), keepdim=True) if self.pixels > 1 else x).flatten(1)


def consecutive(pixels: Tensor) -> list[tuple[int, int]]:
    """Indices as runs of consecutive ones, (start, length) each: [0, 1, 2, 2, 3] is [(0, 3), (2, 2)]."""
    starts = [0, *(1 + index for index in (pixels.diff() != 1).nonzero().flatten().tolist()), len(pixels)]
    return [(int(pixels[start]), end - start) for start, end in pairwise(starts)]


def concatenate(maps: list[Tensor], axis: int) -> Tensor:
    """torch.cat of any number of maps, at most `MOST_CONCATENATED` at once, as a balanced tree."""
    while len(maps) > 1:
        groups = [maps[start : start + MOST_CONCATENATED] for start in range(0, len(maps), MOST_CONCATENATED)]
        maps = [torch.cat(group, axis) if len(group) > 1 else group[0] for group in groups]
    return maps[0]
