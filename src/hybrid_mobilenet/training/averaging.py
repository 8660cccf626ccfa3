"""A moving average of the weights, which is often better than the last weights (Polyak and Juditsky, 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average of a model's parameters, on its device.

    Args:
        model: the average starts with its present parameters.
        decay: share of the average that a step keeps, in (0, 1). The first steps keep less, so that the parameters the
            model was initialised with are soon forgotten.

    Attributes:
        tensors: the average of each parameter, by name.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.tensors: dict[str, Tensor] = {name: parameter.clone() for name, parameter in self._parameters.items()}

    def update(self, step: int) -> None:
        """Add the parameters after a step, counted from 1."""
        decay = min(self.decay, step / (step + 9))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._parameters.values()), 1 - decay)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """The model has the average in place of its parameters."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        """Exchange the average and the model's parameters."""
        for name, parameter in self._parameters.items():
            kept = parameter.clone()
            parameter.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)
