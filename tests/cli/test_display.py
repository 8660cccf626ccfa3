"""What a sweep shows: lines where there is no terminal, a live table where there is one, and an honest time left."""

from __future__ import annotations

import io
import time

import pytest
import rich.console
from rich.console import Console

from hybrid_mobilenet.cli.display import RunDisplay, SweepDisplay, Work
from hybrid_mobilenet.study.reproduce import RunState

WORK = {"a": Work("small", 10.0), "b": Work("small", 30.0), "c": Work("large", 60.0)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, to be set."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_is_what_runs_of_a_kind_took(clock: list[float]) -> None:
    sweep = SweepDisplay(WORK, shown=False)
    assert sweep.seconds_left() is None
    sweep(RunState("a", "running", 0.0))
    clock[0] = 20
    sweep(RunState("a", "running", 0.5, rate=1.0))
    # 4 seconds for a unit of work: 5 + 30 units are left of the small ones, and the large one is taken for as slow.
    assert sweep.seconds_left() == pytest.approx(4 * (5 + 30 + 60))
    assert sweep.summary() == "0 of 3 runs finished, about 6 min left"
    clock[0] = 40
    sweep(RunState("a", "finished", 1.0))
    sweep(RunState("b", "running", 0.0))
    sweep(RunState("c", "running", 0.0))
    clock[0] = 100
    sweep(RunState("c", "running", 0.5, rate=1.0))
    # 2 seconds for a unit of the large kind, and two run at once.
    assert sweep.seconds_left() == pytest.approx((4 * 30 + 2 * 30) / 2)
    sweep(RunState("b", "failed", 0.0))
    assert sweep.summary() == "1 of 3 runs finished, 1 failed, about 60 s left"


def test_a_resumed_run_is_timed_from_where_it_went_on(clock: list[float]) -> None:
    sweep = SweepDisplay({"a": Work("small", 100.0)}, shown=False)
    sweep(RunState("a", "running", 0.0))  # reading data
    clock[0] = 5
    sweep(RunState("a", "running", 0.8, "epoch 9/10"))
    clock[0] = 15
    sweep(RunState("a", "running", 0.9, "epoch 10/10", 1.0))
    assert sweep.seconds_left() == pytest.approx(10)


def test_lines_where_there_is_no_terminal(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with SweepDisplay(WORK, shown=True) as sweep:
        sweep(RunState("a", "running", 0.0, "reading"))
        clock[0] = 10
        sweep(RunState("a", "running", 0.5, "epoch 1/2", 1234.5, is_news=True))
        sweep(RunState("a", "finished", 1.0, message="80.00% [bold]"))
        sweep(RunState("b", "elsewhere", message="process 1"))
    assert capsys.readouterr().err.splitlines() == [
        "a  epoch 1/2  1,234 images/s  [0 of 3 runs finished, about 3 min left]",
        "a  finished  80.00% [bold]  [1 of 3 runs finished, about 3 min left]",
        "b  left to another process  process 1  [1 of 3 runs finished, about 2 min left]",
    ]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 100 columns is sent."""
    sent = io.StringIO()

    def terminal(**options: object) -> Console:
        return Console(**{**options, "file": sent, "force_terminal": True, "width": 100})  # type: ignore[arg-type]

    monkeypatch.setattr(rich.console, "Console", terminal)
    return sent


def test_a_live_table_on_a_terminal(screen: io.StringIO) -> None:
    with SweepDisplay(WORK, shown=True) as sweep:
        sweep(RunState("a", "running", 0.5, "epoch 1/2 loss 0.1", 987.0, is_news=True))
        sweep._live.refresh()
        sweep(RunState("a", "finished", 1.0, message="80.00%"))
    shown = screen.getvalue()
    for part in ("images/s", "epoch 1/2 loss 0.1", "987", "a  finished  80.00%", "0 of 3 runs finished"):
        assert part in shown
    assert "\x1b[" in shown


@pytest.mark.parametrize("name", ["a[b]", "[/x]", "[red]", ":smile:", "\\[b]"])
def test_names_are_shown_as_they_are(name: str, screen: io.StringIO) -> None:
    with RunDisplay(shown=True) as run:
        run.counter(f"bar {name}", 3)(1)
        run.on_data(f"data {name}", 1, 3)
        run.on_note(f"note {name}")
    with SweepDisplay({name: Work("small", 1.0)}, shown=True) as sweep:
        sweep(RunState(name, "running", 0.5, f"what {name}", is_news=True))
        sweep._live.refresh()
        sweep(RunState(name, "failed", 1.0, message=f"message {name}"))
    for shown in (f"bar {name}", f"data {name}", f"note {name}", f"what {name}", f"message {name}", f"{name}  failed"):
        assert shown in screen.getvalue()


def test_names_are_shown_as_they_are_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with RunDisplay(shown=True) as run, SweepDisplay({"a[b]": Work("small", 1.0)}, shown=True) as sweep:
        run.on_note("note [/x] :smile:")
        sweep(RunState("a[b]", "running", 0.5, "what [red]", is_news=True))
    note, line = capsys.readouterr().err.splitlines()
    assert note == "note [/x] :smile:"
    assert line.startswith("a[b]  what [red]  [0 of 1 runs finished")
