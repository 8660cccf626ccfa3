"""Runs: what they learn, what they leave behind, and what is left of them when they are stopped at the worst moment."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

import hybrid_mobilenet.training.evaluate
from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.common import files
from hybrid_mobilenet.data.dataset import load, load_test
from hybrid_mobilenet.layers import batch_norm, depthwise, pointwise
from hybrid_mobilenet.network.architecture import FAMILIES, Family, resolve
from hybrid_mobilenet.network.model import HybridMobileNet
from hybrid_mobilenet.training import run as training
from hybrid_mobilenet.training.checkpoint import CHECKPOINT_FILE, CheckpointError, read_checkpoint
from hybrid_mobilenet.training.cuda_graph import STEPS_BEFORE, CapturedSteps
from hybrid_mobilenet.training.evaluate import evaluate
from hybrid_mobilenet.training.processes import Processes
from hybrid_mobilenet.training.recipe import PAPER, Precision, Recipe, derived_seed
from hybrid_mobilenet.training.run import Interrupted, Setup, TrainingDiverged, learning_rate, resume, train

ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(hybrid_mobilenet.__file__).parents[1]),
    "COLUMNS": "80",
    "OMP_NUM_THREADS": "1",
}

#: The smallest network with random regions; 3 epochs of 5 steps.
RECIPE = Recipe(epochs=3, batch_size=256, learning_rate=0.001)
SMALL = Setup("digits", "fmp", 0.25, 1, (8, 8), 1, recipe=RECIPE)
OPTIONS = ["--family", "fmp", "--alpha", "0.25", "--delta", "1", "--image-size", "8", "--in-channels", "1"]
OPTIONS += ["--epochs", "3", "--learning-rate", "0.001", "--fixed-epochs", "0"]
STEPS = 5
FINISHED = ["config.json", "curves.png", "evaluation.json", "metrics.jsonl", "model.safetensors", "split.json"]


class Quiet:
    """A monitor that keeps what it is told."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, Any]] = []
        self.starts: list[tuple[int, int]] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def on_data(self, what: str, done: int, total: int) -> None: ...

    def on_start(self, epoch: int, epochs: int, step: int, steps: int, batch_size: int) -> None:  # noqa: ARG002
        self.starts.append((epoch, step))

    def on_step(self, loss: float, step: int) -> None: ...

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.epochs.append(record)

    def on_note(self, note: str) -> None:
        self.notes.append(note)

    def on_warning(self, warning: str) -> None:
        self.warnings.append(warning)


class Killed(BaseException):
    """Stands for a kill: no code of the package handles it."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of SMALL that nobody disturbed."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(SMALL, out, Quiet())
    return out


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def before_step(monkeypatch: pytest.MonkeyPatch, act: Callable[[int, Any, torch.optim.Optimizer], None]) -> None:
    """Call `act` with the number of steps taken, the model and the optimiser, before each step."""
    take_step = training.train_step
    taken = 0

    def step(fabric: Any, model: Any, optimizer: Any, images: Any, labels: Any) -> Any:
        nonlocal taken
        act(taken, model.module, optimizer)
        taken += 1
        return take_step(fabric, model, optimizer, images, labels)

    monkeypatch.setattr(training, "train_step", step)


def stopped(out: Path, at: int, how: Callable[[], None], kind: type[BaseException], setup: Setup = SMALL) -> Path:
    """A run that something happened to before step `at`."""
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, lambda taken, _model, _optimizer: how() if taken == at else None)
        with pytest.raises(kind):
            train(setup, out, Quiet())
    return out


def kill() -> None:
    raise Killed


# What a run does


def test_the_learning_rate_falls_as_a_cosine_or_stays() -> None:
    recipe = Recipe(learning_rate=0.01)
    assert [learning_rate(recipe, done) for done in (0, 0.5, 1)] == pytest.approx([0.01, 0.005, 0])
    falling = [learning_rate(recipe, done / 100) for done in range(101)]
    assert falling == sorted(falling, reverse=True)
    constant = replace(recipe, schedule="constant")
    assert {learning_rate(constant, done) for done in (0, 0.3, 1)} == {0.01}


def test_each_step_has_its_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    before_step(monkeypatch, lambda _taken, _model, optimizer: rates.append(optimizer.param_groups[0]["lr"]))
    train(SMALL, tmp_path / "run", Quiet())
    assert rates == [learning_rate(SMALL.recipe, step / (3 * STEPS)) for step in range(3 * STEPS)]


def test_weights_decay_and_nothing_else() -> None:
    model = HybridMobileNet(resolve("fmp", 0.25, 2, 10, 1, (8, 8)), class_names=[str(digit) for digit in range(10)])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    training.adam(model, replace(PAPER, learning_rate=0.1, weight_decay=0.5)).step()
    for name, parameter in model.named_parameters():
        decays = name.endswith((".conv.weight", ".linear.weight"))
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decays else 1))


def test_without_decay_it_is_adam() -> None:
    recipe = replace(PAPER, learning_rate=0.01, weight_decay=0.0)
    reference = torch.nn.Conv2d(3, 4, 3)
    ours = deepcopy(reference)
    optimizers = [
        torch.optim.Adam(reference.parameters(), 0.01, (recipe.beta1, recipe.beta2), recipe.epsilon),
        training.adam(ours, recipe),
    ]
    images = torch.randn(2, 3, 5, 5)
    for _ in range(3):
        for model, optimizer in zip((reference, ours), optimizers, strict=True):
            optimizer.zero_grad()
            model(images).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), reference.state_dict())


def test_other_epochs_keep_the_share_of_fixed_regions() -> None:
    recipe = replace(PAPER, epochs=40, fixed_epochs=8)
    assert recipe.with_epochs(20) == replace(recipe, epochs=20, fixed_epochs=4)
    assert recipe.with_epochs(1) == replace(recipe, epochs=1, fixed_epochs=0)


def test_a_short_run_learns(tmp_path: Path) -> None:
    recipe = Recipe(epochs=5, batch_size=32, learning_rate=0.003)
    evaluation = train(Setup("digits", "mobilenet", 0.25, 1, (16, 16), 1, recipe=recipe), tmp_path / "run", Quiet())
    assert evaluation.images == 359
    assert evaluation.accuracy > 0.35  # chance is 0.1


def test_a_finished_run_holds_what_is_promised(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == FINISHED
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert evaluation["accuracy"] == evaluation["correct"] / evaluation["images"]
    assert 0 <= evaluation["accuracy"] <= 1
    assert sum(map(sum, evaluation["confusion"])) == evaluation["images"] == 359
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    model = HybridMobileNet.from_pretrained(finished)
    record = model.training_record
    images = len(load("digits", image_size=8, channels=1, validation=0.1).train)
    assert {key: record[key] for key in ("data", "family", "seed", "images", "threads", "device")} == {
        "data": "digits", "family": "fmp", "seed": 0, "images": images, "threads": 1, "device": "cpu",
    }  # fmt: skip
    assert record["recipe"]["dropout"] == 0.1
    assert len(record["data_fingerprint"]) == 64
    assert record["torch"] == torch.__version__


def test_metrics_have_a_line_per_epoch(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert list(line) == [
            "epoch", "loss", "accuracy", "learning_rate", "images_per_second", "seconds", "step_seconds",
            "validation_loss", "validation_accuracy", "evaluation_seconds",
        ]  # fmt: skip
        assert 0 < line["step_seconds"] < line["seconds"]
        assert line["evaluation_seconds"] > 0
        assert line["images_per_second"] == pytest.approx(STEPS * 256 / line["step_seconds"])
    assert lines[-1] == HybridMobileNet.from_pretrained(finished).training_record["last_epoch"]


def test_seconds_leave_the_evaluation_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(1.5)
        return hybrid_mobilenet.training.evaluate.evaluate(*arguments, **options)

    monkeypatch.setattr(training, "evaluate", slowly)
    monitor = Quiet()
    train(replace(SMALL, recipe=replace(RECIPE, epochs=1, batch_size=1000)), tmp_path / "run", monitor)
    (record,) = monitor.epochs
    assert record["evaluation_seconds"] >= 1.5
    assert record["seconds"] < record["evaluation_seconds"]


def test_a_seed_decides_all(finished: Path, tmp_path: Path) -> None:
    train(SMALL, tmp_path / "again", Quiet())
    assert weights(tmp_path / "again") == weights(finished)
    train(replace(SMALL, seed=1), tmp_path / "other", Quiet())
    assert weights(tmp_path / "other") != weights(finished)


@pytest.mark.parametrize("seed", [20241124123456, 2**63, 2**64 - 1])
def test_a_large_seed_is_a_seed_like_others(seed: int, tmp_path: Path) -> None:
    setup = replace(SMALL, seed=seed, recipe=replace(RECIPE, epochs=2, batch_size=500))
    train(setup, tmp_path / "whole", Quiet())
    out = stopped(tmp_path / "stopped", 3, kill, Killed, setup)  # before the second epoch
    resume(out, Quiet())
    assert weights(out) == weights(tmp_path / "whole")
    model = HybridMobileNet.from_pretrained(out)
    assert model.training_record["seed"] == seed
    before = torch.get_rng_state()
    training._separate_randomness(model, seed, Processes(rank=1, size=2))
    torch.set_rng_state(before)


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30])
def test_a_seed_out_of_range(seed: int, tmp_path: Path) -> None:
    rule = f"seed is {seed}, but must be 0 or more and less than 2\\*\\*64"
    with pytest.raises(ValueError, match=rule):
        train(replace(SMALL, seed=seed), tmp_path / "run", Quiet())
    assert not (tmp_path / "run").exists()
    model = HybridMobileNet(resolve("fmp", 0.25, 1, 10, 1, 8))
    with pytest.raises(ValueError, match=rule):
        evaluate(model, load_test("digits", image_size=8, channels=1), 2, seed)


def test_seeds_of_draws_are_what_they_were() -> None:
    assert [derived_seed(seed, 4) for seed in (0, 1, 42, 10**12)] == [4, 1_000_007, 42_000_130, 10**12 * 1_000_003 + 4]
    assert {derived_seed(2**64 - 1, number) < 2**64 for number in range(2_000_000, 2_000_010)} == {True}


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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_looks_at_no_value(family: Family) -> None:
    with torch.device("meta"):  # where tensors have no values
        model = HybridMobileNet(resolve(family, 0.25, 2, 10)).train()
        images, labels = torch.empty(4, 3, 32, 32, dtype=torch.uint8), torch.empty(4, dtype=torch.int64)
    fabric = Fabric(accelerator="cpu", devices=1)
    module, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), 0.1), move_to_device=False)
    loss, hits = training.train_step(fabric, module, optimizer, images, labels)
    assert (loss.device.type, loss.shape, hits.shape) == ("meta", (), ())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_is_not_waited_for_within_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    take, look, replayed = CapturedSteps.take, training._Run.check_finite, 0

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
    monkeypatch.setattr(training._Run, "check_finite", free_look)
    train(replace(SMALL, recipe=replace(RECIPE, precision=precision)), tmp_path / "run", Quiet())
    assert HybridMobileNet.from_pretrained(tmp_path / "run").training_record["device"] == "cuda:0"
    assert replayed == 3 * STEPS - STEPS_BEFORE - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_from_tables_are_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    # Dropout draws from the generator of the regions here, and on a GPU from another. The last epoch's are fixed.
    setup = replace(SMALL, family=family, recipe=replace(RECIPE, dropout=0, fixed_epochs=1))
    exact = training.learning_rate
    # A table's learning rates are float32.
    monkeypatch.setattr(training, "learning_rate", lambda recipe, done: torch.tensor(exact(recipe, done)).item())
    train(setup, tmp_path / "one-by-one", Quiet())
    monkeypatch.setattr(training._Run, "is_captured", property(lambda _: True))
    train(setup, tmp_path / "from-tables", Quiet())
    assert weights(tmp_path / "from-tables") == weights(tmp_path / "one-by-one")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_replayed_graph_trains_as_single_steps_do(tmp_path: Path) -> None:
    setup = replace(SMALL, recipe=replace(RECIPE, dropout=0, epochs=2, learning_rate=1e-4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Run, "is_captured", property(lambda _: False))
        train(setup, tmp_path / "one-by-one", Quiet())
    train(setup, tmp_path / "captured", Quiet())
    one, graph = (
        [json.loads(line) for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]
        for out in ("one-by-one", "captured")
    )
    for ours, theirs in zip(graph, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)


def test_bf16_is_for_gpus(tmp_path: Path) -> None:
    setup = replace(SMALL, recipe=replace(RECIPE, precision="bf16"))
    refuses(
        ValueError, lambda: train(setup, tmp_path / "run", Quiet(), device="cpu"), "'bf16'", "GPU", "--precision fp32"
    )
    assert not (tmp_path / "run").exists()


def test_a_step_in_bf16_leaves_weights_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    # The way of a GPU through the model, on the CPU.
    monkeypatch.setattr(depthwise, "_is_training_on_cpu", lambda *_: False)
    for module in (batch_norm, pointwise):
        monkeypatch.setattr(module, "is_training_on_cpu", lambda *_: False)
    losses = {}
    for precision in get_args(Precision):
        torch.manual_seed(0)
        model = HybridMobileNet(resolve("fmp", 0.25, 1, 10, 1, (8, 8)), dropout=0).train()
        images, labels = torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8), torch.randint(10, (16,))
        fabric = training.engine(precision, Processes())
        module, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters(), 0.003, fused=True))
        losses[precision] = training.train_step(fabric, module, optimizer, images, labels)[0].item()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.2)  # bfloat16 has 8 bits, and there are 27 layers


def test_without_validation(tmp_path: Path) -> None:
    monitor = Quiet()
    train(replace(SMALL, validation=0, recipe=replace(RECIPE, epochs=2)), tmp_path / "run", monitor)
    assert all("validation_loss" not in record for record in monitor.epochs)
    assert HybridMobileNet.from_pretrained(tmp_path / "run").training_record["images"] == 1797 - 359
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000


def test_the_last_epochs_may_have_fixed_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[tuple[bool, set[bool]]] = []

    def look(_taken: int, model: HybridMobileNet, _optimizer: object) -> None:
        modes.append((model.training, {pool.training for pool in model.fractional_max_pools()}))

    before_step(monkeypatch, look)
    train(replace(SMALL, recipe=replace(RECIPE, fixed_epochs=2)), tmp_path / "run", Quiet())
    assert modes == [(True, {True})] * STEPS + [(True, {False})] * 2 * STEPS


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("epochs", 0, "1 or more"),
        ("batch_size", 1, "batch normalisation needs two images"),
        ("learning_rate", 0.0, "above 0 and below 1: try 0.001"),
        ("learning_rate", 1.0, "above 0 and below 1: try 0.001"),
        ("learning_rate", float("nan"), "above 0 and below 1: try 0.001"),
        ("schedule", "linear", "cosine or constant"),
        ("weight_decay", -0.1, "0 or more and below 10: try 0.1"),
        ("weight_decay", float("nan"), "0 or more and below 10: try 0.1"),
        ("dropout", 1.0, "0 or more and below 1"),
        ("dropout", -0.1, "0 or more and below 1"),
        ("activation", "gelu", "relu or relu6"),
        ("sequence", "even", "random or pseudorandom"),
        ("precision", "fp16", "fp32 or bf16"),
        ("fixed_epochs", 61, "between 0 and epochs"),
        ("fixed_epochs", -1, "between 0 and epochs"),
    ],
)
def test_a_recipe_that_cannot_be(field: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} is {value!r}, but must be .*{rule}"):
        replace(PAPER, **{field: value})


# Runs that are stopped


@pytest.mark.parametrize("at", [0, STEPS - 1, STEPS, 2 * STEPS + 3])
def test_a_killed_run_ends_with_the_same_weights(finished: Path, tmp_path: Path, at: int) -> None:
    out = stopped(tmp_path / "run", at, kill, Killed)
    assert sorted(path.name for path in out.iterdir()) == [CHECKPOINT_FILE] + ["metrics.jsonl"] * (at >= STEPS)
    monitor = Quiet()
    resume(out, monitor)
    assert monitor.starts[0] == (at // STEPS, 0)
    assert weights(out) == weights(finished)
    assert sorted(path.name for path in out.iterdir()) == FINISHED


@pytest.mark.parametrize("at", [1, STEPS + 4])
def test_a_run_killed_between_two_saves_within_an_epoch(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    out = stopped(tmp_path / "run", at, kill, Killed)
    monkeypatch.undo()
    assert read_checkpoint(out)[1].step == at % STEPS
    resume(out, monitor := Quiet())
    assert monitor.starts[0] == (at // STEPS, at % STEPS)
    assert weights(out) == weights(finished)
    ours, theirs = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (out, finished)
    )
    for key in ("epoch", "loss", "accuracy", "validation_loss", "validation_accuracy"):
        assert [line[key] for line in ours] == [line[key] for line in theirs]


def test_a_run_goes_on_with_the_device_that_is_named(finished: Path, tmp_path: Path) -> None:
    out = stopped(tmp_path / "run", 2, lambda: signal.raise_signal(signal.SIGINT), Interrupted)
    refuses(ValueError, lambda: resume(out, Quiet(), device="cuda:99"), "--device is 'cuda:99'", "leave it out")
    result = CliRunner().invoke(cli.app, ["train", "--resume", str(out), "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.stderr
    assert weights(out) == weights(finished)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(finished: Path, tmp_path: Path, number: signal.Signals) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    out = stopped(tmp_path / "run", STEPS + 3, lambda: signal.raise_signal(number), Interrupted)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    progress = read_checkpoint(out)[1]
    assert (progress.epoch, progress.step) == (1, 4)  # the step that was under way is finished
    resume(out, Quiet())
    assert weights(out) == weights(finished)


@pytest.mark.parametrize("epoch", [2, 3])
def test_a_signal_between_the_steps_of_two_epochs_or_after_the_last(finished: Path, tmp_path: Path, epoch: int) -> None:
    class Stopping(Quiet):
        def on_epoch(self, record: dict[str, Any]) -> None:
            if record["epoch"] == epoch:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(SMALL, tmp_path / "run", Stopping())
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resume(tmp_path / "run", Quiet())
    assert weights(tmp_path / "run") == weights(finished)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def impatient() -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.6)
        signal.raise_signal(signal.SIGINT)

    out = stopped(tmp_path / "run", STEPS + 3, impatient, KeyboardInterrupt)
    assert read_checkpoint(out)[1].step == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_twice_is_one(tmp_path: Path, number: signal.Signals) -> None:
    """From a terminal or a supervisor that tells all processes of a group, and from the first of them."""

    def twice() -> None:
        signal.raise_signal(number)
        time.sleep(0.05 if number == signal.SIGINT else 0.6)
        signal.raise_signal(number)

    out = stopped(tmp_path / "run", STEPS + 3, twice, Interrupted)
    assert read_checkpoint(out)[1].step == 4


def test_a_run_stopped_many_times(finished: Path, tmp_path: Path) -> None:
    out = stopped(tmp_path / "run", 3, lambda: signal.raise_signal(signal.SIGINT), Interrupted)
    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch:
            before_step(
                patch, lambda taken, _model, _optimizer: signal.raise_signal(signal.SIGTERM) if taken == 2 else None
            )
            with pytest.raises(Interrupted):
                resume(out, Quiet())
    resume(out, Quiet())
    assert weights(out) == weights(finished)


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hybrid_mobilenet", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def stop_in_epoch(epoch: int, out: Path, process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send a signal shortly after an epoch began; returns what the process wrote on stderr."""
    deadline = time.monotonic() + 300
    # The metrics of an epoch are written before its checkpoint.
    while not (out / CHECKPOINT_FILE).exists() or read_checkpoint(out)[1].epoch < epoch - 1:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"epoch {epoch} did not begin in five minutes"
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert stdout == ""
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".tmp") == [CHECKPOINT_FILE, "metrics.jsonl"]
    return stderr


def test_a_process_stopped_by_ctrl_c_then_killed(tmp_path: Path) -> None:
    # Steps of 32 images, so that an epoch is long enough to be hit in its middle.
    setup = replace(SMALL, validation=0, recipe=replace(RECIPE, batch_size=32))
    train(setup, tmp_path / "undisturbed", Quiet())
    out = tmp_path / "run"
    process = start("digits", *OPTIONS, "--batch-size", "32", "--validation", "0", "--out", str(out))
    stderr = stop_in_epoch(2, out, process, signal.SIGINT)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == f"error: stopped and saved; continue with: hybrid-mobilenet train --resume {out}"
    assert "Traceback" not in stderr
    progress = read_checkpoint(out)[1]
    assert progress.epoch == 1
    assert progress.step > 0

    process = start("--resume", str(out))
    stop_in_epoch(3, out, process, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    progress = read_checkpoint(out)[1]
    assert (progress.epoch, progress.step) == (2, 0)

    resume(out, Quiet())
    assert weights(out) == weights(tmp_path / "undisturbed")


# Saving that fails


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    code = (
        "import os, sys; from pathlib import Path; from hybrid_mobilenet.common import files\n"
        "os.fsync = lambda descriptor: os._exit(9)\n"
        "files.write_atomically(Path(sys.argv[1]), b'new' * 1000)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], env=ENVIRONMENT, check=False).returncode == 9
    assert path.read_bytes() == b"old"
    assert [each.suffix for each in sorted(tmp_path.iterdir())] == [".tmp", ""]


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace", "os.open"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "state"
    files.write_atomically(path, b"old")
    monkeypatch.setattr(failing, full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        files.write_atomically(path, b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_as_readable_as_others(tmp_path: Path) -> None:
    files.write_atomically(tmp_path / "ours", b"")
    (tmp_path / "theirs").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int, error: BaseException) -> None:
    """Let the `call`-th call of a function fail, counted from 1."""
    module, _, attribute = name.rpartition(".")
    function = getattr(sys.modules[module], attribute)
    calls = 0

    def fails(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return function(*arguments)

    monkeypatch.setattr(name, fails)


@pytest.mark.parametrize("call", [2, 3, 6, 8, 9, 11])
def test_a_run_survives_a_failure_at_any_save(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    # Saves: the start; metrics and state of 3 epochs; weights, configuration, curves and evaluation.
    out = tmp_path / "run"
    fail_at(monkeypatch, "os.fsync", call, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left on device"):
        train(SMALL, out, Quiet())
    monkeypatch.undo()
    progress = read_checkpoint(out)[1]
    assert progress.epoch == min((call - 2) // 2, 3)
    resume(out, Quiet())
    assert weights(out) == weights(finished)
    assert sorted(path.name for path in out.iterdir()) == FINISHED


def test_what_a_kill_while_saving_left_is_no_state(finished: Path, tmp_path: Path) -> None:
    out = stopped(tmp_path / "run", STEPS + 1, kill, Killed)
    (out / f".{CHECKPOINT_FILE}.abcdefgh.tmp").write_bytes(b"half a checkpoint")
    resume(out, Quiet())
    assert weights(out) == weights(finished)
    assert sorted(path.name for path in out.iterdir()) == FINISHED


def test_a_disk_that_is_really_full(finished: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # The first state, without Adam's moments, takes 0.9 MB; the next, 2.7 MB.
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small tmpfs cannot be mounted here: needs root on Linux")
    try:
        arguments = ["train", "digits", *OPTIONS, "--batch-size", "256", "--out", str(disk / "run"), "--json"]
        result = CliRunner().invoke(cli.app, arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == (
            f"error: {disk / 'run' / CHECKPOINT_FILE}: No space left on device; fix this, then: "
            f"hybrid-mobilenet train --resume {disk / 'run'}\n"
        )
        assert read_checkpoint(disk / "run")[1].epoch == 0
        subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)
        resume(disk / "run", Quiet())
        assert weights(disk / "run") == weights(finished)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def refuses(kind: type[Exception], act: Callable[[], object], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "run", Path("/proc/run")):
        refuses(ValueError, lambda out=out: train(SMALL, out, Quiet()), f"out is '{out}'", "choose another with --out")  # type: ignore[misc]


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refuses(
        ValueError, lambda: train(SMALL, tmp_path / "run", Quiet()), "Permission denied", "choose another with --out"
    )
    refuses(PermissionError, lambda: train(SMALL, tmp_path, Quiet()), "Permission denied", CHECKPOINT_FILE)


def test_nothing_is_overwritten(finished: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    refuses(ValueError, lambda: train(SMALL, finished, Quiet()), f"out is '{finished}'", "--out", "--resume")
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    refuses(ValueError, lambda: train(SMALL, tmp_path / "file", Quiet()), "exists already")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    train(replace(SMALL, recipe=replace(RECIPE, epochs=1)), tmp_path, Quiet())
    assert (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"alpha": 0.3}, "alpha is 0.3"),
        ({"delta": 0}, "delta is 0"),
        ({"image_size": (4, 8)}, "image_size is 4x8"),
        ({"channels": 0}, "in_channels is 0"),
        ({"data": "no such data"}, "no such data"),
        ({"validation": 1.0}, "validation is 1.0"),
    ],
)
def test_a_mistake_leaves_no_folder(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    refuses(ValueError, lambda: train(replace(SMALL, **change), tmp_path / "run", Quiet()), part)
    assert not (tmp_path / "run").exists()


# Divergence


def poison(what: str) -> Callable[[int, HybridMobileNet, object], None]:
    def act(taken: int, model: HybridMobileNet, _optimizer: object) -> None:
        if taken == STEPS + 2:
            tensors = dict(model.named_parameters()) | dict(model.named_buffers())
            with torch.no_grad():
                tensors[what].fill_(float("nan"))

    return act


@pytest.mark.parametrize("what", ["conv.conv.weight", "classifier.linear.bias", "conv.norm.running_var"])
@pytest.mark.parametrize("save_every", [300.0, 0.0])
def test_a_loss_or_weight_that_is_no_number_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, save_every: float
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", save_every)
    before_step(monkeypatch, poison(what))
    out = tmp_path / "run"
    refuses(
        TrainingDiverged, lambda: train(SMALL, out, Quiet()), "diverged in epoch 2", "lower --learning-rate than 0.001"
    )
    _, progress, tensors = read_checkpoint(out)
    assert (progress.epoch, progress.step) == ((1, 2) if save_every == 0 else (1, 0))
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert sorted(path.name for path in out.iterdir()) == [CHECKPOINT_FILE, "metrics.jsonl"]


def test_divergence_in_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_step(monkeypatch, poison("conv.conv.weight"))
    arguments = ["train", "digits", *OPTIONS, "--batch-size", "256", "--out", str(tmp_path / "run"), "--json"]
    result = CliRunner().invoke(cli.app, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: training diverged in epoch 2")
    assert result.stderr.count("\n") == 1


# Checkpoints that cannot be resumed from


def test_a_finished_run_is_not_resumed(finished: Path) -> None:
    refuses(CheckpointError, lambda: resume(finished, Quiet()), "is finished", "evaluation.json", "--out")


def test_there_is_nothing_to_resume(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        refuses(CheckpointError, lambda folder=folder: resume(folder, Quiet()), f"no {CHECKPOINT_FILE}", str(folder))  # type: ignore[misc]


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stopped(tmp_path_factory.mktemp("runs") / "unfinished", STEPS, kill, Killed)


@pytest.fixture
def run(unfinished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unfinished, tmp_path / "run"))


def rewritten(
    run: Path, header: dict[str, str] | None = None, tensors: dict[str, torch.Tensor | None] | None = None
) -> None:
    with safe_open(run / CHECKPOINT_FILE, "pt") as file:
        before = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        metadata = file.metadata() | (header or {})
    merged: dict[str, torch.Tensor | None] = before | (tensors or {})
    kept = {name: tensor for name, tensor in merged.items() if tensor is not None}
    save_file(kept, run / CHECKPOINT_FILE, {key: value for key, value in metadata.items() if value})


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_a_truncated_checkpoint(run: Path, size: int) -> None:
    path = run / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:size])
    refuses(CheckpointError, lambda: resume(run, Quiet()), str(path), "damaged", "start the run anew")


def test_a_checkpoint_of_another_program(run: Path) -> None:
    path = run / CHECKPOINT_FILE
    save_file({"weight": torch.zeros(2)}, path)
    refuses(CheckpointError, lambda: resume(run, Quiet()), str(path), "not a checkpoint of hybrid-mobilenet")
    path.write_bytes(b"\x80\x05K\x01.")  # a pickle
    refuses(CheckpointError, lambda: resume(run, Quiet()), str(path), "not a checkpoint of hybrid-mobilenet")


@pytest.mark.parametrize("key", ["setup", "progress"])
@pytest.mark.parametrize("value", ["", "{", "[]", "{}", '{"epoch": 1, "recipes": {}}'])
def test_a_checkpoint_with_another_header(run: Path, key: str, value: str) -> None:
    rewritten(run, {key: value})
    if (key, value) == ("progress", "{}"):  # every field has a default: it is a run at its start
        return
    refuses(CheckpointError, lambda: resume(run, Quiet()), str(run))


def test_a_checkpoint_of_another_version(run: Path) -> None:
    with safe_open(run / CHECKPOINT_FILE, "pt") as file:
        setup = json.loads(file.metadata()["setup"])
    setup["recipe"]["augmentation"] = "none"
    rewritten(run, {"setup": json.dumps(setup)})
    refuses(CheckpointError, lambda: resume(run, Quiet()), str(run), "another version", "augmentation")


@pytest.mark.parametrize("name", ["model.conv.conv.weight", "random.cpu", "optimizer.0.exp_avg"])
def test_a_checkpoint_that_lacks_a_tensor(run: Path, name: str) -> None:
    rewritten(run, tensors={name: None})
    refuses(CheckpointError, lambda: resume(run, Quiet()), "does not fit its own network")


@pytest.mark.parametrize("name", ["model.conv.conv.weight", "optimizer.0.exp_avg", "random.cpu"])
def test_a_checkpoint_with_a_tensor_of_another_shape(run: Path, name: str) -> None:
    rewritten(run, tensors={name: torch.zeros(2, 2)})
    refuses(CheckpointError, lambda: resume(run, Quiet()), "does not fit its own network")


# Small and changing data


def image_folder(root: Path, per_class: int, classes: int = 2) -> Path:
    for label in range(classes):
        folder = root / f"class {label}"
        folder.mkdir(parents=True)
        for index in range(per_class):
            Image.new("RGB", (8, 8), (255 * label, 10 * index, 0)).save(folder / f"{index}.png")
    return root


@pytest.mark.parametrize("validation", [0.0, 0.1])
@pytest.mark.parametrize("per_class", [1, 2, 3, 5])
def test_tiny_data(tmp_path: Path, per_class: int, validation: float) -> None:
    data = image_folder(tmp_path / "data", per_class)
    setup = replace(SMALL, data=str(data), channels=3, validation=validation, recipe=replace(RECIPE, epochs=1))
    if per_class == 1 or (per_class == 2 and validation):
        refuses(ValueError, lambda: train(setup, tmp_path / "run", Quiet()), "split", "images")
        assert not (tmp_path / "run").exists()
    else:
        monitor = Quiet()
        evaluation = train(setup, tmp_path / "run", monitor)
        assert evaluation.images >= 2
        assert monitor.epochs[0]["loss"] > 0


def test_one_image(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", 1, classes=1)
    refuses(ValueError, lambda: train(replace(SMALL, data=str(data)), tmp_path / "run", Quiet()), "one class only")


def test_data_that_changed(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", 6)
    setup = replace(SMALL, data=str(data), recipe=Recipe(epochs=2, batch_size=2))
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, lambda taken, _model, _optimizer: kill() if taken == 1 else None)
        with pytest.raises(Killed):
            train(setup, tmp_path / "run", Quiet())
    for index, image in enumerate((data / "class 0").iterdir()):
        Image.new("RGB", (8, 8), (0, index, 99)).save(image)
    refuses(CheckpointError, lambda: resume(tmp_path / "run", Quiet()), "has changed", "start a new run")
    shutil.rmtree(data)
    refuses(ValueError, lambda: resume(tmp_path / "run", Quiet()), str(data))


def test_a_step_updates_every_parameter_once() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    linear = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(linear.parameters(), 0.5)
    before = {name: parameter.detach().clone() for name, parameter in linear.named_parameters()}
    model, optimizer_set_up = fabric.setup(linear, optimizer)
    images, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    loss, hits = training.train_step(fabric, model, optimizer_set_up, images, labels)
    logits = images @ before["weight"].t() + before["bias"]
    expected = nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, expected)
    assert hits == (logits.argmax(1) == labels).sum()
    gradient = (logits.softmax(1) - nn.functional.one_hot(labels, 2)) / 4
    torch.testing.assert_close(linear.weight.detach(), before["weight"] - 0.5 * gradient.t() @ images)
    torch.testing.assert_close(linear.bias.detach(), before["bias"] - 0.5 * gradient.sum(0))
