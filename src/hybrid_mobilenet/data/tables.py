"""Tables of encoded images and labels: Parquet files, and data sets on the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..common.messages import listed, near, reason
from .images import DataError, Item
from .listing import natural
from .source import Opened, Source, SourceOptions
from .split_names import Role, split_roles


def open_parquet_files(files: Sequence[Path], options: SourceOptions, *, is_evaluated: bool) -> Opened:
    """Open the Parquet files of a folder. Files with names such as train-00000.parquet and test.parquet are splits.

    Args:
        files: the files, sorted by name.
        options: names of the columns.
        is_evaluated: whether the training images may be missing.

    Raises:
        DataError: if there are splits but no training images, or a file is unusable.
    """
    names = {file: re.sub(r"-\d+-of-\d+.*", "", file.stem) for file in files}  # without the number of the part
    roles = split_roles([*names.values()])
    if not roles:
        return open_tables(files, options=options)
    splits: dict[Role, list[Path]] = {}
    for file, name in names.items():
        if name in roles:
            splits.setdefault(roles[name], []).append(file)
    others = [file for file, name in names.items() if name not in roles]
    notes = [f"left alone, since they are not of a split: {listed(others)}"] if others else []
    if "train" not in splits and is_evaluated:
        splits = {"train": splits.get("test") or splits["validation"]}
    if "train" not in splits:
        raise DataError(f"{files[0].parent} has Parquet files, but none named train*.parquet: add the training images")
    return open_tables(splits["train"], splits.get("validation"), splits.get("test"), options=options, notes=notes)


def open_tables(
    train: Sequence[Path],
    validation: Sequence[Path] | None = None,
    test: Sequence[Path] | None = None,
    *,
    options: SourceOptions,
    notes: Sequence[str] = (),
) -> Opened:
    """Open the Parquet files of each split.

    Raises:
        DataError: if a file is unusable.
    """
    import datasets

    def table(files: Sequence[Path], train: _Table | None = None) -> _Table:
        with (
            _quiet(),
            _explained(
                f"{listed(files)} cannot be read as Parquet",
                "download it again, give the files of a split the same columns, or free disk space",
            ),
        ):
            # By default a batch is a row group. The row group of an empty table has no rows: an obscure error.
            rows = datasets.Dataset.from_parquet([str(file) for file in files], batch_size=1000)
        return _Table(listed(files), rows, files, options, train)

    source = table(train)
    in_validation, in_test = (table(files, source) if files else None for files in (validation, test))
    return Opened(source, in_validation, in_test, tuple(notes))


def open_hub(name: str, options: SourceOptions) -> Opened:
    """Open a data set on the Hub.

    Raises:
        DataError: if it cannot be loaded, needs `options.config`, or has no training split or no usable columns.
    """
    splits = _load_hub(name, options.config)
    roles: dict[Role, str] = {}
    for split, role in split_roles(sorted(splits)).items():
        roles.setdefault(role, split)
    if "train" not in roles and len(splits) > 1:
        raise DataError(f"{name} has the splits {listed(sorted(splits))}, but none is 'train': choose another data set")

    def table(split: str, train: _Table | None = None) -> _Table:
        files = [Path(file["filename"]) for file in splits[split].cache_files]
        return _Table(f"{name} ({split})", splits[split], files, options, train)

    train = table(roles.get("train", next(iter(splits))))
    notes: list[str] = []

    def held_out(role: Role) -> _Table | None:
        split = roles.get(role)
        if "train" not in roles or split is None:
            return None
        has_labels = train.label_column in splits[split].column_names
        if not has_labels or splits[split].unique(train.label_column) in ([-1], [None]):
            # Competitions publish test images without labels. The Hub's convention for them is label -1.
            notes.append(f"left alone: the {len(splits[split]):,} images of {split}, which have no labels")
            return None
        return table(split, train)

    validation, test = held_out("validation"), held_out("test")
    return Opened(train, validation, test, tuple(notes))


def _load_hub(name: str, config: str | None) -> Any:
    """All splits of a data set on the Hub, as a `datasets.DatasetDict`."""
    import datasets

    problem = f"{name} is not an existing path{near(name)}, and cannot be loaded from the Hugging Face Hub"
    with _explained(problem, "check the name and the network"):
        try:
            return datasets.load_dataset(name, *([] if config is None else [config]))
        except ValueError:  # the configuration is missing or unknown, or something else
            configs = sorted(datasets.get_dataset_config_names(name))
            if config in configs or (config is None and len(configs) < 2):
                raise
    said = "has several configurations" if config is None else f"has no configuration {config!r}"
    raise DataError(f"{name} {said}: choose one of {', '.join(configs)} with --config")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and messages of `datasets`. Its errors become `DataError`."""
    import datasets

    shown, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def _explained(problem: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # from the network, the disk, Arrow, or `datasets`, which hides the cause
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise DataError(f"{problem} ({reason(cause)}): {remedy}") from None


class _Table(Source):
    """A table with an image column and a label column, in the Hub's layout.

    Args:
        name: the table's name in error messages.
        rows: a `datasets.Dataset`.
        files: the files it was read from. Paths of images without content are relative to their folder.
        options: names of the columns.
        train: the training table. A test table without declared class names takes its classes from it.
    """

    def __init__(
        self, name: str, rows: Any, files: Sequence[Path], options: SourceOptions, train: _Table | None
    ) -> None:
        from datasets import ClassLabel, Image

        self._name = name
        self.files = files
        image_type, label_type = r"(large_)?binary|struct<.*\bbytes: (large_)?binary\b.*", r"u?int\d+|(large_)?string"
        features = rows.features
        image_column = options.image_column or _column("image", name, features, Image, image_type, ("image", "img"))
        _check_column("image", name, features, image_type, image_column)
        self.label_column = options.label_column or _column(
            "label", name, features, ClassLabel, label_type, ("label", "labels", "fine_label")
        )  # CIFAR-100 has a coarse_label too
        _check_column("label", name, features, label_type, self.label_column)
        self._images = rows.select_columns([image_column]).with_format("arrow")
        values: list[Any] = rows.with_format("arrow")[self.label_column][:].to_pylist()
        if not values:
            raise DataError(f"{name} has no rows: give a table with images")
        self._values: Sequence[Any]  # values of the label column, one per class
        if declared := getattr(rows.features[self.label_column], "names", None):
            self.class_names, self._values = tuple(declared), range(len(declared))
        elif train:
            self.class_names, self._values = train.class_names, train._values
        else:
            self._values = sorted(
                set(values) - {None}, key=lambda each: natural(each) if isinstance(each, str) else each
            )
            self.class_names = tuple(map(str, self._values))
        classes = {value: label for label, value in enumerate(self._values)}
        labels = [classes.get(value) for value in values]
        if None in labels:
            row = labels.index(None)
            raise DataError(
                f"{name}, row {row}: {self.label_column!r} is {values[row]!r}, but must be one of the {len(classes)} "
                "training classes: label the image, or remove the row"
            )
        self.labels = torch.tensor(labels)

    def fetch(self, rows: Sequence[int]) -> list[Item]:
        items: list[Item] = []
        for row, value in zip(rows, self._images[rows].column(0).to_pylist(), strict=True):
            fields = value if isinstance(value, dict) else {"bytes": value}
            content, path = fields.get("bytes"), fields.get("path")
            if content is None and path:
                content = self.files[0].parent / path
            items.append((f"{self._name}, row {row}", content or b""))
        return items


def _column(what: str, table: str, features: Any, declared: type, arrow_type: str, preferred: Sequence[str]) -> str:
    """Find a column by its declared type, else by its Arrow type (a pattern). If several fit, take a preferred name."""
    columns: list[str] = [name for name, feature in features.items() if isinstance(feature, declared)]
    columns = columns or [field.name for field in features.arrow_schema if re.fullmatch(arrow_type, str(field.type))]
    if len(columns) == 1:
        return columns[0]
    for name in preferred:
        if name in columns:
            return name
    found = f"several columns that could be the {what}" if columns else f"no {what} column"
    raise DataError(
        f"{table} has {found} among {listed(list(features))}: choose it with --{what}-column, or call it "
        f"{preferred[0]!r}"
    )


def _check_column(what: str, table: str, features: Any, arrow_type: str, column: str) -> None:
    """Refuse a column that does not exist or cannot hold images or labels."""
    types = {field.name: str(field.type) for field in features.arrow_schema}
    if column not in types:
        raise DataError(
            f"--{what}-column is {column!r}, but the columns of {table} are {listed(list(types))}: choose one of them"
        )
    if not re.fullmatch(arrow_type, types[column]):
        raise DataError(
            f"--{what}-column is {column!r}, but this column of {table} has the type {types[column]}: choose one with "
            + {"image": "encoded images", "label": "whole numbers or texts"}[what]
        )
