"""Run folders as those of CIFAR, without training for hours."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybrid_mobilenet.study.records import read_records
from hybrid_mobilenet.training.recipe import paper_recipe
from hybrid_mobilenet.training.run import train
from runs import SMALL

RESULTS = Path(__file__).parents[1] / "results"

#: Of the official training images.
FINGERPRINTS = {record.data: record.data_fingerprint for record in read_records(RESULTS / "reproduce")}


def change(run: Path, file: str, edit: Callable[[Any], object]) -> None:
    """Change a JSON file of a run folder."""
    content = json.loads((run / file).read_text())
    edit(content)
    (run / file).write_text(json.dumps(content))


def as_cifar(run: Path, data: str = "cifar100", correct: float = 0.7, **fields: object) -> None:
    """Change the folder of a finished run of digits to one of FMP d2 a0.25 on CIFAR."""
    classes = {"cifar10": 10, "cifar100": 100}[data]
    images = 10_000 // classes
    shape = {"data": data, "delta": 2, "image_size": [32, 32], "channels": 3, "images": 50_000}
    change(
        run,
        "config.json",
        lambda config: config["training"].update(shape, data_fingerprint=FINGERPRINTS[data], **fields),
    )
    hits = round(correct * images)
    rows = [[0] * classes for _ in range(classes)]
    for index, row in enumerate(rows):
        row[index], row[index - 1] = hits, images - hits
    scores = {"accuracy": hits / images, "correct": hits * classes, "images": 10_000, "confusion": rows}
    change(run, "evaluation.json", lambda evaluation: evaluation.update(scores))
    change(run, "split.json", lambda split: split.update(held_out=[]))


@pytest.fixture
def cifar_run(tmp_path: Path) -> Path:
    """The folder of a run on CIFAR-100, with an accuracy of 70 %."""
    run = tmp_path / "run"
    recipe = replace(paper_recipe("fmp", "cifar100").with_epochs(2), batch_size=719)
    train(replace(SMALL, validation=0.0, recipe=recipe), run)
    as_cifar(run)
    return run
