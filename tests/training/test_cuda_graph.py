"""Steps from tables and steps replayed from a CUDA graph train as single steps do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hybrid_mobilenet.network.architecture import FAMILIES, Family
from hybrid_mobilenet.network.model import HybridMobileNet
from hybrid_mobilenet.training import fit as fit_module
from hybrid_mobilenet.training.cuda_graph import STEPS_BEFORE, CapturedSteps
from hybrid_mobilenet.training.fit import Training
from hybrid_mobilenet.training.meter import Meter
from hybrid_mobilenet.training.recipe import Augmentation, Precision
from hybrid_mobilenet.training.run import train
from hybrid_mobilenet.training.step import Rates, learning_rates
from runs import RECIPE, SMALL, STEPS, Quiet, weights


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_is_not_waited_for_within_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    take, read, replayed = CapturedSteps.take, Meter.read, 0

    def watched_take(steps: CapturedSteps) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal replayed
        if steps._graph is not None:
            torch.cuda.set_sync_debug_mode("error")
            replayed += 1
        return take(steps)

    def free_read(meter: Meter) -> float:
        torch.cuda.set_sync_debug_mode("default")
        return read(meter)

    monkeypatch.setattr(CapturedSteps, "take", watched_take)
    monkeypatch.setattr(Meter, "read", free_read)
    train(replace(SMALL, recipe=replace(RECIPE, precision=precision)), tmp_path / "run", Quiet())
    assert HybridMobileNet.from_pretrained(tmp_path / "run").training_record["device"] == "cuda:0"
    assert replayed == 3 * STEPS - STEPS_BEFORE - 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_steps_from_tables_are_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    # Dropout draws from the generator of the regions here, and on a GPU from another. The last epoch's are fixed.
    augmentation = Augmentation(shift=0.2, flips="both", combined=0.5) if family == "fmp" else Augmentation()
    recipe = replace(RECIPE, dropout=0, fixed_epochs=1, augmentation=augmentation)
    setup = replace(SMALL, family=family, recipe=recipe)
    exact = learning_rates
    # A table's learning rates are float32.
    monkeypatch.setattr(
        fit_module, "learning_rates", lambda recipe, done: Rates(*torch.tensor(exact(recipe, done)).tolist())
    )
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
