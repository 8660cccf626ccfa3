"""The commands `evaluate` and `predict`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from io import TextIOWrapper
from itertools import chain, islice
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
    SkipBadOption,
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
    skip_bad: SkipBadOption = False,
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
    only the images that were held out from training are used, and a table of
    labels or a column given to train need not be given again. DATA may lack
    some of the classes.

    With --passes N, class probabilities are averaged over N passes, each with
    new random pooling regions (Graham, 2014).

    Examples:
      hybrid-mobilenet evaluate runs/digits digits
      hybrid-mobilenet evaluate runs/digits digits --passes 12 --json
      hybrid-mobilenet evaluate runs/digits/export/model.int8.onnx digits
    """
    from ..common.memory import keep_freed_memory
    from ..data.source import AUTOMATIC, SourceOptions
    from ..deploy.classify import (
        evaluate_classifier,
        load_classifier,
        load_test_images,
        recorded_options,
        training_record,
    )
    from ..training.plots import CONFUSION_FILE, draw_confusion
    from .display import RunDisplay

    check_seed(seed)  # before the data is read
    keep_freed_memory()
    classifier = load_classifier(model, passes, device)
    picture = out or (Path(model) / CONFUSION_FILE if Path(model).is_dir() else None)
    with RunDisplay(shown=not as_json) as display:
        options = SourceOptions(labels, config, image_column, label_column)
        if options == AUTOMATIC:
            options = recorded_options(training_record(model), data)
        evaluated = load_test_images(data, model, classifier, options, skip_bad, display.on_data)
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
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Images, folders of images, or patterns like 'photos/*.jpg'."),
    ],
    *,
    top: Annotated[
        int | None, typer.Option(help="Number of classes for each image.", show_default="3, or 1 with --csv")
    ] = None,
    passes: PassesOption = 1,
    device: DeviceOption = "auto",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: file,class,probability.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Predict the classes of images, with probabilities.

    Results are printed as they come, in the order of the files, and Ctrl-C
    keeps those already printed. A file that cannot be read as an image is
    reported on stderr; the others are predicted, and the exit status is 2.

    With --csv --top 2, the columns class2 and probability2 follow.

    Examples:
      hybrid-mobilenet predict runs/digits photo.png
      hybrid-mobilenet predict runs/digits holiday/ --top 1 --json
      hybrid-mobilenet predict runs/digits 'photos/**/*.jpg' --csv > photos.csv
      hybrid-mobilenet predict runs/digits/export/model.onnx photo.png
    """
    from ..data.images import DataError
    from ..data.listing import Skipped
    from ..data.patterns import find_images
    from ..deploy.classify import check_top, load_classifier, predictions
    from .display import RunDisplay

    if as_csv and as_json:
        raise ValueError("--csv and --json are two formats of the same output: give one of them")
    top = (1 if as_csv else 3) if top is None else top
    check_top(top)
    classifier = load_classifier(model, passes, device)
    problems: list[str] = []
    skipped = Skipped()
    paths = find_images(files, lambda error: problems.append(one_line(error)), skipped)
    printed: AbstractContextManager[Callable[[Prediction], None]]
    if as_json:
        printed = json_rows()
    elif as_csv:
        printed = csv_rows(min(top, len(classifier.class_names)))
    else:
        first = list(islice(paths, PredictionRows.MEASURED))
        paths = chain(first, paths)
        printed = nullcontext(PredictionRows(first, classifier.class_names, top).print)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names that are not UTF-8 are printed as they are
    count = 0
    with (
        # On a terminal, a progress bar would disturb the rows, which show the progress anyway.
        RunDisplay(shown=not as_json and not as_csv and not sys.stdout.isatty()) as display,
        printed as add,
        stop_signals() as stop,
        closing(predictions(classifier, paths, passes, top)) as results,
    ):
        done = display.counter("predicting", None)
        for result in results:
            if stop.is_set():
                break
            if isinstance(result, DataError):
                problems.append(one_line(result))
            else:
                add(result)
            count += 1
            done(1)
        interrupted = f"interrupted after {count:,} images" if stop.is_set() else ""
    for note in skipped.notes():
        print(note, file=sys.stderr)
    report_problems(problems, interrupted)


@contextmanager
def json_rows() -> Iterator[Callable[[Prediction], None]]:
    """Print predictions as a JSON list."""
    with json_list() as add:
        yield lambda prediction: add(prediction.record())


@contextmanager
def csv_rows(top: int) -> Iterator[Callable[[Prediction], None]]:
    """Print predictions as CSV, with a header, and with the `top` most probable classes. Each row is flushed."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    ranks = ["", *range(2, top + 1)]
    writer.writerow(["file", *(f"{column}{rank}" for rank in ranks for column in ("class", "probability"))])

    def add(prediction: Prediction) -> None:
        writer.writerow([prediction.file, *chain.from_iterable(prediction.probabilities.items())])
        sys.stdout.flush()

    yield add


class PredictionRows:
    """The rows of a table of predictions, which are printed one by one.

    Args:
        paths: the first files. Column widths are chosen for them; longer names are folded.
        class_names: all classes that may be predicted.
        top: classes per row.
    """

    #: Files for which column widths are chosen.
    MEASURED = 200

    def __init__(self, paths: Sequence[Path], class_names: Sequence[str], top: int) -> None:
        from rich.cells import cell_len

        self._console = console(TABLE_WIDTH)
        name = max(map(cell_len, ("Class", *class_names)))
        then = max((top - 1) * (name + len(" 99.9%, ")), len("Then")) if top > 1 else 0
        left = self._console.width - 3 * len("  ") - len("Probability")
        self._class = min(name, left // 4)
        self._file = min(max(map(cell_len, ("File", *map(str, paths)))), left - self._class - min(then, left // 3))
        self._columns = ("File", "Class", "Probability", *["Then"] * (top > 1))
        self._is_first = True

    def print(self, prediction: Prediction) -> None:
        """Print a file with its most probable classes, best first. The first row comes with the headings."""
        rows = table(*self._columns, left=2)
        rows.show_header, self._is_first = self._is_first, False
        for column, width in zip(rows.columns, (self._file, self._class, len("Probability")), strict=False):
            column.width = width
        (name, probability), *others = prediction.probabilities.items()
        cells = [str(prediction.file), name, f"{probability:.1%}"]
        if len(self._columns) > len(cells):
            rows.columns[-1].justify, rows.columns[-1].no_wrap = "left", False
            cells.append(", ".join(f"{other} {share:.1%}" for other, share in others))
        rows.add_row(*cells)
        self._console.print(rows)
