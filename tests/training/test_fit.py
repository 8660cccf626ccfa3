"""The training loop: its steps and modes, when it waits for the device, and `fit`."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hybrid_mobilenet.network.architecture import FAMILIES, Family
from hybrid_mobilenet.network.model import HybridMobileNet
from hybrid_mobilenet.training import fit as fit_module
from hybrid_mobilenet.training.cuda_graph import STEPS_BEFORE, CapturedSteps
from hybrid_mobilenet.training.evaluate import evaluate
from hybrid_mobilenet.training.fit import Training
from hybrid_mobilenet.training.meter import Meter
from hybrid_mobilenet.training.recipe import Precision
from hybrid_mobilenet.training.run import train
from hybrid_mobilenet.training.step import learning_rate
from runs import (
    RECIPE,
    SMALL,
    STEPS,
    Quiet,
    before_step,
    weights,
)


def test_each_step_has_its_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    before_step(monkeypatch, lambda _taken, _model, optimizer: rates.append(optimizer.param_groups[0]["lr"]))
    train(SMALL, tmp_path / "run", Quiet())
    assert rates == [learning_rate(SMALL.recipe, step / (3 * STEPS)) for step in range(3 * STEPS)]


def test_the_last_epochs_may_have_fixed_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[tuple[bool, set[bool]]] = []

    def look(_taken: int, model: HybridMobileNet, _optimizer: object) -> None:
        modes.append((model.training, {pool.training for pool in model.fractional_max_pools()}))

    before_step(monkeypatch, look)
    train(replace(SMALL, recipe=replace(RECIPE, fixed_epochs=2)), tmp_path / "run", Quiet())
    assert modes == [(True, {True})] * STEPS + [(True, {False})] * 2 * STEPS


def test_seconds_leave_the_evaluation_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(1.5)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(fit_module, "evaluate", slowly)
    monitor = Quiet()
    train(replace(SMALL, recipe=replace(RECIPE, epochs=1, batch_size=1000)), tmp_path / "run", monitor)
    (record,) = monitor.epochs
    assert record["evaluation_seconds"] >= 1.5
    assert record["seconds"] < record["evaluation_seconds"]


def test_without_validation(tmp_path: Path) -> None:
    monitor = Quiet()
    train(replace(SMALL, validation=0, recipe=replace(RECIPE, epochs=2)), tmp_path / "run", monitor)
    assert all("validation_loss" not in record for record in monitor.epochs)
    assert HybridMobileNet.from_pretrained(tmp_path / "run").training_record["images"] == 1797 - 359
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often a value is asked for, which is when a host waits for its GPU."""

    count = 0

    def __torch_dispatch__(self, operator: Any, _types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.count += operator is torch.ops.aten._local_scalar_dense.default
        return operator(*arguments, **(options or {}))


def test_values_are_asked_for_at_the_end_of_an_epoch_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, counts = Waits(), []  # type: ignore[no-untyped-call]
    before_step(monkeypatch, lambda _taken, _model, _optimizer: counts.append(waits.count))
    with waits:
        train(SMALL, tmp_path / "run", Quiet())
    by_epoch = [counts[start : start + STEPS] for start in range(0, 3 * STEPS, STEPS)]
    assert all(len(set(epoch)) == 1 for epoch in by_epoch), counts
    assert len(set(counts)) == 3  # it does count


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_is_not_waited_for_within_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    take, look, replayed = CapturedSteps.take, Meter.read, 0

    def watched_take(steps: CapturedSteps) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal replayed
        if steps._graph is not None:
            torch.cuda.set_sync_debug_mode("error")
            replayed += 1
        return take(steps)

    def free_look(*arguments: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        look(*arguments)

    monkeypatch.setattr(CapturedSteps, "take", watched_take)
    monkeypatch.setattr(Meter, "read", free_look)
    train(replace(SMALL, recipe=replace(RECIPE, precision=precision)), tmp_path / "run", Quiet())
    assert HybridMobileNet.from_pretrained(tmp_path / "run").training_record["device"] == "cuda:0"
    assert replayed == 3 * STEPS - STEPS_BEFORE - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_from_tables_are_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    # Dropout draws from the generator of the regions here, and on a GPU from another. The last epoch's are fixed.
    setup = replace(SMALL, family=family, recipe=replace(RECIPE, dropout=0, fixed_epochs=1))
    exact = learning_rate
    # A table's learning rates are float32.
    monkeypatch.setattr(fit_module, "learning_rate", lambda recipe, done: torch.tensor(exact(recipe, done)).item())
    train(setup, tmp_path / "one-by-one", Quiet())
    monkeypatch.setattr(Training, "is_captured", property(lambda _: True))
    train(setup, tmp_path / "from-tables", Quiet())
    assert weights(tmp_path / "from-tables") == weights(tmp_path / "one-by-one")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_replayed_graph_trains_as_single_steps_do(tmp_path: Path) -> None:
    setup = replace(SMALL, recipe=replace(RECIPE, dropout=0, epochs=2, learning_rate=1e-4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "is_captured", property(lambda _: False))
        train(setup, tmp_path / "one-by-one", Quiet())
    train(setup, tmp_path / "captured", Quiet())
    one, graph = (
        [json.loads(line) for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]
        for out in ("one-by-one", "captured")
    )
    for ours, theirs in zip(graph, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
