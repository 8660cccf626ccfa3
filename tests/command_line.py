"""Runs the command line: in a process of its own, as in a shell, or in this one, which is faster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

import hybrid_mobilenet
from hybrid_mobilenet.cli import app as cli

ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(hybrid_mobilenet.__file__).parents[1]),
    "COLUMNS": "80",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}

#: Options of `train` for a network that is trained in seconds.
NETWORK = ["--family", "fmp", "--alpha", "0.25", "--delta", "1", "--image-size", "8", "--in-channels", "1"]


def shell(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hybrid_mobilenet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd, check=False, timeout=120)


def start(*arguments: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hybrid_mobilenet", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT, cwd=cwd)


def invoke(*arguments: str | Path) -> Result:
    """Run in this process, since importing torch takes seconds."""
    return CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, list(map(str, arguments)))


def fails(result: Result | subprocess.CompletedProcess[str], *parts: str) -> None:
    """Assert that a command failed with one line on stderr, which has all `parts`."""
    status = result.exit_code if isinstance(result, Result) else result.returncode
    assert (status, result.stdout) == (2, ""), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    for part in parts:
        assert part in result.stderr, result.stderr
