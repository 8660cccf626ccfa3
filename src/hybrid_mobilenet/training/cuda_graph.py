"""Training steps as replays of one CUDA graph.

A step of a small network is a few hundred kernels of a few microseconds each, and the host takes longer to launch a
kernel than the GPU to run it. A graph is launched as a whole. A replay always does the same, so everything that differs
between steps is in tables on the GPU with one row per step. The graph reads the next row and advances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from ..network.model import HybridMobileNet
from .augmentation import DRAWS

#: Steps before the capture, launched kernel by kernel, in which kernels are compiled and chosen.
STEPS_BEFORE = 3


class CapturedSteps:
    """The training steps of a model whose images are on its device.

    On a CPU, the same steps are taken one operation at a time.

    Args:
        model: on its device. During a step, its fractional max pooling reads its regions from a table.
        optimizer: of the model's parameters; its learning rate becomes a tensor on the device.
        fetch: from image numbers, int64 (batch_size,), to images and labels. It must not wait for the device.
        step: from images, labels and random numbers to loss and hits, a training step. It must not wait for the
            device.
        steps: of an epoch, the most that can be scheduled at once.
        batch_size: images of a step.
        augmented: images of a step that are augmented: `batch_size` or 0.
    """

    def __init__(
        self,
        model: HybridMobileNet,
        optimizer: torch.optim.Optimizer,
        fetch: Callable[[Tensor], tuple[Tensor, Tensor]],
        step: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
        steps: int,
        batch_size: int,
        augmented: int = 0,
    ) -> None:
        self._fetch, self._step, self._pools = fetch, step, model.fractional_max_pools()
        self._device = device = model.mean.device
        pooled = [layer for layer in model.network.layers if layer.kind == "fractional_max_pool"]
        self._sizes = [layer.in_size for layer in pooled]
        lengths = [side + 1 for layer in pooled for side in layer.out_size]
        self._row = torch.zeros(1, dtype=torch.int64, device=device)
        self._numbers = torch.zeros(steps, batch_size, dtype=torch.int64, device=device)
        self._draws = torch.zeros(steps, augmented, DRAWS, device=device)
        self._regions = torch.zeros(steps, sum(lengths), dtype=torch.int64, device=device)
        self._rates = torch.zeros(steps, device=device)
        self._rate = torch.zeros((), device=device)
        self._drawn = torch.zeros(1, sum(lengths), dtype=torch.int64, device=device)
        parts = torch.split(self._drawn[0], lengths)
        self._drawn_of_pools = list(zip(parts[0::2], parts[1::2], strict=True))
        for group in optimizer.param_groups:
            group["lr"] = self._rate
            group["capturable"] = device.type == "cuda"
        self._taken = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: tuple[Tensor, Tensor] = (self._rate, self._rate)

    def schedule(self, batches: Tensor, rates: Sequence[float], draws: Tensor | None = None) -> None:
        """Fill the tables for the next steps, and draw their regions: step by step, of each pool rows, then columns.

        After the last step of a whole epoch, the first follows again.

        Args:
            batches: numbers of the images of each step, int64 (steps, batch_size).
            rates: the learning rate of each step.
            draws: random numbers of the augmentation, (steps, augmented, DRAWS).
        """
        count = len(batches)
        self._row.zero_()
        self._numbers[:count].copy_(batches)
        if draws is not None:
            self._draws[:count].copy_(draws)
        self._rates[:count].copy_(torch.tensor(rates))
        if self._pools:
            self._regions[:count].copy_(torch.stack([self._draw() for _ in range(count)]))

    def capture(self) -> None:
        """On a GPU, take steps until the graph is captured."""
        while self._device.type == "cuda" and self._graph is None:
            self.take()

    def take(self) -> tuple[Tensor, Tensor]:
        """Take the next step; returns its loss and hits on the device, which the following step overwrites."""
        self._taken += 1
        if self._device.type == "cpu":
            self._result = self._take_row()
        elif self._graph is not None:
            self._graph.replay()
        elif self._taken <= STEPS_BEFORE:
            # On another stream, as PyTorch requires: autograd's first work on a stream must not be captured.
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._result = self._take_row()
            torch.cuda.current_stream().wait_stream(aside)
        else:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = self._take_row()
            self._graph.replay()
        return self._result

    def _draw(self) -> Tensor:
        return torch.cat(
            [regions for pool, size in zip(self._pools, self._sizes, strict=True) for regions in pool.regions(size)]
        )

    def _take_row(self) -> tuple[Tensor, Tensor]:
        """Take the step of the current row of the tables, and advance."""
        numbers = self._numbers.index_select(0, self._row)[0]
        draws = self._draws.index_select(0, self._row)[0]
        self._rate.copy_(self._rates.index_select(0, self._row)[0])
        self._drawn.copy_(self._regions.index_select(0, self._row))
        self._row.add_(1).remainder_(len(self._rates))
        with ExitStack() as stack:
            for pool, regions in zip(self._pools, self._drawn_of_pools, strict=True):
                stack.enter_context(pool.using(*regions))
            return self._step(*self._fetch(numbers), draws)
