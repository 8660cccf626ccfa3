"""Open a source of data by name: the digits, CIFAR, a folder, Parquet files, or a data set on the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..common.messages import listed, near
from .folders import open_folder
from .images import DataError, Item, tree_below
from .labels import open_labels
from .listing import is_leftover
from .source import AUTOMATIC, Opened, Source, SourceOptions, expanded
from .tables import open_hub, open_parquet_files, open_tables

#: Environment variable that names a folder with cifar10/{train,test}.parquet and cifar100/{train,test}.parquet.
#: If it is not set, CIFAR comes from the Hub.
DATA_VARIABLE = "HYBRID_MOBILENET_DATA"

KNOWN = ("digits", "cifar10", "cifar100")


def open_source(source: str, options: SourceOptions = AUTOMATIC, model_classes: Sequence[str] | None = None) -> Opened:
    """Open a source of data. `load_data` lists them.

    Args:
        source: its name.
        options: how to read it.
        model_classes: the classes of the model to evaluate, or None for training. With a model, class folders may be
            empty, and the training images may be missing.

    Raises:
        DataError: if the source is unknown, its data is unusable, or an option does not apply to it.
        OSError: if a folder cannot be listed.
    """
    path = expanded(source)
    if source in KNOWN:
        _refuse(source, options, "labels", "config", "image_column", "label_column")
        return _open_known(source)
    if source and path.exists():
        _refuse(source, options, "config")
        if options.labels is not None:
            return open_labels(path, options, model_classes)
        if path.is_file():
            if path.suffix.lower() != ".parquet":
                raise DataError(
                    f"{path} is a file, but must be a .parquet file, or a folder with one subfolder per class"
                )
            return open_tables([path], options=options)
        if tables := _parquet_files(path):
            opened = open_parquet_files(tables, options, is_evaluated=model_classes is not None)
            images = tree_below(path).images
            beside = [f"left alone, since the data is in Parquet files: {listed(images)}"] if images else []
            return replace(opened, notes=(*beside, *opened.notes))
        _refuse(source, options, "image_column", "label_column")
        return open_folder(path, model_classes)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        _refuse(source, options, "labels")
        return open_hub(source, options)
    raise DataError(
        f"there is no data {source!r}{near(source, KNOWN)}: give {', '.join(KNOWN)}, a folder with one subfolder of "
        "images per class, a Parquet file, a folder of Parquet files, or the name of an image data set on the Hugging "
        "Face Hub, owner/name"
    )


def whole_name(source: str) -> str:
    """The name that opens the source from any folder: existing paths become absolute, other names stay the same."""
    path = expanded(source)
    return str(path.absolute()) if source and source not in KNOWN and path.exists() else source


def resolved_name(source: str) -> str:
    """A name that is the same for all names of the same source: links are followed, and ".." too."""
    name = whole_name(source)
    return str(Path(name).resolve()) if Path(name).is_absolute() else name


def display_name(source: str) -> str:
    """A short name of a source: the last part of an existing path."""
    path = Path(whole_name(source))
    if source in KNOWN or not path.exists():
        return source
    return path.name if path.name not in ("", "..") else path.resolve().name


def _refuse(source: str, options: SourceOptions, *names: str) -> None:
    """Refuse options that do not apply to a source."""
    uses = {
        "labels": "a folder of images",
        "config": "a data set on the Hub",
        "image_column": "Parquet files, data sets on the Hub, or a table given with --labels",
        "label_column": "Parquet files, data sets on the Hub, or a table given with --labels",
    }
    for name in names:
        if (value := getattr(options, name)) is not None:
            option = f"--{name.replace('_', '-')}"
            raise DataError(f"{option} is {value!r}, but it is for {uses[name]}, not for {source!r}: leave it out")


def _open_known(source: str) -> Opened:
    """One of the `KNOWN` sources. A note says how to name a folder that is called like it."""
    notes = []
    if Path(source).exists():
        notes.append(f"{source} is the built-in data set: for the folder of this name, give ./{source}")
    if source == "digits":
        return Opened(_Digits(), notes=tuple(notes))
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        opened = open_hub(f"uoft-cs/{source}", AUTOMATIC)
    else:
        train, test = tables = [Path(folder) / source / f"{split}.parquet" for split in ("train", "test")]
        for table in tables:
            if not table.is_file():
                raise DataError(
                    f"{DATA_VARIABLE} is {folder!r}, but {table} is not a file: correct the variable, or unset it to "
                    "download the data from the Hub"
                )
        opened = open_tables([train], test=[test], options=AUTOMATIC)
    return Opened(opened.train, opened.validation, opened.test, (*notes, *opened.notes))


def _parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder; none if it is a folder of images. A class folder may be called x.parquet.

    Raises:
        DataError: if the folder has images too.
    """
    for inside in (folder, folder / "data"):  # repositories on the Hub often keep their tables in data/
        found = (table for table in inside.glob("*.parquet") if table.is_file() and not is_leftover(table.name))
        if tables := sorted(found):
            if images := tree_below(folder).with_images:
                raise DataError(
                    f"{folder} has Parquet files ({listed([table.name for table in tables])}) and folders of images "
                    f"({listed([each.name for each in images])}): move the ones not meant elsewhere"
                )
            return tables
    return []


class _Digits(Source):
    """1,797 handwritten digits, 8x8 pixels of 17 grey levels (Alpaydin and Kaynak 1998): see NOTICE."""

    def __init__(self) -> None:
        with np.load(Path(__file__).with_name("digits.npz")) as file:  # images and labels as in scikit-learn
            self._images = np.rint(file["images"] * (255 / 16)).astype(np.uint8)
            self.labels = torch.from_numpy(file["labels"].astype(np.int64))
        self.class_names = tuple(map(str, range(10)))

    def fetch(self, rows: Sequence[int]) -> list[Item]:
        return [(f"digit {row}", Image.fromarray(self._images[row])) for row in rows]
