"""Fractional max pooling, forward and backward, compared with torch.nn.FractionalMaxPool2d and a copy of the input."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from hybrid_mobilenet import FractionalMaxPool2d
from hybrid_mobilenet.common.memory import keep_freed_memory
from hybrid_mobilenet.network.architecture import FMP_RATIO
from report import Cell, Figure, Section
from timing import interleave, speed_up, timed

BATCH = 128
#: Channels, input side, output side, and the target speedup over torch's layer.
SHAPES = [(8, 32, 22, 10.0), (32, 22, 15, 18.0), (64, 15, 10, 18.0), (128, 10, 6, 18.0)]
#: How often each side runs in a round, in this order. After torch's pass the caches hold its maps, and our layer needs
#: about ten passes to replace them. So our first, cold-cache pass is timed separately, and the others after a warm-up.
TIMES = {"torch": 1, "first": 1, "ours": 10, "clone": 40}
WARM_UP = {"torch": 1, "first": 0, "ours": 10, "clone": 10}


def measure(rounds: int, advance: Callable[[], None]) -> Section:
    """Measure on one thread. Each side gets its fastest memory format, and freed memory is kept as in training."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Section(
        f"Fractional max pooling, forward and backward, {BATCH} images, one thread",
        [_row(*shape, rounds, advance) for shape in SHAPES],
    )


def _row(
    channels: int, n_in: int, n_out: int, target: float, rounds: int, advance: Callable[[], None]
) -> dict[str, Cell]:
    nchw = torch.rand(BATCH, channels, n_in, n_in)
    nhwc = nchw.contiguous(memory_format=torch.channels_last)
    gradient = torch.rand(BATCH, channels, n_out, n_out)
    ours = _forward_backward(
        FractionalMaxPool2d(FMP_RATIO), nhwc, gradient.contiguous(memory_format=torch.channels_last)
    )
    passes = {
        "torch": _forward_backward(nn.FractionalMaxPool2d(2, output_size=n_out), nchw, gradient),
        "first": ours,
        "ours": ours,
        "clone": nhwc.clone,
    }
    sides = {name: timed(passes[name], WARM_UP[name]) for name in TIMES}
    for side in sides.values():
        side(3)
    seconds = interleave(sides, TIMES, rounds, advance)
    milliseconds = {name: 1000 * median(values) for name, values in seconds.items()}
    return {
        "map": f"{channels} channels, {n_in} -> {n_out}",
        "ours, ms": milliseconds["ours"],
        "torch, ms": milliseconds["torch"],
        "clone, ms": milliseconds["clone"],
        "faster than torch": Figure(speed_up(seconds["torch"], seconds["ours"]), target),
        "times, first pass": speed_up(seconds["torch"], seconds["first"]),
        "slower than a clone": Figure(speed_up(seconds["ours"], seconds["clone"]), 3.0, at_most=True, aim=True),
    }


def _forward_backward(pool: nn.Module, x: Tensor, gradient: Tensor) -> Callable[[], object]:
    x = x.detach().requires_grad_()
    return lambda: torch.autograd.grad(pool(x), x, gradient)
