"""Where images come from: a name becomes encoded images with labels, for training and, where it has any, for test."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
_TEST_NAMES = ("test", "validation", "valid", "val")  # in order of preference


class Source(ABC):
    """Encoded images with their labels, int64 (n,), and the files that they are in."""

    labels: Tensor
    class_names: tuple[str, ...]
    files: Sequence[Path] = ()

    @abstractmethod
    def fetch(self, rows: Sequence[int]) -> list[Item]:
        """The images with these numbers, in any order."""


def open_source(source: str, *, to_evaluate: bool = False) -> tuple[str, Source, Source | None]:
    """What to call a source, its training images, and its test images where it has its own. See `dataset.load_data`.

    Args:
        source: its name.
        to_evaluate: then class folders may be empty, and tables for training missing.

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
        return path.resolve().name, *_open_path(path, to_evaluate)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return source, *_open_hub(source)
    raise DataError(
        f"there is no data {source!r}{near(source, KNOWN)}: name {', '.join(KNOWN)}, a folder with one subfolder of "
        "images per class, a Parquet file or a folder of them, or an image data set of the Hugging Face Hub, owner/name"
    )


def whole_name(source: str) -> str:
    """A source's name from whatever folder it is opened: a path that exists becomes absolute, other names stay."""
    path = Path(source).expanduser()
    return str(path.absolute()) if source and source not in KNOWN and path.exists() else source


def _open_path(path: Path, to_evaluate: bool) -> tuple[Source, Source | None]:
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise DataError(f"{path} is a file, but must be a .parquet file, or a folder with one subfolder per class")
        return _open_tables([path])
    for folder in (path, path / "data"):  # the Hub's repositories often keep their tables in data/
        if tables := sorted(filter(is_visible, folder.glob("*.parquet"))):
            of_split: dict[str, list[Path]] = {}
            for table in tables:
                match = re.match(rf"(train|{'|'.join(_TEST_NAMES)})(?![a-z])", table.name)
                of_split.setdefault(match[1] if match else "", []).append(table)
            if set(of_split) == {""}:
                return _open_tables(tables)
            held_out = next((of_split[name] for name in _TEST_NAMES if name in of_split), None)
            if to_evaluate and held_out and "train" not in of_split:
                return _open_tables(held_out)
            if "train" not in of_split:
                raise DataError(f"{folder} has Parquet files, but none named train*.parquet: add the training images")
            return _open_tables(of_split["train"], held_out)
    folder = next((path / name for name in _TEST_NAMES if (path / name).is_dir()), path)
    if folder != path and (path / "train").is_dir():
        return _Folder(path / "train", to_evaluate), _Folder(folder, to_evaluate)
    return _Folder(path, to_evaluate), None


def _open_tables(train: list[Path], test: list[Path] | None = None) -> tuple[Source, Source | None]:
    import datasets

    def table(files: list[Path], train: _Table | None = None) -> _Table:
        with (
            _quiet(),
            _explained(
                f"{listed(files)} cannot be read as Parquet",
                "fetch it again, give the files of a split the same columns, or free disk space",
            ),
        ):
            # The default batch is a row group, which in an empty table has no rows, and that fails obscurely.
            rows = datasets.Dataset.from_parquet([str(file) for file in files], batch_size=1000)
        return _Table(listed(files), rows, files, train)

    source = table(train)
    return source, table(test, source) if test else None


def _open_hub(name: str) -> tuple[Source, Source | None]:
    import datasets

    problem = f"{name} is no existing path{near(name)}, and cannot be loaded from the Hugging Face Hub"
    with _explained(problem, "check the name and the network"):
        splits = datasets.load_dataset(name)
    names = sorted(splits)
    if "train" not in names and len(names) > 1:
        raise DataError(f"{name} has the splits {', '.join(names)}, but none is 'train': choose another data set")

    def table(split: str, train: _Table | None = None) -> _Table:
        files = [Path(file["filename"]) for file in splits[split].cache_files]
        return _Table(f"{name} ({split})", splits[split], files, train)

    train_name = "train" if "train" in names else names[0]
    train = table(train_name)
    for test_name in _TEST_NAMES:
        # Competitions publish test images without labels: -1, by the Hub's convention.
        if test_name in names and test_name != train_name and splits[test_name].unique(train.label_column) != [-1]:
            return train, table(test_name, train)
    return train, None


@contextmanager
def _quiet() -> Iterator[None]:
    """`datasets` without its bars and messages: its errors are told as ours."""
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
    except Exception as error:  # of the network, the disk, Arrow, and of `datasets` itself, which hides the cause
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise DataError(f"{problem} ({reason(cause)}): {remedy}") from None


class _Digits(Source):
    """1,797 handwritten digits, 8x8 pixels of 17 grey levels (Alpaydin and Kaynak 1998): see NOTICE."""

    def __init__(self) -> None:
        with np.load(Path(__file__).with_name("digits.npz")) as file:  # images and labels, as scikit-learn has them
            self._images = np.rint(file["images"] * (255 / 16)).astype(np.uint8)
            self.labels = torch.from_numpy(file["labels"].astype(np.int64))
        self.class_names = tuple(map(str, range(10)))

    def fetch(self, rows: Sequence[int]) -> list[Item]:
        return [(f"digit {row}", Image.fromarray(self._images[row])) for row in rows]


class _Folder(Source):
    """One subfolder per class, searched to any depth; classes and files in the order of their names.

    Args:
        root: the folder.
        may_lack: whether classes may have no images, as long as one has.
    """

    def __init__(self, root: Path, may_lack: bool = False) -> None:
        folders = sorted(entry for entry in root.iterdir() if is_visible(entry) and entry.is_dir())
        if not folders:
            raise DataError(
                f"{root} has no subfolders: put the images of each class into a folder named after the class"
            )
        of_class = [list(files_below(folder)) for folder in folders]
        if not any(of_class) or ([] in of_class and not may_lack):
            raise DataError(
                f"class folder {folders[of_class.index([])]} holds no image: add files such as {listed(EXTENSIONS)}, "
                "or remove the folder"
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
        rows: a `datasets.Dataset`.
        files: that it was read from. An image without content is a file beside them.
        train: the training table, for a test table whose labels have no declared names.
    """

    def __init__(self, name: str, rows: Any, files: list[Path], train: _Table | None) -> None:
        from datasets import ClassLabel, Image

        self._name = name
        self.files = files
        image_type, label_type = r"(large_)?binary|struct<.*\bbytes: (large_)?binary\b.*", r"u?int\d+|(large_)?string"
        image_column = _column("image", name, rows.features, Image, image_type, ("image", "img"))
        self.label_column = _column(
            "label", name, rows.features, ClassLabel, label_type, ("label", "labels", "fine_label")
        )  # CIFAR-100 has a coarse_label beside its fine_label
        self._images = rows.select_columns([image_column]).with_format("arrow")
        values: list[Any] = rows.with_format("arrow")[self.label_column][:].to_pylist()
        if not values:
            raise DataError(f"{name} has no rows: give a table with images")
        self._values: Sequence[Any]  # of the label column, one per class
        if declared := getattr(rows.features[self.label_column], "names", None):
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
                f"{name}, row {row}: {self.label_column!r} is {values[row]!r}, but must be one of the {len(label_of)} "
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
    """The column that is declared as `declared`, or else has such an Arrow type; of several, one with a usual name."""
    columns: list[str] = [name for name, feature in features.items() if isinstance(feature, declared)]
    columns = columns or [field.name for field in features.arrow_schema if re.fullmatch(arrow_type, str(field.type))]
    if len(columns) == 1:
        return columns[0]
    for name in preferred:
        if name in columns:
            return name
    found = f"several columns that could be the {what}" if columns else f"no {what} column"
    raise DataError(f"{table} has {found} among {listed(list(features))}: name the one with {what}s {preferred[0]!r}")
