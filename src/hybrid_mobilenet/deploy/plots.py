"""The plot of a benchmark: latencies of models in their runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ..common.plots import plain_names, save_figure


@plain_names()
def draw_latencies(measurements: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the latency of every model, runtime and number of threads, as PNG.

    Args:
        measurements: records of `benchmark.Measurement`.
        path: the PNG file.

    Raises:
        OSError: if the file cannot be written.
    """
    figure = Figure(figsize=(6, 1.2 + 0.35 * len(measurements)))
    axes = figure.subplots()
    for place, record in enumerate(measurements):
        median, lower, upper = (1e6 * record["latency"][key] for key in ("median", "lower", "upper"))
        error, colour = [[median - lower], [upper - median]], f"C{record['threads'] % 10}"
        axes.errorbar(median, place, xerr=error, fmt="o", color=colour, capsize=3)
    names = [f"{r['model']}, {r['runtime']}, {r['threads']} thr." for r in measurements]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    # Runtimes may differ by a factor of ten, files in the same runtime by a few percent.
    axes.set(xscale="log", xlabel="Microseconds for one image: median and quartiles")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    save_figure(figure, path)
