"""What commands print with: results on stdout, for people or as JSON, and errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import indent
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

TABLE_WIDTH = 120  # columns that every table fits in: a narrower terminal wraps the lines, but no number is cut off
USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells do


def fail(message: str, status: int = USAGE_ERROR) -> NoReturn:
    """Print one line on stderr and exit."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    raise typer.Exit(status)


def report_problems(problems: list[str], interrupted: str = "") -> None:
    """Print errors that did not stop the command, one line each on stderr. Exit if there are any.

    Raises:
        KeyboardInterrupt: with the message `interrupted`, if it is not empty.
    """
    for problem in problems:
        print("error:", " ".join(problem.split()), file=sys.stderr)
    if interrupted:
        raise KeyboardInterrupt(interrupted)
    if problems:
        raise typer.Exit(USAGE_ERROR)


def print_json(result: object) -> None:
    """Print a result as JSON. Nothing else may be printed on stdout."""
    print(json.dumps(result, indent=2))


@contextmanager
def json_list() -> Iterator[Callable[[object], None]]:
    """Print the items of a JSON list one by one, in the format of `print_json`. The list is always closed."""
    start = "["

    def add(item: object) -> None:
        nonlocal start
        print(start, indent(json.dumps(item, indent=2), "  "), sep="\n", end="", flush=True)
        start = ","

    try:
        yield add
    finally:
        print("[]" if start == "[" else "\n]", flush=True)


def plain_console(**options: Any) -> Console:
    """A console that prints strings as they are: brackets and colons in a path or a class name are not markup."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, **options)


def console(min_width: int = 0) -> Console:
    """The console for results, as wide as the terminal and at least `min_width`. Without a terminal, plain text."""
    result = plain_console()
    result.width = max(result.width, min_width)
    return result


def bold_first(bold: str, rest: str) -> Text:
    """A line of text that starts in bold."""
    from rich.text import Text

    return Text.assemble((bold, "bold"), rest)


def table(*columns: str, left: int = 0) -> Table:
    """An empty table. The first `left` columns are text, which folds; the others are numbers, which do not."""
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(columns):
        text = index < left
        result.add_column(column, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    return result


def duration(seconds: float) -> str:
    """A time as people write it: "40 s", "12 min", "3 h 05 min", "2 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
