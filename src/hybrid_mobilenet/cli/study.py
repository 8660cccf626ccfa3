"""The commands `reproduce` and `report`: the paper's experiments."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..network.architecture import FAMILIES
from .options import DeviceOption, JsonOption, parse_choices
from .output import TABLE_WIDTH, USAGE_ERROR, console, duration, print_json, table

if TYPE_CHECKING:
    from rich.table import Table

    from ..study.grid import Run
    from ..study.reproduce import Folders, RunState


def reproduce(
    *,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,...", help="cifar10, cifar100 or digits.", show_default="cifar10,cifar100"),
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option(metavar="NAME,...", help="mobilenet, mp3 or fmp.", show_default="all")
    ] = None,
    delta: Annotated[list[str] | None, typer.Option(metavar="N,...", help="1, 2 or 4.", show_default="all")] = None,
    alpha: Annotated[
        list[str] | None, typer.Option(metavar="X,...", help="0.25, 0.5 or 1.", show_default="all")
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(metavar="N,...", help="Tables of the paper: 4, 5, 6 or 7.", show_default="all")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each configuration, with the seeds 0, 1, and so on.")] = 1,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs, instead of the recipe's.", show_default="the recipe's")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs at the same time, in processes that share the CPU threads.")] = 1,
    engine: Annotated[
        Literal["processes", "ray"], typer.Option(help="Run in processes on this machine, or on a Ray cluster.")
    ] = "processes",
    cpus: Annotated[float, typer.Option(help="With Ray: CPUs per run.")] = 1.0,
    gpus: Annotated[float, typer.Option(help="With Ray: GPUs per run; with 0.25, four runs share a GPU.")] = 0.0,
    address: Annotated[
        str | None,
        typer.Option(help="With Ray: address of the cluster.", show_default="RAY_ADDRESS, or a new cluster here"),
    ] = None,
    device: DeviceOption = "auto",
    results: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("results/reproduce"),
    runs: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs/reproduce"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate how long the runs would take, and do not start them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train the paper's configurations and record the results.

    Without options, that is all 19 configurations on CIFAR-10 and CIFAR-100,
    cheapest first. --data, --family, --delta, --alpha and --table select some
    of them: each takes one value or a comma-separated list, and a run must
    match all of them.

    A finished run is recorded as JSON. It is not repeated, unless its recipe or
    its network changes. After an interruption, the same command continues where
    it stopped; at most one epoch of each unfinished run is lost.

    Examples:
      hybrid-mobilenet reproduce --table 7 --seeds 3 --dry-run
      hybrid-mobilenet reproduce --table 7 --seeds 3
      hybrid-mobilenet reproduce --data cifar10 --family fmp --alpha 0.25,0.5

    On a Ray cluster whose machines share the folders, four runs per GPU:
      hybrid-mobilenet reproduce --engine ray --gpus 0.25 --runs /shared/runs
    """
    check_engine(engine, jobs, cpus, gpus, device, dry_run)
    from ..study.grid import ALPHAS, DATA_SETS, DELTAS, TABLES, select

    chosen = select(
        data=parse_choices("--data", data, DATA_SETS),
        families=parse_choices("--family", family, FAMILIES),
        deltas=parse_choices("--delta", delta, DELTAS),
        alphas=parse_choices("--alpha", alpha, ALPHAS),
        tables=parse_choices("--table", table, TABLES),
        seeds=seeds,
        epochs=epochs,
    )

    from ..common.devices import choose_device
    from ..common.memory import keep_freed_memory
    from ..study.records import is_recorded
    from ..study.reproduce import Folders

    keep_freed_memory()
    choose_device(device)
    folders = Folders(results, runs)
    left = [run for run in chosen if not is_recorded(results, run)]
    if epochs is not None:
        refuse_replacing(left, results, epochs)
    if dry_run:
        print_estimate(left, len(chosen), folders, jobs, device, as_json)
        return
    carry_out = runner(engine, jobs, cpus, gpus, address, device)
    unfinished = sweep(left, folders, carry_out, shown=not as_json)
    if as_json:
        print_json([run_record(run, results, unfinished) for run in chosen])
    else:
        console().print(f"{len(chosen) - len(unfinished)} of {len(chosen)} runs are recorded in {results}")
    failed = [state for state in unfinished.values() if state.state == "failed"]
    for state in failed:
        print(f"error: {state.name}: {state.message}", file=sys.stderr)
    if failed:
        raise typer.Exit(USAGE_ERROR)


def check_engine(engine: str, jobs: int, cpus: float, gpus: float, device: str, dry_run: bool) -> None:
    """Check the options that choose where runs take place, and how many at once.

    Raises:
        ValueError: if one is out of range, or does not go with the engine.
    """
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}, but must be 1 or more")
    if cpus < 0 or gpus < 0:
        raise ValueError(f"--cpus is {cpus:g} and --gpus is {gpus:g}, but both must be 0 or more")
    if engine == "ray" and (jobs > 1 or dry_run):
        raise ValueError(
            "--jobs and --dry-run are for this machine only: leave them out with --engine ray, where --cpus and --gpus "
            "decide how many runs go on at the same time"
        )
    if engine == "ray" and device != "auto":
        raise ValueError(f"--device is {device!r}, but with --engine ray, --gpus decides: leave out --device")


def refuse_replacing(runs: Sequence[Run], results: Path, epochs: int) -> None:
    """Refuse to replace records of other recipes, which a trial with few epochs would.

    Raises:
        ValueError: if one of the `runs` has such a record.
    """
    from ..study.records import record_path

    if replaced := [run.name for run in runs if record_path(results, run).exists()]:
        raise ValueError(
            f"--epochs {epochs} would replace {len(replaced)} records of other recipes in {results}, such as that of "
            f"{replaced[0]}: choose another folder with --results"
        )


def runner(
    engine: str, jobs: int, cpus: float, gpus: float, address: str | None, device: str
) -> Callable[[Sequence[Run], Folders, Callable[[RunState], None]], None]:
    """The function that carries out runs: one at a time, in several processes, or on a Ray cluster."""
    from ..study.engines.local import run_here, run_in_processes
    from ..study.engines.ray import run_on_ray

    if engine == "ray":
        return partial(run_on_ray, cpus=cpus, gpus=gpus, address=address)
    if jobs == 1:
        return partial(run_here, device=device)
    return lambda runs, folders, report: run_in_processes(runs, folders, jobs, report, device)


def sweep(
    runs: Sequence[Run],
    folders: Folders,
    carry_out: Callable[[Sequence[Run], Folders, Callable[[RunState], None]], None],
    *,
    shown: bool,
) -> dict[str, RunState]:
    """Carry out runs and show their progress. Returns the last state of those that did not finish, by name.

    Raises:
        KeyboardInterrupt: if interrupted, with all runs saved.
    """
    from ..training.setup import Interrupted
    from .display import SweepDisplay, Work

    work = {run.name: Work(f"{run.data} {run.family}", run.cost) for run in runs}
    with SweepDisplay(work, shown=shown) as display:
        try:
            carry_out(runs, folders, display)
        except Interrupted:
            raise KeyboardInterrupt("stopped and saved; the same command continues") from None
    return {name: state for name, state in display.states.items() if state.state != "finished"}


def run_record(run: Run, results: Path, unfinished: Mapping[str, RunState]) -> dict[str, object]:
    """A run for `reproduce --json`: its record and accuracies, or why it has no record."""
    from ..study.records import read_record, record_path

    if state := unfinished.get(run.name):
        return {"run": run.name, "state": state.state, "message": state.message}
    path = record_path(results, run)
    accuracy = {str(passes): score.accuracy for passes, score in read_record(path).test.items()}
    return {"run": run.name, "state": "recorded", "record": str(path), "accuracy": accuracy}


def print_estimate(runs: Sequence[Run], count: int, folders: Folders, jobs: int, device: str, as_json: bool) -> None:
    """Measure and print how long the `runs` would take; `count` is the number of all runs, recorded ones included."""
    from ..study.estimate import estimate, seconds_in_all
    from .display import RunDisplay

    with RunDisplay(shown=not as_json) as display:
        networks = len({(run.network, run.recipe) for run in runs})
        measured = partial(display.counter("measuring networks", networks), 1)
        estimates = estimate(list(runs), folders, jobs, measured, device)
    records = [each.record() for each in estimates]
    seconds = seconds_in_all(estimates, jobs)
    if as_json:
        print_json({"seconds": seconds, "jobs": jobs, "runs": records})
        return
    out = console(TABLE_WIDTH)
    out.print(estimate_table(records))
    how = "one after another" if jobs == 1 else f"with {jobs} at a time"
    out.print(
        f"{count - len(runs)} of {count} runs are recorded; the others take about {duration(seconds)} {how}, at the "
        "present speed of this machine"
    )


def estimate_table(estimates: Sequence[Mapping[str, Any]]) -> Table:
    """The runs that are left: one row for those of a network, with the time of a run and of all."""
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


def report(
    *,
    results: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("results/reproduce"),
    out: Annotated[Path, typer.Option(help="Folder of the report and its pictures.")] = Path("docs"),
    as_json: JsonOption = False,
) -> None:
    """Write a report on the reproduction from its records.

    REPRODUCTION.md compares every table of the paper with ours, and judges
    every claim of the paper by a rule that is stated there. It has two
    pictures. The same records always give the same report.

    Examples:
      hybrid-mobilenet report
      hybrid-mobilenet report --results my-results --out my-report
    """
    from ..study.report import write_report

    written = write_report(results, out)
    if as_json:
        print_json([str(path) for path in written])
    else:
        console().print("written:", *written)
