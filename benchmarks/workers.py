"""Processes that time a training step when asked, and sleep while another is timed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Self

FOLDER = Path(__file__).parent

#: Seconds from the start until a side is warm, compiling included, after which it counts as hanging.
PATIENCE = 600


class WorkerError(RuntimeError):
    """A worker ended early.

    Attributes:
        reason: why, in a line: the signal that ended it, what it said last.
    """

    def __init__(self, side: str, reason: str, errors: str) -> None:
        super().__init__(f"the benchmark's {side} worker ended early, {reason}:\n{errors}")
        self.reason = reason


class Worker:
    """A running step_worker.py (see there for what is said), ended on leaving the `with` block.

    What torch.compile made before is not found: its cache is a folder that goes with the worker.

    Args:
        side: a module of this folder with `training_step`.
        arguments: family, alpha, delta and batch size.
        threads: for the side's own thread pools.
        python: the interpreter, which must have what the side imports.
    """

    def __init__(self, side: str, arguments: tuple[object, ...], threads: int, python: str = sys.executable) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in __exit__
        self._cache = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [python, str(FOLDER / "step_worker.py"), side, *map(str, arguments), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
            env=os.environ
            | {
                "OMP_NUM_THREADS": str(threads),
                "PYTHONPATH": str(FOLDER.parent / "src"),
                "TORCHINDUCTOR_CACHE_DIR": self._cache.name,
            },
        )
        self._side, self._hanging = side, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()
        self._cache.cleanup()

    def warm_up(self) -> tuple[str, float]:
        """Wait until the side is warm: what it is a measurement of, and its first step's seconds, compiling included.

        To be called once, first.

        Raises:
            WorkerError: where it ends before that, or is not warm after `PATIENCE` seconds.
        """
        timer = Timer(PATIENCE, self._give_up)
        timer.start()
        try:
            version, first = self._answer().split("\t")
        finally:
            timer.cancel()
        return version, float(first)

    def __call__(self, steps: int) -> float:
        """Seconds that one of `steps` steps takes on average.

        Raises:
            WorkerError: where it has ended.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: so it does not answer
            self._process.stdin.write(f"{steps}\n")
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._error()
        return line.strip()

    def _give_up(self) -> None:
        self._hanging = True
        self._process.kill()

    def _error(self) -> WorkerError:
        status = self._process.wait()
        self._errors.seek(0)
        errors = self._errors.read()
        if self._hanging:
            return WorkerError(self._side, f"not warm after {PATIENCE} s", errors)
        lines = [line for line in errors.splitlines() if line.strip()]
        named = [line for line in lines if re.match(r"[\w.]+: ", line)]  # torch has advice below an exception
        said = (named or lines or [f"exit status {status}"])[-1].strip()
        return WorkerError(self._side, f"{signal.Signals(-status).name}: {said}" if status < 0 else said, errors)
