"""The command `check`."""

from __future__ import annotations

import shlex
from pathlib import Path
from textwrap import TextWrapper
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    ConfigOption,
    DeviceOption,
    ImageColumnOption,
    ImageSizeOption,
    JsonOption,
    LabelColumnOption,
    LabelsOption,
    SkipBadOption,
    parse_image_size,
)
from .output import bold_first, console, duration, print_json, table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .check_report import Report

#: Exit status if `train` would refuse the data.
REFUSED = 1
#: Rows, names and groups that are printed at most.
CLASSES, UNREADABLE, GROUPS, MEMBERS = 12, 5, 6, 4


def check(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Data, as for train.")],
    *,
    labels: LabelsOption = None,
    config: ConfigOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    skip_bad: SkipBadOption = False,
    image_size: ImageSizeOption = "32",
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with pictures of duplicates and of every class.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Check a data set before training on it.

    Every image is read once. The report has the images of each class and split,
    their sizes and formats, images that cannot be read, and images that are
    equal or look alike: in different classes (one label is wrong), or in
    training and test (the accuracy would be too high). It ends with what
    `train` would do, and about how long that would take on this machine.

    Long lists are cut; --json has all of them. With --html, the report is also
    written as one HTML file with pictures.

    The exit status is 0 if train would start, 1 if it would refuse the data,
    and 2 if there is no such data.

    Examples:
      hybrid-mobilenet check photos/
      hybrid-mobilenet check photos/ --html photos.html
      hybrid-mobilenet check photos/ --image-size 64 --json
    """
    size = parse_image_size(image_size)

    from ..common.memory import keep_freed_memory
    from ..training.processes import Processes
    from ..training.setup import Setup, check_setup
    from .check_report import make_report, record
    from .display import RunDisplay

    keep_freed_memory()
    setup = Setup(
        data,
        image_size=size,
        labels=labels,
        config=config,
        image_column=image_column,
        label_column=label_column,
        skip_bad=skip_bad,
    )
    check_setup(setup, device, Processes())  # before the images are read, which may take long
    with RunDisplay(shown=not as_json) as display:
        report = make_report(setup, display.on_data, device)
        if html is not None:
            from .check_page import write_page

            write_page(report, html)
    if as_json:
        print_json(record(report))
    else:
        print_report(report, console())
        if html is not None:
            console().print(f"The same with pictures: {html}")
    if report.refusals:
        raise typer.Exit(REFUSED)


def print_report(report: Report, out: Console) -> None:
    """Print the report as text."""
    from .check_report import balance_in_words, images_in_words, training_in_words

    inspection = report.inspection
    names = inspection.class_names
    out.print(bold_first(report.source, f": {len(inspection):,} images in {len(names)} classes"), "", sep="\n")
    out.print(class_table(report))
    print_lines(out, [*balance_in_words(report), *report.notes])
    print_section(out, "Images", images_in_words(report))
    if errors := list(inspection.unreadable.values()):
        more = [f"... {len(errors) - UNREADABLE:,} more, see --json"] if len(errors) > UNREADABLE else []
        print_section(out, f"Unreadable: {len(errors):,}", [*errors[:UNREADABLE], *more])
    if report.groups:
        out.print("", bold_first("Duplicates", ""), sep="\n")
        out.print(duplicate_table(report))
        for group in report.groups[:GROUPS]:
            members = group.members[:MEMBERS]
            named = zip(members, report.names(members), strict=True)
            listing = ", ".join(f"{name} ({report.place(image)})" for image, name in named)
            rest = f" ... {len(group.members) - MEMBERS:,} more, see --json" if len(group.members) > MEMBERS else ""
            print_lines(out, [f"{'equal' if group.is_exact else 'alike'}: {listing}{rest}"])
        if len(report.groups) > GROUPS:
            print_lines(out, [f"... {len(report.groups) - GROUPS:,} more groups, see --json or --html"])
    if report.plan:
        print_section(out, "Training", training_in_words(report.plan))
    out.print()
    for reason in report.refusals:
        out.print(bold_first("train would refuse this data: ", reason))
    if report.seconds is not None:
        command = shlex.join(["hybrid-mobilenet", "train", report.source, *report.options])
        out.print(bold_first(f"train would start, and take about {duration(report.seconds)} here:", ""))
        out.print(f"  {command}", soft_wrap=True)  # in one line, to be copied


def print_section(out: Console, heading: str, lines: list[str]) -> None:
    """Print an empty line, a heading and indented lines."""
    out.print("", bold_first(heading, ""), sep="\n")
    print_lines(out, lines)


def print_lines(out: Console, lines: list[str]) -> None:
    """Print lines, indented and wrapped between words: paths and options stay whole."""
    wrapper = TextWrapper(
        out.width, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    for line in lines:
        out.print(wrapper.fill(line), soft_wrap=True)


def class_table(report: Report) -> Table:
    """The images of each class in each split, the largest class first if not all are shown."""
    from ..data.inspection import SPLITS

    rows = table("Class", *map(str.capitalize, SPLITS), "Share", left=1)
    total = max(1, len(report.inspection))
    counted = list(zip(report.inspection.class_names, report.counts, strict=True))
    if len(counted) > CLASSES:  # the smallest classes matter, too
        counted.sort(key=lambda each: -sum(each[1]))
        left_out = counted[CLASSES // 2 : -(CLASSES // 2)]
        shown = [*counted[: CLASSES // 2], (f"... {len(left_out)} more, see --json", None), *counted[-(CLASSES // 2) :]]
    else:
        shown = [*counted]
    for name, counts in shown:
        if counts is None:
            rows.add_row(name, "", "", "", "")
        else:
            rows.add_row(name, *(f"{count:,}" for count in counts), f"{sum(counts) / total:.1%}")
    rows.add_row("all", *(f"{sum(column):,}" for column in zip(*report.counts, strict=True)), "", style="bold")
    return rows


def duplicate_table(report: Report) -> Table:
    """The number of groups of each kind."""
    from .check_report import kinds

    rows = table("How", "Where", "Groups", "Images", left=2)
    for how, where, groups, images in kinds(report):
        rows.add_row(how, where, f"{groups:,}", f"{images:,}")
    return rows
