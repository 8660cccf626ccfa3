"""Calling a function of the package leaves the process as it was; what speeds a process up, the command line does."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hybrid_mobilenet
from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.common import memory

HAS_MALLOPT = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")
TESTS = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(Path(hybrid_mobilenet.__file__).parents[1]), str(TESTS)]),
    "OMP_NUM_THREADS": "1",
}

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


def test_the_python_api_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(TESTS / "process_state.py"), str(tmp_path)]
    environment = ENVIRONMENT | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
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
def test_a_sweep_s_processes_keep_freed_memory(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    environment = ENVIRONMENT | {"WATCHED": str(tmp_path / "watched")}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    only = ["--data", "digits", "--alpha", "0.25", "--delta", "2", "--family", "mobilenet"]
    command = [sys.executable, "-m", "hybrid_mobilenet", "reproduce", *only, "--epochs", "1", "--jobs", "2"]
    subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path, check=True, timeout=300)
    pages = dict(line.split() for line in (tmp_path / "watched").read_text().splitlines())
    assert set(pages) == {"child", "sweep"}
    assert int(pages["child"]) < 100
