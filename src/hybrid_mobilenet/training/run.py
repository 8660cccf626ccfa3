"""Training: one step, one epoch, one run. Killed at any moment, a run resumes and ends with the same weights."""

from __future__ import annotations

import json
import logging
import math
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from .. import __version__
from ..common.devices import choose_device
from ..common.files import remove_left_overs, write_atomically
from ..common.signals import stop_signals
from ..data.dataset import SPLIT_FILE, ImageDataset, Splits, load, normalisation
from ..data.sources import whole_name
from ..layers.sizes import Size
from ..network.architecture import Family, resolve
from ..network.model import HybridMobileNet
from .checkpoint import (
    CHECKPOINT_FILE,
    CheckpointError,
    Progress,
    random_states,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from .cuda_graph import CapturedSteps
from .evaluate import Evaluation, evaluate
from .plots import CURVES_FILE, draw_curves
from .precise_statistics import FINAL_IMAGES, VALIDATION_IMAGES, set_precise_statistics
from .processes import Processes, joined
from .recipe import PAPER, Precision, Recipe, check_seed, derived_seed

METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"

#: Seconds between checkpoints within an epoch.
SAVE_EVERY = 300.0
#: Steps between looks at the loss: each look waits for the device.
LOOK_EVERY = 20
#: An epoch may leave out this share of the images, other ones each time, where they do not fill a batch.
LEFT_OUT = 0.02
#: So much better than a guess, in the mean of the classes, may a network be on few test images that only guesses.
MOST_BY_LUCK = 0.1


class After(IntEnum):
    """What follows a step. The most urgent that any of several processes wants is what all do."""

    STEP = 0
    SAVE = 1
    STOP = 2


class TrainingDiverged(ValueError):  # noqa: N818  the field's word for it
    """The loss is no longer a number."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after the state was saved."""


@dataclass(frozen=True)
class Setup:
    """All that decides the outcome of a run, besides the machine.

    The defaults are the network that the paper recommends. A run records `data` that is a path as an absolute one.
    """

    data: str
    family: Family = "fmp"
    alpha: float = 0.25
    delta: int = 2
    image_size: Size = (32, 32)
    channels: int = 3
    validation: float = 0.1
    seed: int = 0
    recipe: Recipe = PAPER

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Setup:
        """The setup that `asdict` made a JSON record of."""
        size = record["image_size"]
        return cls(**{**record, "image_size": (size[0], size[1]), "recipe": Recipe(**record["recipe"])})


class Monitor(Protocol):
    """Who watches a run. Nothing here decides the outcome."""

    def on_data(self, what: str, done: int, total: int) -> None: ...
    def on_start(self, epoch: int, epochs: int, step: int, steps: int, batch_size: int) -> None: ...
    def on_step(self, loss: float, step: int) -> None: ...
    def on_epoch(self, record: dict[str, Any]) -> None: ...
    def on_note(self, note: str) -> None: ...
    def on_warning(self, warning: str) -> None: ...


def train_step(
    fabric: Fabric, model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Forward, loss, backward and update on one batch.

    Args:
        fabric: engine that set up `model` and `optimizer`.
        model: in train().
        optimizer: of its parameters.
        images: (N, C, H, W), uint8 or floating point in 0..1.
        labels: (N,), int64.

    Returns:
        The mean cross-entropy and the number of images classified rightly, as tensors on the device.
    """
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    optimizer.step()
    return loss.detach(), (logits.argmax(1) == labels).sum()


def adam(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam over the parameters of `model`; with weight decay it is AdamW (Loshchilov and Hutter, 2019).

    Convolutions and the fully connected layer decay. Biases and batch normalisation do not: their scales do not make
    the network simpler, since the next normalisation undoes them.
    """
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, recipe.learning_rate, (recipe.beta1, recipe.beta2), recipe.epsilon, fused=True)


def learning_rate(recipe: Recipe, done: float) -> float:
    """The learning rate when the fraction `done` of all steps is done."""
    scale = 1.0 if recipe.schedule == "constant" else (1 + math.cos(math.pi * done)) / 2
    return recipe.learning_rate * scale


def read_data(setup: Setup, monitor: Monitor) -> Splits:
    """The data of a setup.

    Raises:
        DataError: where it cannot be read.
    """
    return load(
        setup.data,
        image_size=setup.image_size,
        channels=setup.channels,
        validation=setup.validation,
        seed=setup.seed,
        progress=monitor.on_data,
    )


Read = Callable[[Setup, Monitor], Splits]


def train(setup: Setup, out: Path, monitor: Monitor, read: Read = read_data, device: str = "auto") -> Evaluation:
    """Train a network and leave in `out` the model, metrics.jsonl, evaluation.json and split.json.

    Started by torchrun in several processes, they train one network, each with its share of every batch.

    The process is left as it was, but for this: while it trains, Ctrl-C and SIGTERM stop the run and not the process,
    where that is in the main thread; on a GPU the current device becomes the one trained on; on MPS the device's random
    generator goes on from `setup.seed`; processes of torchrun stay connected. Training on a CPU is faster in a process
    that keeps freed memory (`memory.keep_freed_memory`), as the command line's does.

    Args:
        setup: what to train on what, and how.
        out: run folder; must be new or empty.
        monitor: told of progress.
        read: gives the data, for whoever has read it before.
        device: what to train on, as `choose_device` takes it.

    Returns:
        The evaluation of the last epoch's weights on the test images.

    Raises:
        ValueError: where the setup, the data, `out` or the device is unusable, or training diverges.
        OSError: where `out` cannot be written.
        Interrupted: after Ctrl-C or SIGTERM; `resume` goes on.
        OtherProcessFailed, ProcessLost: where one of several processes cannot go on.
    """
    setup = replace(setup, data=whole_name(setup.data))
    with joined(device) as processes, training_settings():
        splits = processes.together(lambda: _prepare(setup, out, monitor, processes, read, device))
        torch.manual_seed(setup.seed)
        run = _Run(setup, splits, out, monitor, processes, Progress(), device)
        run.save()
        return run.finish()


def _prepare(setup: Setup, out: Path, monitor: Monitor, processes: Processes, read: Read, device: str) -> Splits:
    """Check all that can be checked before the first step, read the data and make the folder."""
    if processes.first:
        remove_left_overs(out / CHECKPOINT_FILE)  # of a run that was killed while it saved for the first time
    if processes.first and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"out is {str(out)!r}, which exists already: choose another folder with --out, go on with an unfinished "
            "run with --resume, or delete it"
        )
    # Whatever is wrong with the settings is told before the data is read.
    check_seed(setup.seed)
    resolve(setup.family, setup.alpha, setup.delta, 2, setup.channels, setup.image_size)
    _check_device(device, setup.recipe, processes)
    splits = read(setup, monitor)
    _batch_size(setup.recipe, len(splits.train), processes)
    try:
        if processes.first:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"out is {str(out)!r}, but this folder cannot be made ({error.strerror}): choose another with --out"
        ) from error
    return splits


def _check_device(device: str, recipe: Recipe, processes: Processes) -> None:
    if choose_device(device, processes.size).type == "cpu" and recipe.precision == "bf16":
        raise ValueError(
            "precision is 'bf16', which is for GPUs, but this run would be on the CPU: train with --precision fp32, or "
            "on a GPU"
        )


def resume(out: Path, monitor: Monitor, read: Read = read_data, device: str = "auto") -> Evaluation:
    """Go on with a run that was stopped; on a CPU with as many threads it ends with the same weights, byte for byte.

    Several processes have to be as many as before, and to see the same folder. The process is left as by `train`.

    Raises:
        CheckpointError: where `out` holds no unfinished run, or one of another number of processes, or its data has
            changed.
        ValueError, OSError, Interrupted, OtherProcessFailed, ProcessLost: as `train`.
    """
    with joined(device) as processes, training_settings():
        setup, splits, progress, tensors = processes.together(lambda: _read_run(out, monitor, processes, read, device))
        run = _Run(setup, splits, out, monitor, processes, progress, device)
        processes.together(lambda: restore(tensors, run.model, run.optimizer, run.regions, processes.rank))
        return run.finish()


def _read_run(
    out: Path, monitor: Monitor, processes: Processes, read: Read, device: str
) -> tuple[Setup, Splits, Progress, dict[str, Tensor]]:
    """What `resume` goes on with."""
    if (out / EVALUATION_FILE).exists() and not (out / CHECKPOINT_FILE).exists():
        raise CheckpointError(
            f"the run in {out} is finished: see its {EVALUATION_FILE}, or train anew with another --out"
        )
    record, progress, tensors = read_checkpoint(out)
    try:
        fingerprint = record.pop("data_fingerprint")
        before = record.pop("processes", 1)
        setup = Setup.from_record(record)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the run in {out} was started by another version of hybrid-mobilenet ({error}): resume it with that "
            "version, or train anew in another folder"
        ) from error
    if before != processes.size:
        command = f"torchrun --nproc-per-node {before} -m hybrid_mobilenet" if before > 1 else "hybrid-mobilenet"
        raise CheckpointError(
            f"the run in {out} was started in {before} process{'es' * (before > 1)}, not {processes.size}, and another "
            f"number would change its outcome: go on with {command} train --resume {out}"
        )
    _check_device(device, setup.recipe, processes)
    splits = read(setup, monitor)
    if splits.train.fingerprint != fingerprint:
        raise CheckpointError(f"the data {setup.data!r} has changed since the run in {out} began: start a new run")
    return setup, splits, progress, tensors


class _Run:
    """A run under way: what `train` starts and `resume` goes on with."""

    def __init__(
        self,
        setup: Setup,
        splits: Splits,
        out: Path,
        monitor: Monitor,
        processes: Processes,
        progress: Progress,
        device: str,
    ) -> None:
        self.setup, self.splits, self.out, self.monitor = setup, splits, out, monitor
        self.processes, self.progress = processes, progress
        self.recipe = recipe = setup.recipe
        # As it is now: whatever becomes of the folder meanwhile, these images are trained on.
        self.remembered = processes.together(
            lambda: splits.remembered(monitor.on_data).encoded() if processes.first else b""
        )
        self.record = asdict(setup) | {"data_fingerprint": splits.train.fingerprint, "processes": processes.size}
        # Machines may have the same images in different places: the fingerprint is of what they are.
        alike = self.record | {"data": None}
        processes.require_same("settings, data or checkpoint", json.dumps([alike, asdict(progress)]))
        self.batch_size = _batch_size(recipe, len(splits.train), processes)
        self.steps = _steps(recipe, len(splits.train), self.batch_size)
        self.fabric = engine(recipe.precision, processes, device)
        self.train_images = splits.train.to(self.fabric.device)
        self.model = _build(setup, splits)
        self.regions = _separate_randomness(self.model, setup.seed, processes)
        self.optimizer = adam(self.model, recipe)
        self.module, self.fabric_optimizer = self.fabric.setup(self.model, self.optimizer)
        self.captured: CapturedSteps | None = None
        self.unread: list[tuple[Tensor, Tensor]] = []
        self.clock = self.saved = time.perf_counter()

    def finish(self) -> Evaluation:
        """Train the epochs that are left, then write the results."""
        if note := _lengths(self.recipe, len(self.splits.train), self.steps, self.batch_size):
            self.monitor.on_note(note)
        with stop_signals() as stop:
            while self.progress.epoch < self.recipe.epochs:
                epoch_record = self.train_one_epoch(stop)
                history = [*self.progress.history, epoch_record]
                self.progress = Progress(epoch=self.progress.epoch + 1, history=history)
                lines = "".join(json.dumps(line) + "\n" for line in history).encode()
                self.processes.by_first(partial(write_atomically, self.out / METRICS_FILE, lines))
                self.monitor.on_epoch(epoch_record)
                self.save()
            # Each step looks whether to stop, but none comes after the last.
            if self.processes.highest(int(stop.is_set())):
                raise Interrupted
        return self.write_results()

    def train_one_epoch(self, stop: threading.Event) -> dict[str, Any]:
        """Train the batches that are left of this epoch; returns its line of metrics.jsonl."""
        recipe, progress, images = self.recipe, self.progress, self.train_images
        self.monitor.on_start(progress.epoch, recipe.epochs, progress.step, self.steps, self.batch_size)
        self.model.train()
        if progress.epoch >= recipe.epochs - recipe.fixed_epochs:
            for pool in self.model.fractional_max_pools():
                pool.eval()
        order = torch.Generator().manual_seed(derived_seed(self.setup.seed, progress.epoch))
        batches = _batches(len(images), self.steps, self.batch_size, order).to(images.labels.device)
        before, total = progress.epoch * self.steps, recipe.epochs * self.steps
        rates = [learning_rate(recipe, (before + step) / total) for step in range(self.steps)]

        steps_of = self.captured_steps if self.is_captured else self.steps_one_by_one
        for take in steps_of(batches[progress.step :], rates[progress.step :]):
            started = time.perf_counter()
            loss, hits = take()
            self.unread.append((loss.clone(), hits.clone()))  # a captured step overwrites them
            progress.step += 1
            progress.images += self.batch_size
            look = progress.step % LOOK_EVERY == 0 or progress.step == self.steps
            if look:  # waits for the device, so that the seconds are those of all steps since the last look
                _wait(self.fabric.device)
                self.check_finite([loss])
                self.read_losses()
            progress.step_seconds += time.perf_counter() - started
            if look:
                self.monitor.on_step(loss.item(), progress.step)
            due = After.SAVE if time.perf_counter() - self.saved > SAVE_EVERY else After.STEP
            after = self.processes.highest(After.STOP if stop.is_set() else due)
            if after > After.STEP:
                self.check_finite(self.model.state_dict().values())
                self.read_losses()
                self.save()
            if after == After.STOP:
                raise Interrupted

        self.check_finite(self.model.state_dict().values())
        epoch_record: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "loss": progress.loss_sum / self.steps,
            "accuracy": progress.correct / progress.images,
            "learning_rate": rates[-1],
            "images_per_second": progress.images / progress.step_seconds,
            "seconds": self.elapsed(),  # all but the evaluation: data, steps and saving
            "step_seconds": progress.step_seconds,
        }
        if self.splits.validation is not None:
            self.set_precise_statistics(VALIDATION_IMAGES)
            held_out = evaluate(self.model, self.splits.validation, seed=self.setup.seed, processes=self.processes)
            epoch_record |= {"validation_loss": held_out.loss, "validation_accuracy": held_out.accuracy}
        epoch_record["evaluation_seconds"] = time.perf_counter() - self.clock
        self.clock = time.perf_counter()
        return epoch_record

    @property
    def is_captured(self) -> bool:
        """Whether steps are CUDA graphs: of one process, whose images are on its GPU."""
        return self.processes.size == 1 and self.train_images.labels.is_cuda

    def captured_steps(self, batches: Tensor, rates: list[float]) -> Iterator[Callable[[], tuple[Tensor, Tensor]]]:
        """For each batch what trains on it, as a CUDA graph."""
        if self.captured is None:
            step = partial(train_step, self.fabric, self.module, self.fabric_optimizer)
            fetch = self.train_images.labelled
            self.captured = CapturedSteps(self.model, self.optimizer, fetch, step, self.steps, self.batch_size)
        self.captured.schedule(batches, rates)
        yield from repeat(self.captured.take, len(batches))

    def steps_one_by_one(self, batches: Tensor, rates: list[float]) -> Iterator[Callable[[], tuple[Tensor, Tensor]]]:
        """For each batch what trains on it, with the other processes."""
        parts = [self.processes.part(batch) for batch in batches]
        fetched = _fetched(self.train_images, parts, pinned=self.fabric.device.type == "cuda")
        for rate, each in zip(rates, fetched, strict=True):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            yield partial(self.step, *self.fabric.to_device(each))

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step, of all processes."""
        loss, hits = train_step(self.fabric, self.module, self.fabric_optimizer, images, labels)
        return self.processes.share(self.model, loss, hits)

    def read_losses(self) -> None:
        """Add up the losses and hits of the steps since they were last read: on the host, where there is float64."""
        if not self.unread:
            return
        losses, hits = (torch.stack(each).tolist() for each in zip(*self.unread, strict=True))
        for loss in losses:  # one by one, so that the sum does not depend on when it was read
            self.progress.loss_sum += loss
        self.progress.correct += sum(hits)
        self.unread.clear()

    def set_precise_statistics(self, images: int) -> None:
        """Give the model the statistics of its present weights over so many training images."""
        set_precise_statistics(self.model, self.train_images, images, self.setup.seed, self.processes)

    def elapsed(self) -> float:
        """Seconds of this epoch so far, over all its parts where it was interrupted."""
        now = time.perf_counter()
        self.progress.seconds += now - self.clock
        self.clock = now
        return self.progress.seconds

    def save(self) -> None:
        """Write the checkpoint. Several processes differ in their random states alone."""
        self.elapsed()
        states = {
            name: self.processes.gather(state)
            for name, state in random_states(self.regions, self.fabric.device).items()
        }
        random = {name: state.squeeze(0) for name, state in states.items()}
        state = self.record, self.progress, self.model, self.optimizer, random
        self.processes.by_first(lambda: save_checkpoint(self.out, *state))
        self.saved = time.perf_counter()

    def check_finite(self, tensors: Iterable[Tensor]) -> None:
        """Stop where the run has diverged: such weights may not reach a checkpoint."""
        if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():  # the device is waited for once
            raise TrainingDiverged(
                f"training diverged in epoch {self.progress.epoch + 1}, before step {self.progress.step}: a loss or a "
                f"weight is not a finite number. Train with a lower --learning-rate than {self.recipe.learning_rate:g}"
            )

    def write_results(self) -> Evaluation:
        """The model, its curves and its evaluation on the test images; then the checkpoint has served."""
        self.set_precise_statistics(FINAL_IMAGES)
        self.model.training_record = self.record | {
            "version": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": str(self.fabric.device),
            "threads": torch.get_num_threads(),
            "images": len(self.splits.train),
            "last_epoch": self.progress.history[-1],
        }
        self.processes.by_first(lambda: write_atomically(self.out / SPLIT_FILE, self.remembered))
        self.processes.by_first(lambda: self.model.save_pretrained(self.out))
        self.processes.by_first(lambda: draw_curves(self.progress.history, self.out / CURVES_FILE))
        evaluation = evaluate(self.model, self.splits.test, seed=self.setup.seed, processes=self.processes)
        record = (json.dumps(evaluation.record(), indent=2) + "\n").encode()
        self.processes.by_first(lambda: write_atomically(self.out / EVALUATION_FILE, record))
        self.processes.by_first((self.out / CHECKPOINT_FILE).unlink)
        if warning := _at_chance(self.progress.history[-1], evaluation):
            self.monitor.on_warning(warning)
        return evaluation


def _build(setup: Setup, splits: Splits) -> HybridMobileNet:
    classes = len(splits.train.class_names)
    network = resolve(setup.family, setup.alpha, setup.delta, classes, setup.channels, setup.image_size)
    mean, std = normalisation(splits.train)
    return HybridMobileNet(
        network,
        class_names=splits.train.class_names,
        mean=mean,
        std=std,
        activation=setup.recipe.activation,
        dropout=setup.recipe.dropout,
        sequence=setup.recipe.sequence,
        overlapping=setup.recipe.overlapping,
    )


def _batch_size(recipe: Recipe, images: int, processes: Processes) -> int:
    """Images of a batch, over all processes: as the recipe has it, or fewer, so that an epoch takes all there are."""
    if recipe.batch_size % processes.size or recipe.batch_size < 2 * processes.size:
        raise ValueError(
            f"batch_size is {recipe.batch_size}, but must be a multiple of the number of processes ({processes.size}), "
            "at least twice as large: it counts the images of a step in all of them, and batch normalisation needs two"
        )
    if images < 2 * processes.size:
        raise ValueError(
            f"there are {images} training images, but {processes.size} processes need two each: start fewer"
        )
    size = min(recipe.batch_size, images // processes.size * processes.size)
    if images % size <= LEFT_OUT * images:
        return size
    # Of equal size, so that few images are taken twice to fill the last one.
    return math.ceil(images / math.ceil(images / size) / processes.size) * processes.size


def _steps(recipe: Recipe, images: int, batch_size: int) -> int:
    """Steps of an epoch: one pass over the images, or more where that makes too few steps in all epochs."""
    whole = images // batch_size
    if images - whole * batch_size > LEFT_OUT * images:
        whole += 1
    return max(whole, math.ceil(recipe.least_steps / recipe.epochs))


def _lengths(recipe: Recipe, images: int, steps: int, batch_size: int) -> str:
    """What was chosen for so few images, and why; nothing where the recipe says it all."""
    chosen = []
    if batch_size != recipe.batch_size:
        chosen.append(f"batches of {batch_size} in place of {recipe.batch_size}, so that an epoch takes all of them")
    if steps * batch_size >= 2 * images:
        chosen.append(
            f"{steps} steps an epoch, which is {steps * batch_size / images:.0f} passes over them, for at least "
            f"{recipe.least_steps:,} steps in all (with --epochs N every epoch is one pass)"
        )
    return f"{images} training images: {'; '.join(chosen)}" if chosen else ""


def _at_chance(last_epoch: dict[str, Any], test: Evaluation) -> str:
    """A warning where a network that has learnt its training images only guesses on all others; else nothing.

    Whoever guesses is right on one in so many images as there are classes, in the mean over these, however many images
    each of them has: also who always names the same class.
    """
    recalls = [(row[index] / sum(row), sum(row)) for index, row in enumerate(test.confusion) if any(row)]
    chance, mean = 1 / len(recalls), sum(recall for recall, _ in recalls) / len(recalls)
    error = chance * math.sqrt(sum(chance * (1 - chance) / images for _, images in recalls))
    is_at_chance = len(recalls) > 1 and mean <= chance + min(error, MOST_BY_LUCK)
    if not is_at_chance or last_epoch["accuracy"] < (1 + chance) / 2:
        return ""
    return (
        f"the network is right on {last_epoch['accuracy']:.0%} of its training images, but on the {test.images} test "
        f"images it is no better than a guess (right on {test.accuracy:.0%}; the mean over the {len(recalls)} classes "
        f"is {mean:.0%}, by guessing {chance:.0%}): see whether the test images show the same things as the training "
        "images and are labelled as they are, and add images"
    )


def _batches(images: int, steps: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """Numbers of the images of each step, int64 (steps, batch_size): none comes again before all have come."""
    passes = math.ceil(steps * batch_size / images)
    shuffled = torch.cat([torch.randperm(images, generator=generator) for _ in range(passes)])
    return shuffled[: steps * batch_size].view(steps, batch_size)


@contextmanager
def training_settings() -> Iterator[None]:
    """What training sets for the whole process, behind it as it was: random states, precision of products, messages."""
    messages = logging.getLogger("lightning_fabric")
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    level, precision = messages.level, torch.get_float32_matmul_precision()
    with torch.random.fork_rng(devices=gpus):
        messages.setLevel(logging.WARNING)  # only the command line prints
        if gpus:
            torch.set_float32_matmul_precision("high")  # TF32, in which torch computes convolutions anyway
        try:
            yield
        finally:
            messages.setLevel(level)
            if gpus:
                torch.set_float32_matmul_precision(precision)


def engine(precision: Precision, processes: Processes, device: str = "auto") -> Fabric:
    """The engine, on the device that `choose_device` chooses; to be used within `training_settings`."""
    kind: Literal["32-true", "bf16-mixed"] = "bf16-mixed" if precision == "bf16" else "32-true"
    chosen = choose_device(device, processes.size)
    if processes.size == 1:
        return Fabric(accelerator=chosen.type, devices=1 if chosen.index is None else [chosen.index], precision=kind)
    fabric = Fabric(
        accelerator=chosen.type,
        devices=processes.local_size,
        num_nodes=processes.size // processes.local_size,
        strategy=DDPStrategy(broadcast_buffers=False),  # Processes.share averages them
        precision=kind,
    )
    fabric.launch()
    return fabric


def _wait(device: torch.device) -> None:
    """Until a GPU has done all it was given, asleep: runs that share it need the cores that would be waiting."""
    if device.type == "cuda":
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record()
        done.synchronize()


def _separate_randomness(model: HybridMobileNet, seed: int, processes: Processes) -> torch.Generator | None:
    """Give several processes the same pooling regions, but dropout of their own; returns the regions' generator."""
    if processes.size == 1:
        return None
    regions = torch.Generator().manual_seed(seed)
    for pool in model.fractional_max_pools():
        pool.generator = regions
    torch.manual_seed(derived_seed(seed, processes.rank))
    return regions


def _fetched(dataset: ImageDataset, batches: list[Tensor], *, pinned: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Each batch's images and labels, the next batch being fetched while this one trains.

    Args:
        dataset: where from.
        batches: numbers of the images of each batch.
        pinned: whether those that come from the host are to go to a GPU, which then need not wait for them.
    """

    def fetch(indices: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = dataset.labelled(indices)
        return (
            (images.pin_memory(), labels.pin_memory()) if pinned and images.device.type == "cpu" else (images, labels)
        )

    with ThreadPoolExecutor(max_workers=1) as fetcher:
        ahead = fetcher.submit(fetch, batches[0]) if batches else None
        for index in range(len(batches)):
            assert ahead is not None
            batch = ahead.result()
            if index + 1 < len(batches):
                ahead = fetcher.submit(fetch, batches[index + 1])
            yield batch
