"""The commands `evaluate` and `predict`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common.errors import one_line
from ..common.signals import stop_signals
from ..training.recipe import check_seed
from .options import (
    ConfigOption,
    DeviceOption,
    ImageColumnOption,
    JsonOption,
    LabelColumnOption,
    LabelsOption,
    ModelOrFileArgument,
    PassesOption,
)
from .output import TABLE_WIDTH, bold_first, console, json_list, print_json, report_problems, table

if TYPE_CHECKING:
    from rich.table import Table

    from ..data.held_out import Evaluated
    from ..deploy.classify import Prediction
    from ..training.evaluate import Evaluation


def evaluate(
    model: ModelOrFileArgument,
    data: Annotated[str, typer.Argument(metavar="DATA", help="Data, as for train.")],
    *,
    labels: LabelsOption = None,
    config: ConfigOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    passes: PassesOption = 1,
    seed: Annotated[int, typer.Option(help="Seed of the random regions, for several passes.")] = 0,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Picture of the confusion matrix to write.",
            show_default="confusion.png in a run folder",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model on test images.

    Prints accuracy and cross-entropy, and recall, precision and F1 of every
    class. The confusion matrix is drawn as a picture.

    The test split of DATA is used. Data without a test split is used whole, or
    only its validation split if it has one. If the model was trained on it,
    only the images that were held out from training are used. DATA may lack
    some of the classes.

    With --passes N, class probabilities are averaged over N passes, each with
    new random pooling regions (Graham, 2014).

    Examples:
      hybrid-mobilenet evaluate runs/digits digits
      hybrid-mobilenet evaluate runs/digits digits --passes 12 --json
      hybrid-mobilenet evaluate runs/digits/export/model.int8.onnx digits
    """
    from ..common.memory import keep_freed_memory
    from ..data.source import SourceOptions
    from ..deploy.classify import evaluate_classifier, load_classifier, load_test_images
    from ..training.plots import CONFUSION_FILE, draw_confusion
    from .display import RunDisplay

    check_seed(seed)  # before the data is read
    keep_freed_memory()
    classifier = load_classifier(model, passes, device)
    picture = out or (Path(model) / CONFUSION_FILE if Path(model).is_dir() else None)
    with RunDisplay(shown=not as_json) as display:
        options = SourceOptions(labels, config, image_column, label_column)
        evaluated = load_test_images(data, model, classifier, display.on_data, options)
        test = evaluated.images
        result = evaluate_classifier(classifier, test, passes, seed, display.counter("evaluating", len(test)))
    if as_json:
        where = {"picture": str(picture) if picture else None}
        print_json({"model": model, "data": data, **evaluation_record(evaluated, result), **where})
    else:
        print_evaluation(data, evaluated, result)
    if picture:  # last: if it cannot be written, the results are already printed
        picture.parent.mkdir(parents=True, exist_ok=True)
        title = f"{data}\n{result.accuracy:.2%} of {result.images:,} images classified correctly"
        draw_confusion(result.confusion, result.class_names, title, picture)
        if not as_json:
            console().print(f"confusion matrix in {picture}")


def evaluation_record(evaluated: Evaluated, result: Evaluation) -> dict[str, object]:
    """An evaluation for `evaluate --json`."""
    about = {"tested": evaluated.which, "of": evaluated.total, "used_in_training": evaluated.used_in_training}
    return {**about, **result.record(), "notes": evaluation_notes(evaluated, result)}


def print_evaluation(data: str, evaluated: Evaluated, result: Evaluation) -> None:
    """Print an evaluation: a row per class, the accuracy, and which images were tested."""
    passes = "1 pass" if result.passes == 1 else f"{result.passes} passes with random regions"
    count = (
        f"all {evaluated.total:,}" if result.images == evaluated.total else f"{result.images:,} of {evaluated.total:,}"
    )
    of_split = f"the {evaluated.which} of " if evaluated.which in ("test split", "validation split") else ""
    held_out = ", held out when the model was trained on it" if evaluated.which == "held out" else ""
    out = console()
    out.print(
        class_table(result),
        bold_first(
            f"{result.accuracy:.2%}",
            f" of {result.images:,} test images classified correctly, {passes}, cross-entropy {result.loss:.4f}",
        ),
        f"balanced accuracy {result.balanced_accuracy:.2%}: the mean recall of the classes",
        sep="\n",
    )
    notes = (f"note: {note}" for note in evaluation_notes(evaluated, result))
    out.print(f"tested: {count} images of {of_split}{data}{held_out}", *notes, sep="\n")


def evaluation_notes(evaluated: Evaluated, result: Evaluation) -> list[str]:
    """What to know about the tested images, besides how many there are."""
    from ..common.messages import listed

    notes = list(evaluated.notes)
    if evaluated.used_in_training is None:
        notes.append(
            "the run folder has no split.json, so it is not known which images the model was trained on: some of these "
            "may be among them"
        )
    elif evaluated.used_in_training:
        notes.append(f"the model was trained on {evaluated.used_in_training:,} of these images")
    if evaluated.left_out:
        notes.append(
            f"{evaluated.left_out:,} images were added after training and are not tested: to test on them, put them "
            "into a folder of their own"
        )
    empty = set(evaluated.images.class_names) - set(result.class_names)  # with images they would be an error
    if absent := [*result.absent, *sorted(empty)]:
        notes.append(f"no images of {listed(absent)}")
    return notes


def class_table(result: Evaluation) -> Table:
    """Images, recall, precision and F1 of each class that has images. "-" marks a figure that is undefined."""
    rows = table("Class", "Images", "Recall", "Precision", "F1", left=1)
    for name, figures in result.per_class().items():
        if figures["images"]:
            values = (figures[key] for key in ("recall", "precision", "f1"))
            shares = ("-" if value is None else f"{value:.1%}" for value in values)
            rows.add_row(name, f"{figures['images']:,}", *shares)
    return rows


def predict(
    model: ModelOrFileArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Images, or folders of images.")],
    *,
    top: Annotated[int, typer.Option(help="Number of classes to print for each image.")] = 3,
    passes: PassesOption = 1,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Predict the classes of images, with probabilities.

    Results are printed one by one, and Ctrl-C keeps those already printed.
    A file that cannot be read as an image is reported on stderr; the others are
    predicted, and the exit status is 2.

    Examples:
      hybrid-mobilenet predict runs/digits photo.png
      hybrid-mobilenet predict runs/digits holiday/ --top 1 --json
      hybrid-mobilenet predict runs/digits/export/model.onnx photo.png
    """
    from ..data.images import DataError, image_files
    from ..deploy.classify import check_top, load_classifier, predict_file
    from .display import RunDisplay

    check_top(top)
    classifier = load_classifier(model, passes, device)
    problems: list[str] = []
    paths = image_files(files, lambda error: problems.append(one_line(error)))
    printer = console(TABLE_WIDTH)
    rows = PredictionRows(paths, classifier.class_names, top, printer.width)
    count = 0
    with (
        # On a terminal, a progress bar would disturb the rows, which show the progress anyway.
        RunDisplay(shown=not as_json and not sys.stdout.isatty()) as display,
        json_list() if as_json else nullcontext() as add,
        stop_signals() as stop,
    ):
        done = display.counter("predicting", len(paths))
        for path in paths:
            if stop.is_set():
                break
            try:
                prediction = predict_file(classifier, path, passes, top)
            except (DataError, OSError) as error:
                problems.append(one_line(error))
            else:
                if add:
                    add(prediction.record())
                else:
                    printer.print(rows.row(prediction))
            count += 1
            done(1)
    interrupted = f"interrupted after {count:,} of {len(paths):,} images" if count < len(paths) else ""
    report_problems(problems, interrupted)


class PredictionRows:
    """The rows of a table of predictions, which are printed one by one.

    Args:
        paths: all files that may get a row. Column widths are chosen for all of them.
        class_names: all classes that may be predicted.
        top: classes per row.
        width: of the table, in terminal columns.
    """

    def __init__(self, paths: Sequence[Path], class_names: Sequence[str], top: int, width: int) -> None:
        from rich.cells import cell_len

        name = max(map(cell_len, ("Class", *class_names)))
        then = (top - 1) * (name + len(" 99.9%, "))
        left = width - 3 * len("  ") - len("Probability")
        self._class = min(name, left // 4)
        self._file = min(
            max(map(cell_len, ("File", *map(str, paths)))), left - self._class - min(max(then, len("Then")), left // 3)
        )
        self._is_first = True

    def row(self, prediction: Prediction) -> Table:
        """A file with its most probable classes, best first. The first row comes with the headings."""
        rows = table("File", "Class", "Probability", "Then", left=2)
        rows.show_header, self._is_first = self._is_first, False
        for column, width in zip(rows.columns, (self._file, self._class, len("Probability")), strict=False):
            column.width = width
        rows.columns[3].justify, rows.columns[3].no_wrap = "left", False
        (name, probability), *others = prediction.probabilities.items()
        then = ", ".join(f"{other} {share:.1%}" for other, share in others)
        rows.add_row(str(prediction.file), name, f"{probability:.1%}", then)
        return rows
