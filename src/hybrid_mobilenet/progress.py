"""What a person sees while a command works: a bar with a rate and the time left, and a line per finished epoch."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} images/s" if speed else "")


class RunProgress:
    """Bars (on a terminal) and epoch lines on stderr, or nothing where not `shown`; a Monitor for `train`."""

    def __init__(self, *, shown: bool) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=not shown)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bars.add_task("", visible=False)
        self._epochs = self._batch_size = self._steps = self._epoch = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal:  # elsewhere rich would still print an empty line
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def counter(self, what: str, total: int) -> Callable[[int], None]:
        """A bar for `total` images; call the result with the number of images just done."""
        self._show(what, total)
        return lambda count: self._bars.advance(self._task, count)

    def on_data(self, what: str, done: int, total: int) -> None:
        if self._bars.tasks[0].description != what:
            self._show(what, total)
        self._bars.update(self._task, completed=done, visible=done < total)

    def on_start(self, epoch: int, epochs: int, step: int, steps: int, batch_size: int) -> None:
        self._epoch, self._epochs, self._steps, self._batch_size = epoch, epochs, steps, batch_size
        # One bar over the whole run: the time left is the run's.
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

    def _show(self, what: str, total: int, completed: int = 0) -> None:
        self._bars.reset(self._task, description=what, total=total, completed=completed, visible=True)
