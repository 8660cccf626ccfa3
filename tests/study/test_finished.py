"""Finished runs of CIFAR become records, if their accuracy can be compared with that of others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cifar_runs import FINGERPRINTS, change
from hybrid_mobilenet.data.held_out import SPLIT_FILE
from hybrid_mobilenet.network.architecture import resolve
from hybrid_mobilenet.network.cost import network_mult_adds, network_parameters
from hybrid_mobilenet.network.model import CHECKPOINT_FILE, CONFIG_FILE
from hybrid_mobilenet.study import finished
from hybrid_mobilenet.study.finished import record_of_run
from hybrid_mobilenet.study.records import read_record, write_record
from hybrid_mobilenet.training.run import EVALUATION_FILE, METRICS_FILE

COMMAND = "hybrid-mobilenet train cifar100 --validation 0"


def test_the_files_have_the_names_that_training_gives_them() -> None:
    assert finished.FILES == (CONFIG_FILE, METRICS_FILE, EVALUATION_FILE, SPLIT_FILE)
    assert finished.CHECKPOINT_FILE == CHECKPOINT_FILE


def test_a_record_has_what_the_run_says(cifar_run: Path, tmp_path: Path) -> None:
    record = record_of_run(cifar_run, COMMAND, FINGERPRINTS)
    config = json.loads((cifar_run / "config.json").read_text())["training"]
    network = resolve("fmp", 0.25, 2, 100)
    assert (record.data, record.family, record.delta, record.alpha, record.seed) == ("cifar100", "fmp", 2, 0.25, 0)
    assert (record.mult_adds, record.parameters) == (network_mult_adds(network), network_parameters(network))
    assert record.recipe.epochs == config["recipe"]["epochs"] == len(record.epochs) == 2
    assert (record.test[1].correct, record.test[1].images, list(record.test)) == (7000, 10_000, [1])
    assert (record.images, record.data_fingerprint) == (50_000, FINGERPRINTS["cifar100"])
    assert (record.environment["torch"], record.code["version"]) == (config["torch"], config["version"])
    assert (record.teacher, record.command) == (None, COMMAND)
    write_record(tmp_path / "record.json", record)
    assert read_record(tmp_path / "record.json") == record


def test_a_record_names_the_teacher(cifar_run: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    change(cifar_run, *trained(teacher=str(teacher), teacher_fingerprint="ab"))
    assert record_of_run(cifar_run, COMMAND, FINGERPRINTS).teacher == {"network": None, "fingerprint": "ab"}
    teacher.mkdir()
    (teacher / "config.json").write_text('{"family": "fmp", "alpha": 0.5, "delta": 2}')
    assert record_of_run(cifar_run, COMMAND, FINGERPRINTS).teacher == {"network": "FMP d2 a0.5", "fingerprint": "ab"}


def trained(**fields: object) -> tuple[str, Callable[[Any], None]]:
    return "config.json", lambda config: config["training"].update(fields)


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (*trained(data="digits"), "data of the run in .* is 'digits', but must be cifar10 or cifar100"),
        (*trained(data="/data/cifar10"), "data of .* is '/data/cifar10', but must be cifar10 or cifar100"),
        (*trained(image_size=[48, 48]), r"the shape of the images .* is \(48, 48, 3\), but must be \(32, 32, 3\)"),
        (*trained(channels=1), r"the shape of the images .* is \(32, 32, 1\)"),
        (*trained(start="/runs/other"), "start of .* is '/runs/other', but must be scratch"),
        (*trained(validation=0.1, images=45_000, validation_fingerprint="ab"), "validation of .* is 0.1"),
        (*trained(data_fingerprint="ab"), "data_fingerprint of .* is 'ab', but must be .* official training images"),
        ("config.json", lambda c: c["training"]["recipe"].update(keep="best"), "keep of .* is 'best', but must be"),
        ("config.json", lambda c: c["training"]["recipe"].update(epochs=3), "number of epochs .* is 2, but must be 3"),
        ("config.json", lambda c: c["training"].pop("seed"), "do not say how the model was trained .*seed"),
        ("evaluation.json", lambda e: e.update(passes=12), "passes of .* is 12, but must be 1"),
        ("evaluation.json", lambda e: e["confusion"][3].__setitem__(3, 71), "the official test set"),
        ("split.json", lambda s: s["held_out"].append("ab"), "the number of test images .* the official test set"),
    ],
)  # fmt: skip
def test_other_runs_are_refused(cifar_run: Path, file: str, edit: Callable[[Any], object], message: str) -> None:
    change(cifar_run, file, edit)
    with pytest.raises(ValueError, match=message):
        record_of_run(cifar_run, COMMAND, FINGERPRINTS)


@pytest.mark.parametrize("file", finished.FILES)
def test_unfinished_and_damaged_runs_are_refused(cifar_run: Path, file: str) -> None:
    (cifar_run / CHECKPOINT_FILE).touch()
    with pytest.raises(ValueError, match=r"not the folder of a finished run \(it has a checkpoint.safetensors\)"):
        record_of_run(cifar_run, COMMAND, FINGERPRINTS)
    (cifar_run / CHECKPOINT_FILE).unlink()
    (cifar_run / file).write_text("{")
    with pytest.raises(ValueError, match=rf"{cifar_run}"):
        record_of_run(cifar_run, COMMAND, FINGERPRINTS)
    (cifar_run / file).unlink()
    with pytest.raises(ValueError, match=rf"not the folder of a finished run \(it has no {file}\): finish it"):
        record_of_run(cifar_run, COMMAND, FINGERPRINTS)
