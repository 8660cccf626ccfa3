"""The command `select`: the best network within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..study.grid import DATA_SETS
from ..study.rows import DATA_NAMES
from ..study.selection import RECORDED_SIZE, Budget, Candidate, best_networks
from .options import ImageSizeOption, JsonOption, parse_amount, parse_image_size
from .output import TABLE_WIDTH, console, print_json, table

if TYPE_CHECKING:
    from rich.table import Table

#: Rounds in which the latency of every network is measured once.
ROUNDS = 10


def select(
    *,
    mult_adds: Annotated[
        str | None, typer.Option(metavar="N", help="Largest number of Mult-Adds for one image, such as 10M.")
    ] = None,
    parameters: Annotated[
        str | None, typer.Option(metavar="N", help="Largest number of parameters, such as 500k.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--bytes", metavar="N", help="Largest size of the int8 weights, such as 500KB.")
    ] = None,
    microseconds: Annotated[
        str | None,
        typer.Option(metavar="N", help="Longest time for one image, measured here on one CPU thread, such as 700."),
    ] = None,
    data: Annotated[
        Literal["cifar10", "cifar100"] | None,
        typer.Option(help="Data set whose accuracies rank the networks.", show_default="one that has them all"),
    ] = None,
    image_size: ImageSizeOption = "32",
    classes: Annotated[
        int | None, typer.Option(help="Outputs of the classifier.", show_default="10, or those of --data")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the most accurate network within a budget.

    All networks that we have trained and that meet every limit are listed, the
    most accurate first, with the command that trains the first one. Without
    limits, that is all of them.

    Accuracies are those of CIFAR's test images, as in docs/FRONTIER.md, with
    the recipe of the paper or with a tuned one. Networks for other images are
    ranked by CIFAR-100 if it has all networks within the budget, otherwise by
    CIFAR-10.

    Weights take 4 bytes in float32 and 1 in int8. An exported file is 10 to 30
    kB larger than its weights. --microseconds measures networks with random
    weights, in ONNX Runtime if it is installed, otherwise in PyTorch.

    Examples:
      hybrid-mobilenet select --mult-adds 10M
      hybrid-mobilenet select --bytes 500KB --microseconds 300
      hybrid-mobilenet select --mult-adds 50M --image-size 64 --classes 5 --json
    """
    budget = Budget(
        mult_adds=None if mult_adds is None else parse_amount("--mult-adds", mult_adds),
        parameters=None if parameters is None else parse_amount("--parameters", parameters),
        int8_bytes=None if size is None else parse_amount("--bytes", size, "B"),
    )
    longest = None if microseconds is None else parse_amount("--microseconds", microseconds)
    found = best_networks(
        budget,
        data,
        classes=(DATA_SETS[data].classes if data else 10) if classes is None else classes,
        image_size=parse_image_size(image_size),
    )
    runtime: str | None = None
    latencies: Sequence[float | None] = [None] * len(found)
    if longest is not None:
        runtime, found, latencies = fast_networks(found, longest, shown=not as_json)
    if as_json:
        print_json(selection_record(found, latencies, runtime, data))
        return
    console(TABLE_WIDTH).print(selection_table(found, latencies))
    out = console()
    for line in explanations(found[0], runtime):
        out.print(line)
    out.print(train_command(found[0], data), soft_wrap=True)


def fast_networks(
    candidates: Sequence[Candidate], longest: float, *, shown: bool
) -> tuple[str, list[Candidate], list[float]]:
    """The networks that take at most `longest` microseconds here, their latencies, and the runtime.

    Raises:
        ValueError: if there is none; it names the fastest one.
    """
    from ..deploy.benchmark import untrained_latencies
    from .display import RunDisplay

    with RunDisplay(shown=shown) as display:
        done = display.counter("measuring", ROUNDS * len(candidates), unit="turns")
        runtime, latencies = untrained_latencies([each.network for each in candidates], ROUNDS, done)
    measured = [1e6 * each.median for each in latencies]
    found = [(each, time) for each, time in zip(candidates, measured, strict=True) if time <= longest]
    if not found:
        time, name = min((time, each.name) for each, time in zip(candidates, measured, strict=True))
        raise ValueError(
            f"--microseconds is {longest:g}, but the fastest network within the other limits, {name}, takes "
            f"{time:.0f} here in {runtime}: allow more time"
        )
    return runtime, [each for each, _ in found], [time for _, time in found]


def train_command(best: Candidate, data: str | None) -> str:
    """The command that trains a network."""
    network = best.network
    height, width = network.image_size
    size = f"{height}" if height == width else f"{height}x{width}"
    resized = "" if network.image_size == RECORDED_SIZE else f" --image-size {size}"
    return (
        f"hybrid-mobilenet train {data or 'DATA'} --family {network.family} --alpha {network.alpha:g} "
        f"--delta {network.delta}{resized}"
    )


def explanations(best: Candidate, runtime: str | None) -> list[str]:
    """What the columns of the table mean, where it is not obvious."""
    network = best.network
    height, width = network.image_size
    lines = [
        f"Accuracy: mean over the seeds on {DATA_NAMES[best.recorded.data]}'s test images, after the last epoch. "
        "Recipe: the paper's, or one tuned for accuracy. Costs are those for images of "
        f"{height}x{width} pixels and {network.classes} classes."
    ]
    if network.image_size != RECORDED_SIZE:
        lines.append("The accuracies were recorded on images of 32x32 pixels.")
    if runtime:
        lines.append(f"Time for one image: measured here in {runtime} on one thread, with random weights.")
    return lines


def selection_record(
    candidates: Sequence[Candidate], latencies: Sequence[float | None], runtime: str | None, data: str | None
) -> dict[str, Any]:
    """The networks for `select --json`."""
    best = candidates[0]
    return {
        "ranked_by": best.recorded.data,
        "recorded_image_size": RECORDED_SIZE,
        "image_size": best.network.image_size,
        "classes": best.network.classes,
        "runtime": runtime,
        "command": train_command(best, data),
        "networks": [
            {
                "family": each.network.family,
                "alpha": each.network.alpha,
                "delta": each.network.delta,
                "mult_adds": each.mult_adds,
                "parameters": each.parameters,
                "float32_bytes": each.float_bytes,
                "int8_bytes": each.int8_bytes,
                "microseconds": latency,
                "accuracy": each.recorded.accuracy,
                "accuracies": each.recorded.accuracies,
                "recipe": each.recorded.recipe,
                "distilled": each.recorded.distilled,
            }
            for each, latency in zip(candidates, latencies, strict=True)
        ],
    }


def selection_table(candidates: Sequence[Candidate], latencies: Sequence[float | None]) -> Table:
    """The networks, one row each."""
    times = [] if None in latencies else ["One image, us"]
    accuracy = DATA_NAMES[candidates[0].recorded.data]
    rows = table(
        "Network", "Recipe", "Mult-Adds", "Parameters", "float32, kB", "int8, kB", *times, accuracy, "Seeds", left=2
    )
    for each, latency in zip(candidates, latencies, strict=True):
        rows.add_row(
            each.name,
            each.recorded.recipe + ", distilled" * each.recorded.distilled,
            f"{each.mult_adds:,}",
            f"{each.parameters:,}",
            f"{each.float_bytes / 1000:,.0f}",
            f"{each.int8_bytes / 1000:,.0f}",
            *([] if latency is None else [f"{latency:,.0f}"]),
            f"{each.recorded.accuracy:.2%}",
            str(len(each.recorded.accuracies)),
        )
    return rows
