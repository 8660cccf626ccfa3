"""The command `train`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..layers.sizes import PoolingSequence
from ..network.architecture import Activation, Family
from ..training.recipe import (
    AUGMENTATIONS,
    CIFAR100_RECIPES,
    PAPER_RECIPES,
    Balance,
    Flips,
    Keep,
    Optimizer,
    Precision,
    Recipe,
    own_recipe,
    paper_recipe,
)
from .options import (
    AlphaOption,
    ConfigOption,
    DeltaOption,
    DeviceOption,
    ImageColumnOption,
    ImageSizeOption,
    InChannelsOption,
    JsonOption,
    LabelColumnOption,
    LabelsOption,
    SkipBadOption,
    parse_amount,
    parse_image_size,
)
from .output import INTERRUPTED, USAGE_ERROR, bold_first, console, print_json

if TYPE_CHECKING:
    from ..training.evaluate import Evaluation
    from ..training.setup import Setup
    from .display import RunDisplay

#: Accuracy and balanced accuracy are printed together where they differ by this much.
DIFFERENT = 0.01


def recipe_option(setting: str, explanation: str, *names: str) -> Any:
    """An option that replaces a setting of the recipe. The help shows the recipe's value as the default."""

    def defaults(recipes: dict[Family, Recipe]) -> str:
        values = {family: str(getattr(recipe, setting)) for family, recipe in recipes.items()}
        same = len(set(values.values())) == 1
        return values["fmp"] if same else ", ".join(f"{family}: {value}" for family, value in values.items())

    usual = defaults(PAPER_RECIPES)
    own: dict[Family, Recipe] = {family: own_recipe(family, 1, ()) for family in PAPER_RECIPES}
    others = {"cifar100": defaults(CIFAR100_RECIPES), "your images": defaults(own)}
    different = [f"; {data}: {values}" for data, values in others.items() if values != usual]
    return typer.Option(*names, help=explanation, show_default=usual + "".join(different))


def train(
    ctx: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="digits, cifar10, cifar100, a folder of images, Parquet files, or owner/name on the Hub.",
        ),
    ] = None,
    *,
    labels: LabelsOption = None,
    config: ConfigOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    family: Annotated[
        Family, typer.Option(help="How maps shrink: by strides, 3x3 max pooling, or fractional max pooling.")
    ] = "fmp",
    alpha: AlphaOption = 0.25,
    delta: DeltaOption = 2,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Train the most accurate network with at most so many Mult-Adds, such as 10M: see select.",
        ),
    ] = None,
    image_size: ImageSizeOption = "32",
    in_channels: InChannelsOption = 3,
    epochs: Annotated[int | None, recipe_option("epochs", "Passes over the training images.")] = None,
    batch_size: Annotated[int | None, recipe_option("batch_size", "Images per step.")] = None,
    learning_rate: Annotated[
        float | None, recipe_option("learning_rate", "Initial learning rate of Adam; it decays to 0 (cosine).")
    ] = None,
    weight_decay: Annotated[
        float | None, recipe_option("weight_decay", "Weight decay (AdamW) of convolutions and the last layer.")
    ] = None,
    activation: Annotated[
        Activation | None, recipe_option("activation", "Activation after batch normalisation.")
    ] = None,
    sequence: Annotated[
        PoolingSequence | None, recipe_option("sequence", "How fractional max pooling draws its regions.")
    ] = None,
    overlapping: Annotated[
        bool | None, recipe_option("overlapping", "Whether pooling regions overlap.", "--overlapping/--disjoint")
    ] = None,
    fixed_epochs: Annotated[
        int | None, recipe_option("fixed_epochs", "Last epochs, with the fixed regions used at test time.")
    ] = None,
    augmentation: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(AUGMENTATIONS),
            help="How much training images are varied: shifted, resized, recoloured, partly covered.",
            show_default="none for digits and CIFAR; your images: by their number",
        ),
    ] = None,
    flips: Annotated[
        Flips | None,
        typer.Option(
            help="How half of the images are mirrored. Images of text must not be.",
            show_default="horizontal with augmentation; none for classes of characters, or of left and right",
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None, recipe_option("label_smoothing", "Share of each label that is spread over all classes.")
    ] = None,
    optimizer: Annotated[
        Optimizer | None, recipe_option("optimizer", "adam (AdamW), or sgd with Nesterov momentum.")
    ] = None,
    warm_up: Annotated[
        float | None, recipe_option("warm_up", "Share of the steps in which the learning rate rises from 0.")
    ] = None,
    averaging: Annotated[
        float | None, recipe_option("averaging", "Decay of a moving average of the weights, such as 0.999; 0 for none.")
    ] = None,
    precision: Annotated[
        Precision | None, recipe_option("precision", "fp32, or bf16 for mixed precision on GPUs.")
    ] = None,
    balance: Annotated[
        Balance | None, recipe_option("balance", "sampling repeats images of small classes, for equal shares.")
    ] = None,
    patience: Annotated[
        int | None,
        recipe_option("patience", "Stop after this many epochs without a lower validation loss; 0: never."),
    ] = None,
    keep: Annotated[
        Keep | None,
        recipe_option("keep", "Weights of the last epoch, or of the best: the one with the lowest validation loss."),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(
            help="Share of the training images held out for validation, if DATA has no validation split.",
            show_default="0.1; 0 for fewer than 2,000 images of your own",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, image order, regions and validation split.")] = 0,
    skip_bad: SkipBadOption = False,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to create.", show_default="runs/DATA-FAMILY-..., or RUN-continued")
    ] = None,
    log: Annotated[
        Literal["tensorboard"] | None, typer.Option(help="Also write TensorBoard event files into the run folder.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN|MODEL",
            help="Start from the weights of a finished run, or of a model on the Hub as owner/name.",
            show_default="random weights",
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Also learn from the outputs of a finished run on the same data."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue a stopped run, with the settings it was started with.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a network and save it in a run folder.

    The run folder holds the model, its training curves and its evaluation on
    the test images. The defaults train the network that the paper recommends.

    DATA can be a folder with one subfolder of images per class, or with
    folders of such subfolders for training, validation and test (train, val,
    test, Training, seg_test, ...). Without a test folder, a fifth of the
    training images is held out for testing. With --labels, a table gives the
    label of each image. Notes say what was left out.

    Images of your own are augmented, as --augmentation says. Without
    --epochs they are trained for at least 3,000 steps: an epoch of few
    images repeats them. The run is saved after every epoch, every 5 minutes
    and on Ctrl-C, and --resume continues it.

    --budget 10M chooses family, alpha and delta, and says which: the network
    within 10 million Mult-Adds, for images of this size and these classes, that
    was the most accurate on CIFAR. hybrid-mobilenet select lists them all.

    --patience saves time, but rarely helps: the learning rate falls over all
    epochs, and the network is usually best at their end. After an early stop
    the weights are still those of the last epoch, unless --keep best is given.

    --from RUN starts from the weights of a finished run, with its network,
    data and settings, which other options change. The learning rate starts
    anew, so a lower one is often better. What RUN held out for its test stays
    held out. DATA may be other images of the same classes.

    If DATA has other classes, --from RUN or --from owner/name (on the Hub)
    fine-tunes: the features are kept, and a new classifier learns first, and
    faster than they. The settings are then those for DATA.

    --teacher RUN distils the network of RUN, which should be larger, or the
    same. Its outputs for 32 augmented views of each training image are
    computed once, and kept in the cache folder (~/.cache/hybrid-mobilenet).

    Examples:
      hybrid-mobilenet train digits --epochs 20 --out runs/digits
      hybrid-mobilenet train cifar10
      hybrid-mobilenet train photos/ --family mp3 --alpha 0.5 --image-size 64
      hybrid-mobilenet train photos/ --budget 10M
      hybrid-mobilenet train photos/ --balance sampling --keep best
      hybrid-mobilenet train photos/ --labels labels.csv
      hybrid-mobilenet train --resume runs/digits
      hybrid-mobilenet train --from runs/digits --epochs 10 --learning-rate 1e-3
      hybrid-mobilenet train photos/ --alpha 0.5 --out runs/large
      hybrid-mobilenet train photos/ --teacher runs/large

    With several GPUs or machines:
      torchrun --nproc-per-node gpu -m hybrid_mobilenet train cifar10
    """
    if start == "scratch":  # the default; `setup.SCRATCH` is slow to import
        start = None
    if (data is not None or start is not None) == (resume is not None):
        raise ValueError(
            "train takes DATA, such as digits or a folder of images, or --resume RUN, or --from RUN with or without "
            "DATA: give one of them"
        )
    settings = {
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "activation": activation,
        "sequence": sequence,
        "overlapping": overlapping,
        "fixed_epochs": fixed_epochs,
        "label_smoothing": label_smoothing,
        "optimizer": optimizer,
        "warm_up": warm_up,
        "averaging": averaging,
        "precision": precision,
        "balance": balance,
        "patience": patience,
        "keep": keep,
    }
    largest = None if budget is None else checked_budget(ctx, budget, start)
    change = partial(changed_recipe, epochs=epochs, settings=settings, augmentation=augmentation, flips=flips)
    if resume is not None:
        refuse_settings(ctx)
    elif start is None:
        change(paper_recipe(family, data or ""))  # reports a mistake before the images are read

    from ..common.memory import keep_freed_memory
    from ..data.splits import VALIDATION_FRACTION
    from ..training import run as training
    from ..training.processes import rank
    from .display import RunDisplay

    keep_freed_memory()
    is_first = rank() == 0  # of several processes, only the first prints
    with RunDisplay(shown=is_first and not as_json) as display:
        if resume is not None:
            folder = resume
            act = partial(training.resume, folder, display, device=device)
        else:
            if validation is None and (patience or keep == "best"):
                validation = VALIDATION_FRACTION
            options: dict[str, Any] = {
                "data": data,
                "labels": labels,
                "config": config,
                "image_column": image_column,
                "label_column": label_column,
                "skip_bad": skip_bad,
                "family": family,
                "alpha": alpha,
                "delta": delta,
                "image_size": parse_image_size(image_size),
                "channels": in_channels,
                "validation": validation,
                "seed": seed,
                "log": log,
                "teacher": None if teacher is None else str(teacher),
            }
            if largest is not None:
                options |= network_within(largest, options, display.on_note)
            given = {"channels" if name == "in_channels" else name for name in given_options(ctx)}
            setup, usual_folder = planned_run(options, given, start, change)
            folder = out or usual_folder
            act = partial(training.train, setup, folder, display, device=device)
        evaluation = finish(act, folder, is_first)
    if is_first:
        print_result(evaluation, folder, display, as_json)


def planned_run(
    options: dict[str, Any], given: set[str], start: str | None, change: Callable[[Recipe], Recipe]
) -> tuple[Setup, Path]:
    """The setup of a new run, and the folder where it goes without --out.

    Args:
        options: fields of the setup, other than `start` and the recipe.
        given: names of those that the command line gives.
        start: run or model whose weights the run starts from; None for random weights.
        change: changes a recipe as the command line says.
    """
    from ..data.sources import display_name
    from ..training.setup import Setup, default_recipe
    from ..training.start import continue_from, is_continued, start_network

    data = options["data"]
    if start is not None and is_continued(start, data, options):
        if data is not None:  # how the run's data is read says nothing about other data
            given = given | {"labels", "config", "image_column", "label_column", "skip_bad"}
        setup = continue_from(start)
        setup = replace(setup, **{name: value for name, value in options.items() if name in given})
        assert isinstance(setup.recipe, Recipe)  # the run's
        run = Path(start).resolve()
        return replace(setup, recipe=change(setup.recipe)), run.with_name(f"{run.name}-continued")
    if start is not None:
        network = {name: value for name, value in start_network(start).items() if name not in given}
        options = {**options, **network, "start": start}
    setup = Setup(**options, recipe=lambda setup, images: change(default_recipe(setup, images)))
    name = f"{setup.family}-d{setup.delta}-a{setup.alpha:g}-s{setup.seed}"
    return setup, Path("runs") / f"{Path(display_name(data)).stem}-{name}"


def checked_budget(ctx: typer.Context, budget: str, start: str | None) -> float:
    """The Mult-Adds of --budget.

    Raises:
        ValueError: if it is not a number, or something else decides on the network.
    """
    mult_adds = parse_amount("--budget", budget)
    others = [f"--{name}" for name in ("family", "alpha", "delta") if name in given_options(ctx)]
    others += ["--from"] * (start is not None) + ["--resume"] * ("resume" in given_options(ctx))
    if others:
        raise ValueError(f"--budget {budget} chooses the network, but so does {others[0]}: leave one of them out")
    return mult_adds


def network_within(mult_adds: float, options: dict[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """Family, alpha and delta of the most accurate network within a budget, for the images and classes of the data.

    Args:
        mult_adds: the largest number of Mult-Adds.
        options: fields of the setup.
        note: receives a line that says which network it is.

    Raises:
        ValueError: if no network is that small.
        DataError, OSError: if the data cannot be opened.
    """
    from ..data.sources import open_source
    from ..study.grid import PAPER_DATA_SETS
    from ..study.rows import DATA_NAMES
    from ..study.selection import Budget, best_networks
    from ..training.setup import Setup

    data = options["data"]
    best, *_ = best_networks(
        Budget(mult_adds=mult_adds),
        data if data in PAPER_DATA_SETS else None,
        classes=len(open_source(data, Setup(**options).source_options).train.class_names),
        in_channels=options["channels"],
        image_size=options["image_size"],
    )
    network, accuracy, seeds = best.network, best.recorded.accuracy, len(best.recorded.accuracies)
    height, width = network.image_size
    note(
        f"chosen within {mult_adds:,.0f} Mult-Adds: {best.name} (--family {network.family} --alpha {network.alpha:g} "
        f"--delta {network.delta}), with {best.mult_adds:,} for images of {height}x{width} pixels and "
        f"{network.classes} classes; its recorded accuracy on {DATA_NAMES[best.recorded.data]} is {accuracy:.2%} "
        f"({seeds} seed{'s' * (seeds > 1)})"
    )
    return {"family": network.family, "alpha": network.alpha, "delta": network.delta}


def given_options(ctx: typer.Context) -> set[str]:
    """The names of the parameters that the command line gives."""
    return {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}


def refuse_settings(ctx: typer.Context) -> None:
    """Refuse every option that `--resume` ignores.

    Raises:
        ValueError: if there is one on the command line.
    """
    if others := given_options(ctx) - {"resume", "device", "as_json"}:
        options = ", ".join(sorted(f"--{name.replace('_', '-')}" for name in others))
        raise ValueError(f"--resume continues with the settings that the run was started with: leave out {options}")


def changed_recipe(
    recipe: Recipe, epochs: int | None, settings: dict[str, Any], augmentation: str | None, flips: Flips | None
) -> Recipe:
    """A recipe with the options that are not None.

    Raises:
        ValueError: if one is out of range.
    """
    if epochs is not None:
        recipe = replace(recipe.with_epochs(epochs), least_steps=0)
    varied = recipe.augmentation
    if augmentation is not None:
        if augmentation not in AUGMENTATIONS:
            raise ValueError(f"--augmentation is {augmentation!r}, but must be one of {', '.join(AUGMENTATIONS)}")
        # Whether images are mirrored depends on the classes, so the recipe's choice stays.
        kept = varied.flips if varied else AUGMENTATIONS[augmentation].flips
        varied = replace(AUGMENTATIONS[augmentation], flips=kept if augmentation != "none" else "none")
    if flips is not None:
        varied = replace(varied, flips=flips)
    given = {name: value for name, value in settings.items() if value is not None}
    return replace(recipe, augmentation=varied, **given)


def finish(start: Callable[[], Evaluation], folder: Path, is_first: bool) -> Evaluation:
    """Train to the end. If training stops before, the error shows how to continue.

    Raises:
        KeyboardInterrupt: if training was interrupted, and saved.
        OSError, DataError: if something could not be read or written.
        typer.Exit: in a process that does not print, or after an error in another process.
    """
    from ..common.messages import listed
    from ..data.images import DataError
    from ..network.model import CHECKPOINT_FILE
    from ..training.processes import OtherProcessFailed
    from ..training.setup import Interrupted

    resume = f"hybrid-mobilenet train --resume {shlex.quote(str(folder))}"
    try:
        return start()
    except OtherProcessFailed:
        raise typer.Exit(USAGE_ERROR) from None
    except Interrupted:
        if not is_first:
            raise typer.Exit(INTERRUPTED) from None
        raise KeyboardInterrupt(f"stopped and saved; continue with: {resume}") from None
    except DataError as error:
        if not error.images or not (folder / CHECKPOINT_FILE).is_file():
            raise
        problem = f"{listed(error.images)} can no longer be read"  # all images could be when the run began
        raise DataError(f"{problem}: restore the same content, then: {resume}") from error
    except OSError as error:
        if not (folder / CHECKPOINT_FILE).is_file():
            raise
        reason = f"{error.strerror or error}; fix this, then: {resume}"
        raise OSError(error.errno, reason, error.filename) from error


def print_result(evaluation: Evaluation, folder: Path, display: RunDisplay, as_json: bool) -> None:
    """Print the accuracy and the run folder, then the warnings."""
    if as_json:
        record = evaluation.record()
        result = {key: record[key] for key in ("epoch", "accuracy", "balanced_accuracy", "images") if key in record}
        about = {"notes": display.notes, "warnings": display.warnings}
        print_json({"run": str(folder)} | result | about)
        return
    accuracy, balanced = evaluation.accuracy, evaluation.balanced_accuracy
    when = "the last epoch" if evaluation.epoch is None else f"epoch {evaluation.epoch}, the best in validation"
    rest = f", balanced accuracy {balanced:.2%}" if abs(accuracy - balanced) >= DIFFERENT else ""
    count = f"{evaluation.images:,}"
    console().print(
        bold_first(f"{accuracy:.2%}", f" of {count} test images classified correctly after {when}{rest}"),
        f"model, curves and evaluation in {folder}",
        sep="\n",
    )
    sys.stdout.flush()
    for warning in display.warnings:
        print("warning:", warning, file=sys.stderr)
