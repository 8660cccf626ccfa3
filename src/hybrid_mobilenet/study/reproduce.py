"""Reproduce one run of the paper's grid: train it once, record it once, and resume it after any kill.

A run has two outputs. Its run folder, named after the run and its fingerprint, contains the checkpoint while the run is
unfinished, and then the model. Its record is written last and atomically. So at any time a run has a record, or a
folder to resume from, or has not started. A lock keeps other processes away from a run in progress.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from .. import __version__
from ..common.devices import choose_device
from ..common.errors import one_line, trace
from ..common.machine import processor
from ..data.dataset import ImageDataset
from ..data.splits import Splits
from ..network.model import CHECKPOINT_FILE, HybridMobileNet
from ..training.evaluate import evaluate
from ..training.run import EVALUATION_FILE, METRICS_FILE, resume, train
from ..training.setup import Monitor, Setup, read_data
from .grid import Run
from .records import Record, is_recorded, read_record, record_path, write_record

#: Number of passes with random pooling regions that are averaged, besides the one with fixed regions.
PASSES = 12

#: Message of a run whose process was stopped by a signal. Its state is saved.
STOPPED = "its process was stopped by SIGTERM: run again to resume it"


@dataclass(frozen=True)
class RunState:
    """The state of a run in a sweep.

    Attributes:
        name: the name of the run.
        state: "elsewhere" means that another process works on it.
        done: the finished fraction of its training, 0 to 1.
        what: the current activity, as text.
        rate: images per second; 0 if unknown.
        message: the result of a finished run, or the error of a failed one.
        is_news: whether to print a line if the output is not a terminal.
    """

    name: str
    state: Literal["running", "finished", "failed", "elsewhere"]
    done: float = 0.0
    what: str = ""
    rate: float = 0.0
    message: str = ""
    is_news: bool = False


OnState = Callable[[RunState], None]
"""Called with each new state of a run."""


@dataclass(frozen=True)
class Folders:
    """The folders of a sweep. Several processes, also on several machines, may share them.

    Attributes:
        results: folder of the records.
        runs: folder of the run folders.
    """

    results: Path
    runs: Path

    def run_folder(self, run: Run) -> Path:
        """The folder of a run; another recipe or architecture has another folder."""
        return self.runs / f"{run.name}-{run.fingerprint[:8]}"


class DataCache:
    """Reads each data set once: decoding CIFAR takes as long as training a small network on a GPU."""

    def __init__(self) -> None:
        self._splits: dict[str, Splits] = {}

    def __call__(self, setup: Setup, monitor: Monitor) -> Splits:
        """The data of a setup. In the grid the name alone determines it."""
        if setup.data not in self._splits:
            self._splits[setup.data] = read_data(setup, monitor)
        return self._splits[setup.data]


def reproduce_run(run: Run, folders: Folders, on_state: OnState, cache: DataCache, device: str = "auto") -> None:
    """Train or resume a run, evaluate it and record it. Errors are passed to `on_state`, not raised.

    Args:
        run: the run.
        folders: the folders of the sweep.
        on_state: called with each new state of the run.
        cache: the data of earlier runs.
        device: as for `choose_device`.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM during training. The state is saved.
    """
    try:
        folders.results.mkdir(parents=True, exist_ok=True)
        folders.runs.mkdir(parents=True, exist_ok=True)
        with _locked(folders.runs / f"{folders.run_folder(run).name}.lock") as holder:
            if holder is not None:
                on_state(RunState(run.name, "elsewhere", message=holder))
                return
            if not is_recorded(folders.results, run):
                write_record(
                    record_path(folders.results, run), _record(run, folders.run_folder(run), on_state, cache, device)
                )
        scores = read_record(record_path(folders.results, run)).test
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        on_state(RunState(run.name, "failed", message=trace(error) + one_line(error)))
    else:
        accuracies = (
            f"{score.accuracy:.2%}" + (f" (mean of {passes} passes)" if passes > 1 else "")
            for passes, score in scores.items()
        )
        on_state(RunState(run.name, "finished", 1.0, message=", ".join(accuracies)))


def _record(run: Run, folder: Path, on_state: OnState, cache: DataCache, device: str) -> Record:
    code, monitor, chosen = _code(), _StateMonitor(run, on_state), choose_device(device)
    setup = Setup(
        run.data,
        run.family,
        run.alpha,
        run.delta,
        run.network.image_size,
        run.network.in_channels,
        validation=0.0,
        seed=run.seed,
        recipe=run.recipe,
    )
    if (folder / CHECKPOINT_FILE).is_file():
        resume(folder, monitor, cache, device)
    elif not (folder / EVALUATION_FILE).is_file():
        if folder.exists():  # killed before the first checkpoint
            shutil.rmtree(folder)
        train(setup, folder, monitor, cache, device)

    model = HybridMobileNet.from_pretrained(folder).to(chosen)
    evaluations = [json.loads((folder / EVALUATION_FILE).read_bytes())]
    started = time.perf_counter()
    if model.fractional_max_pools():
        evaluations.append(_evaluate_passes(model, cache(setup, monitor).test, run, on_state))
    epochs = tuple(json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines())
    return Record.of_run(
        run,
        model.training_record,
        epochs,
        evaluations,
        code=code,
        seconds={"evaluation": time.perf_counter() - started},  # of the averaged passes
        environment={
            "processor": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else processor(),
            "system": platform.system(),
        },
    )


def _evaluate_passes(model: HybridMobileNet, test: ImageDataset, run: Run, on_state: OnState) -> dict[str, Any]:
    done = 0

    def on_images(count: int) -> None:
        nonlocal done
        done += count
        what = f"testing, mean of {PASSES} passes: {done:,} of {len(test):,} images"
        on_state(RunState(run.name, "running", 1.0, what, is_news=done == len(test)))

    return evaluate(model, test, PASSES, run.seed, on_images).record()


class _StateMonitor:
    """A monitor of `train` that passes states to a sweep."""

    def __init__(self, run: Run, on_state: OnState) -> None:
        self._run, self._on_state = run, on_state
        self._epoch = self._step = self._steps = self._batch_size = 0
        self._rate = 0.0
        self._since = (0.0, 0)

    def on_data(self, what: str, done: int, total: int) -> None:
        self._send(f"{what}: {done:,} of {total:,}")

    def on_start(self, epoch: int, epochs: int, step: int, steps: int, batch_size: int) -> None:  # noqa: ARG002
        self._epoch, self._step, self._steps, self._batch_size = epoch, step, steps, batch_size
        self._since = (time.perf_counter(), step)
        self._send(f"epoch {epoch + 1}/{self._run.recipe.epochs}")

    def on_step(self, loss: float, step: int) -> None:
        then, before = self._since
        self._step = step
        self._rate = (step - before) * self._batch_size / (time.perf_counter() - then)
        self._send(f"epoch {self._epoch + 1}/{self._run.recipe.epochs} loss {loss:.3f}")

    def on_epoch(self, record: dict[str, Any]) -> None:
        self._epoch, self._step, self._rate = record["epoch"], 0, record["images_per_second"]
        of = f"epoch {record['epoch']}/{self._run.recipe.epochs}"
        self._send(f"{of} loss {record['loss']:.3f} accuracy {record['accuracy']:.2%}", is_news=True)

    def on_note(self, note: str) -> None: ...

    def on_warning(self, warning: str) -> None: ...

    def _send(self, what: str, *, is_news: bool = False) -> None:
        done = (self._epoch + self._step / max(self._steps, 1)) / self._run.recipe.epochs
        self._on_state(RunState(self._run.name, "running", done, what, self._rate, is_news=is_news))


@contextmanager
def _locked(path: Path) -> Iterator[str | None]:
    """Take the lock at `path` and yield None, or yield its holder. The system releases it when the process ends."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield file.read() or "another process"
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield None


@cache
def _code() -> dict[str, str | None]:
    """Version of the package and, in a checkout, its commit (marked if modified), as of the first call."""
    here = Path(__file__).parent
    commit = None
    if shutil.which("git"):
        # An installed package may be inside another repository, which does not track it.
        git = ["git", "-C", str(here)]
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
        if tracked.returncode == 0:
            describe = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
            commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip() or None
    return {"version": __version__, "commit": commit}
