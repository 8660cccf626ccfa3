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

from .grid import Run
from .progress import RunState
from .reproduce import KeptData, Place, Report, carry_out
from .train import Interrupted


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

    A process that is killed costs its own run, which is reported as failed and goes on when asked for again; another
    takes its place.

    Raises:
        Interrupted: after Ctrl-C, with the state of all runs saved.
    """
    waiting = deque(runs)
    working: dict[Connection, tuple[Run, BaseProcess]] = {}
    threads = max(1, torch.get_num_threads() // jobs)
    try:
        for _ in range(min(jobs, len(runs))):
            _give(waiting.popleft(), *_start(place, threads, device), working)
        while working:
            for ready in wait(list(working)):
                assert isinstance(ready, Connection)
                run, process = working[ready]
                try:
                    state = ready.recv()
                except EOFError:
                    del working[ready]
                    process.join()
                    if process.exitcode:
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
    except KeyboardInterrupt:
        for _, process in working.values():
            process.terminate()
        for _, process in working.values():
            process.join()
        raise Interrupted from None


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
    kept = KeptData()

    def report(state: RunState | None) -> None:
        with suppress(BrokenPipeError):  # the sweep is gone: see _stop_with_parent
            connection.send(state)

    with suppress(Interrupted, EOFError):  # the sweep is interrupted, or has no more runs
        while True:
            carry_out(connection.recv(), place, report, kept, device)
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


def _ended(exitcode: int) -> str:
    how = f"was killed by signal {-exitcode}" if exitcode < 0 else f"ended with status {exitcode}"
    return f"its process {how}: run again to go on with it, with fewer --jobs if memory was short"
