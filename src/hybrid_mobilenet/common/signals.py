"""Ctrl-C and SIGTERM, for work that is finished or saved before it stops. Standard library only."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds within which one Ctrl-C may come twice: torchrun passes on what a terminal has sent to all processes.
SAME_CTRL_C = 0.5


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second Ctrl-C stops at once.

    A second SIGTERM changes nothing: who stops a sweep stops its processes, and each may be told by others too.
    """
    stop, first = threading.Event(), 0.0
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield stop
        return

    def request(number: int, _frame: object) -> None:
        nonlocal first
        now = time.monotonic()
        if not stop.is_set():
            stop.set()
            first = now
        elif number == signal.SIGINT and now - first > SAME_CTRL_C:
            raise KeyboardInterrupt

    # A handler that is not Python's (None) could not be put back.
    ours = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not None]
    before = {number: signal.signal(number, request) for number in ours}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
