"""Ctrl-C and SIGTERM as an event, for work that saves its state before it stops. Standard library only."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds within which two SIGINTs are one Ctrl-C: torchrun forwards what the terminal already sent to all processes.
SAME_CTRL_C = 0.5


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets. A second Ctrl-C raises KeyboardInterrupt.

    A second SIGTERM does nothing: a process of a sweep may get one from the sweep and one from outside. Outside the
    main thread, where Python cannot handle signals, the event is never set.
    """
    stop, first = threading.Event(), 0.0
    if threading.current_thread() is not threading.main_thread():
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

    # A handler that was not installed from Python (None) could not be restored.
    ours = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not None]
    before = {number: signal.signal(number, request) for number in ours}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
