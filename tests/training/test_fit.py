"""The training loop: its steps and modes, when it waits for the device, and `fit`."""

from __future__ import annotations

import doctest
import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hybrid_mobilenet.data import dataset
from hybrid_mobilenet.data import splits as splits_module
from hybrid_mobilenet.data.dataset import ImageDataset, normalisation
from hybrid_mobilenet.data.splits import Splits, load_data
from hybrid_mobilenet.network.model import HybridMobileNet
from hybrid_mobilenet.training import batches, recipe, start, step
from hybrid_mobilenet.training import evaluate as evaluate_module
from hybrid_mobilenet.training import fit as fit_module
from hybrid_mobilenet.training import run as training
from hybrid_mobilenet.training.evaluate import evaluate
from hybrid_mobilenet.training.fit import fit
from hybrid_mobilenet.training.run import train
from hybrid_mobilenet.training.setup import TrainingDiverged
from hybrid_mobilenet.training.step import learning_rates
from processes import run_python
from runs import RECIPE, SMALL, STEPS, Quiet, before_step, poison, refuses


def test_each_step_has_its_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    before_step(monkeypatch, lambda _taken, _model, optimizer: rates.append(optimizer.param_groups[0]["lr"]))
    train(SMALL, tmp_path / "run", Quiet())
    assert rates == [learning_rates(RECIPE, step / (3 * STEPS)).features for step in range(3 * STEPS)]


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


def test_balanced_sampling_repeats_images_of_small_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_data("digits", image_size=8, channels=1)
    small = (digits.train.labels > 0) | (torch.arange(len(digits.train)) % 20 == 0)
    train = digits.train.subset(small)
    train.read("training", None)
    counts = torch.bincount(train.labels)
    assert counts[0] < 10
    seen: list[torch.Tensor] = []
    labelled = ImageDataset.labelled

    def watched(dataset: ImageDataset, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(rows)
        return labelled(dataset, rows)

    monkeypatch.setattr(ImageDataset, "labelled", watched)
    recipe = replace(RECIPE, epochs=2, batch_size=100, balance="sampling")
    fit(network(), train, recipe, seed=1, device="cpu")
    drawn = torch.bincount(train.labels[torch.cat(seen)])
    assert drawn.max() - drawn.min() <= 2  # one for each epoch
    assert len(torch.cat(seen)) == 2 * (len(train) // 100 * 100)  # an epoch is as long as without


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Validation losses of the epochs to come, in place of those of the model. The model's weights are real."""
    values: list[float] = []
    monkeypatch.setattr(fit_module, "evaluate", lambda *a, **b: replace(evaluate(*a, **b), loss=values.pop(0)))
    return values


@pytest.mark.parametrize(
    ("values", "patience", "epochs"),
    [
        ([3.0, 2.0, 2.0, 2.5, 1.0], 2, 4),  # an equal loss is not an improvement
        ([3.0, 2.0, 2.5, 1.9, 2.0, 2.0, 1.0], 2, 6),
        ([1.0, 2.0, 3.0], 1, 2),
        ([1.0, 2.0, 3.0], 3, 3),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0, 5),
    ],
)
def test_patience(losses: list[float], digits: Splits, values: list[float], patience: int, epochs: int) -> None:
    losses[:] = values
    recipe = replace(RECIPE, epochs=len(values), batch_size=500, patience=patience)
    history = fit(network(), digits.train, recipe, validation=digits.test, device="cpu")
    assert [record["validation_loss"] for record in history] == values[:epochs]


def test_the_weights_of_the_best_epoch(losses: list[float], digits: Splits) -> None:
    """They are those of a run whose schedule is the same and which stops there."""
    losses[:] = [2.0, 1.0, 1.0, 3.0]
    recipe = replace(RECIPE, epochs=4, batch_size=500, keep="best")
    model = network()
    assert len(fit(model, digits.train, recipe, validation=digits.test, seed=3, device="cpu")) == 4
    losses[:] = [1.0, 2.0]
    stopped, last = network(), replace(recipe, patience=1, keep="last")
    assert len(fit(stopped, digits.train, last, validation=digits.test, seed=3, device="cpu")) == 2
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, stopped.state_dict()[name]), name


@pytest.mark.parametrize("change", [{"patience": 3}, {"keep": "best"}])
def test_fit_needs_validation_images_to_compare_epochs(digits: Splits, change: dict[str, Any]) -> None:
    (name,) = change
    refuses(ValueError, lambda: fit(network(), digits.train, replace(RECIPE, **change)), f"{name} is", "validation")


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often a value is asked for, which is when a host waits for its GPU."""

    count = 0

    def __torch_dispatch__(self, operator: Any, _types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.count += operator is torch.ops.aten._local_scalar_dense.default
        return operator(*arguments, **(options or {}))


@pytest.mark.slow
def test_values_are_asked_for_at_the_end_of_an_epoch_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, counts = Waits(), []  # type: ignore[no-untyped-call]
    before_step(monkeypatch, lambda _taken, _model, _optimizer: counts.append(waits.count))
    with waits:
        train(SMALL, tmp_path / "run", Quiet())
    by_epoch = [counts[start : start + STEPS] for start in range(0, 3 * STEPS, STEPS)]
    assert all(len(set(epoch)) == 1 for epoch in by_epoch), counts
    assert len(set(counts)) == 3  # it does count


# fit


def network(classes: int = 10) -> HybridMobileNet:
    torch.manual_seed(1)
    return HybridMobileNet("fmp", 0.25, 1, classes, 1, (8, 8), mean=(0.3,), std=(0.4,))


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load_data("digits", image_size=8, channels=1, validation=0.1)


def test_fit_trains_in_place_and_leaves_the_process_alone(digits: Splits) -> None:
    model = network()
    model.fractional_max_pools()[0].generator = generator = torch.Generator().manual_seed(3)
    state = torch.get_rng_state()
    monitor = Quiet()
    history = fit(model, digits.train, RECIPE, validation=digits.validation, seed=7, monitor=monitor)
    assert torch.equal(torch.get_rng_state(), state)
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert history == monitor.epochs
    assert history[2]["loss"] < history[0]["loss"]
    assert not any(module.training for module in model.modules())
    assert model.fractional_max_pools()[0].generator is generator
    assert digits.validation is not None
    held_out = evaluate(model, digits.validation, seed=7)  # with the statistics of more images than in training
    assert held_out.loss == pytest.approx(history[2]["validation_loss"], rel=0.1)


def test_fit_is_decided_by_its_seed_and_the_weights(digits: Splits) -> None:
    recipe = replace(RECIPE, epochs=1)

    def after(seed: int) -> list[torch.Tensor]:
        model = network()
        fit(model, digits.train, recipe, seed=seed)
        return list(model.state_dict().values())

    first, same, other = after(0), after(0), after(1)
    assert all(map(torch.equal, first, same))
    assert not all(map(torch.equal, first, other))


def test_a_run_is_fit_with_files(tmp_path: Path) -> None:
    """The same weights come out, if the model starts with the same weights and random state."""
    train(replace(SMALL, seed=5), tmp_path / "run", Quiet())
    torch.manual_seed(5)
    splits = load_data("digits", image_size=8, channels=1, validation=0.1, seed=5)
    mean, std = normalisation(splits.train)
    model = HybridMobileNet("fmp", 0.25, 1, 10, 1, (8, 8), mean=mean, std=std)
    started = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "manual_seed", lambda _seed: torch.set_rng_state(started))
        history = fit(model, splits.train, RECIPE, validation=splits.validation, seed=5)
    expected = HybridMobileNet.from_pretrained(tmp_path / "run").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for key in ("epoch", "loss", "accuracy", "learning_rate", "validation_loss", "validation_accuracy"):
        assert [line[key] for line in lines] == [record[key] for record in history]


def test_ctrl_c_in_fit_is_a_keyboard_interrupt(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    handler, state = signal.getsignal(signal.SIGINT), torch.get_rng_state()
    before = [tensor.clone() for tensor in model.parameters()]
    before_step(
        monkeypatch, lambda taken, _model, _optimizer: signal.raise_signal(signal.SIGINT) if taken == 2 else None
    )
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(model, digits.train, RECIPE)
    assert type(caught.value) is KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(before[0], next(model.parameters()))  # two steps were taken


def test_fit_diverges_in_one_line(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    before_step(monkeypatch, poison("features.conv.conv.weight"))
    refuses(TrainingDiverged, lambda: fit(network(), digits.train, RECIPE), "diverged in epoch 2", "than 0.001")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"image_size": 16}, "dataset has the image size (16, 16), but the model has (8, 8)"),
        ({"channels": 3}, "dataset has the channels 3, but the model has 1"),
    ],
)
def test_fit_refuses_images_that_do_not_fit_the_model(change: dict[str, int], part: str) -> None:
    other = load_data("digits", **({"image_size": 8, "channels": 1} | change)).train  # type: ignore[arg-type]
    refuses(ValueError, lambda: fit(network(), other, RECIPE), part)


def test_fit_refuses_what_cannot_be(digits: Splits) -> None:
    model = network()
    refuses(ValueError, lambda: fit(network(classes=3), digits.train), "class names", "('0', '1', '2')")
    refuses(ValueError, lambda: fit(model, digits.train, seed=-1), "seed is -1")
    refuses(ValueError, lambda: fit(model, digits.train, device="cuda:99"), "--device is 'cuda:99'")
    bf16 = replace(RECIPE, precision="bf16")
    refuses(ValueError, lambda: fit(model, digits.train, bf16, device="cpu"), "precision is 'bf16'")


def test_arguments_of_another_type_are_refused(digits: Splits) -> None:
    model, images = network(), digits.train
    everything: Any = digits
    text: Any = "runs/x"
    refuses(ValueError, lambda: fit(model, everything), "dataset is Splits", "load_data(...).train")
    nothing: Any = None
    refuses(ValueError, lambda: fit(model, nothing), "dataset is None", "load_data(...).train")
    refuses(ValueError, lambda: fit(model, images, validation=everything), "dataset is Splits", ".validation")
    refuses(ValueError, lambda: fit(text, images), "model is 'runs/x'", "from_pretrained")
    refuses(ValueError, lambda: fit(model, images, text), "recipe is 'runs/x'", "paper_recipe")
    refuses(ValueError, lambda: evaluate(model, text), "dataset is 'runs/x'", "load_data(...).train")
    refuses(ValueError, lambda: evaluate(text, images), "model is 'runs/x'", "from_pretrained")


@pytest.mark.parametrize(
    "module", [fit_module, training, step, evaluate_module, recipe, batches, start, dataset, splits_module]
)
def test_examples(module: ModuleType) -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted > 0
    assert failed == 0


@pytest.mark.slow
def test_training_does_not_import_torch_dynamo(tmp_path: Path) -> None:
    """Its import takes nearly as long as torch's own."""
    script = (
        "import sys; from dataclasses import replace; from runs import RECIPE, SMALL\n"
        "from hybrid_mobilenet import HybridMobileNet, train\n"
        "from hybrid_mobilenet.training.step import make_optimizer\n"
        "train(replace(SMALL, family='mobilenet', recipe=replace(RECIPE, epochs=1)), sys.argv[1])\n"
        "train(replace(SMALL, family='fmp', recipe=replace(RECIPE, epochs=1)), sys.argv[1] + '-fmp')\n"
        "train(replace(SMALL, recipe=replace(RECIPE, epochs=1, optimizer='sgd')), sys.argv[1] + '-sgd')\n"
        "for recipe in (RECIPE, replace(RECIPE, optimizer='sgd')):\n"
        "    optimizer = make_optimizer(HybridMobileNet.from_pretrained(sys.argv[1]), recipe)\n"
        "    optimizer.load_state_dict(optimizer.state_dict())\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    done = run_python("-c", script, tmp_path / "run")
    assert done.returncode == 0, done.stderr
