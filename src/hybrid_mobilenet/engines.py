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
from .reproduce import Place, Report, carry_out
from .train import Interrupted


def run_here(runs: Sequence[Run], place: Place, report: Report) -> None:
    """Carry out runs one after another in this process.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM during training, with the state saved.
    """
    for run in runs:
        carry_out(run, place, report)


def run_in_processes(runs: Sequence[Run], place: Place, jobs: int, report: Report) -> None:
    """Carry out runs in up to `jobs` processes at once, each with its share of torch's threads.

    A process that is killed costs its own run, which is reported as failed and goes on when asked for again.

    Raises:
        Interrupted: after Ctrl-C, with the state of all runs saved.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in whatever state they are
    threads = max(1, torch.get_num_threads() // jobs)
    waiting = deque(runs)
    working: dict[Connection, tuple[Run, BaseProcess]] = {}
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                run = waiting.popleft()
                reader, writer = context.Pipe(duplex=False)
                started: BaseProcess = context.Process(target=_work, args=(run, place, threads, writer), name=run.name)
                with _without_ctrl_c():
                    started.start()
                writer.close()  # so that the reader notices when the process ends
                working[reader] = run, started
            for ready in wait(list(working)):
                assert isinstance(ready, Connection)
                try:
                    report(ready.recv())
                except EOFError:
                    ended, process = working.pop(ready)
                    process.join()
                    if process.exitcode:
                        report(RunState(ended.name, "failed", message=_ended(process.exitcode)))
    except KeyboardInterrupt:
        for _, process in working.values():
            process.terminate()
        for _, process in working.values():
            process.join()
        raise Interrupted from None


def _work(run: Run, place: Place, threads: int, writer: Connection) -> None:
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    torch.set_num_threads(threads)

    def report(state: RunState) -> None:
        with suppress(BrokenPipeError):  # the sweep is gone: see _stop_with_parent
            writer.send(state)

    with suppress(Interrupted):
        carry_out(run, place, report)


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
