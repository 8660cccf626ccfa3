"""Runs the command line in this process, which is faster than in one of its own (processes.py)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from typer.testing import CliRunner, Result

from hybrid_mobilenet.cli import app as cli

#: Options of `train` for a network that is trained in seconds.
NETWORK = ["--family", "fmp", "--alpha", "0.25", "--delta", "1", "--image-size", "8", "--in-channels", "1"]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, list(map(str, arguments)))


def fails(result: Result | subprocess.CompletedProcess[str], *parts: str) -> None:
    """Assert that a command failed with one line on stderr, which has all `parts`."""
    status = result.exit_code if isinstance(result, Result) else result.returncode
    assert (status, result.stdout) == (2, ""), result.stderr
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr
