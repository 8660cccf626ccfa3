"""The command line: parse, call, print. Nothing else in the package prints or exits.

What a command needs is imported inside it, so that `tables`, `cost` and every ``--help`` answer at once, without torch.
"""

from __future__ import annotations

import json
import sys
import warnings
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from ..common.errors import one_line, trace
from ..common.signals import stop_signals
from ..deploy.targets import CALIBRATED, FILES
from ..layers.sizes import PoolingSequence, Size
from ..network.architecture import FAMILIES, Activation, Family, resolve
from ..training.recipe import CIFAR100_RECIPES, LEAST_STEPS, PAPER_RECIPES, Precision, Recipe, check_seed, paper_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.console import Console
    from rich.text import Text

    from ..data.dataset import Evaluated
    from ..study.grid import Run
    from ..study.reproduce import RunState
    from ..training.evaluate import Evaluation

TABLE_WIDTH = 120  # columns that any table fits in: a narrower terminal wraps its lines, but no figure is cut off
USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, the shell's custom


class Commands(TyperGroup):
    """The commands, with every mistake of the user's reported as one line on stderr.

    There is a traceback only where HYBRID_MOBILENET_DEBUG=1 asks for it.
    """

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # typer.Context is typer's public name
        try:
            result: object = super().invoke(ctx)
            sys.stdout.flush()  # a full disk behind a redirection is noticed here or never
        except BrokenPipeError:
            raise  # typer leaves quietly: `cost | head` is no mistake
        except KeyboardInterrupt as interrupt:
            fail(str(interrupt) or "interrupted", INTERRUPTED)
        except (OSError, ValueError) as error:
            print(trace(error), end="", file=sys.stderr)
            fail(one_line(error))
        return result


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for a program to read.")]
FamilyOption = Annotated[
    Family | None, typer.Option(help="How the maps shrink: strides, 3x3 max pooling, or fractional max pooling.")
]
AlphaOption = Annotated[float, typer.Option(help="Width multiplier: scales every channel count.")]
DeltaOption = Annotated[int, typer.Option(help="Depth multiplier: depthwise outputs per input channel.")]
ImageSizeOption = Annotated[str, typer.Option(metavar="SIDE|HxW", help="Size of the images in pixels.")]
InChannelsOption = Annotated[int, typer.Option(help="Channels of the images: 3 for RGB, 1 for greyscale.")]
ModelArgument = Annotated[str, typer.Argument(help="A run folder, or a model on the Hub as owner/name.")]
ModelOrFileArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run folder, a model on the Hub as owner/name, or an exported file.")
]
DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1 and so on, or mps; auto is the GPU where there is one.")
]
PassesOption = Annotated[int, typer.Option(help="Passes over random pooling regions to average; 1: fixed regions.")]


def main() -> None:
    """Run the command line and exit: 0, 2 after a mistake of the user's (one line on stderr), 130 after Ctrl-C."""
    # What Pillow warns of in pictures that can be read all the same, such as damaged EXIF blocks, is nobody's concern.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    app(prog_name="hybrid-mobilenet")


def fail(message: str, status: int = USAGE_ERROR) -> NoReturn:
    """Print one line on stderr and exit."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    raise typer.Exit(status)


def report_problems(problems: list[str], interrupted: str = "") -> None:
    """Print what went wrong while the rest went on, a line each on stderr, and exit if there is any.

    Raises:
        KeyboardInterrupt: instead, where the rest was `interrupted`.
    """
    for problem in problems:
        print("error:", " ".join(problem.split()), file=sys.stderr)
    if interrupted:
        raise KeyboardInterrupt(interrupted)
    if problems:
        raise typer.Exit(USAGE_ERROR)


def console(at_least: int = 0) -> Console:
    """Where results are printed: as wide as the terminal, but `at_least` so wide; plain text where there is none."""
    from .progress import plain_console

    result = plain_console()
    result.width = max(result.width, at_least)
    return result


def strong_first(strong: str, rest: str) -> Text:
    """A line whose result stands out."""
    from rich.text import Text

    return Text.assemble((strong, "bold"), rest)


def print_json(result: object) -> None:
    """Print what a program will read: JSON, and nothing else on stdout."""
    print(json.dumps(result, indent=2))


@contextmanager
def json_list() -> Iterator[Callable[[object], None]]:
    """Print the items of a JSON list as they come, as `print_json` would; the list is whole however this ends."""
    start = "["

    def add(item: object) -> None:
        nonlocal start
        print(start, indent(json.dumps(item, indent=2), "  "), sep="\n", end="", flush=True)
        start = ","

    try:
        yield add
    finally:
        print("[]" if start == "[" else "\n]", flush=True)


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
    """The Enhanced Hybrid MobileNet: image classifiers of 0.2 to 13 million parameters, for 32x32 images and larger.

    Each command explains itself, with examples: [bold]hybrid-mobilenet tables --help[/]
    """


@app.command()
def tables(
    *,
    family: FamilyOption = None,
    alpha: AlphaOption = 1.0,
    delta: DeltaOption = 1,
    classes: Annotated[int, typer.Option(help="Outputs of the classifier.")] = 10,
    image_size: ImageSizeOption = "32",
    in_channels: InChannelsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Print the networks layer by layer, as Tables 1 to 3 of the paper do, with what each layer costs.

    Without --family, all three. Mult-Adds are for one image: convolutions and the
    fully connected layer. Parameters are the paper's: Keras totals, with four
    numbers per batch-normalised channel. Repeated layers are counted together.

    [bold]Examples[/]
      [dim]the network that the paper recommends, then one for other images:[/]
      hybrid-mobilenet tables --family fmp --alpha 0.25 --delta 2
      hybrid-mobilenet tables --family mp3 --image-size 48x64 --in-channels 1
    """
    from .tables import network_heading, network_record, network_table

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


@app.command()
def cost(as_json: JsonOption = False) -> None:
    """Print Mult-Adds and parameters of the paper's 38 configurations beside the figures that the paper reports.

    A letter marks a figure that exact counting does not give; the reason stands
    below the table. "-" stands where the paper is illegible.

    [bold]Examples[/]
      hybrid-mobilenet cost
      hybrid-mobilenet cost --json   [dim]# ours exact, the paper's in millions[/]
    """
    from ..study.paper import RESULTS
    from .tables import cost_record, cost_table, deviation_notes

    if as_json:
        print_json([cost_record(result) for result in RESULTS])
        return
    console(TABLE_WIDTH).print(cost_table())
    console().print(
        "Parameters are Keras totals, as the paper's; trainable ones leave out the moving statistics of batch "
        "normalisation. Accuracy (%) is the paper's. Its other figures round or truncate ours, but for these:\n",
        deviation_notes(),
    )


def recipe_option(setting: str, explanation: str, *names: str) -> Any:
    """An option of `train` in place of a setting of the recipe, which the help shows as its default."""

    def defaults(recipes: dict[Family, Recipe]) -> str:
        values = {family: str(getattr(recipe, setting)) for family, recipe in recipes.items()}
        alike = len(set(values.values())) == 1
        return values["fmp"] if alike else ", ".join(f"{family}: {value}" for family, value in values.items())

    usual, of_cifar100 = defaults(PAPER_RECIPES), defaults(CIFAR100_RECIPES)
    default = usual if usual == of_cifar100 else f"{usual}; cifar100: {of_cifar100}"
    return typer.Option(*names, help=explanation, show_default=default)


@app.command()
def train(
    ctx: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(help="digits, cifar10, cifar100, a folder of images, Parquet files, or owner/name on the Hub."),
    ] = None,
    *,
    family: Annotated[Family, typer.Option(help="How the maps shrink.")] = "fmp",
    alpha: AlphaOption = 0.25,
    delta: DeltaOption = 2,
    image_size: ImageSizeOption = "32",
    in_channels: InChannelsOption = 3,
    epochs: Annotated[int | None, recipe_option("epochs", "Passes over the training images.")] = None,
    batch_size: Annotated[int | None, recipe_option("batch_size", "Images per step.")] = None,
    learning_rate: Annotated[
        float | None, recipe_option("learning_rate", "Adam's at the start; it falls to 0.")
    ] = None,
    weight_decay: Annotated[
        float | None, recipe_option("weight_decay", "AdamW's, of the convolutions and the last layer.")
    ] = None,
    activation: Annotated[Activation | None, recipe_option("activation", "After batch normalisation.")] = None,
    sequence: Annotated[PoolingSequence | None, recipe_option("sequence", "Fractional max pooling's regions.")] = None,
    overlapping: Annotated[
        bool | None, recipe_option("overlapping", "Whether these regions overlap.", "--overlapping/--disjoint")
    ] = None,
    fixed_epochs: Annotated[int | None, recipe_option("fixed_epochs", "Last epochs with fixed regions.")] = None,
    precision: Annotated[Precision | None, recipe_option("precision", "fp32, or bf16 on GPUs.")] = None,
    validation: Annotated[float, typer.Option(help="Share of the training images held out to watch the run.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of weights, order, regions and the validation split.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/DATA-FAMILY-...")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a network; leave it, its curves and its evaluation in a run folder.

    DATA that is a folder holds one subfolder of images per class, or such folders
    named train and test; without a test folder, a fifth of the images is held out.
    Without --epochs it takes at least 4,000 steps: of few images, several passes
    to an epoch. The state is saved after every epoch, every 5 minutes and at
    Ctrl-C. Several GPUs or machines:
      torchrun --nproc-per-node gpu -m hybrid_mobilenet train DATA

    [bold]Examples[/]
      [dim]the network that the paper recommends, on data that comes with it:[/]
      hybrid-mobilenet train digits --epochs 20 --out runs/digits
      hybrid-mobilenet train photos/ --family mp3 --alpha 0.5 --image-size 64
      hybrid-mobilenet train --resume runs/digits
    """
    if (data is None) == (resume is None):
        raise ValueError("train takes DATA, such as digits or a folder of images, or --resume RUN: one of the two")
    given = [name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if resume is not None and (others := set(given) - {"resume", "device", "as_json"}):
        options = ", ".join(sorted(f"--{name.replace('_', '-')}" for name in others))
        raise ValueError(f"--resume goes on with the settings that the run was started with: leave out {options}")
    if data is not None:
        settings = {
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "activation": activation,
            "sequence": sequence,
            "overlapping": overlapping,
            "fixed_epochs": fixed_epochs,
            "precision": precision,
        }
        chosen: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        recipe = paper_recipe(family, data)
        # Of few images, the recipe's epochs would be too few steps.
        recipe = replace(recipe, least_steps=LEAST_STEPS) if epochs is None else recipe.with_epochs(epochs)
        recipe = replace(recipe, **chosen)
        folder = out or Path("runs") / f"{Path(data).stem}-{family}-d{delta}-a{alpha:g}-s{seed}"
    from ..common.memory import keep_freed_memory
    from ..training import run as training
    from ..training.checkpoint import CHECKPOINT_FILE
    from ..training.processes import OtherProcessFailed, rank
    from .progress import RunProgress

    keep_freed_memory()
    first = rank() == 0  # of several processes, one prints
    with RunProgress(shown=first and not as_json) as progress:
        if resume is not None:
            folder = resume
            run = partial(training.resume, folder, progress, device=device)
        else:
            assert data is not None
            size = parse_image_size(image_size)
            setup = training.Setup(data, family, alpha, delta, size, in_channels, validation, seed, recipe)
            run = partial(training.train, setup, folder, progress, device=device)
        try:
            evaluation = run()
        except OtherProcessFailed:
            raise typer.Exit(USAGE_ERROR) from None
        except training.Interrupted:
            if not first:
                raise typer.Exit(INTERRUPTED) from None
            raise KeyboardInterrupt(
                f"stopped and saved; go on with: hybrid-mobilenet train --resume {folder}"
            ) from None
        except OSError as error:
            if not (folder / CHECKPOINT_FILE).is_file():
                raise
            reason = f"{error.strerror or error}; put that right, then: hybrid-mobilenet train --resume {folder}"
            raise OSError(error.errno, reason, error.filename) from error
    if not first:
        return
    result = {"run": str(folder), "accuracy": evaluation.accuracy, "images": evaluation.images}
    if as_json:
        print_json(result | {"notes": progress.notes, "warnings": progress.warnings})
    else:
        console().print(
            strong_first(
                f"{evaluation.accuracy:.2%}", f" of {evaluation.images:,} test images right after the last epoch"
            ),
            f"model, curves and evaluation in {folder}",
            sep="\n",
        )
        sys.stdout.flush()
        for warning in progress.warnings:
            print("warning:", warning, file=sys.stderr)


@app.command()
def reproduce(
    *,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,...", help="Rows with a value of these; all KEYs must hold. May be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each row, with the seeds 0, 1, and so on.")] = 1,
    epochs: Annotated[int | None, typer.Option(help="In place of the recipes'.", show_default="the recipes'")] = None,
    jobs: Annotated[int, typer.Option(help="Runs at once, each in a process with its share of the threads.")] = 1,
    engine: Annotated[
        Literal["processes", "ray"], typer.Option(help="Processes of this machine, or tasks of a Ray cluster.")
    ] = "processes",
    cpus: Annotated[float, typer.Option(help="With Ray: CPUs that each run is given.")] = 1.0,
    gpus: Annotated[float, typer.Option(help="With Ray: GPUs that each run is given; 0.25: four share one.")] = 0.0,
    address: Annotated[
        str | None, typer.Option(help="With Ray: of the cluster.", show_default="RAY_ADDRESS, or a new one here")
    ] = None,
    device: DeviceOption = "auto",
    results: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("results/reproduce"),
    runs: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs/reproduce"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure how long it would take, and run nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Reproduce the paper's tables: train its configurations on its data, cheapest first, and record each.

    A finished run is a JSON record, and is not run again unless its recipe or
    its network changes. Whatever stops the sweep, the same command goes on, and
    one epoch of each unfinished run is the most that is lost.

    KEY is data (cifar10, cifar100, digits; if not given, the first two), family,
    delta, alpha, or table (4 to 7: the rows that the paper prints there).

    [bold]Examples[/]
      [dim]the rows of Table 7, three seeds each; first how long that takes here:[/]
      hybrid-mobilenet reproduce --only table=7 --seeds 3 --dry-run
      hybrid-mobilenet reproduce --only table=7 --seeds 3
      hybrid-mobilenet reproduce --only data=cifar10 --only alpha=0.25,0.5
      [dim]on a Ray cluster whose machines share these folders, four runs to a GPU:[/]
      hybrid-mobilenet reproduce --engine ray --gpus 0.25 --runs /shared/runs
    """
    from ..study.grid import select

    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}, but must be 1 or more")
    if cpus < 0 or gpus < 0:
        raise ValueError(f"--cpus is {cpus:g} and --gpus {gpus:g}, but neither can be less than 0")
    if engine == "ray" and (jobs > 1 or dry_run):
        raise ValueError(
            "--jobs and --dry-run are about this machine: with --engine ray, --cpus and --gpus decide how many runs go "
            "on at once"
        )
    if engine == "ray" and device != "auto":
        raise ValueError(f"--device is {device!r}, but with --engine ray, --gpus decides: leave out --device")
    chosen = select(only or [], seeds, epochs)

    from ..common.devices import choose_device
    from ..common.memory import keep_freed_memory
    from ..study.engines.local import run_here, run_in_processes
    from ..study.engines.ray import run_on_ray
    from ..study.records import is_recorded, record_path
    from ..study.reproduce import Folders
    from ..training.run import Interrupted
    from .progress import RunProgress, SweepProgress, Work, duration

    keep_freed_memory()
    choose_device(device)
    folders = Folders(results, runs)
    left = [run for run in chosen if not is_recorded(results, run)]
    if epochs is not None and (replaced := [run.name for run in left if record_path(results, run).exists()]):
        raise ValueError(
            f"--epochs {epochs} would replace {len(replaced)} records of other recipes in {results}, such as that of "
            f"{replaced[0]}: name another folder with --results"
        )
    if dry_run:
        from ..study.estimate import estimate, seconds_in_all
        from .tables import estimate_table

        with RunProgress(shown=not as_json) as progress:
            networks = len({(run.network, run.recipe) for run in left})
            estimates = estimate(
                left, folders, jobs, partial(progress.counter("measuring networks", networks), 1), device
            )
        seconds = seconds_in_all(estimates, jobs)
        if as_json:
            print_json({"seconds": seconds, "jobs": jobs, "runs": [each.record() for each in estimates]})
            return
        out = console(TABLE_WIDTH)
        out.print(estimate_table([each.record() for each in estimates]))
        out.print(
            f"{len(chosen) - len(left)} of {len(chosen)} runs are recorded; the others take about "
            f"{duration(seconds)} {'one after another' if jobs == 1 else f'with {jobs} at once'}, as fast as this "
            "machine is just now"
        )
        return
    work = {run.name: Work(f"{run.data} {run.family}", run.cost) for run in left}
    with SweepProgress(work, shown=not as_json) as sweep:
        try:
            if engine == "ray":
                run_on_ray(left, folders, sweep, cpus=cpus, gpus=gpus, address=address)
            elif jobs == 1:
                run_here(left, folders, sweep, device)
            else:
                run_in_processes(left, folders, jobs, sweep, device)
        except Interrupted:
            raise KeyboardInterrupt("stopped and saved; the same command goes on") from None
    unfinished = {name: state for name, state in sweep.states.items() if state.state != "finished"}
    if as_json:
        print_json([sweep_record(run, results, unfinished) for run in chosen])
    else:
        recorded = len(chosen) - len(unfinished)
        console().print(f"{recorded} of {len(chosen)} runs have their record in {results}")
    failed = [state for state in unfinished.values() if state.state == "failed"]
    for state in failed:
        print(f"error: {state.name}: {state.message}", file=sys.stderr)
    if failed:
        raise typer.Exit(USAGE_ERROR)


def sweep_record(run: Run, results: Path, unfinished: Mapping[str, RunState]) -> dict[str, object]:
    """A run for `reproduce --json`: its record with the accuracies by passes, or why it has none."""
    from ..study.records import read_record, record_path

    if state := unfinished.get(run.name):
        return {"run": run.name, "state": state.state, "message": state.message}
    path = record_path(results, run)
    accuracy = {str(passes): score.accuracy for passes, score in read_record(path).test.items()}
    return {"run": run.name, "state": "recorded", "record": str(path), "accuracy": accuracy}


@app.command()
def report(
    *,
    results: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("results/reproduce"),
    out: Annotated[Path, typer.Option(help="Folder of the report and its pictures.")] = Path("docs"),
    as_json: JsonOption = False,
) -> None:
    """Write from the records of `reproduce` whether the paper holds up: REPRODUCTION.md with two pictures.

    Every table beside the paper's, every claim judged by a rule that stands there.
    The same records give the same text.

    [bold]Examples[/]
      hybrid-mobilenet report
      hybrid-mobilenet report --results my-results --out my-report
    """
    from ..study.report import write_report

    written = write_report(results, out)
    if as_json:
        print_json([str(path) for path in written])
    else:
        console().print("written:", *written)


@app.command()
def evaluate(
    model: ModelOrFileArgument,
    data: Annotated[str, typer.Argument(help="As for train.")],
    *,
    passes: PassesOption = 1,
    seed: Annotated[int, typer.Option(help="Of the random regions of several passes.")] = 0,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Picture of the confusion matrix.", show_default="confusion.png in a run folder; else none"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model: accuracy, every class, and the confusion matrix as a picture.

    DATA is evaluated whole, or the test split of data that comes with one. Of
    data without one that the model was trained on, only the images are taken that
    the run held out and never saw. Classes may lack images.

    With --passes N the class probabilities are the mean over N passes, each with
    fresh random pooling regions, as Graham proposed; one pass uses fixed regions.

    [bold]Examples[/]
      hybrid-mobilenet evaluate runs/digits digits
      hybrid-mobilenet evaluate runs/digits digits --passes 12 --json
      hybrid-mobilenet evaluate runs/digits/export/model.int8.onnx digits
    """
    from ..common.memory import keep_freed_memory
    from ..data.dataset import Remembered, load_to_evaluate
    from ..deploy.classify import image_shape, load_classifier
    from ..deploy.runtimes import FileClassifier
    from ..training.evaluate import evaluate as evaluate_model
    from ..training.evaluate import tally
    from ..training.plots import CONFUSION_FILE, draw_confusion
    from .progress import RunProgress
    from .tables import class_table

    check_seed(seed)  # also where a runtime evaluates that needs none
    keep_freed_memory()
    classifier = load_classifier(model, passes, device)
    size, channels = image_shape(classifier)
    picture = out or (Path(model) / CONFUSION_FILE if Path(model).is_dir() else None)
    with RunProgress(shown=not as_json) as progress:
        evaluated = load_to_evaluate(
            data,
            Remembered.of(model),
            classifier.class_names,
            image_size=size,
            channels=channels,
            progress=progress.on_data,
        )
        test = evaluated.images
        done = progress.counter("evaluating", len(test))
        if isinstance(classifier, FileClassifier):
            result = tally(classifier.class_names, classifier.probabilities, test, on_images=done)
        else:
            result = evaluate_model(classifier, test, passes, seed, done)
    notes, printer = evaluation_notes(evaluated, result), console()
    if as_json:
        about = {"tested": evaluated.which, "of": evaluated.of, "used_in_training": evaluated.used_in_training}
        where = {"picture": str(picture) if picture else None}
        print_json({"model": model, "data": data, **about, **result.record(), "notes": notes, **where})
    else:
        count = f"all {evaluated.of:,}" if len(test) == evaluated.of else f"{len(test):,} of {evaluated.of:,}"
        of_split = "the test split of " if evaluated.which == "test split" else ""
        held_out = ", held out when the model was trained on it" if evaluated.which == "held out" else ""
        printer.print(
            class_table(result.per_class()),
            strong_first(
                f"{result.accuracy:.2%}",
                f" of {result.images:,} test images right, "
                f"{passes} pass{'es with random regions' if passes > 1 else ''}, cross-entropy {result.loss:.4f}",
            ),
            sep="\n",
        )
        printer.print(
            f"tested: {count} images of {of_split}{data}{held_out}", *(f"note: {note}" for note in notes), sep="\n"
        )
    if picture:  # last, so that a folder that cannot be written costs the picture alone
        picture.parent.mkdir(parents=True, exist_ok=True)
        title = f"{data}\n{result.accuracy:.2%} of {result.images:,} images right"
        draw_confusion(result.confusion, result.class_names, title, picture)
        if not as_json:
            printer.print(f"confusion matrix in {picture}")


def evaluation_notes(evaluated: Evaluated, result: Evaluation) -> list[str]:
    """What to know about an evaluation besides its figures."""
    from ..data.images import listed

    notes = []
    if evaluated.used_in_training is None:
        notes.append(
            "no split.json of its run is there, so that it is not known which images the model was trained on: some of "
            "these may be among them"
        )
    elif evaluated.used_in_training:
        notes.append(f"the model has seen {evaluated.used_in_training:,} of these images in training")
    if evaluated.left_out:
        notes.append(
            f"left out, since they came after training: {evaluated.left_out:,} of the images; to test on them, put "
            "them into a folder of their own"
        )
    empty = set(evaluated.images.class_names) - set(result.class_names)  # with images they would be an error
    if absent := [*result.absent, *sorted(empty)]:
        notes.append(f"no images of {listed(absent)}")
    return notes


@app.command()
def predict(
    model: ModelOrFileArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Images, or folders of images.")],
    *,
    top: Annotated[int, typer.Option(help="Classes to show for each image.")] = 3,
    passes: PassesOption = 1,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Predict the class of images, with probabilities.

    Files that are not readable as images are named on stderr, the others are
    predicted all the same, and the exit status is 2. Results are printed as they
    come, and Ctrl-C leaves those that are there, also with --json.

    [bold]Examples[/]
      hybrid-mobilenet predict runs/digits photo.png
      hybrid-mobilenet predict runs/digits holiday/ --top 1 --json
    """
    import torch

    from ..data.images import DataError, image_files, read_image
    from ..deploy.classify import image_shape, load_classifier
    from ..deploy.runtimes import FileClassifier
    from ..training.evaluate import probabilities
    from .progress import RunProgress
    from .tables import PredictionTable

    if top < 1:
        raise ValueError(f"--top is {top}, but must be 1 or more")
    classifier = load_classifier(model, passes, device)
    size, channels = image_shape(classifier)
    problems: list[str] = []
    paths = image_files(files, lambda error: problems.append(one_line(error)))
    printer = console(TABLE_WIDTH)
    rows = PredictionTable(paths, classifier.class_names, top, printer.width)
    count = 0
    with (
        # On a terminal the rows themselves show how far it is: a bar would stand in their way.
        RunProgress(shown=not as_json and not sys.stdout.isatty()) as progress,
        json_list() if as_json else nullcontext() as add,
        stop_signals() as stop,
    ):
        done = progress.counter("predicting", len(paths))
        for path in paths:
            if stop.is_set():
                break
            try:
                image = read_image(path, size, channels)[None]
            except (DataError, OSError) as error:
                problems.append(one_line(error))
            else:
                if isinstance(classifier, FileClassifier):
                    p = classifier.probabilities(image)[0]
                else:
                    p = probabilities(classifier, image, passes)[0]
                best = torch.argsort(p, descending=True, stable=True)[:top].tolist()
                ranked = [(classifier.class_names[index], p[index].item()) for index in best]
                if add:
                    add({"file": str(path), "class": ranked[0][0], "probabilities": dict(ranked)})
                else:
                    printer.print(rows.row(path, ranked))
            count += 1
            done(1)
    interrupted = f"interrupted after {count:,} of {len(paths):,} images" if count < len(paths) else ""
    report_problems(problems, interrupted)


@app.command()
def export(
    model: ModelArgument,
    more: Annotated[list[str] | None, typer.Argument(metavar="", hidden=True)] = None,
    *,
    to: Annotated[
        list[str] | None, typer.Option(metavar="TARGET...", help=f"One or more of {', '.join(FILES)}.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="As for train: int8 is calibrated on its training images, and all is tested.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files.", show_default="MODEL/export")] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a model to files that other runtimes run: plain bytes in, probabilities out.

    Every file is run on real images before it is written, and must agree with
    PyTorch: on the test images of --data, or else on the built-in digits.
    Normalisation and softmax are in the graph, class names in the metadata.
    Without --data, int8 is calibrated on what the model was trained on.

    [bold]Examples[/]
      hybrid-mobilenet export runs/digits --to onnx web
      hybrid-mobilenet export runs/cifar10 --to onnx onnx-int8 --data cifar10 --json
    """
    targets = [*(to or ()), *(more or ())]
    for target in targets:
        if target not in FILES:
            raise ValueError(f"--to is {target!r}, but must be one or more of {', '.join(FILES)}")
    if not to:
        raise ValueError(f"say what to export to, after the model: --to followed by one or more of {', '.join(FILES)}")

    from ..common.memory import keep_freed_memory
    from ..data.dataset import Remembered, load, load_to_evaluate
    from ..data.images import DataError
    from ..deploy.deployed import ExportError
    from ..deploy.export import export as export_target
    from ..deploy.runtimes import RuntimeFileError
    from ..network.model import HybridMobileNet
    from ..training.evaluate import evaluate as evaluate_model
    from .progress import RunProgress
    from .tables import export_table

    keep_freed_memory()
    network = HybridMobileNet.from_pretrained(model)
    folder = out or (Path(model) if Path(model).is_dir() else Path()) / "export"
    source = data or (network.training_record.get("data") if CALIBRATED & set(targets) else None)
    results: list[dict[str, Any]] = []
    problems: list[str] = []
    with RunProgress(shown=not as_json) as progress:
        calibration = test = accuracy = None
        why_not = "it is calibrated on training images: name them with --data"
        if source is not None:
            size, channels = network.network.image_size, network.network.in_channels
            if data is not None:
                run = Remembered.of(model)
                evaluated = load_to_evaluate(
                    data, run, network.class_names, image_size=size, channels=channels, progress=progress.on_data
                )
                test = evaluated.images
            if CALIBRATED & set(targets):
                try:
                    splits = load(source, image_size=size, channels=channels, progress=progress.on_data)
                    calibration = splits.train
                    if data is not None and evaluated.which == "all":  # not those that it is calibrated on
                        test = splits.test
                except (DataError, OSError) as error:
                    if data is not None:
                        raise
                    why_not = (
                        f"{why_not}. The model was trained on {source!r}, which cannot be read from here ({error})"
                    )
        if test is not None:
            done = progress.counter("PyTorch", len(test))
            accuracy = evaluate_model(network, test, on_images=done).accuracy
        for target in dict.fromkeys(targets):
            done = progress.counter(f"exporting to {target}", len(test) if test is not None else 0)
            try:
                if target in CALIBRATED and calibration is None:
                    raise ExportError(why_not)
                exported = export_target(network, target, folder, calibration=calibration, test=test, on_images=done)
                results.append(exported.record())
            except (ExportError, RuntimeFileError) as error:  # the other targets go on
                problems.append(f"{target}: {error}")
    if as_json:
        print_json({"model": model, "data": data, "accuracy": accuracy, "files": results})
    elif results:
        console(TABLE_WIDTH).print(export_table(results, accuracy))
    report_problems(problems)


@app.command()
def benchmark(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL_OR_FILE...", help="Run folders, models on the Hub, exported files.")
    ],
    *,
    threads: Annotated[list[int] | None, typer.Option(help="For one image. May be repeated.", show_default="1")] = None,
    rounds: Annotated[int, typer.Option(help="Turns that each model gets.")] = 20,
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option(help="Folder for benchmark.json and benchmark.png.")] = Path("runs/benchmark"),
    as_json: JsonOption = False,
) -> None:
    """Measure how fast models are, each in its runtime: one image at a time, and many at once.

    A run folder is measured in PyTorch on --device, and on the CPU every file in
    its folder export. The models take turns, so that what slows the machine
    slows all alike. FMP is what plain max pooling to the same sizes would save
    in ONNX Runtime.

    [bold]Examples[/]
      hybrid-mobilenet benchmark runs/digits --threads 1 --threads 2
      hybrid-mobilenet benchmark runs/digits/export/model.onnx other.onnx
    """
    counts = threads or [1]
    for name, value in (*(("--threads", count) for count in counts), ("--rounds", rounds)):
        if value < 1:
            raise ValueError(f"{name} is {value}, but must be 1 or more")

    from dataclasses import asdict

    from ..common.devices import choose_device
    from ..common.files import write_atomically
    from ..deploy.benchmark import benchmark as measure
    from ..deploy.benchmark import environment, expand
    from ..deploy.plots import draw_latencies
    from .progress import RunProgress
    from .tables import benchmark_table

    choose_device(device)
    sources = expand(models)
    out.mkdir(parents=True, exist_ok=True)
    with RunProgress(shown=not as_json) as progress:
        done = progress.counter("measuring", len(counts) * (rounds + len(sources)), unit="turns")
        measurements = [asdict(each) for each in measure(sources, counts, rounds, done, device)]
    record = {"environment": environment(), "rounds": rounds, "measurements": measurements}
    write_atomically(out / "benchmark.json", (json.dumps(record, indent=2) + "\n").encode())
    draw_latencies(measurements, out / "benchmark.png")
    if as_json:
        print_json(record)
    else:
        console(TABLE_WIDTH).print(benchmark_table(measurements), f"written to {out}", sep="\n")


@app.command()
def web(
    folder: Annotated[Path, typer.Argument(help="A page made by export --to web.")],
    *,
    host: Annotated[str, typer.Option(help="Address to serve on; 0.0.0.0 is the whole network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    as_json: JsonOption = False,
) -> None:
    """Serve an exported page to browsers on this machine, until Ctrl-C.

    Any static file server does; this one sends the headers with which browsers
    run the model on several threads. On other addresses than this machine's
    own, browsers give the camera to pages over HTTPS only.

    [bold]Example[/]
      hybrid-mobilenet web runs/digits/export/web
    """
    from ..deploy.web.serve import PageServer

    with PageServer(folder, host, port) as server:
        if as_json:
            print(json.dumps({"url": server.url}))  # one line, to be read while the command goes on
        else:
            console().print(f"{folder} is at {server.url} until Ctrl-C", soft_wrap=True)
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):  # the usual end
            server.serve_forever()


def parse_image_size(text: str) -> Size:
    """Height and width in pixels: (32, 32) from "32", (24, 32) from "24x32".

    Raises:
        ValueError: where it is neither.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise ValueError(f"--image-size is {text!r}, but must be a side in pixels (32) or height x width (24x32)")
    return int(sides[0]), int(sides[-1])
