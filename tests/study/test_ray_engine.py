"""A sweep on a Ray cluster of this machine; `make test-ray` installs Ray and runs these tests."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.study.engines.local import run_here
from hybrid_mobilenet.study.engines.ray import check_resources
from hybrid_mobilenet.study.grid import Run, select
from hybrid_mobilenet.study.records import read_record, record_path
from hybrid_mobilenet.study.reproduce import Folders
from hybrid_mobilenet.training.checkpoint import read_checkpoint
from processes import ENVIRONMENT, ends, start_command, wait_for_line

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: make test-ray installs it and runs this"
)
OPTIONS = ["--data", "digits", "--alpha", "0.25", "--delta", "2", "--family", "mobilenet,fmp"]


@pytest.fixture(autouse=True)
def _cluster_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ENVIRONMENT, "RAY_ADDRESS", raising=False)


def chosen(epochs: int) -> list[Run]:
    """What `OPTIONS` select."""
    return select(data=["digits"], families=["mobilenet", "fmp"], deltas=[2], alphas=[0.25], epochs=epochs)


def sweep(folders: Folders, epochs: int) -> subprocess.Popen[str]:
    where = ["--results", str(folders.results), "--runs", str(folders.runs)]
    return start_command("reproduce", "--engine", "ray", "--epochs", str(epochs), *OPTIONS, *where)


def worker(folders: Folders, run: Run) -> int:
    """The process that works on a run, as its lock says."""
    text = (folders.runs / f"{folders.run_folder(run).name}.lock").read_text()
    return int(re.match(r"process (\d+) on ", text)[1])  # type: ignore[index]


@needs_ray
@pytest.mark.slow
def test_a_killed_worker_s_run_goes_on_in_another(tmp_path: Path) -> None:
    runs = chosen(4)
    undisturbed = Folders(tmp_path / "undisturbed" / "results", tmp_path / "undisturbed" / "runs")
    run_here(runs, undisturbed, lambda _: None)

    folders = Folders(tmp_path / "results", tmp_path / "runs")
    process = sweep(folders, epochs=4)
    wait_for_line(process, "fmp", "epoch 2/4")
    killed = worker(folders, runs[1])
    os.kill(killed, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert worker(folders, runs[1]) != killed
    assert "2 of 2 runs are recorded" in stdout
    # What was done before the kill is not done again, but for the epoch that may not have been saved yet.
    assert "fmp-d2-a0.25-seed0  epoch 1/4" not in stderr
    for run in runs:
        ours, theirs = (read_record(record_path(each.results, run)) for each in (folders, undisturbed))
        assert ours.test == theirs.test
        assert [line["loss"] for line in ours.epochs] == [line["loss"] for line in theirs.epochs]
        assert ours.environment["threads"] == 1


@needs_ray
@pytest.mark.slow
def test_ctrl_c_saves_what_the_workers_do(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "results", tmp_path / "runs")
    process = sweep(folders, epochs=100)
    wait_for_line(process, "epoch 1/100")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "error: stopped and saved; the same command continues"
    (begun,) = (run for run in chosen(100)[:1] if folders.run_folder(run).exists())
    assert read_checkpoint(folders.run_folder(begun))[1].epoch >= 1
    assert ends(worker(folders, begun))


@needs_ray
def test_an_address_without_a_cluster() -> None:
    result = CliRunner().invoke(
        cli.app, ["reproduce", "--engine", "ray", "--address", "127.0.0.1:1", "--data", "digits"]
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: no Ray cluster answers at 127.0.0.1:1 (Connection refused): start it with `ray start --head`, or leave "
        "out --address and RAY_ADDRESS for a cluster of this machine\n"
    )


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = CliRunner().invoke(cli.app, ["reproduce", "--engine", "ray", "--data", "digits"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: --engine ray needs Ray: pip install 'hybrid-mobilenet[ray]'\n"


@pytest.mark.parametrize("arguments", [["--jobs", "2"], ["--dry-run"]])
def test_what_is_about_this_machine_alone(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli.app, ["reproduce", "--engine", "ray", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--cpus and --gpus decide how many runs go on at the same time" in result.stderr


def test_no_machine_has_room() -> None:
    nodes: list[dict[str, Any]] = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    for cpus, gpus in ((4, 0), (2, 1), (1, 0.25)):
        check_resources(nodes, cpus, gpus)
    with pytest.raises(
        ValueError, match=r"--cpus is 4 and --gpus 1, but no machine .* \(4 CPUs and 0 GPUs, 2 CPUs and 1"
    ):
        check_resources(nodes, 4, 1)
