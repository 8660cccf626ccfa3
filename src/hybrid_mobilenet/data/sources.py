"""Open a data source by name: encoded images with labels, for training and, if the source has any, for testing."""

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

from ..common.messages import listed, near, reason
from .images import DataError, Item, files_below, is_visible

#: Environment variable that names a folder with cifar10/{train,test}.parquet and cifar100/{train,test}.parquet.
#: If it is not set, CIFAR comes from the Hub.
DATA_VARIABLE = "HYBRID_MOBILENET_DATA"

KNOWN = ("digits", "cifar10", "cifar100")
_TEST_NAMES = ("test", "validation", "valid", "val")  # in order of preference


class Source(ABC):
    """Encoded images with their labels, int64 (n,), and the files that contain them."""

    labels: Tensor
    class_names: tuple[str, ...]
    files: Sequence[Path] = ()

    @abstractmethod
    def fetch(self, rows: Sequence[int]) -> list[Item]:
        """The images in these rows, in the order of `rows`, which may be any."""


def open_source(source: str, *, to_evaluate: bool = False) -> tuple[str, Source, Source | None]:
    """The display name of a source, its training images, and its test images or None. `dataset` lists the sources.

    Args:
        source: its name.
        to_evaluate: class folders may be empty, and the training table may be missing.

    Raises:
        DataError: if the source is unknown or its data unusable.
        OSError: if a folder cannot be listed.
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
                    f"{DATA_VARIABLE} is {folder!r}, but {table} is not a file: correct the variable, or unset it to "
                    "download the data from the Hub"
                )
        return source, *_open_tables(tables[:1], tables[1:])
    if source and path.exists():
        return path.resolve().name, *_open_path(path, to_evaluate)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return source, *_open_hub(source)
    raise DataError(
        f"there is no data {source!r}{near(source, KNOWN)}: give {', '.join(KNOWN)}, a folder with one subfolder of "
        "images per class, a Parquet file, a folder of Parquet files, or the name of an image data set on the Hugging "
        "Face Hub, owner/name"
    )


def whole_name(source: str) -> str:
    """The name that opens the source from any folder: existing paths become absolute, other names stay the same."""
    path = Path(source).expanduser()
    return str(path.absolute()) if source and source not in KNOWN and path.exists() else source


def _open_path(path: Path, to_evaluate: bool) -> tuple[Source, Source | None]:
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise DataError(f"{path} is a file, but must be a .parquet file, or a folder with one subfolder per class")
        return _open_tables([path])
    for folder in (path, path / "data"):  # repositories on the Hub often keep their tables in data/
        if tables := sorted(filter(is_visible, folder.glob("*.parquet"))):
            splits: dict[str, list[Path]] = {}
            for table in tables:
                match = re.match(rf"(train|{'|'.join(_TEST_NAMES)})(?![a-z])", table.name)
                splits.setdefault(match[1] if match else "", []).append(table)
            if set(splits) == {""}:
                return _open_tables(tables)
            test = next((splits[name] for name in _TEST_NAMES if name in splits), None)
            if to_evaluate and test and "train" not in splits:
                return _open_tables(test)
            if "train" not in splits:
                raise DataError(f"{folder} has Parquet files, but none named train*.parquet: add the training images")
            return _open_tables(splits["train"], test)
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
                "download it again, give the files of a split the same columns, or free disk space",
            ),
        ):
            # By default a batch is a row group. The row group of an empty table has no rows: an obscure error.
            rows = datasets.Dataset.from_parquet([str(file) for file in files], batch_size=1000)
        return _Table(listed(files), rows, files, train)

    source = table(train)
    return source, table(test, source) if test else None


def _open_hub(name: str) -> tuple[Source, Source | None]:
    import datasets

    problem = f"{name} is not an existing path{near(name)}, and cannot be loaded from the Hugging Face Hub"
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
        # Competitions publish test images without labels. The Hub's convention for them is label -1.
        if test_name in names and test_name != train_name and splits[test_name].unique(train.label_column) != [-1]:
            return train, table(test_name, train)
    return train, None


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


class _Digits(Source):
    """1,797 handwritten digits, 8x8 pixels of 17 grey levels (Alpaydin and Kaynak 1998): see NOTICE."""

    def __init__(self) -> None:
        with np.load(Path(__file__).with_name("digits.npz")) as file:  # images and labels as in scikit-learn
            self._images = np.rint(file["images"] * (255 / 16)).astype(np.uint8)
            self.labels = torch.from_numpy(file["labels"].astype(np.int64))
        self.class_names = tuple(map(str, range(10)))

    def fetch(self, rows: Sequence[int]) -> list[Item]:
        return [(f"digit {row}", Image.fromarray(self._images[row])) for row in rows]


class _Folder(Source):
    """A folder with one subfolder per class, searched to any depth. Classes and files are sorted by name.

    Args:
        root: the folder.
        allow_empty: whether some class folders may be empty.
    """

    def __init__(self, root: Path, allow_empty: bool = False) -> None:
        folders = sorted(entry for entry in root.iterdir() if is_visible(entry) and entry.is_dir())
        if not folders:
            raise DataError(
                f"{root} has no subfolders: put the images of each class into a folder named after the class"
            )
        class_files = [list(files_below(folder)) for folder in folders]
        if not any(class_files) or ([] in class_files and not allow_empty):
            raise DataError(
                f"class folder {folders[class_files.index([])]} contains no images: add images such as .jpg or .png "
                "files, or remove the folder"
            )
        self.files = [file for files in class_files for file in files]
        self.labels = torch.tensor([label for label, files in enumerate(class_files) for _ in files])
        self.class_names = tuple(folder.name for folder in folders)

    def fetch(self, rows: Sequence[int]) -> list[Item]:
        return [(str(self.files[row]), self.files[row]) for row in rows]


class _Table(Source):
    """A table with an image column and a label column, in the Hub's layout.

    Args:
        name: the table's name in error messages.
        rows: a `datasets.Dataset`.
        files: the files it was read from. Paths of images without content are relative to their folder.
        train: the training table. A test table without declared class names takes its classes from it.
    """

    def __init__(self, name: str, rows: Any, files: list[Path], train: _Table | None) -> None:
        from datasets import ClassLabel, Image

        self._name = name
        self.files = files
        image_type, label_type = r"(large_)?binary|struct<.*\bbytes: (large_)?binary\b.*", r"u?int\d+|(large_)?string"
        image_column = _column("image", name, rows.features, Image, image_type, ("image", "img"))
        self.label_column = _column(
            "label", name, rows.features, ClassLabel, label_type, ("label", "labels", "fine_label")
        )  # CIFAR-100 has a coarse_label too
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
            self._values = sorted(set(values) - {None})
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
    raise DataError(f"{table} has {found} among {listed(list(features))}: name the {what} column {preferred[0]!r}")
