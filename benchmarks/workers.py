"""Processes that time a training step on request, and sleep while another is timed."""

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

#: Seconds for a side to warm up, including compilation.
WARM_UP_TIMEOUT = 600


class WorkerError(RuntimeError):
    """A worker ended early.

    Attributes:
        reason: one line with the signal that ended it and its last error message.
    """

    def __init__(self, side: str, reason: str, errors: str) -> None:
        super().__init__(f"the benchmark's {side} worker ended early, {reason}:\n{errors}")
        self.reason = reason


class Worker:
    """A running step_worker.py, which documents the protocol. It is killed at the end of the `with` block.

    torch.compile starts with an empty cache, in a temporary folder of the worker.

    Args:
        side: a module of this folder with `training_step`.
        arguments: family, alpha, delta and batch size.
        threads: number of threads in the side's thread pools.
        python: the interpreter. It must have the packages that the side imports.
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
        self._side, self._timed_out = side, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()
        self._cache.cleanup()

    def warm_up(self) -> tuple[str, float]:
        """Wait until the side is warm. To be called once, before all other calls.

        Returns:
            The side's version, and the seconds of its first step, including compilation.

        Raises:
            WorkerError: if it ends early, or is not warm after `WARM_UP_TIMEOUT` seconds.
        """
        timer = Timer(WARM_UP_TIMEOUT, self._time_out)
        timer.start()
        try:
            version, first = self._answer().split("\t")
        finally:
            timer.cancel()
        return version, float(first)

    def __call__(self, steps: int) -> float:
        """Run `steps` steps, and return the mean seconds per step.

        Raises:
            WorkerError: if the process has ended.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the process has ended: _answer raises the error
            self._process.stdin.write(f"{steps}\n")
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._error()
        return line.strip()

    def _time_out(self) -> None:
        self._timed_out = True
        self._process.kill()

    def _error(self) -> WorkerError:
        status = self._process.wait()
        self._errors.seek(0)
        errors = self._errors.read()
        if self._timed_out:
            return WorkerError(self._side, f"not warm after {WARM_UP_TIMEOUT} s", errors)
        lines = [line for line in errors.splitlines() if line.strip()]
        exceptions = [line for line in lines if re.match(r"[\w.]+: ", line)]  # torch prints advice after an exception
        last = (exceptions or lines or [f"exit status {status}"])[-1].strip()
        return WorkerError(self._side, f"{signal.Signals(-status).name}: {last}" if status < 0 else last, errors)
