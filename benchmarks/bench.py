"""Measure the project against its alternatives: tables on the terminal, and a JSON file.

All sides of a comparison take turns, and medians are compared. A full run takes about a quarter of an hour on a quiet
machine, half of it for torch.compile. Keras on TensorFlow is included if it is installed: pip install
"tensorflow-cpu>=2.21", or --keras-python.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import epoch
import fractional_max_pool
import training
from hybrid_mobilenet.common import machine
from hybrid_mobilenet.common.files import write_atomically
from report import Section

PARTS = ("fmp", "train", "epoch")
RESULTS = Path(__file__).parent.parent / "results" / "bench.json"


def main() -> int:
    options = parse_options()
    console = Console()
    console.width = max(console.width, 150)  # the widest table
    keras_python = find_keras(options.keras_python)
    versions = {f"{name} {version(name)}" for name in ("numba", "numpy", "torch")}
    if "train" in options.only and keras_python is None:
        console.print('Keras is skipped: TensorFlow is not installed. To add it: pip install "tensorflow-cpu>=2.21"')

    fmp_rounds, train_rounds, steps = (5, 2, 1) if options.quick else (40, 9, 2)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    sections: list[Section] = []
    with Progress(*columns, console=console, transient=True) as progress:

        def advance_over(description: str, rounds: int | None) -> Callable[[], None]:
            task = progress.add_task(description, total=rounds)
            return lambda: progress.advance(task)

        if "fmp" in options.only:
            advance = advance_over("Fractional max pooling", fmp_rounds * len(fractional_max_pool.SHAPES))
            sections.append(fractional_max_pool.measure(fmp_rounds, advance))
        if "train" in options.only:
            advance = advance_over("Training", train_rounds * len(training.COMPARISONS))
            sections += training.measure(
                train_rounds, steps, keras_python, versions, advance, compiling=not options.quick
            )
        if "epoch" in options.only:
            advance_over("An epoch of CIFAR-10", None)
            try:
                sections.append(epoch.measure())
            except RuntimeError as error:  # such as without CIFAR-10; keep the results that took minutes
                console.print(f"The epoch of CIFAR-10 is skipped: {error}", markup=False)

    for section in sections:
        section.show(console)
    errors = [line for section in sections for line in section.errors()]
    for line in errors:
        print(f"error: {line}; nothing is written", file=sys.stderr)
    if errors:
        return 1
    if options.json:
        record = {
            "environment": environment(versions),
            "quick": options.quick,
            "sections": [section.record() for section in sections],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.json, (json.dumps(record, indent=2) + "\n").encode())
        console.print(f"Written to {options.json}", markup=False)
    return int(options.check and any(section.missed() for section in sections))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="few rounds, without torch.compile: a check, not a measurement"
    )
    parser.add_argument(
        "--only", type=parts, metavar="PART,...", help=f"parts to run: {', '.join(PARTS)} (--quick: all but epoch)"
    )
    parser.add_argument(
        "--json", type=Path, help="file for the results (default: results/bench.json after a full run, else none)"
    )
    parser.add_argument(
        "--keras-python", metavar="PYTHON", help="an interpreter that has TensorFlow (default: this one)"
    )
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a target is missed")
    options = parser.parse_args()
    if options.only is None:
        options.only = PARTS[:2] if options.quick else PARTS
    if options.json is None and options.only == PARTS and not options.quick:
        options.json = RESULTS
    return options


def parts(text: str) -> tuple[str, ...]:
    chosen = text.split(",")
    if not set(chosen) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{text!r}, but must be one or more of {','.join(PARTS)}")
    return tuple(part for part in PARTS if part in chosen)


def find_keras(python: str | None) -> str | None:
    """The interpreter for Keras, or None if it lacks TensorFlow. Finding the package is fast, importing it is slow."""
    python = python or sys.executable
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('tensorflow') is None)"
    return python if subprocess.run([python, "-c", code], check=False).returncode == 0 else None


def environment(versions: set[str]) -> dict[str, Any]:
    return machine.environment() | {"versions": sorted(versions), "training_threads": training.THREADS}


if __name__ == "__main__":
    sys.exit(main())
