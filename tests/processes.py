"""Python programs in processes of their own: the command line as a user starts it, and scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hybrid_mobilenet

TESTS = Path(__file__).parent

#: These sources whether or not they are installed, lines of 80 characters, one thread, and no download.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(Path(hybrid_mobilenet.__file__).parents[1]), str(TESTS)]),
    "COLUMNS": "80",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def run_python(
    *arguments: str | Path,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 300,
    errors: str = "strict",
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments to its end. `environment` comes on top of ENVIRONMENT."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        errors=errors,
        env=ENVIRONMENT | (environment or {}),
        cwd=cwd,
        check=False,
        timeout=timeout,
    )


def run_command(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end. Options are those of `run_python`."""
    return run_python("-m", "hybrid_mobilenet", *arguments, **options)


def start_python(
    *arguments: str | Path, environment: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Start Python with these arguments. Both outputs are pipes of text unless the options of Popen say otherwise."""
    # Where the tests run in the background of a shell, SIGINT is ignored, and the process would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, text=True, env=ENVIRONMENT | (environment or {}), **pipes | options)


def start_command(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start the command line. Options are those of `start_python`."""
    return start_python("-m", "hybrid_mobilenet", *arguments, **options)


def wait_for_line(process: subprocess.Popen[str], *parts: str) -> None:
    """Read the standard error of a process until a line has all these parts."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if all(part in line for part in parts):
            return
    raise AssertionError(f"no line with {parts} in: {''.join(seen)}")


def ends(process: int) -> bool:
    """Whether a process, whoever started it, ends within a minute."""
    for _ in range(600):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        # In a container without an init, a process that has ended stays as a zombie.
        stat = Path(f"/proc/{process}/stat")
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False
