"""One run of the paper's grid: trained once, recorded once, and gone on with after any kill.

A run lives in two places. Its run folder, named after it and its fingerprint, holds what `train` leaves there: a
checkpoint while it is unfinished, then the model. Its record is written last, whole or not at all. So at any moment a
run has a record, or a folder to go on from, or has not begun; and a lock keeps other processes away while one works on
it.
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
from statistics import harmonic_mean
from typing import Any, Literal

import torch

from .. import __version__
from ..common.devices import choose_device
from ..common.errors import one_line, trace
from ..common.machine import processor
from ..data.dataset import ImageDataset, Splits
from ..network.cost import network_mult_adds, network_parameters
from ..network.model import HybridMobileNet
from ..training.checkpoint import CHECKPOINT_FILE
from ..training.evaluate import evaluate
from ..training.run import EVALUATION_FILE, METRICS_FILE, resume, train
from ..training.setup import Monitor, Setup, read_data
from .grid import TRAINING, Run
from .records import Record, Score, is_recorded, read_record, record_path, write_record

#: Passes over random regions that are averaged, beside the one over fixed regions, where a network has such regions.
PASSES = 12

#: What is told of a run whose process was stopped by a signal, with its state saved.
STOPPED = "its process was stopped by SIGTERM: run again to go on with it"


@dataclass(frozen=True)
class RunState:
    """What a run of a sweep tells of itself.

    Attributes:
        name: of the run.
        state: "waiting" is never told; "elsewhere" means that another process works on it.
        done: the fraction of its training that is done.
        what: what it is at, for a person.
        rate: images per second, 0 where unknown.
        message: the result of a finished run, or what went wrong.
        is_news: worth a line where there is no terminal.
    """

    name: str
    state: Literal["running", "finished", "failed", "elsewhere"]
    done: float = 0.0
    what: str = ""
    rate: float = 0.0
    message: str = ""
    is_news: bool = False


Report = Callable[[RunState], None]


@dataclass(frozen=True)
class Place:
    """Where records and run folders are kept. Processes, also of several machines, may share them."""

    results: Path
    runs: Path

    def folder(self, run: Run) -> Path:
        """A run's folder: with another recipe or architecture, another."""
        return self.runs / f"{run.name}-{run.fingerprint[:8]}"


class KeptData:
    """Reads the data of runs, each set once: decoding CIFAR takes as long as a GPU trains a small network on it."""

    def __init__(self) -> None:
        self._splits: dict[str, Splits] = {}

    def __call__(self, setup: Setup, monitor: Monitor) -> Splits:
        """The data of a setup of the grid, which is decided by its name."""
        if setup.data not in self._splits:
            self._splits[setup.data] = read_data(setup, monitor)
        return self._splits[setup.data]


def carry_out(run: Run, place: Place, report: Report, read: KeptData, device: str = "auto") -> None:
    """Train a run, or go on with it, evaluate it and record it. What goes wrong with it is reported, not raised.

    The device is as `choose_device` takes it.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM during training, with the state saved.
    """
    try:
        place.results.mkdir(parents=True, exist_ok=True)
        place.runs.mkdir(parents=True, exist_ok=True)
        with _locked(place.runs / f"{place.folder(run).name}.lock") as holder:
            if holder is not None:
                report(RunState(run.name, "elsewhere", message=holder))
                return
            if not is_recorded(place.results, run):
                write_record(record_path(place.results, run), _record(run, place.folder(run), report, read, device))
        scores = read_record(record_path(place.results, run)).test
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        report(RunState(run.name, "failed", message=trace(error) + one_line(error)))
    else:
        accuracies = (
            f"{score.accuracy:.2%}" + (f" (mean of {passes} passes)" if passes > 1 else "")
            for passes, score in scores.items()
        )
        report(RunState(run.name, "finished", 1.0, message=", ".join(accuracies)))


def _record(run: Run, folder: Path, report: Report, read: KeptData, device: str) -> Record:
    code, monitor, chosen = _code(), _Watcher(run, report), choose_device(device)
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
        resume(folder, monitor, read, device)
    elif not (folder / EVALUATION_FILE).is_file():
        if folder.exists():  # killed before it saved anything
            shutil.rmtree(folder)
        train(setup, folder, monitor, read, device)

    model = HybridMobileNet.from_pretrained(folder).to(chosen)
    evaluations = [json.loads((folder / EVALUATION_FILE).read_bytes())]
    started = time.perf_counter()
    if model.fractional_max_pools():
        evaluations.append(_averaged(model, read(setup, monitor).test, run, report))
    epochs = tuple(json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines())
    trained = model.training_record
    return Record(
        data=run.data,
        family=run.family,
        delta=run.delta,
        alpha=run.alpha,
        seed=run.seed,
        fingerprint=run.fingerprint,
        recipe=run.recipe,
        mult_adds=network_mult_adds(run.network),
        parameters=network_parameters(run.network),
        images=trained["images"],
        test={
            each["passes"]: Score(each["accuracy"], each["correct"], each["images"], each["loss"])
            for each in evaluations
        },
        images_per_second=harmonic_mean([epoch["images_per_second"] for epoch in epochs]),
        seconds={
            "training": sum(epoch["seconds"] for epoch in epochs),
            "evaluation": time.perf_counter() - started,  # of several passes
        },
        data_fingerprint=trained["data_fingerprint"],
        code=code,
        environment={
            **{key: trained[key] for key in ("torch", "python", "machine", "device", "threads")},
            "processor": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else processor(),
            "system": platform.system(),
        },
        epochs=epochs,
        training=TRAINING,
    )


def _averaged(model: HybridMobileNet, test: ImageDataset, run: Run, report: Report) -> dict[str, Any]:
    done = 0

    def on_images(count: int) -> None:
        nonlocal done
        done += count
        what = f"testing, mean of {PASSES} passes: {done:,} of {len(test):,} images"
        report(RunState(run.name, "running", 1.0, what, is_news=done == len(test)))

    return evaluate(model, test, PASSES, run.seed, on_images).record()


class _Watcher:
    """Tells a sweep what `train` tells its monitor."""

    def __init__(self, run: Run, report: Report) -> None:
        self._run, self._report = run, report
        self._epoch = self._step = self._steps = self._batch_size = 0
        self._rate = 0.0
        self._since = (0.0, 0)

    def on_data(self, what: str, done: int, total: int) -> None:
        self._tell(f"{what}: {done:,} of {total:,}")

    def on_start(self, epoch: int, epochs: int, step: int, steps: int, batch_size: int) -> None:  # noqa: ARG002
        self._epoch, self._step, self._steps, self._batch_size = epoch, step, steps, batch_size
        self._since = (time.perf_counter(), step)
        self._tell(f"epoch {epoch + 1}/{self._run.recipe.epochs}")

    def on_step(self, loss: float, step: int) -> None:
        then, before = self._since
        self._step = step
        self._rate = (step - before) * self._batch_size / (time.perf_counter() - then)
        self._tell(f"epoch {self._epoch + 1}/{self._run.recipe.epochs} loss {loss:.3f}")

    def on_epoch(self, record: dict[str, Any]) -> None:
        self._epoch, self._step, self._rate = record["epoch"], 0, record["images_per_second"]
        of = f"epoch {record['epoch']}/{self._run.recipe.epochs}"
        self._tell(f"{of} loss {record['loss']:.3f} accuracy {record['accuracy']:.2%}", is_news=True)

    def on_note(self, note: str) -> None: ...

    def on_warning(self, warning: str) -> None: ...

    def _tell(self, what: str, *, is_news: bool = False) -> None:
        done = (self._epoch + self._step / max(self._steps, 1)) / self._run.recipe.epochs
        self._report(RunState(self._run.name, "running", done, what, self._rate, is_news=is_news))


@contextmanager
def _locked(path: Path) -> Iterator[str | None]:
    """Hold the lock at `path`, or be told who does. The system frees it when its process ends, however that comes."""
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
    """Version of the package, and commit where it is a checkout, marked where files differ; as this process began."""
    here = Path(__file__).parent
    commit = None
    if shutil.which("git"):
        # An installed package may lie in somebody else's repository, which does not track it.
        git = ["git", "-C", str(here)]
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
        if tracked.returncode == 0:
            describe = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
            commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip() or None
    return {"version": __version__, "commit": commit}
