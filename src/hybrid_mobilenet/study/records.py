"""The record of a finished run: one JSON file, from which the report is made. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from ..common.files import write_atomically
from ..network.architecture import Family
from ..network.cost import network_mult_adds, network_parameters
from ..training.recipe import Recipe
from .grid import TRAINING, Run


@dataclass(frozen=True)
class Score:
    """An evaluation of the final weights on the test images; accuracy from 0 to 1."""

    accuracy: float
    correct: int
    images: int
    loss: float

    @classmethod
    def of(cls, evaluation: Mapping[str, Any]) -> Score:
        """The score of an evaluation, as in evaluation.json."""
        return cls(*(evaluation[name] for name in ("accuracy", "correct", "images", "loss")))


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        data, family, delta, alpha, seed: the run of the grid.
        fingerprint: hash of data set, layers, recipe and training code: see `grid.Run.fingerprint`.
        recipe: the training recipe.
        mult_adds, parameters: exact counts, by the paper's convention.
        images: number of training images.
        test: scores by the number of passes: 1 with fixed pooling regions, more with random ones.
        images_per_second: over all training steps.
        seconds: of "training" and of "evaluation".
        data_fingerprint: hash of the training images: see `data.dataset.ImageDataset.fingerprint`.
        code: version of the package, and commit in a checkout.
        environment: machine, versions, device, threads.
        epochs: the lines of metrics.jsonl, one per epoch.
        training: revision of the training code: see `grid.TRAINING`. Records of revision 1 lack this field.
        teacher: the run that the network was distilled from: its "network", such as "FMP d2 a0.5" (None if its folder
            is gone), and its "fingerprint". None without a teacher.
        command: the command line that trained it; empty for `reproduce`.
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
    teacher: dict[str, str | None] | None = None
    command: str = ""

    @classmethod
    def of_run(
        cls,
        run: Run,
        trained: Mapping[str, Any],
        epochs: tuple[dict[str, Any], ...],
        evaluations: Iterable[Mapping[str, Any]],
        *,
        code: dict[str, str | None],
        seconds: Mapping[str, float] | None = None,
        environment: Mapping[str, Any] | None = None,
        teacher: dict[str, str | None] | None = None,
        command: str = "",
    ) -> Record:
        """The record of a finished run, from the files of its folder.

        Args:
            run: the run.
            trained: how the model was trained, as in config.json.
            epochs: the lines of metrics.jsonl.
            evaluations: on the test images, as in evaluation.json, each with another number of passes.
            code: as the attribute.
            seconds: other than of "training".
            environment: what `trained` does not say.
            teacher: as the attribute.
            command: as the attribute.

        Raises:
            KeyError, TypeError: if a file lacks a field.
        """
        return cls(
            data=run.data,
            family=run.family,
            delta=run.delta,
            alpha=run.alpha,
            seed=run.seed,
            fingerprint=run.fingerprint,
            recipe=run.recipe,
            mult_adds=network_mult_adds(run.network),
            parameters=network_parameters(run.network),
            images=trained["images"],
            test={each["passes"]: Score.of(each) for each in evaluations},
            images_per_second=harmonic_mean([epoch["images_per_second"] for epoch in epochs]),
            seconds={"training": sum(epoch["seconds"] for epoch in epochs), **(seconds or {})},
            data_fingerprint=trained["data_fingerprint"],
            code=code,
            environment={
                **{key: trained[key] for key in ("torch", "python", "machine", "device", "threads")},
                **(environment or {}),
            },
            epochs=epochs,
            training=TRAINING,
            teacher=teacher,
            command=command,
        )


def record_path(folder: Path, run: Run) -> Path:
    """The path of the record of a run. It need not exist."""
    return folder / f"{run.name}.json"


def write_record(path: Path, record: Record) -> None:
    """Write a record, with one line per epoch.

    Raises:
        OSError: if it cannot be written. An older record is then intact.
    """
    fields = asdict(record)
    epochs = fields.pop("epochs")
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items()]
    lines.append(' "epochs": [\n  ' + ",\n  ".join(map(json.dumps, epochs)) + "\n ]")
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        ValueError: if the file is not a record.
        OSError: if it cannot be read.
    """
    try:
        fields = json.loads(path.read_bytes())
        tests = {int(passes): Score(**test) for passes, test in fields.pop("test").items()}
        recipe, epochs = Recipe.from_record(fields.pop("recipe")), tuple(fields.pop("epochs"))
        return Record(**fields, recipe=recipe, test=tests, epochs=epochs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not the record of a run ({error!r}): delete it, and record the run again (those of the paper's "
            "grid with `hybrid-mobilenet reproduce`)"
        ) from error


def read_records(folder: Path) -> list[Record]:
    """All records in a folder, sorted by name.

    Raises:
        ValueError: if a file is not a record.
        OSError: if a file cannot be read.
    """
    return [read_record(path) for path in sorted(folder.glob("*.json"))]


def is_recorded(folder: Path, run: Run) -> bool:
    """Whether a run has a record with the same fingerprint.

    Raises:
        ValueError: if the file of that name is not a record.
    """
    path = record_path(folder, run)
    return path.is_file() and read_record(path).fingerprint == run.fingerprint
