"""Calling a function of the package leaves the process as it was; what speeds a process up, the command line does."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.common import memory
from processes import ENVIRONMENT, TESTS, run_command, run_python

HAS_MALLOPT = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")

#: Has each process that has torch, when it ends, tell in the file WATCHED how many pages an array costs it.
WATCH = """
import atexit, os, sys

def watch():
    if "torch" in sys.modules:
        import multiprocessing
        from process_state import new_pages
        with open(os.environ["WATCHED"], "a") as file:
            print("child" if multiprocessing.parent_process() else "sweep", new_pages(), file=file)

atexit.register(watch)
"""


@pytest.mark.slow
def test_the_python_api_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    environment = {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = run_python("-W", "error", TESTS / "process_state.py", tmp_path, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    called, pages = done.stdout.split("\n", 1)
    assert called.split() == [
        "train", "stopped", "resume", "load", "from_pretrained", "evaluate", "probabilities", "save_pretrained",
        "load_parquet", "export", "load_classifier", "estimate",
    ]  # fmt: skip
    assert int(pages) > 5000 or not HAS_MALLOPT  # freed memory is the system's again


@pytest.mark.parametrize("arguments", ["train digits", "evaluate run digits", "export run --to onnx", "reproduce"])
def test_commands_that_compute_keep_freed_memory(arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> None:
        raise ValueError("kept")

    monkeypatch.setattr(memory, "keep_freed_memory", told)
    assert CliRunner().invoke(cli.app, arguments.split()).stderr.startswith("error: kept")


@pytest.mark.skipif(not HAS_MALLOPT, reason="the C library is not glibc")
@pytest.mark.slow
def test_a_sweep_s_processes_keep_freed_memory(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    environment = {"WATCHED": str(tmp_path / "watched"), "PYTHONPATH": path}
    only = ["--data", "digits", "--alpha", "0.25", "--delta", "2", "--family", "mobilenet"]
    command = ["reproduce", *only, "--epochs", "1", "--jobs", "2"]
    done = run_command(*command, environment=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pages = dict(line.split() for line in (tmp_path / "watched").read_text().splitlines())
    assert set(pages) == {"child", "sweep"}
    assert int(pages["child"]) < 100
