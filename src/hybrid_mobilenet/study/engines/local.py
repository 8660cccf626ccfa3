"""Who carries out the runs of a sweep: this process, several of this machine, or a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from ...common.memory import keep_freed_memory
from ...common.signals import stop_signals
from ...training.run import Interrupted
from ..grid import Run
from ..reproduce import STOPPED, KeptData, Place, Report, RunState, carry_out

#: Seconds between looks whether the sweep is to stop.
LOOK_EVERY = 0.5


def run_here(runs: Sequence[Run], place: Place, report: Report, device: str = "auto") -> None:
    """Carry out runs one after another in this process, on the device that `choose_device` chooses.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM during training, with the state saved.
    """
    kept = KeptData()
    for run in runs:
        carry_out(run, place, report, kept, device)


def run_in_processes(runs: Sequence[Run], place: Place, jobs: int, report: Report, device: str = "auto") -> None:
    """Carry out runs in `jobs` processes at once, each with its share of torch's threads, all on one device.

    A process that is killed or stopped costs its own run, which is reported as failed and goes on when asked for again;
    another takes its place.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, with the state of all runs saved.
    """
    waiting = deque(runs)
    working: dict[Connection, tuple[Run, BaseProcess]] = {}
    threads = max(1, torch.get_num_threads() // jobs)
    try:
        with stop_signals() as stop:
            for _ in range(min(jobs, len(runs))):
                _give(waiting.popleft(), *_start(place, threads, device), working)
            while working:
                told = wait(list(working), LOOK_EVERY)
                if stop.is_set():
                    raise Interrupted
                for ready in told:
                    assert isinstance(ready, Connection)
                    run, process = working[ready]
                    try:
                        state = ready.recv()
                    except (EOFError, ConnectionResetError):  # the latter where it had not even read what to do
                        del working[ready]
                        ready.close()
                        process.join()
                        report(RunState(run.name, "failed", message=_ended(process.exitcode)))
                        if waiting:
                            _give(waiting.popleft(), *_start(place, threads, device), working)
                        continue
                    if state is not None:
                        report(state)
                    elif waiting:
                        _give(waiting.popleft(), ready, process, working)
                    else:
                        del working[ready]
                        ready.close()
                        process.join()
    finally:  # none is left, but where the sweep is interrupted or has failed
        for _, process in working.values():
            process.terminate()
        for connection, (_, process) in working.items():
            connection.close()  # so that one which has just finished its run waits for no other
            process.join()


def _start(place: Place, threads: int, device: str) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in whatever state they are
    ours, its = context.Pipe()
    process: BaseProcess = context.Process(target=_work, args=(place, threads, device, its))
    with _without_ctrl_c():
        process.start()
    its.close()  # so that this process notices when the other ends
    return ours, process


def _give(
    run: Run, connection: Connection, process: BaseProcess, working: dict[Connection, tuple[Run, BaseProcess]]
) -> None:
    process.name = run.name
    working[connection] = run, process
    with suppress(BrokenPipeError):  # it has just been killed: see wait
        connection.send(run)


def _work(place: Place, threads: int, device: str, connection: Connection) -> None:
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()
    kept = KeptData()

    def report(state: RunState | None) -> None:
        with suppress(BrokenPipeError):  # the sweep is gone: see _stop_with_parent
            connection.send(state)

    while True:
        try:
            run = connection.recv()
        except (EOFError, ConnectionResetError):  # there are no more runs, or the sweep is gone
            return
        try:
            carry_out(run, place, report, kept, device)
        except Interrupted:  # now end by the signal: the sweep sees by the status that the run is not finished
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        report(None)


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """What is started here never sees Ctrl-C, which a terminal sends to all: the sweep decides what it means."""
    resource_tracker.ensure_running()  # else the first process starts it, which lets SIGINT through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _ended(exitcode: int | None) -> str:
    if exitcode == -signal.SIGTERM:
        return STOPPED
    how = f"was killed by signal {-exitcode}" if exitcode and exitcode < 0 else f"ended with status {exitcode}"
    return f"its process {how}: run again to go on with it, with fewer --jobs if memory was short"
