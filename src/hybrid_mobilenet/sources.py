"""Where images come from: a source's name becomes encoded images with labels, for training and, where given, for test."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .images import EXTENSIONS, DataError, Item, files_below, is_visible, listed, near, reason

#: Folder with cifar10/{train,test}.parquet and cifar100/{train,test}.parquet; without it they come from the Hub.
DATA_VARIABLE = "HYBRID_MOBILENET_DATA"

KNOWN = ("digits", "cifar10", "cifar100")
READ_AT_ONCE = 256

_TEST_NAMES = ("test", "validation", "valid", "val")  # in order of preference

#: For each column: its type in the Hub's description, what its Arrow type looks like without one, and names that decide
#: between several. CIFAR-100 has a coarse_label beside its fine_label.
_COLUMNS = {
    "image": ("Image", r"(large_)?binary|struct<.*\bbytes: (large_)?binary\b.*", ("image", "img")),
    "label": ("ClassLabel", r"(dictionary<values=)?(u?int\d+|(large_)?string)\b.*", ("label", "labels", "fine_label")),
}


class Source(ABC):
    """Encoded images with their labels, int64 (n,), and the files that they are in."""

    labels: Tensor
    class_names: tuple[str, ...]
    files: Sequence[Path] = ()

    @abstractmethod
    def fetch(self, rows: Sequence[int]) -> list[Item]:
        """The images with these numbers, in any order."""

    def in_order(self) -> Iterator[list[Item]]:
        """All images, some at a time."""
        for start in range(0, len(self.labels), READ_AT_ONCE):
            yield self.fetch(range(start, min(start + READ_AT_ONCE, len(self.labels))))


def open_source(source: str) -> tuple[str, Source, Source | None]:
    """What to call a source, its training images, and its test images where it has its own. See `data.load`.

    Raises:
        DataError: where the source is unknown or its data unusable.
        OSError: where a folder cannot be listed.
    """
    path = Path(source).expanduser()
    if source == "digits":
        return source, _Digits(), None
    if source in KNOWN:
        folder = os.environ.get(DATA_VARIABLE)
        if not folder:
            return source, *_open_hub(f"uoft-cs/{source}")
        tables = [Path(folder) / source / f"{split}.parquet" for split in ("train", "test")]
        for table in tables:
            if not table.is_file():
                raise DataError(
                    f"{DATA_VARIABLE} is {folder!r}, but {table} is no file: correct the variable, or unset it to "
                    "fetch the data from the Hub"
                )
        return source, *_open_tables(tables[:1], tables[1:])
    if source and path.exists():
        return path.resolve().name, *_open_path(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return source, *_open_hub(source)
    raise DataError(
        f"there is no data {source!r}{near(source, KNOWN)}: name {', '.join(KNOWN)}, a folder with one subfolder of "
        "images per class, a Parquet file or a folder of them, or an image data set of the Hugging Face Hub (owner/name)"
    )


def _open_path(path: Path) -> tuple[Source, Source | None]:
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise DataError(f"{path} is a file, but must be a .parquet file, or a folder with one subfolder per class")
        return _open_tables([path], [])
    for folder in (path, path / "data"):  # the Hub's repositories often keep their tables in data/
        if tables := sorted(filter(is_visible, folder.glob("*.parquet"))):
            of_split: dict[str, list[Path]] = {}
            for table in tables:
                match = re.match(rf"(train|{'|'.join(_TEST_NAMES)})(?![a-z])", table.name)
                of_split.setdefault(match[1] if match else "", []).append(table)
            if set(of_split) == {""}:
                return _open_tables(tables, [])
            if "train" not in of_split:
                raise DataError(f"{folder} has Parquet files, but none named train*.parquet: add the training images")
            return _open_tables(
                of_split["train"], next((of_split[name] for name in _TEST_NAMES if name in of_split), [])
            )
    held_out = next((path / name for name in _TEST_NAMES if (path / name).is_dir()), None)
    if held_out and (path / "train").is_dir():
        return _Folder(path / "train"), _Folder(held_out)
    return _Folder(path), None


def _open_tables(train: list[Path], test: list[Path]) -> tuple[Source, Source | None]:
    source = _Parquet(train)
    return source, _Parquet(test, source) if test else None


def _open_hub(name: str) -> tuple[Source, Source | None]:
    import datasets

    problem = f"{name} is no existing path{near(name)}, and cannot be loaded from the Hugging Face Hub"
    with _explained(problem, "check the name and the network"):
        splits = datasets.load_dataset(name)
    names = sorted(splits)
    if "train" not in names and len(names) > 1:
        raise DataError(f"{name} has the splits {', '.join(names)}, but none is 'train': choose another data set")
    train_name = "train" if "train" in names else names[0]
    train = _Hub(f"{name} ({train_name})", splits[train_name])
    for test_name in _TEST_NAMES:
        # Competitions publish test images without labels: -1, by the Hub's convention.
        if test_name in names and test_name != train_name and splits[test_name].unique(train.label_column) != [-1]:
            return train, _Hub(f"{name} ({test_name})", splits[test_name], train)
    return train, None


class _Digits(Source):
    """The 1,797 handwritten digits that scikit-learn brings along: 8x8 pixels of 17 grey levels."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self._images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        self.labels = torch.from_numpy(digits.target.astype(np.int64))
        self.class_names = tuple(map(str, digits.target_names))

    def fetch(self, rows: Sequence[int]) -> list[Item]:
        return [(f"digit {row}", Image.fromarray(self._images[row])) for row in rows]


class _Folder(Source):
    """One subfolder per class, searched to any depth; classes and files in the order of their names."""

    def __init__(self, root: Path) -> None:
        folders = sorted(entry for entry in root.iterdir() if is_visible(entry) and entry.is_dir())
        if not folders:
            raise DataError(
                f"{root} has no subfolders: put the images of each class into a folder named after the class"
            )
        of_class = [list(files_below(folder)) for folder in folders]
        for folder, files in zip(folders, of_class, strict=True):
            if not files:
                raise DataError(
                    f"class folder {folder} holds no image: add files such as {listed(EXTENSIONS)}, or remove the folder"
                )
        self.files = [file for files in of_class for file in files]
        self.labels = torch.tensor([label for label, files in enumerate(of_class) for _ in files])
        self.class_names = tuple(folder.name for folder in folders)

    def fetch(self, rows: Sequence[int]) -> list[Item]:
        return [(str(self.files[row]), self.files[row]) for row in rows]


class _Table(Source):
    """Rows with an image column and a label column, as the Hub stores them.

    Args:
        name: what errors call the table.
        schema: its Arrow schema; the Hub's description of the columns in it is used where it is there.
        read: gives the values of a column.
        train: the training table, for a test table whose labels have no declared names.
    """

    _mapped: Any  # rows of the image column, by number, as Arrow tables

    def __init__(self, name: str, schema: Any, read: Callable[[str], list[Any]], train: _Table | None) -> None:
        self._name = name
        try:
            features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        except (TypeError, KeyError, ValueError):  # not written by `datasets`
            features = {}
        self.image_column = _column("image", name, schema, features)
        self.label_column = _column("label", name, schema, features)
        values = read(self.label_column)
        if not values:
            raise DataError(f"{name} has no rows: give a table with images")
        self._values: Sequence[Any]  # of the label column, one per class
        if declared := features.get(self.label_column, {}).get("names"):
            self.class_names, self._values = tuple(declared), range(len(declared))
        elif train:
            self.class_names, self._values = train.class_names, train._values
        else:
            self._values = sorted(set(values) - {None})
            self.class_names = tuple(map(str, self._values))
        label_of = {value: label for label, value in enumerate(self._values)}
        labels = [label_of.get(value) for value in values]
        if None in labels:
            row = labels.index(None)
            raise DataError(
                f"{self._row_name(row)}: {self.label_column!r} is {values[row]!r}, but must be one of the "
                f"{len(label_of)} training classes: label the image, or remove the row"
            )
        self.labels = torch.tensor(labels)

    def fetch(self, rows: Sequence[int]) -> list[Item]:
        return self._items(rows, self._mapped[list(rows)].column(0))

    def _row_name(self, row: int) -> str:
        return f"{self._name}, row {row}"

    def _items(self, rows: Iterable[int], column: Any) -> list[Item]:
        """Images of an Arrow column; one without bytes is a file, relative to the table."""
        items: list[Item] = []
        for row, value in zip(rows, column.to_pylist(), strict=True):
            fields = value if isinstance(value, dict) else {"bytes": value}
            content, path = fields.get("bytes"), fields.get("path")
            if content is None and path:
                items.append((f"{self._row_name(row)} ({path})", self.files[0].parent / path))
            else:
                items.append((self._row_name(row), content or b""))
        return items


class _Parquet(_Table):
    """Parquet files of one split, one after the other."""

    def __init__(self, files: Sequence[Path], train: _Table | None = None) -> None:
        import pyarrow.parquet as pq

        self.files = files
        self._starts = [0]
        schemas = []
        for file in files:
            with _reading(file):
                schemas.append(pq.read_schema(file))
                self._starts.append(self._starts[-1] + pq.read_metadata(file).num_rows)
            if not schemas[-1].equals(schemas[0]):
                raise DataError(f"{file} has other columns than {files[0]}: give a split's files the same columns")

        def read(column: str) -> list[Any]:
            values: list[Any] = []
            for file in files:
                with _reading(file):
                    values += pq.read_table(file, columns=[column]).column(0).to_pylist()
            return values

        super().__init__(listed(files), schemas[0], read, train)

    def in_order(self) -> Iterator[list[Item]]:
        import pyarrow.parquet as pq

        for file, row in zip(self.files, self._starts, strict=False):
            with _reading(file), pq.ParquetFile(file) as table:
                for batch in table.iter_batches(READ_AT_ONCE, columns=[self.image_column]):
                    yield self._items(range(row, row + len(batch)), batch.column(0))
                    row += len(batch)

    def _row_name(self, row: int) -> str:
        file = bisect_right(self._starts, row) - 1
        return f"{self.files[file]}, row {row - self._starts[file]}"

    @cached_property
    def _mapped(self) -> Any:
        """An Arrow copy in the cache of `datasets`: rows of a Parquet file cannot be read one by one."""
        import datasets

        with _explained(f"{self._name} cannot be prepared for streaming", "check the file and free disk space"):
            mapped = datasets.Dataset.from_parquet([str(file) for file in self.files], columns=[self.image_column])
        return mapped.with_format("arrow")


class _Hub(_Table):
    """One split of a data set of the Hub, as `datasets` loaded it."""

    def __init__(self, name: str, split: Any, train: _Table | None = None) -> None:
        def read(column: str) -> list[Any]:
            values: list[Any] = split.with_format("arrow")[column][:].to_pylist()
            return values

        super().__init__(name, split.features.arrow_schema, read, train)
        self._mapped = split.select_columns([self.image_column]).with_format("arrow")
        self.files = [Path(file["filename"]) for file in split.cache_files]


def _column(what: str, name: str, schema: Any, features: dict[str, Any]) -> str:
    declared_type, arrow_type, preferred = _COLUMNS[what]
    columns = [column for column, feature in features.items() if feature.get("_type") == declared_type]
    columns = columns or [field.name for field in schema if re.fullmatch(arrow_type, str(field.type))]
    if len(columns) == 1:
        return columns[0]
    for column in preferred:
        if column in columns:
            return column
    found = f"several columns that could be the {what}" if columns else f"no {what} column"
    raise DataError(f"{name} has {found} among {listed(schema.names)}: name the one with the {what}s {preferred[0]!r}")


@contextmanager
def _explained(
    problem: str, remedy: str, kinds: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise DataError(f"{problem} ({reason(error)}): {remedy}") from None


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    import pyarrow as pa

    with _explained(f"{file} cannot be read as Parquet", "fetch it again", (pa.ArrowException, OSError)):
        yield
