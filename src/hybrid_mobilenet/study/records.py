"""The record of a finished run: one JSON file, all that the report is made from. Standard library only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common.files import write_atomically
from ..network.architecture import Family
from ..training.recipe import Recipe
from .grid import Run


@dataclass(frozen=True)
class Score:
    """An evaluation on the test images, with the weights of the last epoch."""

    accuracy: float
    correct: int
    images: int
    loss: float


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        data, family, delta, alpha, seed: which run of the grid.
        fingerprint: of data set, layers, recipe and training code: see `grid.Run.fingerprint`.
        recipe: what it was trained with.
        mult_adds, parameters: exact, counted as the paper does.
        images: it was trained on.
        test: by the number of passes: 1 over fixed pooling regions, more over random ones.
        images_per_second: of all its training steps.
        seconds: by "training" and "evaluation".
        data_fingerprint: of the training images: see `data.ImageDataset.fingerprint`.
        code: version of the package, and commit where it is a checkout.
        environment: machine, versions, device, threads.
        epochs: the lines of metrics.jsonl, one per epoch.
        training: revision of the training code: see `grid.TRAINING`; records of the first one do not name it.
    """

    data: str
    family: Family
    delta: int
    alpha: float
    seed: int
    fingerprint: str
    recipe: Recipe
    mult_adds: int
    parameters: int
    images: int
    test: dict[int, Score]
    images_per_second: float
    seconds: dict[str, float]
    data_fingerprint: str
    code: dict[str, str | None]
    environment: dict[str, Any]
    epochs: tuple[dict[str, Any], ...]
    training: int = 1


def record_path(folder: Path, run: Run) -> Path:
    """Where the record of a run is, or will be."""
    return folder / f"{run.name}.json"


def write_record(path: Path, record: Record) -> None:
    """Write a record, an epoch to a line.

    Raises:
        OSError: where it cannot be written; an older record is then intact.
    """
    fields = asdict(record)
    epochs = fields.pop("epochs")
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items()]
    lines.append(' "epochs": [\n  ' + ",\n  ".join(map(json.dumps, epochs)) + "\n ]")
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        ValueError: where the file is not one, with the remedy.
        OSError: where it cannot be read.
    """
    try:
        fields = json.loads(path.read_bytes())
        tests = {int(passes): Score(**test) for passes, test in fields.pop("test").items()}
        recipe, epochs = Recipe(**fields.pop("recipe")), tuple(fields.pop("epochs"))
        return Record(**fields, recipe=recipe, test=tests, epochs=epochs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not the record of a run ({error!r}): delete it, and `hybrid-mobilenet reproduce` makes it anew"
        ) from error


def read_records(folder: Path) -> list[Record]:
    """All records in a folder, by name.

    Raises:
        ValueError: where a file is no record.
        OSError: where one cannot be read.
    """
    return [read_record(path) for path in sorted(folder.glob("*.json"))]


def is_recorded(folder: Path, run: Run) -> bool:
    """Whether a run has a record, made with the same data set, layers and recipe.

    Raises:
        ValueError: where the file of that name is no record.
    """
    path = record_path(folder, run)
    return path.is_file() and read_record(path).fingerprint == run.fingerprint
