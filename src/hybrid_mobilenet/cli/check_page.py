"""The HTML page of `check`: one file with its style and its pictures inside, which needs no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from ..common.files import write_atomically
from ..data.images import DataError, decode
from ..data.inspection import SPLITS
from .check_report import Report, balance_in_words, images_in_words, kind_of, kinds, training_in_words
from .output import duration

#: Side of a picture in pixels, and the numbers of groups, of members of a group, of classes and of images of a class.
SIDE, GROUPS, MEMBERS, CLASSES, EXAMPLES = 96, 60, 8, 100, 8
#: Lines of a list; --json has the rest.
LINES = 200

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1b1f24; --quiet: #57606a; --line: #d5d9df;
  --good: #1a7f37; --bad: #b3261e; --bar: #cfe0fb; font: 1rem/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--page); }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1e2329; --text: #e8eaed; --quiet: #a3acb6;
  --line: #3a424c; --good: #6fcf8a; --bad: #ff8a80; --bar: #2b4a7d; } }
* { box-sizing: border-box; }
body { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.2; }
h2 { margin: 0 0 .5rem; font-size: 1.15rem; }
h3 { margin: 1rem 0 .25rem; font-size: 1rem; }
section { margin: 1rem 0; padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .2rem .4rem; text-align: left; border-bottom: 1px solid var(--line); }
.text { min-width: 4rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.share { width: 30%; }
.share div { height: .7rem; background: var(--bar); border-radius: .2rem; }
ul { margin: .5rem 0 0; padding-left: 1.2rem; }
.quiet, figcaption { color: var(--quiet); }
.verdict { font-weight: 600; color: var(--good); }
.bad { color: var(--bad); }
.group { display: flex; flex-wrap: wrap; gap: .6rem; padding: .6rem 0; border-top: 1px solid var(--line); }
.group p { flex-basis: 100%; margin: 0; }
figure { margin: 0; width: 6rem; }
img { display: block; width: 6rem; height: 6rem; border-radius: .25rem; }
figcaption { font-size: .75rem; line-height: 1.25; }
code { font-family: ui-monospace, monospace; }
@media (max-width: 30rem) { .share { display: none; } figure, img { width: 4.5rem; } img { height: 4.5rem; } }
"""


def write_page(report: Report, path: Path) -> None:
    """Write the page.

    Raises:
        OSError: if it cannot be written.
    """
    write_atomically(path, page(report).encode())


def page(report: Report) -> str:
    """The report as an HTML page. Pictures are cropped to a square, as a network with square images sees them."""
    inspection = report.inspection
    title = escape(report.source)
    sections = [
        _classes(report),
        _section("Images", _list(images_in_words(report))),
        _section("Unreadable", _list(list(inspection.unreadable.values()))) if inspection.unreadable else "",
        _section("Duplicates", _duplicates(report)) if report.groups else "",
        _section("Training", _list(training_in_words(report.plan))) if report.plan else "",
        _section("Examples", _examples(report)),
    ]
    body = "\n".join(filter(None, sections))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f'<p class="quiet">{len(inspection):,} images in {len(inspection.class_names)} classes</p>\n'
        f"{_verdict(report)}\n{body}\n</body>\n</html>\n"
    )


def _verdict(report: Report) -> str:
    if report.seconds is not None:
        return f'<p class="verdict">train would start, and take about {duration(report.seconds)} here.</p>'
    return "\n".join(
        f'<p class="verdict bad">train would refuse this data: {escape(reason)}</p>' for reason in report.refusals
    )


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{heading}</h2>\n{content}\n</section>"


def _list(lines: Sequence[str]) -> str:
    more = [f"... {len(lines) - LINES:,} more, see --json"] if len(lines) > LINES else []
    items = "\n".join(f"<li>{escape(line)}</li>" for line in [*lines[:LINES], *more])
    return f"<ul>\n{items}\n</ul>" if items else ""


def _table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML. Columns have a heading and a class of STYLE."""

    def row(tag: str, cells: Iterable[str]) -> str:
        row = (f'<{tag} class="{kind}">{cell}</{tag}>' for cell, (_, kind) in zip(cells, columns, strict=True))
        return f"<tr>{''.join(row)}</tr>"

    lines = [row("th", (heading for heading, _ in columns)), *(row("td", cells) for cells in rows)]
    return "\n".join(["<table>", *lines, "</table>"])


def _classes(report: Report) -> str:
    largest = max(map(sum, report.counts), default=0) or 1
    rows = [
        [
            escape(name),
            f'<div style="width: {100 * sum(counts) / largest:.0f}%"></div>',
            *(f"{count:,}" for count in counts),
        ]
        for name, counts in zip(report.inspection.class_names, report.counts, strict=True)
    ]
    rows.append(["all", "", *(f"{sum(column):,}" for column in zip(*report.counts, strict=True))])
    columns = [("Class", "text"), ("", "share"), *((split.capitalize(), "number") for split in SPLITS)]
    return _section("Classes", _table(columns, rows) + _list([*balance_in_words(report), *report.notes]))


def _duplicates(report: Report) -> str:
    rows = [[how, where, f"{groups:,}", f"{images:,}"] for how, where, groups, images in kinds(report)]
    columns = [("How", "text"), ("Where", "text"), ("Groups", "number"), ("Images", "number")]
    parts = [_table(columns, rows)]
    for group in report.groups[:GROUPS]:
        how = "equal" if group.is_exact else "alike"
        members = group.members[:MEMBERS]
        more = f", {len(members)} of {len(group.members):,} shown" if len(group.members) > MEMBERS else ""
        is_bad = ' class="bad"' if group.across_classes or group.across_splits else ""
        captions = [
            f"{escape(name)}<br>{escape(report.place(image))}"
            for image, name in zip(members, report.names(members), strict=True)
        ]
        heading = f"<p{is_bad}>{how}, {kind_of(group)}{more}</p>"
        parts.append(f'<div class="group">{heading}{_figures(report, members, captions)}</div>')
    if len(report.groups) > GROUPS:
        parts.append(f'<p class="quiet">... {len(report.groups) - GROUPS:,} more groups, see --json</p>')
    return "\n".join(parts)


def _examples(report: Report) -> str:
    inspection = report.inspection
    readable = np.setdiff1d(np.arange(len(inspection)), list(inspection.unreadable))
    parts = []
    for label, name in list(enumerate(inspection.class_names))[:CLASSES]:
        images = readable[inspection.labels[readable] == label]
        chosen = images[np.linspace(0, len(images) - 1, min(EXAMPLES, len(images))).round().astype(int)].tolist()
        captions = [escape(Path(each).name) for each in report.names(chosen)]
        parts.append(f'<h3>{escape(name)}</h3>\n<div class="group">{_figures(report, chosen, captions)}</div>')
    if len(inspection.class_names) > CLASSES:
        parts.append(f'<p class="quiet">... {len(inspection.class_names) - CLASSES} more classes</p>')
    return "\n".join(parts)


def _figures(report: Report, images: Sequence[int], captions: Sequence[str]) -> str:
    """Pictures with captions, which are HTML."""
    figures = []
    for item, caption in zip(report.inspection.items(images), captions, strict=True):
        try:
            pixels = decode(item, (SIDE, SIDE), 3)
        except DataError:  # equal files that cannot be read
            picture = ""
        else:
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "JPEG", quality=80)
            encoded = base64.b64encode(stream.getvalue()).decode()
            picture = f'<img alt="" src="data:image/jpeg;base64,{encoded}">'
        figures.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    return "".join(figures)
