"""The commands `tables` and `cost`: the networks of the paper, layer by layer and in total.

Cells of tables are printed as they are, by a console without markup.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from string import ascii_lowercase
from typing import TYPE_CHECKING, Annotated

import typer

from ..network import cost as costs
from ..network.architecture import FAMILIES, FMP_RATIO, Family, Layer, Network, resolve
from ..study.paper import DEVIATIONS, RESULTS, Quantity, Result
from .options import AlphaOption, DeltaOption, ImageSizeOption, InChannelsOption, JsonOption, parse_image_size
from .output import TABLE_WIDTH, console, print_json, table

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def tables(
    *,
    family: Annotated[Family | None, typer.Option(help="The network.", show_default="all three")] = None,
    alpha: AlphaOption = 1.0,
    delta: DeltaOption = 1,
    classes: Annotated[int, typer.Option(help="Outputs of the classifier.")] = 10,
    image_size: ImageSizeOption = "32",
    in_channels: InChannelsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Print the layers of a network and what each layer costs.

    The layout is that of Tables 1 to 3 in the paper: mobilenet shrinks its maps
    by strides, mp3 by 3x3 max pooling, fmp by fractional max pooling.

    Mult-Adds are for one image, and count convolutions and the fully connected
    layer. Parameters include the moving statistics of batch normalisation, as
    in Keras and in the paper. Repeated layers are one row.

    Examples:
      hybrid-mobilenet tables
      hybrid-mobilenet tables --family fmp --alpha 0.25 --delta 2
      hybrid-mobilenet tables --family mp3 --image-size 48x64 --in-channels 1
    """
    networks = [
        resolve(each, alpha, delta, classes, in_channels, parse_image_size(image_size))
        for each in (FAMILIES if family is None else (family,))
    ]
    if as_json:
        print_json([network_record(network) for network in networks])
        return
    out = console(TABLE_WIDTH)
    for network in networks:
        out.print(network_heading(network), network_table(network), "", sep="\n")


def cost(as_json: JsonOption = False) -> None:
    """Compare our Mult-Adds and parameters with the paper's.

    Every configuration that the paper reports is a row: the exact count, and
    the paper's figure in millions. A letter marks a figure that differs by more
    than rounding; the reason is given below the table. "-" marks a figure that
    is illegible in the paper.

    Examples:
      hybrid-mobilenet cost
      hybrid-mobilenet cost --json
    """
    if as_json:
        print_json([cost_record(result) for result in RESULTS])
        return
    console(TABLE_WIDTH).print(cost_table())
    console().print(
        "Parameters include the moving statistics of batch normalisation, as in Keras and in the paper; trainable "
        "parameters do not. Accuracy (%) is the paper's. The paper's other figures equal ours, rounded or truncated, "
        "except:\n",
        deviation_notes(),
    )


def network_record(network: Network) -> dict[str, object]:
    """A network for `tables --json`: its arguments, totals and layers."""
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


def cost_record(result: Result) -> dict[str, object]:
    """A configuration for `cost --json`: our exact counts, and the paper's figures as numbers or null."""
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
        "deviations": [deviation.reason for deviation in DEVIATIONS if deviation.concerns(result)],
    }


def network_heading(network: Network) -> Text:
    """The heading of a network: its number in the paper and its arguments."""
    from rich.text import Text

    number = FAMILIES.index(network.family) + 1
    height, width = network.image_size
    return Text.assemble(
        (f"Table {number}: {network.family}", "bold"),
        f", alpha {network.alpha:g}, delta {network.delta}, {network.classes} classes, images "
        f"{height}x{width}x{network.in_channels}",
    )


def network_table(network: Network) -> Table:
    """A network as in Tables 1 to 3, with the Mult-Adds and parameters of each row and their shares."""
    mult_adds, parameters = costs.network_mult_adds(network), costs.network_parameters(network)
    rows = table("Type / Stride", "Filter Shape", "Input Size", "Mult-Adds", "Share", "Parameters", "Share", left=3)
    for count, layers in grouped(network):
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


def grouped(network: Network) -> Iterator[tuple[int, tuple[Layer, ...]]]:
    """The blocks of a network as the paper's rows: the layers of a block, and how often it is repeated."""
    blocks = (layers for _, layers in network.blocks())
    for _, repeats in groupby(blocks, key=lambda layers: [replace(layer, name="") for layer in layers]):
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
    """The "Filter Shape" column of the paper, which writes depthwise outputs as a product: (channels x delta)."""
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
    """The paper's configurations: our exact counts beside the paper's figures, with letters for the footnotes."""
    rows = table(
        "Family", "Delta", "Alpha", "Classes", "Mult-Adds", "paper, M", "Parameters", "paper, M", "Trainable",
        "Accuracy", left=1,
    )  # fmt: skip
    for _, results in groupby(RESULTS, key=lambda result: (result.table, result.classes)):
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
    from rich.table import Table

    notes = Table.grid(padding=(0, 1))
    quantities: dict[Quantity, str] = {"mult_adds": "Mult-Adds", "parameters": "parameters"}
    for letter, deviation in zip(ascii_lowercase, DEVIATIONS, strict=False):
        where = " and ".join(f"Table {number}" for number in deviation.tables)
        notes.add_row(letter, f"{where}, {quantities[deviation.quantity]}: {deviation.reason}")
    return notes


def marked(result: Result, quantity: Quantity) -> str:
    """The paper's figure with the letters of its footnotes. One column is reserved for them, to align the figures."""
    letters = "".join(
        letter
        for letter, deviation in zip(ascii_lowercase, DEVIATIONS, strict=False)
        if deviation.quantity == quantity and deviation.concerns(result)
    )
    figure = result.mult_adds if quantity == "mult_adds" else result.parameters
    return f"{figure or '-'} {letters:1}"
