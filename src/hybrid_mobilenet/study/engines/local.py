"""A sweep on this machine: in this process, or in several."""

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
from ...training.setup import Interrupted
from ..grid import Run
from ..reproduce import STOPPED, DataCache, Folders, OnState, RunState, reproduce_run

#: Seconds between checks for a stop signal.
POLL_SECONDS = 0.5


def run_here(runs: Sequence[Run], folders: Folders, on_state: OnState, device: str = "auto") -> None:
    """Reproduce runs one after another in this process. `device` is as for `choose_device`.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM during training. The state is saved.
    """
    cache = DataCache()
    for run in runs:
        reproduce_run(run, folders, on_state, cache, device)


def run_in_processes(runs: Sequence[Run], folders: Folders, jobs: int, on_state: OnState, device: str = "auto") -> None:
    """Reproduce runs in `jobs` processes on one device; each has an equal share of torch's threads.

    If a process is killed or stopped, its run is reported as failed and can be resumed later. Another process replaces
    it.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM. The state of all runs is saved.
    """
    waiting = deque(runs)
    working: dict[Connection, tuple[Run, BaseProcess]] = {}
    threads = max(1, torch.get_num_threads() // jobs)
    try:
        with stop_signals() as stop:
            for _ in range(min(jobs, len(runs))):
                _assign(waiting.popleft(), *_start(folders, threads, device), working)
            while working:
                readable = wait(list(working), POLL_SECONDS)
                if stop.is_set():
                    raise Interrupted
                for ready in readable:
                    assert isinstance(ready, Connection)
                    run, process = working[ready]
                    try:
                        state = ready.recv()
                    except (EOFError, ConnectionResetError):  # reset: it ended before it read its first run
                        del working[ready]
                        ready.close()
                        process.join()
                        on_state(RunState(run.name, "failed", message=_exit_reason(process.exitcode)))
                        if waiting:
                            _assign(waiting.popleft(), *_start(folders, threads, device), working)
                        continue
                    if state is not None:
                        on_state(state)
                    elif waiting:
                        _assign(waiting.popleft(), ready, process, working)
                    else:
                        del working[ready]
                        ready.close()
                        process.join()
    finally:  # processes are left only if the sweep was interrupted or failed
        for _, process in working.values():
            process.terminate()
        for connection, (_, process) in working.items():
            connection.close()  # so that a process that has just finished its run does not wait for another
            process.join()


def _start(folders: Folders, threads: int, device: str) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    ours, theirs = context.Pipe()
    process: BaseProcess = context.Process(target=_worker, args=(folders, threads, device, theirs))
    with _without_ctrl_c():
        process.start()
    theirs.close()  # so that recv fails when the other process ends
    return ours, process


def _assign(
    run: Run, connection: Connection, process: BaseProcess, working: dict[Connection, tuple[Run, BaseProcess]]
) -> None:
    process.name = run.name
    working[connection] = run, process
    with suppress(BrokenPipeError):  # it was just killed; the next wait notices
        connection.send(run)


def _worker(folders: Folders, threads: int, device: str, connection: Connection) -> None:
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()
    cache = DataCache()

    def on_state(state: RunState | None) -> None:
        with suppress(BrokenPipeError):  # the sweep has ended: see _stop_with_parent
            connection.send(state)

    while True:
        try:
            run = connection.recv()
        except (EOFError, ConnectionResetError):  # there are no more runs, or the sweep has ended
            return
        try:
            reproduce_run(run, folders, on_state, cache, device)
        except Interrupted:  # end by the signal, so that the exit status says that the run is unfinished
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        on_state(None)


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started here ignore Ctrl-C, which a terminal sends to all processes: the sweep stops them itself."""
    resource_tracker.ensure_running()  # otherwise the first process starts it, which unblocks SIGINT
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


def _exit_reason(exitcode: int | None) -> str:
    if exitcode == -signal.SIGTERM:
        return STOPPED
    how = f"was killed by signal {-exitcode}" if exitcode and exitcode < 0 else f"ended with status {exitcode}"
    return f"its process {how}: run again to resume it, with fewer --jobs if memory was short"
