"""Progress on stderr while a command works: a bar with the rate and the time left, and a line per finished epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .output import duration, plain_console

if TYPE_CHECKING:
    from ..study.reproduce import RunState


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields.get('unit', 'images')}/s" if speed else "")


class RunDisplay:
    """A progress bar (on a terminal) and epoch lines on stderr. A `Monitor` for training. Silent if not `shown`."""

    def __init__(self, *, shown: bool) -> None:
        self._console = plain_console(stderr=True, quiet=not shown)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,  # results go where standard output goes
        )
        self._task = self._bars.add_task("", visible=False)
        self._epochs = self._batch_size = self._steps = self._epoch = 0
        self.notes: list[str] = []
        self.warnings: list[str] = []  # printed after the result, where they are not missed

    def __enter__(self) -> Self:
        if self._console.is_terminal:  # otherwise rich prints an empty line
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def counter(self, what: str, total: int | None, unit: str = "images") -> Callable[[int], None]:
        """Show a bar for `total` images or other units; None if it is unknown.

        Call the returned function with the number just done.
        """
        self._show(what, total)
        self._bars.update(self._task, unit=unit)
        return lambda count: self._bars.advance(self._task, count)

    def on_data(self, what: str, done: int, total: int) -> None:
        if self._bars.tasks[0].description != what:
            self._show(what, total)
        self._bars.update(self._task, completed=done, visible=done < total)

    def on_start(self, epoch: int, epochs: int, step: int, steps: int, batch_size: int) -> None:
        self._epoch, self._epochs, self._steps, self._batch_size = epoch, epochs, steps, batch_size
        # One bar for the whole run, so that it shows the time left of the run.
        if epoch == 0 or not self._bars.tasks[0].description.startswith("epoch"):
            self._show("epoch", epochs * steps * batch_size, (epoch * steps + step) * batch_size)

    def on_step(self, loss: float, step: int) -> None:
        description = f"epoch {self._epoch + 1}/{self._epochs} loss {loss:.3f}"
        images = (self._epoch * self._steps + step) * self._batch_size
        self._bars.update(self._task, completed=images, description=description)

    def on_epoch(self, record: dict[str, Any]) -> None:
        held_out = f"  validation {record['validation_accuracy']:.2%}" if "validation_accuracy" in record else ""
        self._console.print(
            f"epoch {record['epoch']:>{len(str(self._epochs))}}/{self._epochs}  loss {record['loss']:.4f}  "
            f"accuracy {record['accuracy']:.2%}{held_out}  {record['images_per_second']:,.0f} images/s"
        )

    def on_note(self, note: str) -> None:
        self.notes.append(note)
        self._console.print(note, soft_wrap=True)

    def on_warning(self, warning: str) -> None:
        self.warnings.append(warning)

    def _show(self, what: str, total: int | None, completed: int = 0) -> None:
        self._bars.reset(self._task, description=what, completed=completed, visible=True)
        self._bars.tasks[0].total = total  # reset would ignore None
        self._bars.refresh()  # at once: an export captures stderr for a while


@dataclass(frozen=True)
class Work:
    """The work of a run in a sweep. For runs of one kind, the time is proportional to the amount."""

    kind: str
    amount: float


class SweepDisplay:
    """A live table of the active runs and the time left, on stderr. If that is not a terminal, plain lines."""

    def __init__(self, work: Mapping[str, Work], *, shown: bool) -> None:
        self.states: dict[str, RunState] = {}
        self._work = work
        self._spent: dict[str, tuple[float, float]] = {}  # by kind: seconds, and the amount of work done in them
        self._last: dict[str, tuple[float, float]] = {}  # by run: time and progress of its last report
        self._console = plain_console(stderr=True, quiet=not shown, soft_wrap=True)
        self._live = Live(console=self._console, refresh_per_second=2, transient=True, get_renderable=self._table)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, state: RunState) -> None:
        """Show the new state of a run."""
        self._measure(state)
        self.states[state.name] = state
        if state.state != "running":
            words = {"finished": "finished", "failed": "failed", "elsewhere": "left to another process"}
            self._console.print(f"{state.name}  {words[state.state]}  {state.message}  [{self.summary()}]")
        elif state.is_news and not self._console.is_terminal:
            rate = f"  {state.rate:,.0f} images/s" if state.rate else ""
            self._console.print(f"{state.name}  {state.what}{rate}  [{self.summary()}]")

    def summary(self) -> str:
        """The progress of the sweep, with the time left."""
        count = {state: [each.state for each in self.states.values()].count(state) for state in ("finished", "failed")}
        failed = f", {count['failed']} failed" if count["failed"] else ""
        left = self.seconds_left()
        return (
            f"{count['finished']} of {len(self._work)} runs finished{failed}"
            f"{'' if left is None else f', about {duration(left)} left'}"
        )

    def seconds_left(self) -> float | None:
        """Seconds until all runs finish, from the pace of each kind so far; None before the first measurement."""
        paces = {kind: seconds / amount for kind, (seconds, amount) in self._spent.items()}
        if not paces:
            return None
        slowest = max(paces.values())  # for kinds that are not measured yet
        left = [
            (1 - state.done if state else 1) * work.amount * paces.get(work.kind, slowest)
            for name, work in self._work.items()
            if (state := self.states.get(name)) is None or state.state == "running"
        ]
        return sum(left) / max(1, sum(state.state == "running" for state in self.states.values()))

    def _measure(self, state: RunState) -> None:
        now = time.monotonic()
        when, done = self._last.get(state.name, (now, state.done))
        # Without a rate it is not training: it may just have read its progress from a checkpoint.
        if state.rate and state.done > done:
            work = self._work[state.name]
            seconds, amount = self._spent.get(work.kind, (0.0, 0.0))
            self._spent[work.kind] = seconds + now - when, amount + (state.done - done) * work.amount
        self._last[state.name] = (now, state.done)

    def _table(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in ("Run", "", "", "images/s"):
            table.add_column(column, no_wrap=True, justify="right" if column == "images/s" else "left")
        for state in self.states.values():
            if state.state == "running":
                bar = ProgressBar(total=1, completed=state.done, width=24)
                table.add_row(state.name, bar, state.what, f"{state.rate:,.0f}" if state.rate else "")
        return Group(table, Text(self.summary()))
