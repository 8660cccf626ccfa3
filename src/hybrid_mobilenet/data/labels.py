"""Images of a folder whose labels are in a table: CSV, or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.messages import listed, near
from .images import DataError, tree_below
from .listing import Skipped, natural, normal
from .source import ImageFiles, Opened, SourceOptions, expanded
from .split_names import Role, split_role

_JSON_LINES = (".jsonl", ".ndjson", ".json")
#: Extensions of tables of labels.
TABLES = (".csv", ".tsv", *_JSON_LINES)

# Names of columns as people write them, in order of preference, in lower case and with "_" for spaces and hyphens.
_FILE = "file filename file_name filepath file_path path image image_path image_file image_name image_filename img"
_FILES = "files filenames filepaths paths images img_path img_name imagepath imagename picture photo image_id id"
_LABEL = "label labels class class_name classname category category_name target label_name species breed y"
_SPLIT = "split subset set data_set partition"


@dataclass(frozen=True)
class _Row:
    """A row of the table: where it is, for errors, and its cells by column."""

    where: str
    cells: dict[str, Any]

    def text(self, column: str) -> str:
        """A cell as text; empty if it is missing."""
        value = self.cells.get(column)
        if not isinstance(value, str | int | float | None):
            raise DataError(f"{self.where}: {column!r} is {value!r:.80}, but must be one text or number")
        if isinstance(value, float) and value.is_integer():  # programs write 1 as 1.0 where some rows have no number
            value = int(value)
        return "" if value is None else normal(str(value).strip())


@dataclass(frozen=True)
class _Entry:
    """What the table says of a file."""

    label: str
    role: Role
    where: str


def open_labels(folder: Path, options: SourceOptions, model_classes: Sequence[str] | None = None) -> Opened:
    """Open the images of a folder that a table labels.

    The table has a column of files, one of labels, and perhaps one of splits. Files are relative to the folder or to
    the table's folder. Their extensions may be left out, and so may folders, where only one file fits.

    Args:
        folder: the images, in any subfolders.
        options: `labels` is the table. It may name the columns.
        model_classes: as for `open_folder`.

    Raises:
        DataError: if the table or one of its rows is unusable. The message names the line.
        OSError: if a folder cannot be listed.
    """
    table = expanded(options.labels or "")
    if not folder.is_dir():
        raise DataError(f"--labels is {str(table)!r}, but {folder} is not a folder of images: give one, or no --labels")
    columns, rows = _read_table(table, folder)
    file_column, label_column, split_column = _choose_columns(table, columns, rows, options)
    skipped = Skipped()
    files = list(tree_below(folder, skipped=skipped).files())
    find = _Finder(folder, table, files)
    entries: dict[Path, _Entry] = {}
    missing: list[str] = []
    for row in rows:
        label, file_name = row.text(label_column), row.text(file_column)
        if not label or not file_name:
            empty = file_column if label else label_column
            raise DataError(f"{row.where}: {empty!r} is empty: fill it in, or remove the row")
        file = find(row.where, file_name)
        if file is None:
            missing.append(f"{row.where}: {file_column!r} is {file_name!r}")
            continue
        entry = _Entry(label, _role(row, split_column), row.where)
        before = entries.setdefault(file, entry)
        if (before.label, before.role) != (label, entry.role):
            first, second = (before.label, label) if before.label != label else (before.role, entry.role)
            raise DataError(f"{row.where}: {file} is {second!r}, but {before.where} says {first!r}: remove one of them")
    if missing:
        more = f" ({len(missing) - 1:,} more rows name no image either)" if len(missing) > 1 else ""
        raise DataError(
            f"{missing[0]}, but there is no such image below {folder}{more}: correct the names, or remove the rows"
        )
    notes = []
    if len(columns) > 2 + (split_column is not None):
        notes.append(f"{table}: files from column {file_column!r}, labels from column {label_column!r}")
    if unlabelled := sum(file not in entries for file in files):
        notes.append(f"left alone: {unlabelled:,} images in {folder} that are not in {table}")
    names = sorted({entry.label for entry in entries.values()}, key=natural)
    number = {name: index for index, name in enumerate(names)}

    def part(role: Role) -> ImageFiles | None:
        chosen = {file: number[entry.label] for file, entry in entries.items() if entry.role == role}
        return ImageFiles([*chosen], [*chosen.values()], names) if chosen else None

    train, validation, test = part("train"), part("validation"), part("test")
    if train is None and model_classes is not None:
        train, validation, test = test or validation, None, None
    if train is None:
        raise DataError(f"{table} has no training images: give some rows the {split_column} 'train'")
    return Opened(train, validation, test, (*notes, *skipped.notes()))


def _read_table(table: Path, folder: Path) -> tuple[list[str], list[_Row]]:
    """The columns and rows of a table."""
    if not table.is_file():
        inside = folder / table
        hint = f" (did you mean {str(inside)!r}?)" if inside.is_file() else near(str(table))
        raise DataError(f"--labels is {str(table)!r}, but there is no such file{hint}")
    if table.suffix.lower() not in TABLES:
        raise DataError(f"--labels is {str(table)!r}, but must be a {', '.join(TABLES)} file: save it as one of these")
    content = table.read_bytes()
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{table} is not in UTF-8: save it as CSV in UTF-8") from None
    read = _read_json_lines if table.suffix.lower() in _JSON_LINES else _read_csv
    columns, rows = read(table, text)
    if not rows:
        raise DataError(f"{table} has no rows: give it a line for each image, below the names of the columns")
    return columns, rows


def _read_csv(table: Path, text: str) -> tuple[list[str], list[_Row]]:
    """The columns and rows of a CSV file. The separator is the one that gives the first line the most columns."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(",;\t", key=lambda each: _fields(first, each))
    try:
        reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
        header = next((cells for cells in reader if any(cell.strip() for cell in cells)), [])
        columns = [column.strip() for column in header]
        rows = []
        for cells in reader:
            where = f"{table}, line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                raise DataError(
                    f"{where} has {len(cells)} fields, but the first line has {len(columns)}: put fields that contain "
                    f"{separator!r} in double quotes"
                )
            rows.append(_Row(where, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{table} cannot be read as CSV ({error}): save it again as CSV") from None
    if twice := [column for column, count in Counter(columns).items() if column and count > 1]:
        raise DataError(f"{table} has several columns named {twice[0]!r}: rename one of them")
    return columns, rows


def _fields(line: str, separator: str) -> int:
    """The number of fields of a line, 0 if it is not CSV with this separator."""
    try:
        return len(next(csv.reader([line], delimiter=separator, strict=True), []))
    except csv.Error:
        return 0


def _read_json_lines(table: Path, text: str) -> tuple[list[str], list[_Row]]:
    """The columns and rows of a file with one JSON object per line."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{table}, line {number}"
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError):  # also if brackets are nested too deep
            cells = None
        if not isinstance(cells, dict):
            raise DataError(f'{where} must be a JSON object such as {{"file": "a.png", "label": "cat"}}: correct it')
        rows.append(_Row(where, cells))
    return list(dict.fromkeys(column for row in rows for column in row.cells)), rows


def _choose_columns(
    table: Path, columns: list[str], rows: list[_Row], options: SourceOptions
) -> tuple[str, str, str | None]:
    """The columns of files, labels and splits."""
    by_name = {re.sub(r"[\s-]+", "_", column.casefold()): column for column in columns if column}
    found = f"the columns are {listed(columns)}"
    for option, given in (("--image-column", options.image_column), ("--label-column", options.label_column)):
        if given is not None and given not in columns:
            raise DataError(f"{option} is {given!r}, but {found} in {table}: name one of them")

    def first(names: str, taken: Sequence[str | None] = ()) -> str | None:
        return next((by_name[name] for name in names.split() if by_name.get(name) not in (None, *taken)), None)

    file = options.image_column or first(f"{_FILE} {_FILES}", [options.label_column])
    label = options.label_column or first(_LABEL, [file])
    splits = [by_name[name] for name in _SPLIT.split() if name in by_name and by_name[name] not in (file, label)]
    split = next(
        (each for each in splits if each.casefold() == "split" or all(split_role(row.text(each)) for row in rows)), None
    )
    rest = [column for column in by_name.values() if column not in (file, label, split)]
    if len(rest) == 1:  # of two columns, one name is enough
        file, label = file or rest[0], label or rest[0]
    if file is None or label is None or file == label:
        what, option, example = ("label", "--label-column", "label") if file else ("file", "--image-column", "file")
        raise DataError(
            f"{table} has no column that is clearly the {what}: {found}: name it with {option}, or give the first line "
            f"the column {example!r}"
        )
    return file, label, split


def _role(row: _Row, split_column: str | None) -> Role:
    if split_column is None:
        return "train"
    name = row.text(split_column)
    role = split_role(name)
    if role is None:
        raise DataError(f"{row.where}: {split_column!r} is {name!r}, but must be train, validation or test")
    return role


class _Finder:
    """Finds the image file that a table names."""

    def __init__(self, folder: Path, table: Path, files: Sequence[Path]) -> None:
        self._above_table = table.parent
        self._from_folder = os.path.relpath(table.parent.resolve(), folder.resolve())
        self._by_path: dict[str, list[Path]] = {}  # relative to the folder, with and without extension
        self._by_name: dict[str, list[tuple[str, Path]]] = {}  # with the path by which it is found
        for file in files:
            path = normal(file.relative_to(folder).as_posix())
            for each in {path, path.removesuffix(file.suffix)}:
                self._by_path.setdefault(each, []).append(file)
                self._by_name.setdefault(each.rpartition("/")[2], []).append((f"/{each}", file))

    def __call__(self, where: str, name: str) -> Path | None:
        """The file of this name, or None.

        Raises:
            DataError: if several files fit.
        """
        path = os.path.normpath(name.replace("\\", "/")).replace(os.sep, "/")
        from_table = os.path.normpath(f"{self._from_folder}/{path}").replace(os.sep, "/")
        parts = path.split("/")
        # The name as it is, relative to the table, and without the folders above the given one.
        for each in (path, from_table, *("/".join(parts[start:]) for start in range(1, len(parts)))):
            if found := self._by_path.get(each):
                return self._one(where, name, found)
        beside = self._above_table / path
        if from_table.startswith("../") and os.path.isfile(beside):  # noqa: PTH113 - Path.is_file refuses long names
            return beside
        below = [file for whole, file in self._by_name.get(parts[-1], []) if whole.endswith(f"/{path}")]
        return self._one(where, name, below) if below else None

    def _one(self, where: str, name: str, found: list[Path]) -> Path:
        """The only file of those found, or the only one whose name has the extension too."""
        exact = [file for file in found if name.endswith(file.suffix)]
        if len(exact or found) > 1:
            raise DataError(f"{where}: {name!r} could be {listed(exact or found)}: add the folder and the extension")
        return (exact or found)[0]
