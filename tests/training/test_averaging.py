"""The moving average of the weights against a loop in Python."""

from __future__ import annotations

import torch
from torch import nn

from hybrid_mobilenet.training.averaging import WeightAverage


def test_the_average_follows_the_weights() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    expected = model.weight.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(step)
        decay = min(0.9, step / (step + 9))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.tensors["weight"], expected)
    assert not torch.allclose(average.tensors["weight"], model.weight)


def test_the_model_has_the_average_for_a_while() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        model.weight.zero_()
    with average.in_model():
        torch.testing.assert_close(model.state_dict(), start)
    assert not model.weight.any()
    torch.testing.assert_close(average.tensors["weight"], start["weight"])


def test_after_few_steps_little_of_the_start_is_left() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9999)
    with torch.no_grad():
        model.weight.fill_(7.0)
    for step in range(1, 51):
        average.update(step)
    torch.testing.assert_close(average.tensors["weight"], model.weight, rtol=1e-4, atol=1e-4)
