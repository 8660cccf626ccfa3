"""Ctrl-C and SIGTERM: one signal sent twice, and a second Ctrl-C."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from hybrid_mobilenet.training.checkpoint import read_checkpoint
from hybrid_mobilenet.training.setup import Interrupted
from runs import STEPS, stopped


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def impatient() -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.6)
        signal.raise_signal(signal.SIGINT)

    out = stopped(tmp_path / "run", STEPS + 3, impatient, KeyboardInterrupt)
    assert read_checkpoint(out)[1].step == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_twice_is_one(tmp_path: Path, number: signal.Signals) -> None:
    """From a terminal or a supervisor that tells all processes of a group, and from the first of them."""

    def twice() -> None:
        signal.raise_signal(number)
        time.sleep(0.05 if number == signal.SIGINT else 0.6)
        signal.raise_signal(number)

    out = stopped(tmp_path / "run", STEPS + 3, twice, Interrupted)
    assert read_checkpoint(out)[1].step == 4
