"""Sweeps in this process and in several: what stops them, and what it costs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from hybrid_mobilenet.study.engines.local import run_here, run_in_processes
from hybrid_mobilenet.study.records import read_records
from hybrid_mobilenet.study.reproduce import Folders, RunState
from hybrid_mobilenet.training import fit
from hybrid_mobilenet.training.checkpoint import read_checkpoint
from hybrid_mobilenet.training.setup import Interrupted
from hybrid_mobilenet.training.step import train_step
from processes import ends, wait_for_line
from sweeps import chosen, outcomes, sweep, worker

pytestmark = pytest.mark.usefixtures("large_batches")

# Interruptions


def stop_at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do `act` before a step, counted over all runs from 0."""
    taken = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal taken
        if taken == step:
            act()
        taken += 1
        return train_step(*arguments, **options)

    monkeypatch.setattr(fit, "train_step", counted)


def test_ctrl_c_saves_and_the_same_command_goes_on(
    folders: Folders, finished: tuple[Folders, list[RunState]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = chosen("mobilenet", "fmp")
    with monkeypatch.context() as patch:
        stop_at_step(patch, 6, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            run_here(runs, folders, lambda _: None)
    assert set(outcomes(folders.results)) == {runs[0].name}
    progress = read_checkpoint(folders.run_folder(runs[1]))[1]
    assert (progress.epoch, progress.step) == (1, 1)
    run_here(runs, folders, lambda _: None)
    assert outcomes(folders.results) == outcomes(finished[0].results)


# Several processes


@pytest.mark.slow
def test_processes_give_the_same_records(folders: Folders, finished: tuple[Folders, list[RunState]]) -> None:
    states: list[RunState] = []
    run_in_processes(chosen("mobilenet", "fmp"), folders, 2, states.append)
    assert outcomes(folders.results) == outcomes(finished[0].results)
    assert [state.state for state in states if state.state != "running"] == ["finished"] * 2
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_process_takes_one_run_after_another_and_reads_the_data_once(folders: Folders) -> None:
    states, processes, names = list[RunState](), set[int | None](), set[str]()

    def look(state: RunState) -> None:
        states.append(state)
        processes.update(each.pid for each in multiprocessing.active_children())
        names.update(each.name for each in multiprocessing.active_children())

    runs = chosen("mobilenet", "mp3")
    run_in_processes(runs, folders, 1, look)
    assert [state.name for state in states if state.state == "finished"] == [run.name for run in runs]
    assert len(processes) == 1
    assert names == {run.name for run in runs}
    assert [state.name for state in states if "reading training images" in state.what] == [runs[0].name] * 6


@pytest.mark.slow
def test_a_killed_process_costs_its_run_alone(folders: Folders) -> None:
    states: list[RunState] = []
    runs = chosen("mobilenet", "fmp", epochs=3)

    def kill_one(state: RunState) -> None:
        states.append(state)
        if state.name == runs[1].name and state.what.startswith("epoch 1/3 loss") and state.is_news:
            (worker,) = (each for each in multiprocessing.active_children() if each.name == runs[1].name)
            worker.kill()

    run_in_processes(runs, folders, 2, kill_one)
    ended = {state.name: state for state in states if state.state != "running"}
    assert ended[runs[0].name].state == "finished"
    assert ended[runs[1].name].state == "failed"
    assert "was killed by signal 9: run again" in ended[runs[1].name].message
    run_here(runs, folders, states.append)
    assert len(read_records(folders.results)) == 2
    assert states[-1].state == "finished"


@pytest.mark.parametrize(
    ("number", "whom"),
    [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.killpg), (signal.SIGTERM, os.kill), (signal.SIGKILL, os.kill)],
    ids=["Ctrl-C", "SIGTERM to all", "SIGTERM", "SIGKILL"],
)
@pytest.mark.slow
def test_what_stops_a_sweep_saves_every_process_s_run(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, whom: Callable[[int, int], None]
) -> None:
    monkeypatch.undo()  # the sweep's own batch size, so that the run folders are these
    process = sweep(folders, "--jobs", "2", "--epochs", "40")
    for family in ("mobilenet", "fmp"):
        wait_for_line(process, family, "epoch")
    runs = chosen("mobilenet", "fmp", epochs=40)
    workers = [worker(folders, run) for run in runs]
    whom(process.pid, number)
    stdout, stderr = process.communicate(timeout=300)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert (process.returncode, stdout) == (130, "")
        assert stderr.splitlines()[-1] == "error: stopped and saved; the same command continues"
    assert "Traceback" not in stderr
    assert all(map(ends, workers))
    # Between epochs no step is done yet: what was saved at the end of an epoch has none.
    assert all(read_checkpoint(folders.run_folder(run))[1].step > 0 for run in runs)


@pytest.mark.slow
def test_a_process_that_is_stopped_costs_its_run_alone(folders: Folders) -> None:
    runs = chosen("mobilenet", "mp3", "fmp", epochs=3)
    stopped, states = runs[0], list[RunState]()

    def stop_one(state: RunState) -> None:
        states.append(state)
        if state.name == stopped.name and state.what.startswith("epoch 1/3 loss") and state.is_news:
            os.kill(worker(folders, stopped), signal.SIGTERM)

    run_in_processes(runs, folders, 1, stop_one)  # the others in the process that takes its folders
    ended = {state.name: (state.state, state.message) for state in states if state.state != "running"}
    assert ended[stopped.name] == ("failed", "its process was stopped by SIGTERM: run again to resume it")
    assert [ended[run.name][0] for run in runs[1:]] == ["finished"] * 2
    assert read_checkpoint(folders.run_folder(stopped))[1].step > 0
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_process_that_is_stopped_before_it_begins(folders: Folders) -> None:
    runs, states = chosen("mobilenet", "mp3", epochs=1), list[RunState]()

    def stop_first() -> None:
        while not (started := multiprocessing.active_children()):
            time.sleep(0.01)  # if none comes, the thread ends with the tests
        time.sleep(0.3)  # it has its run by then, and is still importing torch
        started[0].terminate()

    stopping = threading.Thread(target=stop_first, daemon=True)
    stopping.start()
    run_in_processes(runs, folders, 1, states.append)
    stopping.join(60)
    assert [(state.name, state.state) for state in states if state.state != "running"] == [
        (runs[0].name, "failed"),
        (runs[1].name, "finished"),
    ]


@pytest.mark.slow
def test_a_sweep_that_fails_leaves_no_process(folders: Folders) -> None:
    def fail(state: RunState) -> None:
        if state.what.startswith("epoch"):
            raise OSError("nowhere to write to")

    with pytest.raises(OSError, match="nowhere to write to"):
        run_in_processes(chosen("mobilenet", "fmp", epochs=40), folders, 2, fail)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_the_command_says_which_process_was_stopped(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    process = sweep(folders, "--jobs", "2", "--epochs", "3")
    runs = chosen("mobilenet", "fmp", epochs=3)
    wait_for_line(process, "fmp", "epoch")
    os.kill(worker(folders, runs[1]), signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 2
    assert stdout.replace("\n", "") == f"1 of 2 runs are recorded in {folders.results}"
    message = "its process was stopped by SIGTERM: run again to resume it"
    assert stderr.splitlines()[-1] == f"error: {runs[1].name}: {message}"
