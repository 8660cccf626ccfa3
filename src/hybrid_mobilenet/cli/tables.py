"""What the commands show: tables for people, those of the networks in the paper's columns, and records for programs.

Cells are to be printed as they are, by a console without markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from ..network import cost as costs
from ..network.architecture import FAMILIES, FMP_RATIO, Layer, Network, resolve
from ..study import paper
from .progress import duration

QUANTITIES: dict[paper.Quantity, str] = {"mult_adds": "Mult-Adds", "parameters": "parameters"}


def table(*columns: str, left: int = 0) -> Table:
    """An empty table for results: the first `left` columns are text, which folds, the others numbers, which do not."""
    result = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(columns):
        text = index < left
        result.add_column(column, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    return result


def network_record(network: Network) -> dict[str, object]:
    """A network for `tables --json`: its choices, totals and layers."""
    return {
        "family": network.family,
        "alpha": network.alpha,
        "delta": network.delta,
        "classes": network.classes,
        "in_channels": network.in_channels,
        "image_size": network.image_size,
        "mult_adds": costs.network_mult_adds(network),
        "parameters": costs.network_parameters(network),
        "trainable_parameters": costs.network_parameters(network, "trainable"),
        "layers": [
            vars(layer) | {"mult_adds": costs.layer_mult_adds(layer), "parameters": costs.layer_parameters(layer)}
            for layer in network.layers
        ],
    }


def cost_record(result: paper.Result) -> dict[str, object]:
    """A configuration for `cost --json`: exact integers of ours, the paper's figures as numbers or null."""
    network = resolve(result.family, result.alpha, result.delta, result.classes)
    return {
        "family": result.family,
        "delta": result.delta,
        "alpha": result.alpha,
        "classes": result.classes,
        "mult_adds": costs.network_mult_adds(network),
        "parameters": costs.network_parameters(network),
        "trainable_parameters": costs.network_parameters(network, "trainable"),
        "paper_accuracy": None if result.accuracy is None else float(result.accuracy),
        "paper_mult_adds": None if result.mult_adds is None else float(result.mult_adds),
        "paper_parameters": None if result.parameters is None else float(result.parameters),
        "deviations": [deviation.reason for deviation in paper.DEVIATIONS if deviation.concerns(result)],
    }


def network_heading(network: Network) -> Text:
    """The number of a network's table in the paper, and what it was resolved for."""
    number = FAMILIES.index(network.family) + 1
    height, width = network.image_size
    return Text.assemble(
        (f"Table {number}: {network.family}", "bold"),
        f", alpha {network.alpha:g}, delta {network.delta}, {network.classes} classes, images "
        f"{height}x{width}x{network.in_channels}",
    )


def network_table(network: Network) -> Table:
    """A network as in Tables 1 to 3, with Mult-Adds, parameters and their shares per row."""
    mult_adds, parameters = costs.network_mult_adds(network), costs.network_parameters(network)
    rows = table("Type / Stride", "Filter Shape", "Input Size", "Mult-Adds", "Share", "Parameters", "Share", left=3)
    for count, layers in grouped(network.layers):
        for layer in layers:
            counted = count * costs.layer_mult_adds(layer), count * costs.layer_parameters(layer)
            rows.add_row(
                f"{count} x {row_type(layer)}" if count > 1 else row_type(layer),
                filter_shape(layer, network.delta),
                input_size(layer, network.delta),
                *(
                    text
                    for part, whole in zip(counted, (mult_adds, parameters), strict=True)
                    for text in ((f"{part:,}", f"{part / whole:.1%}") if part else ("", ""))
                ),
            )
    rows.add_row("Softmax / s1", "Classifier", f"1 x 1 x {network.classes}", end_section=True)
    rows.add_row("Total", "", "", f"{mult_adds:,}", "", f"{parameters:,}", "")
    rows.add_row("of them trainable", "", "", "", "", f"{costs.network_parameters(network, 'trainable'):,}")
    return rows


def grouped(layers: tuple[Layer, ...]) -> Iterator[tuple[int, tuple[Layer, ...]]]:
    """Layers as the paper's rows: a layer, or a depthwise one with its pointwise one, and how often it is repeated."""
    following = iter(layers)
    units = [(layer, next(following)) if layer.kind == "depthwise" else (layer,) for layer in following]
    for _, repeats in groupby(units, key=lambda unit: [replace(layer, name="") for layer in unit]):
        first, *others = repeats
        yield 1 + len(others), first


def row_type(layer: Layer) -> str:
    """The "Type / Stride" column of the paper."""
    match layer.kind:
        case "convolution" | "pointwise":
            return f"Conv / s{layer.stride}"
        case "depthwise":
            return f"Conv dw / s{layer.stride}"
        case "max_pool":
            return f"Maxpool / s{layer.stride}"
        case "fractional_max_pool":
            return f"FMP / s{FMP_RATIO}"
        case "global_average_pool":
            return "Avg pool / s1"
        case "fully_connected":
            return "FC / s1"


def filter_shape(layer: Layer, delta: int) -> str:
    """The "Filter Shape" column of the paper: (channels x delta) of a depthwise layer are left unmultiplied."""
    side = f"{layer.kernel} x {layer.kernel}"
    match layer.kind:
        case "depthwise":
            return f"{side} x {times_delta(layer.out_channels, delta)}"
        case "pointwise":
            return f"{side} x {times_delta(layer.in_channels, delta)} x {layer.out_channels}"
        case "convolution" | "fully_connected":
            return f"{side} x {layer.in_channels} x {layer.out_channels}"
        case "max_pool":
            return f"Max pooling {side}"
        case "fractional_max_pool":
            return "Fractional max pooling"
        case "global_average_pool":
            return "Global average pooling"


def input_size(layer: Layer, delta: int) -> str:
    """The "Input Size" column of the paper: height x width x channels."""
    height, width = layer.in_size
    channels = times_delta(layer.in_channels, delta) if layer.kind == "pointwise" else str(layer.in_channels)
    return f"{height} x {width} x {channels}"


def times_delta(channels: int, delta: int) -> str:
    return str(channels) if delta == 1 else f"({channels // delta} x {delta})"


def cost_table() -> Table:
    """The paper's configurations: exact figures and the paper's, with the letter of its footnote at each deviation."""
    rows = table(
        "Family", "Delta", "Alpha", "Classes", "Mult-Adds", "paper, M", "Parameters", "paper, M", "Trainable",
        "Accuracy", left=1,
    )  # fmt: skip
    for _, results in groupby(paper.RESULTS, key=lambda result: (result.table, result.classes)):
        for result in results:
            record = cost_record(result)
            rows.add_row(
                result.family,
                str(result.delta),
                f"{result.alpha:g}",
                str(result.classes),
                f"{record['mult_adds']:,}",
                marked(result, "mult_adds"),
                f"{record['parameters']:,}",
                marked(result, "parameters"),
                f"{record['trainable_parameters']:,}",
                result.accuracy or "-",
            )
        rows.add_section()
    return rows


def deviation_notes() -> Table:
    """The footnotes of `cost_table`."""
    notes = Table.grid(padding=(0, 1))
    for letter, deviation in zip(ascii_lowercase, paper.DEVIATIONS, strict=False):
        where = " and ".join(f"Table {number}" for number in deviation.tables)
        notes.add_row(letter, f"{where}, {QUANTITIES[deviation.quantity]}: {deviation.reason}")
    return notes


def marked(result: paper.Result, quantity: paper.Quantity) -> str:
    """The paper's figure with the letters of its footnotes; in a column, so that the figures stay aligned."""
    letters = "".join(
        letter
        for letter, deviation in zip(ascii_lowercase, paper.DEVIATIONS, strict=False)
        if deviation.quantity == quantity and deviation.concerns(result)
    )
    figure = result.mult_adds if quantity == "mult_adds" else result.parameters
    return f"{figure or '-'} {letters:1}"


def class_table(per_class: Mapping[str, Mapping[str, float | None]]) -> Table:
    """Images, recall, precision and F1 of each class with images in an evaluation; "-" for what they cannot tell."""
    rows = table("Class", "Images", "Recall", "Precision", "F1", left=1)
    for name, figures in per_class.items():
        if figures["images"]:
            values = (figures[key] for key in ("recall", "precision", "f1"))
            shares = ("-" if value is None else f"{value:.1%}" for value in values)
            rows.add_row(name, f"{figures['images']:,}", *shares)
    return rows


class PredictionTable:
    """The rows of a table of predictions, to be printed one by one.

    Args:
        paths: all files that there may be a row of. They and the following decide over the width of the columns.
        class_names: likewise.
        top: classes in a row.
        width: of the table, in columns of the terminal.
    """

    def __init__(self, paths: Sequence[Path], class_names: Sequence[str], top: int, width: int) -> None:
        name = max(map(cell_len, ("Class", *class_names)))
        then = (top - 1) * (name + len(" 99.9%, "))
        left = width - 3 * len("  ") - len("Probability")
        self._class = min(name, left // 4)
        self._file = min(
            max(map(cell_len, ("File", *map(str, paths)))), left - self._class - min(max(then, len("Then")), left // 3)
        )
        self._is_first = True

    def row(self, path: Path, ranked: Sequence[tuple[str, float]]) -> Table:
        """A file with its most probable classes, best first; below the headings, where it is the first."""
        rows = table("File", "Class", "Probability", "Then", left=2)
        rows.show_header, self._is_first = self._is_first, False
        for column, width in zip(rows.columns, (self._file, self._class, len("Probability")), strict=False):
            column.width = width
        rows.columns[3].justify, rows.columns[3].no_wrap = "left", False
        (name, probability), *others = ranked
        then = ", ".join(f"{other} {share:.1%}" for other, share in others)
        rows.add_row(str(path), name, f"{probability:.1%}", then)
        return rows


def benchmark_table(measurements: Sequence[Mapping[str, Any]]) -> Table:
    """Records of `benchmark.Measurement`."""
    rows = table(
        "Model", "Runtime", "Threads", "One image, us", "Quartiles", "Images/s", "Size, kB", "Memory, MB", "FMP",
        left=2,
    )  # fmt: skip
    for record in measurements:
        median, lower, upper = (f"{1e6 * record['latency'][key]:,.0f}" for key in ("median", "lower", "upper"))
        share = record["pooling_share"]
        rows.add_row(
            record["model"],
            record["runtime"],
            str(record["threads"]),
            median,
            f"{lower} to {upper}",
            f"{record['images_per_second']:,.0f}",
            f"{record['bytes'] / 1000:,.0f}",
            f"{record['peak_bytes'] / 1e6:,.1f}",
            "-" if share is None else f"{share:.1%}",
        )
    return rows


def export_table(results: Sequence[Mapping[str, Any]], accuracy: float | None) -> Table:
    """The files that were exported, as records of `deploy.export.Exported`, and PyTorch's accuracy."""
    rows = table("File", "Size", "Logits differ by", "Accuracy", "PyTorch's", "One image", left=1)
    for result in results:
        accuracies = ("-" if share is None else f"{share:.2%}" for share in (result["accuracy"], accuracy))
        rows.add_row(
            result["path"],
            f"{result['size'] / 1000:,.0f} kB",
            f"{result['parity']['difference']:.1e}",
            *accuracies,
            f"{result['microseconds']:,.0f} us",
        )
    return rows


def estimate_table(estimates: Sequence[Mapping[str, Any]]) -> Table:
    """The runs that are left, a line for those of one network, with the time that each and all take."""
    rows = table("Data", "Family", "Delta", "Alpha", "Runs", "begun", "Epochs", "images/s", "a run", "all", left=2)

    def kind(each: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(each[key] for key in ("data", "family", "delta", "alpha", "epochs", "images_per_second"))

    for (data, family, delta, alpha, epochs, rate), alike in groupby(estimates, kind):
        each = list(alike)
        seconds = [one["seconds"] for one in each]
        rows.add_row(
            data,
            family,
            str(delta),
            f"{alpha:g}",
            str(len(each)),
            str(sum(one["is_begun"] for one in each) or ""),
            str(epochs),
            f"{rate:,.0f}",
            duration(max(seconds)),
            duration(sum(seconds)),
        )
    return rows
