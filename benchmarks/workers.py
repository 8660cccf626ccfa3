"""Processes that time a training step when asked, and sleep while another is timed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

FOLDER = Path(__file__).parent


class Worker:
    """A running step_worker.py (see there for what is said), ended on leaving the `with` block.

    Args:
        side: a module of this folder with `training_step`.
        arguments: family, alpha, delta and batch size.
        threads: for the side's own thread pools.
        python: the interpreter, which must have what the side imports.
    """

    def __init__(self, side: str, arguments: tuple[object, ...], threads: int, python: str = sys.executable) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in __exit__
        self._process = subprocess.Popen(
            [python, str(FOLDER / "step_worker.py"), side, *map(str, arguments), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(FOLDER.parent / "src")},
        )
        self._side = side

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def version(self) -> str:
        """Wait until the side is warm; what it is a measurement of. To be called once, first."""
        return self._answer()

    def __call__(self, steps: int) -> float:
        """Seconds that one of `steps` steps takes on average."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"the benchmark's {self._side} worker ended early:\n{self._errors.read()}")
        return line.strip()
