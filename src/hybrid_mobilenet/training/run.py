"""A run: training with checkpoints, signals and a folder of results. Killed at any moment, it resumes exactly."""

from __future__ import annotations

import json
import math
import platform
import shlex
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..common.files import remove_left_overs, write_atomically
from ..common.signals import stop_signals
from ..data.dataset import normalisation
from ..data.held_out import SPLIT_FILE, RunImages
from ..data.splits import Splits
from ..network.model import CHECKPOINT_FILE, HybridMobileNet
from .checkpoint import (
    CheckpointError,
    Progress,
    random_states,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from .distillation import TeacherOutputs, teacher_fingerprint
from .evaluate import Evaluation, evaluate
from .event_files import EventFiles
from .fit import Training
from .processes import Processes, joined
from .setup import (
    Interrupted,
    Monitor,
    Read,
    Setup,
    Silent,
    automatic_lengths,
    build_model,
    check_setup,
    check_validation,
    choose_batch_size,
    imbalance,
    read_data,
)
from .start import check_held_out, earlier_images, load_start, read_start, read_teacher
from .step import training_settings

METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"

#: Seconds between checkpoints within an epoch.
SAVE_EVERY = 300.0
#: On few test images, a mean recall this far above chance may still be luck.
MOST_BY_LUCK = 0.1


class After(IntEnum):
    """What a run does after a step. All processes take the most urgent action that any of them requests."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2


def train(
    setup: Setup, out: Path | str, monitor: Monitor | None = None, read: Read = read_data, device: str = "auto"
) -> Evaluation:
    """Train a network, and write model, metrics.jsonl, evaluation.json and split.json to a run folder.

    Several processes started by torchrun train one network together, each with its part of every batch.

    While training runs in the main thread, Ctrl-C and SIGTERM stop the run instead of the process. Afterwards the
    process is as it was before, with two exceptions: on MPS, the device's random generator continues from `setup.seed`,
    and processes of torchrun stay connected. On a CPU, training is faster in a process that keeps freed memory
    (`memory.keep_freed_memory`), as the command line does.

    Args:
        setup: network, data and recipe.
        out: run folder; must be new or empty.
        monitor: receives the progress.
        read: returns the data; for callers that have read it before.
        device: as for `choose_device`: "auto" for the GPU if there is one, else the CPU.

    Returns:
        The evaluation of the final weights, or of the best epoch's if the recipe keeps those, on the test images.

    Raises:
        ValueError: if the setup, the data, `out` or the device is unusable, or training diverges.
        OSError: if `out` cannot be written.
        Interrupted: after Ctrl-C or SIGTERM; `resume` continues the run.
        OtherProcessFailed, ProcessLost: if one of several processes cannot continue.

    Example:
        >>> import tempfile
        >>> from hybrid_mobilenet import Setup, paper_recipe, train
        >>> recipe = paper_recipe("fmp", "digits").with_epochs(1)
        >>> setup = Setup("digits", "fmp", alpha=0.25, delta=1, image_size=(8, 8), channels=1, recipe=recipe)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     evaluation = train(setup, f"{folder}/run", device="cpu")
        >>> evaluation.images
        359
    """
    out, monitor = Path(out), monitor or Silent()
    setup = setup.from_anywhere()
    with joined(device) as processes:
        setup, splits, start, chosen = processes.together(
            lambda: _prepare(setup, out, monitor, processes, read, device)
        )
        with training_settings(chosen):
            torch.manual_seed(setup.seed)
            run = _Run(setup, splits, out, monitor, processes, chosen)
            if start is not None:
                load_start(start, run.training.model)
            run.write_split()
            run.save()
            return run.finish()


def _prepare(
    setup: Setup, out: Path, monitor: Monitor, processes: Processes, read: Read, device: str
) -> tuple[Setup, Splits, HybridMobileNet | None, torch.device]:
    """Check everything that can be checked before the first step, read the data, choose the recipe, make the folder."""
    if processes.first:
        remove_left_overs(out / CHECKPOINT_FILE)  # of a run that was killed during its first save
    if processes.first and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"out is {str(out)!r}, which exists already: choose another folder with --out, continue an unfinished "
            "run with --resume, or delete it"
        )
    chosen = check_setup(setup, device, processes)  # before the data is read, which may take long
    start = read_start(setup)
    splits = _read_splits(setup, monitor, read)
    if start is not None and set(start.class_names) == set(splits.train.class_names):
        setup, splits = replace(setup, class_names=start.class_names), splits.with_classes(start.class_names)
    check_held_out(setup, splits, monitor)
    recipe = setup.chosen_recipe(splits.train)
    setup = replace(setup, recipe=recipe)
    check_setup(setup, device, processes)
    read_teacher(setup, splits.train)
    check_validation(recipe, has_validation=splits.validation is not None)
    choose_batch_size(recipe, len(splits.train), processes)
    try:
        if processes.first:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"out is {str(out)!r}, but this folder cannot be made ({error.strerror}): choose another with --out"
        ) from error
    return setup, splits, start, chosen


def _read_splits(setup: Setup, monitor: Monitor, read: Read) -> Splits:
    splits = read(setup, monitor)
    return splits if setup.class_names is None else splits.with_classes(setup.class_names)


def resume(out: Path | str, monitor: Monitor | None = None, read: Read = read_data, device: str = "auto") -> Evaluation:
    """Continue a stopped run. On a CPU with the same number of threads, the final weights are the same, byte for byte.

    The number of processes must be the same as before, and they must share the folder. For the rest see `train`.

    Args:
        out: folder of the unfinished run.
        monitor: as for `train`.
        read: as for `train`.
        device: as for `train`.

    Returns:
        As `train`.

    Raises:
        CheckpointError: if `out` has no unfinished run, the number of processes differs, or the data has changed.
        ValueError, OSError, Interrupted, OtherProcessFailed, ProcessLost: as `train`.

    Example:
        >>> from hybrid_mobilenet import CheckpointError, resume
        >>> try:
        ...     resume("runs/photos")
        ... except CheckpointError:
        ...     print("there is no unfinished run")
        there is no unfinished run
    """
    out, monitor = Path(out), monitor or Silent()
    with joined(device) as processes:
        setup, splits, progress, tensors, chosen = processes.together(
            lambda: _read_run(out, monitor, processes, read, device)
        )
        with training_settings(chosen):
            run = _Run(setup, splits, out, monitor, processes, chosen, progress)
            training = run.training
            has_best = run.recipe.keep == "best" and progress.epoch > 0
            average = training.average.tensors if training.average else None
            state = tensors, training.model, training.optimizer, training.regions, processes.rank
            training.best = processes.together(lambda: restore(*state, has_best=has_best, average=average))
            if not (out / SPLIT_FILE).exists():  # deleted since
                run.write_split()
            return run.finish()


def _read_run(
    out: Path, monitor: Monitor, processes: Processes, read: Read, device: str
) -> tuple[Setup, Splits, Progress, dict[str, Tensor], torch.device]:
    """Read and check everything that a run needs to continue."""
    if (out / EVALUATION_FILE).exists() and not (out / CHECKPOINT_FILE).exists():
        raise CheckpointError(
            f"the run in {out} is finished: see its {EVALUATION_FILE}, or start a new run with another --out"
        )
    record, progress, tensors = read_checkpoint(out)
    try:
        fingerprints = {name: record.pop(name) for name in ("data_fingerprint", "validation_fingerprint")}
        teacher_before = record.pop("teacher_fingerprint")
        before = record.pop("processes", 1)
        setup = Setup.from_record(record)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the run in {out} was started by another version of hybrid-mobilenet ({error}): resume it with that "
            "version, or start a new run in another folder"
        ) from error
    if before != processes.size:
        command = f"torchrun --nproc-per-node {before} -m hybrid_mobilenet" if before > 1 else "hybrid-mobilenet"
        raise CheckpointError(
            f"the run in {out} was started in {before} process{'es' * (before > 1)}, not {processes.size}, and another "
            f"number would change its outcome: continue with {command} train --resume {shlex.quote(str(out))}"
        )
    chosen = check_setup(setup, device, processes)
    splits = _read_splits(setup, monitor, read)
    if _fingerprints(splits) != fingerprints:
        raise CheckpointError(
            f"the data {setup.data!r} has changed since the run in {out} began: restore its images as they were, or "
            "start a new run"
        )
    teacher = read_teacher(setup, splits.train)
    if teacher is not None and teacher_fingerprint(teacher) != teacher_before:
        raise CheckpointError(
            f"the teacher {setup.teacher!r} has changed since the run in {out} began: restore it, or start a new run"
        )
    return setup, splits, progress, tensors, chosen


class _Run:
    """Training, with the run folder, the checkpoints in it, and the signals that stop it."""

    def __init__(
        self,
        setup: Setup,
        splits: Splits,
        out: Path,
        monitor: Monitor,
        processes: Processes,
        device: torch.device,
        progress: Progress | None = None,
    ) -> None:
        self.setup, self.splits, self.out, self.monitor, self.processes = setup, splits, out, monitor, processes
        train = splits.train
        self.recipe = setup.chosen_recipe(train)
        teacher, outputs = read_teacher(setup, train), None
        self.record = asdict(setup) | _fingerprints(splits) | {"processes": processes.size}
        self.record["teacher_fingerprint"] = None if teacher is None else teacher_fingerprint(teacher)
        # Machines may keep the same images in different places, so paths may differ: the fingerprint must not.
        alike = self.record | {"data": None, "labels": None}
        processes.require_same("settings, data or checkpoint", json.dumps([alike, asdict(progress or Progress())]))
        if teacher is not None:
            outputs = TeacherOutputs.compute(teacher.to(device), train, self.recipe.augmentation, monitor.on_data)
        mean, std = normalisation(train)
        model = build_model(setup.network(len(train.class_names)), self.recipe, train.class_names, mean, std)
        self.training = Training(
            model, train, self.recipe, setup.seed, device, processes, monitor, splits.validation, progress, outputs
        )
        self.stop = threading.Event()
        self.saved = time.perf_counter()

    def write_split(self) -> None:
        """Record which images these are: their folder, and the run that this one continues, may change or go."""

        def write() -> None:
            images, earlier = RunImages.of(self.splits, self.monitor.on_data), earlier_images(self.setup)
            images = images if earlier is None else images.joined(earlier)
            write_atomically(self.out / SPLIT_FILE, images.encoded())

        self.processes.by_first(write)

    def finish(self) -> Evaluation:
        """Train what is left, then write the results."""
        training, train, recipe = self.training, self.splits.train, self.recipe
        notes = automatic_lengths(recipe, len(train), training.steps, training.batch_size), imbalance(train, recipe)
        for note in filter(None, notes):
            self.monitor.on_note(note)
        with stop_signals() as self.stop, ExitStack() as stack:
            if self.setup.log == "tensorboard":
                self.processes.by_first(lambda: self.open_events(stack))
            training.train(self.after_step, self.after_epoch)
            if self.processes.highest(int(self.stop.is_set())):  # since the last step
                raise Interrupted
        if training.is_stalled and training.progress.epoch < recipe.epochs:
            self.monitor.on_note(
                f"stopped after {training.progress.epoch} of {recipe.epochs} epochs: the validation loss has not "
                f"improved for {recipe.patience} epochs"
            )
        return self.write_results()

    def open_events(self, stack: ExitStack) -> None:
        """Open an event file, to be closed with the stack."""
        self.events = stack.enter_context(EventFiles(self.out, self.training.progress.epoch + 1))

    def after_step(self) -> None:
        """Save where it is time, or save and stop after a signal."""
        due = After.SAVE if time.perf_counter() - self.saved > SAVE_EVERY else After.CONTINUE
        after = self.processes.highest(After.STOP if self.stop.is_set() else due)
        if after != After.CONTINUE:
            self.save()
        if after == After.STOP:
            raise Interrupted

    def after_epoch(self) -> None:
        """Write the metrics, then the checkpoint."""
        history = self.training.progress.history
        lines = "".join(json.dumps(record) + "\n" for record in history).encode()
        self.processes.by_first(lambda: write_atomically(self.out / METRICS_FILE, lines))
        if self.setup.log == "tensorboard":
            self.processes.by_first(lambda: self.events.add(history[-1]))
        self.save()

    def save(self) -> None:
        """Write the checkpoint. Between processes, only the random states differ."""
        training = self.training
        training.settle()
        states = random_states(training.regions, training.device)
        random = {name: self.processes.gather(state).squeeze(0) for name, state in states.items()}
        average = training.average.tensors if training.average else {}
        state = self.record, training.progress, training.model, training.optimizer, random, training.best, average
        self.processes.by_first(lambda: save_checkpoint(self.out, *state))
        self.saved = time.perf_counter()

    def write_results(self) -> Evaluation:
        """Write the model, its curves and its evaluation on the test images, and delete the checkpoint."""
        from .plots import CURVES_FILE, draw_curves  # matplotlib is slow to import

        training, by_first = self.training, self.processes.by_first
        model, history = training.model, training.progress.history
        training.finish()
        model.training_record = self.record | {
            "version": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": str(training.device),
            "threads": torch.get_num_threads(),
            "images": len(self.splits.train),
            "last_epoch": history[-1],
            "kept_epoch": training.kept_epoch,
        }
        by_first(lambda: model.save_pretrained(self.out))
        by_first(lambda: draw_curves(history, self.out / CURVES_FILE))
        evaluation = evaluate(model, self.splits.test, seed=self.setup.seed, processes=self.processes)
        if self.recipe.keep == "best":
            evaluation = replace(evaluation, epoch=training.kept_epoch)
        record = (json.dumps(evaluation.record(), indent=2) + "\n").encode()
        by_first(lambda: write_atomically(self.out / EVALUATION_FILE, record))
        by_first((self.out / CHECKPOINT_FILE).unlink)
        if warning := _at_chance(history[-1], evaluation):
            self.monitor.on_warning(warning)
        return evaluation


def _fingerprints(splits: Splits) -> dict[str, str | None]:
    """What the images of a run are, for `resume`. Its test images may change until they are read."""
    validation = None if splits.validation is None else splits.validation.fingerprint
    return {"data_fingerprint": splits.train.fingerprint, "validation_fingerprint": validation}


def _at_chance(last_epoch: dict[str, Any], test: Evaluation) -> str:
    """A warning if a network has learnt its training images but is at chance on the test images; otherwise empty.

    The balanced accuracy is compared with chance. Every way of guessing has the same, however many images each class
    has.
    """
    images = [sum(row) for row in test.confusion if any(row)]  # of each class that has some
    chance = 1 / len(images)
    error = chance * math.sqrt(sum(chance * (1 - chance) / count for count in images))
    is_at_chance = len(images) > 1 and test.balanced_accuracy <= chance + min(error, MOST_BY_LUCK)
    if not is_at_chance or last_epoch["accuracy"] < (1 + chance) / 2:
        return ""
    return (
        f"the network classifies {last_epoch['accuracy']:.0%} of its training images correctly, but is no better than "
        f"chance on the {test.images} test images (accuracy {test.accuracy:.0%}; balanced accuracy "
        f"{test.balanced_accuracy:.0%} over {len(images)} classes; chance {chance:.0%}): check that the test images "
        "show the same things and are labelled like the training images, or add images"
    )
