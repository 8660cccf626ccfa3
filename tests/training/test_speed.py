"""The measured speed of a network."""

from __future__ import annotations

import time

import pytest
import torch

from hybrid_mobilenet.network.architecture import resolve
from hybrid_mobilenet.training import speed
from hybrid_mobilenet.training.recipe import Recipe
from hybrid_mobilenet.training.speed import measure_speed

CPU = torch.device("cpu")
NETWORK = resolve("fmp", 0.25, 1, 10, 1, (8, 8))


def test_a_step_and_an_evaluation_are_timed() -> None:
    state = torch.get_rng_state()
    measured = measure_speed(NETWORK, Recipe(), 16, 100, CPU, 0.05)
    assert 0 < measured.image < measured.step < 10
    assert torch.equal(torch.get_rng_state(), state)


def test_the_time_is_that_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def slow(*_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        time.sleep(0.05)
        return torch.zeros(()), torch.zeros(())

    monkeypatch.setattr(speed, "train_step", slow)
    measured = measure_speed(NETWORK, Recipe(), 16, 1, CPU, 0.0)
    assert calls == speed.WARM_UP + speed.AT_LEAST
    assert 0.05 <= measured.step < 0.5
