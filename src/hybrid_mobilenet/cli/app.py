"""The entry point of the command line: it finds the command and reports each mistake as one line.

The command line parses, calls and prints. Nothing else in the package prints or exits. Starting must be fast: the file
of a command is imported when the command is looked up, and a command imports what it needs when it runs. So `tables`,
`cost` and every ``--help`` work without torch, and ``--help`` without rich.
"""

from __future__ import annotations

import sys
import warnings
from collections import UserDict
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..common.errors import one_line, trace
from .options import join_lists, refuse_extra_words
from .output import INTERRUPTED, fail

#: The file in this folder that defines each command, in the order of --help. The function is named as the command.
FILES = {
    "train": "train",
    "check": "check",
    "evaluate": "evaluate",
    "predict": "evaluate",
    "export": "deploy",
    "benchmark": "deploy",
    "web": "deploy",
    "select": "select",
    "tables": "network",
    "cost": "network",
    "reproduce": "study",
    "report": "study",
}


#: typer converts the values of all options but bool ones with pydantic, and imports it for the missing value of --help.
#: With a default, `--help`, `--version` and `cost` start without pydantic, in two thirds of the time.
CONTEXT_SETTINGS = {"default_map": {"help": False}}


class Command(TyperCommand):
    """A command. Its help is its docstring as it is written, and the values of a list may be typed with spaces."""

    allow_extra_args = True  # refused here, since the right form of a list can be shown

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        lists = {name for each in self.params if getattr(each, "multiple", False) for name in each.opts}
        words = join_lists(lists, args)
        if extra := super().parse_args(ctx, list(words)):
            refuse_extra_words(ctx, lists, words, extra)
        return extra

    def format_help_text(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # noqa: ARG002
        write_as_it_is(self.help, formatter)


class Commands(TyperGroup):
    """All commands. A mistake in using them is reported as one line on stderr.

    A traceback is printed only if HYBRID_MOBILENET_DEBUG=1 is set.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = CommandsOnDemand(FILES)

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # noqa: ARG002
        return list(self.commands)

    def format_help_text(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # noqa: ARG002
        write_as_it_is(self.help, formatter)

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # typer.Context is typer's public name
        try:
            result: object = super().invoke(ctx)
            sys.stdout.flush()  # if the disk is full, a redirected stdout fails here
        except BrokenPipeError:
            raise  # typer exits quietly: `cost | head` is not a mistake
        except KeyboardInterrupt as interrupt:
            fail(str(interrupt) or "interrupted", INTERRUPTED)
        except (OSError, ValueError) as error:
            print(trace(error), end="", file=sys.stderr)
            fail(one_line(error))
        return result


class CommandsOnDemand(UserDict[str, Any]):
    """Commands by name. The file of a command is imported when it is looked up."""

    def __getitem__(self, name: str) -> Any:
        module = import_module(f".{self.data[name]}", __package__)
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(name, cls=Command, context_settings=CONTEXT_SETTINGS)(getattr(module, name))
        return typer.main.get_command(alone)


def write_as_it_is(text: str | None, formatter: Any) -> None:
    """Write a help text with its own line breaks, since it has lines to be copied."""
    lines = (text or "").splitlines()
    formatter.write("\n" + "".join(f"  {line}".rstrip() + "\n" for line in lines))


app = typer.Typer(
    cls=Commands,
    context_settings=CONTEXT_SETTINGS,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich's help takes a quarter of a second to import
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line and exit: 0, or 2 after a mistake (one line on stderr), or 130 after Ctrl-C."""
    # Pillow warns about images that it can read all the same, for example with a damaged EXIF block.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    app(prog_name="hybrid-mobilenet")


def print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def hybrid_mobilenet(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, evaluate and export the Enhanced Hybrid MobileNet.

    Small image classifiers, 0.2 to 13 million parameters, for images of
    32x32 pixels and larger. A GPU is used automatically.

    Start here, with handwritten digits that come with the package:
      hybrid-mobilenet train digits --epochs 15 --out runs/digits
      hybrid-mobilenet evaluate runs/digits digits
      hybrid-mobilenet predict runs/digits photo.png

    Each command has a help page with examples:
      hybrid-mobilenet train --help
    """
