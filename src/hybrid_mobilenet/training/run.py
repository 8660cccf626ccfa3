"""A run: training with checkpoints, signals and a folder of results. Killed at any moment, it resumes exactly."""

from __future__ import annotations

import json
import math
import platform
import shlex
import threading
import time
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
from ..data.sources import whole_name
from ..data.splits import Splits
from .checkpoint import (
    CHECKPOINT_FILE,
    CheckpointError,
    Progress,
    random_states,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from .evaluate import Evaluation, evaluate
from .fit import Training
from .precise_statistics import FINAL_IMAGES
from .processes import Processes, joined
from .setup import (
    Interrupted,
    Monitor,
    Read,
    Setup,
    Silent,
    automatic_lengths,
    build_model,
    check_device,
    check_setup,
    choose_batch_size,
    read_data,
)
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
        The evaluation of the final weights on the test images.

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
    setup = replace(setup, data=whole_name(setup.data))
    with joined(device) as processes:
        splits, chosen = processes.together(lambda: _prepare(setup, out, monitor, processes, read, device))
        with training_settings(chosen):
            torch.manual_seed(setup.seed)
            run = _Run(setup, splits, out, monitor, processes, chosen)
            run.save()
            return run.finish()


def _prepare(
    setup: Setup, out: Path, monitor: Monitor, processes: Processes, read: Read, device: str
) -> tuple[Splits, torch.device]:
    """Check everything that can be checked before the first step, read the data, and make the folder."""
    if processes.first:
        remove_left_overs(out / CHECKPOINT_FILE)  # of a run that was killed during its first save
    if processes.first and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"out is {str(out)!r}, which exists already: choose another folder with --out, continue an unfinished "
            "run with --resume, or delete it"
        )
    chosen = check_setup(setup, device, processes)  # before the data is read, which may take long
    splits = read(setup, monitor)
    choose_batch_size(setup.recipe, len(splits.train), processes)
    try:
        if processes.first:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"out is {str(out)!r}, but this folder cannot be made ({error.strerror}): choose another with --out"
        ) from error
    return splits, chosen


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
            processes.together(
                lambda: restore(tensors, training.model, training.optimizer, training.regions, processes.rank)
            )
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
        fingerprint = record.pop("data_fingerprint")
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
    chosen = check_device(device, setup.recipe, processes)
    splits = read(setup, monitor)
    if splits.train.fingerprint != fingerprint:
        raise CheckpointError(
            f"the data {setup.data!r} has changed since the run in {out} began: restore its images as they were, or "
            "start a new run"
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
        # Which images these are is computed now, since their folder may change during the run.
        self.split_json = processes.together(
            lambda: RunImages.of(splits, monitor.on_data).encoded() if processes.first else b""
        )
        self.record = asdict(setup) | {"data_fingerprint": splits.train.fingerprint, "processes": processes.size}
        # Machines may keep the same images in different places, so paths may differ: the fingerprint must not.
        alike = self.record | {"data": None}
        processes.require_same("settings, data or checkpoint", json.dumps([alike, asdict(progress or Progress())]))
        train = splits.train
        mean, std = normalisation(train)
        model = build_model(setup.network(len(train.class_names)), setup.recipe, train.class_names, mean, std)
        self.training = Training(
            model, train, setup.recipe, setup.seed, device, processes, monitor, splits.validation, progress
        )
        self.stop = threading.Event()
        self.saved = time.perf_counter()

    def finish(self) -> Evaluation:
        """Train what is left, then write the results."""
        training = self.training
        for note in self.splits.notes:
            self.monitor.on_note(note)
        if note := automatic_lengths(self.setup.recipe, len(self.splits.train), training.steps, training.batch_size):
            self.monitor.on_note(note)
        with stop_signals() as self.stop:
            training.train(self.after_step, self.after_epoch)
            if self.processes.highest(int(self.stop.is_set())):  # since the last step
                raise Interrupted
        return self.write_results()

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
        lines = "".join(json.dumps(record) + "\n" for record in self.training.progress.history).encode()
        self.processes.by_first(lambda: write_atomically(self.out / METRICS_FILE, lines))
        self.save()

    def save(self) -> None:
        """Write the checkpoint. Between processes, only the random states differ."""
        training = self.training
        training.settle()
        states = random_states(training.regions, training.device)
        random = {name: self.processes.gather(state).squeeze(0) for name, state in states.items()}
        state = self.record, training.progress, training.model, training.optimizer, random
        self.processes.by_first(lambda: save_checkpoint(self.out, *state))
        self.saved = time.perf_counter()

    def write_results(self) -> Evaluation:
        """Write the model, its curves and its evaluation on the test images, and delete the checkpoint."""
        from .plots import CURVES_FILE, draw_curves  # matplotlib is slow to import

        training, by_first = self.training, self.processes.by_first
        model, history = training.model, training.progress.history
        training.set_precise_statistics(FINAL_IMAGES)
        model.training_record = self.record | {
            "version": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": str(training.device),
            "threads": torch.get_num_threads(),
            "images": len(self.splits.train),
            "last_epoch": history[-1],
        }
        by_first(lambda: write_atomically(self.out / SPLIT_FILE, self.split_json))
        by_first(lambda: model.save_pretrained(self.out))
        by_first(lambda: draw_curves(history, self.out / CURVES_FILE))
        evaluation = evaluate(model, self.splits.test, seed=self.setup.seed, processes=self.processes)
        record = (json.dumps(evaluation.record(), indent=2) + "\n").encode()
        by_first(lambda: write_atomically(self.out / EVALUATION_FILE, record))
        by_first((self.out / CHECKPOINT_FILE).unlink)
        if warning := _at_chance(history[-1], evaluation):
            self.monitor.on_warning(warning)
        return evaluation


def _at_chance(last_epoch: dict[str, Any], test: Evaluation) -> str:
    """A warning if a network has learnt its training images but is at chance on the test images; otherwise empty.

    The mean recall over classes is compared with chance. Every way of guessing has the same, however many images each
    class has.
    """
    recalls = [(row[index] / sum(row), sum(row)) for index, row in enumerate(test.confusion) if any(row)]
    chance, mean = 1 / len(recalls), sum(recall for recall, _ in recalls) / len(recalls)
    error = chance * math.sqrt(sum(chance * (1 - chance) / images for _, images in recalls))
    is_at_chance = len(recalls) > 1 and mean <= chance + min(error, MOST_BY_LUCK)
    if not is_at_chance or last_epoch["accuracy"] < (1 + chance) / 2:
        return ""
    return (
        f"the network classifies {last_epoch['accuracy']:.0%} of its training images correctly, but is no better than "
        f"chance on the {test.images} test images (accuracy {test.accuracy:.0%}; mean recall {mean:.0%} over "
        f"{len(recalls)} classes; chance {chance:.0%}): check that the test images show the same things and are "
        "labelled like the training images, or add images"
    )
