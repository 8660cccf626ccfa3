"""Options that several commands share, and how the values of options are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from itertools import takewhile
from typing import Annotated, NoReturn, TypeVar

import typer

from ..layers.sizes import Size

Value = TypeVar("Value")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
AlphaOption = Annotated[float, typer.Option(help="Width multiplier: scales the channels of every layer.")]
DeltaOption = Annotated[int, typer.Option(help="Depth multiplier: outputs of a depthwise layer per input channel.")]
ImageSizeOption = Annotated[str, typer.Option(metavar="SIDE|HxW", help="Image size in pixels, such as 32 or 24x32.")]
InChannelsOption = Annotated[int, typer.Option(help="Image channels: 3 for RGB, 1 for greyscale.")]
LabelsOption = Annotated[
    str | None,
    typer.Option(metavar="TABLE", help="CSV or JSON lines file with the label of each image of a folder."),
]
ConfigOption = Annotated[
    str | None, typer.Option("--config", metavar="NAME", help="Configuration of a data set on the Hub.")
]
ImageColumnOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column of the images, or of the files in --labels.")
]
LabelColumnOption = Annotated[str | None, typer.Option(metavar="NAME", help="Column of the labels.")]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run folder, or a model on the Hugging Face Hub as owner/name.")
]
ModelOrFileArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run folder, an exported file, or a model on the Hub as owner/name.")
]
DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1, ... or mps. With auto, a GPU is used if there is one.")
]
PassesOption = Annotated[
    int, typer.Option(help="Forward passes with random pooling regions to average; 1 uses fixed regions.")
]


def parse_image_size(text: str) -> Size:
    """Height and width in pixels: (32, 32) from "32", (24, 32) from "24x32".

    Raises:
        ValueError: if the text has neither form.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise ValueError(f"--image-size is {text!r}, but must be a side in pixels (32) or height x width (24x32)")
    return int(sides[0]), int(sides[-1])


#: What the letters after a number stand for.
MULTIPLES = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


def parse_amount(option: str, text: str, unit: str = "") -> float:
    """A number above 0, in the way that people write large ones: 10000000, 10_000_000, 10M, 9.6M, 500k.

    Args:
        option: its name, for errors.
        text: the text on the command line.
        unit: letters that may follow, such as "B" in 500KB.

    Raises:
        ValueError: if it is not such a number.
    """
    match = re.fullmatch(rf"(\d[\d_]*|\d*\.\d+)([kmg]?)(?:{unit})?", text.strip(), re.ASCII | re.IGNORECASE)
    amount = Decimal(match[1]) * MULTIPLES[match[2].lower()] if match else Decimal()
    if amount <= 0:
        raise ValueError(
            f"{option} is {text!r}, but must be a number above 0, such as 500k{unit}, 9.6M{unit} or 250000: k stands "
            "for a thousand, M for a million"
        )
    return float(amount)


# An option with several values takes a comma-separated list. It is declared as a list[str] option: typer then keeps
# every occurrence, and giving the option twice is an error here instead of losing the first.


def parse_choices(option: str, given: Sequence[str] | None, choices: Collection[Value]) -> tuple[Value, ...]:
    """The values of a comma-separated list, each one of `choices`. Numbers may be written differently: .50 for 0.5.

    Args:
        option: its name, for errors.
        given: the text of each occurrence of the option on the command line.
        choices: the allowed values; with at least two of them.

    Returns:
        The values in the order given, or an empty tuple if the option is not given.

    Raises:
        ValueError: if the option is given twice, or a value is missing, unknown or given twice.
    """
    by_name = {f"{choice:g}" if isinstance(choice, float) else str(choice): choice for choice in choices}

    def read(text: str) -> Value:
        return by_name[text] if text in by_name else {float(name): each for name, each in by_name.items()}[float(text)]

    first, second, *_ = by_name
    return _parse_list(option, given, read, f"one or more of {', '.join(by_name)}", f"{first},{second}")


def parse_counts(option: str, given: Sequence[str] | None, limit: int) -> tuple[int, ...]:
    """The values of a comma-separated list of whole numbers from 1 to `limit`; otherwise as `parse_choices`."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= limit):
            raise ValueError
        return int(text)

    return _parse_list(option, given, read, f"one or more whole numbers from 1 to {limit}", "1,2")


def _parse_list(
    option: str, given: Sequence[str] | None, read: Callable[[str], Value], rule: str, example: str
) -> tuple[Value, ...]:
    if not given:
        return ()
    if len(given) > 1:
        raise ValueError(f"{option} is given {len(given)} times: give it once, as {option} {','.join(given)}")
    (text,) = given

    def fault(what: str) -> ValueError:
        return ValueError(
            f"{option} is {text!r}{what}, but must be {rule}, separated by commas, as in {option} {example}"
        )

    values: list[Value] = []
    for item in map(str.strip, text.split(",")):
        if not item:
            raise fault(" (an empty value)")
        try:
            value = read(item)
        except (ValueError, KeyError):
            raise fault("" if item == text else f" (unknown: {item!r})") from None
        if value in values:
            raise fault(f" ({item} twice)")
        values.append(value)
    return tuple(values)


def join_lists(lists: Collection[str], words: Sequence[str]) -> list[str]:
    """The words of a command line, with `--to onnx, web` joined to `--to onnx,web`, for the options in `lists`."""
    joined: list[str] = []
    for word in words:
        is_continued = len(joined) > 1 and joined[-2] in lists and joined[-1].endswith(",")
        if is_continued and not word.startswith("-"):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def refuse_extra_words(ctx: typer.Context, lists: Collection[str], words: Sequence[str], extra: list[str]) -> NoReturn:
    """Report words that are neither options nor arguments, such as `web` in `export RUN --to onnx web`.

    Raises:
        ValueError: if they are values of an option in `lists`, with the right form.
        Exception: typer's usage error, otherwise.
    """
    for index, word in enumerate(words[:-2]):
        values = [words[index + 1], *takewhile(extra.__contains__, words[index + 2 :])]
        if word in lists and len(values) > 1:
            raise ValueError(
                f"{word} is {' '.join(values)!r}, but its values are separated by commas: {word} {','.join(values)}"
            )
    ctx.fail(f"Got unexpected extra argument(s) ({' '.join(extra)})")
