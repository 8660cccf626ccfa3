"""The record of a finished run of `train` on CIFAR, for docs/FRONTIER.md. Standard library only.

It is the `Record` of the paper's grid: all that the page needs, whoever trained the network, is then in one format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.messages import reason
from ..training.recipe import Recipe
from .grid import DATA_SETS, PAPER_DATA_SETS, Run
from .records import Record
from .rows import configuration_name

# As `training.run`, `data.held_out` and `network.model` name them, which import torch.
FILES = ("config.json", "metrics.jsonl", "evaluation.json", "split.json")
CHECKPOINT_FILE = "checkpoint.safetensors"


def record_of_run(folder: Path, command: str, fingerprints: Mapping[str, str]) -> Record:
    """The record of a run that trained on all training images, evaluated after the last epoch on the test images.

    Args:
        folder: the run folder.
        command: the command line that trained it.
        fingerprints: of CIFAR's official training images, by the name of the data set.

    Raises:
        ValueError: if the run is not finished, or is not such a run.
        OSError: if a file cannot be read.
    """
    config, epochs, evaluation, split = _files(folder)
    try:
        trained = config["training"]
        run = Run(
            trained["data"],
            trained["family"],
            trained["delta"],
            trained["alpha"],
            trained["seed"],
            Recipe.from_record(trained["recipe"]),
        )
        _check(folder, run, trained, evaluation, split, len(epochs), fingerprints)
        return Record.of_run(
            run,
            trained,
            epochs,
            [evaluation],
            code={"version": trained["version"], "commit": None},
            teacher=_teacher(trained),
            command=command,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the files in {folder} do not say how the model was trained ({reason(error)}): name the folder of a run "
            "of this version"
        ) from error


def _files(folder: Path) -> tuple[Any, tuple[Any, ...], Any, Any]:
    """The contents of `FILES`."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing or (folder / CHECKPOINT_FILE).exists():
        what = f"it has no {missing[0]}" if missing else f"it has a {CHECKPOINT_FILE}"
        raise ValueError(f"{folder} is not the folder of a finished run ({what}): finish it with train --resume")
    config, metrics, evaluation, split = ((folder / name).read_text(encoding="utf-8") for name in FILES)
    try:
        epochs = tuple(map(json.loads, metrics.splitlines()))
        return json.loads(config), epochs, json.loads(evaluation), json.loads(split)
    except ValueError as error:
        raise ValueError(f"a file in {folder} is damaged ({reason(error)}): restore the run") from error


def _check(
    folder: Path,
    run: Run,
    trained: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    split: Mapping[str, Any],
    epochs: int,
    fingerprints: Mapping[str, str],
) -> None:
    """Refuse runs whose accuracy cannot be compared with that of others."""

    def require(name: str, value: object, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"{name} of the run in {folder} is {value!r}, but must be {rule}")

    require("data", run.data, run.data in PAPER_DATA_SETS, f"{' or '.join(PAPER_DATA_SETS)}, the built-in data sets")
    data = DATA_SETS[run.data]
    shape = (*trained["image_size"], trained["channels"])
    require("the shape of the images", shape, shape == (*data.image_size, data.channels), "(32, 32, 3)")
    require("start", trained["start"], trained["start"] == "scratch", "scratch: other runs may have seen other images")
    require("keep", run.recipe.keep, run.recipe.keep == "last", "last: the last epoch is shown, never the best")
    require(
        "validation",
        trained["validation"],
        trained["validation_fingerprint"] is None and trained["images"] == data.train_images,
        "0: train on all images with --validation 0",
    )
    require("the number of epochs", epochs, epochs == run.recipe.epochs, f"{run.recipe.epochs}, as in its recipe")
    require(
        "data_fingerprint",
        trained["data_fingerprint"],
        trained["data_fingerprint"] == fingerprints[run.data],
        f"{fingerprints[run.data]}, that of the official training images",
    )
    # As many test images of each class as in the official test set, all from a split of their own.
    per_class = [sum(row) for row in evaluation["confusion"]]
    is_official = per_class == [data.test_images // data.classes] * data.classes and not split["held_out"]
    require(
        "the number of test images", evaluation["images"], is_official, f"{data.test_images:,}, the official test set"
    )
    require("passes", evaluation["passes"], evaluation["passes"] == 1, "1")


def _teacher(trained: Mapping[str, Any]) -> dict[str, str | None] | None:
    """The teacher of a run: see `Record`."""
    if trained["teacher"] is None:
        return None
    config, network = Path(trained["teacher"], "config.json"), None
    if config.is_file():
        fields = json.loads(config.read_bytes())
        network = configuration_name((fields["family"], fields["delta"], fields["alpha"]))
    return {"network": network, "fingerprint": trained["teacher_fingerprint"]}
