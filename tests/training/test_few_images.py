"""Training on few images: what a folder of a user's own ends with, and what the command says of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.data.dataset import ImageDataset
from hybrid_mobilenet.data.splits import Splits, load_data
from hybrid_mobilenet.training import run as training
from hybrid_mobilenet.training.evaluate import Evaluation
from hybrid_mobilenet.training.recipe import PAPER, Recipe
from hybrid_mobilenet.training.run import train
from hybrid_mobilenet.training.setup import Monitor, Setup
from processes import run_command

COLOURS = {"blue": (40, 60, 160), "green": (60, 160, 60), "red": (170, 60, 50)}


class Watching:
    """A monitor that keeps what a person would read."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.steps: list[int] = []

    def on_data(self, what: str, done: int, total: int) -> None: ...

    def on_start(self, epoch: int, epochs: int, step: int, steps: int, batch_size: int) -> None:  # noqa: ARG002
        self.steps.append(steps)

    def on_step(self, loss: float, step: int) -> None: ...
    def on_epoch(self, record: dict[str, object]) -> None: ...

    def on_note(self, note: str) -> None:
        self.notes.append(note)

    def on_warning(self, warning: str) -> None:
        self.warnings.append(warning)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of thirty pictures of one colour each, with noise."""
    root = tmp_path_factory.mktemp("pictures") / "colours"
    noise = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(30):
            pixels = np.asarray(colour) + noise.normal(0, 25, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.mark.slow
def test_a_small_folder_is_learnt_in_few_steps(folder: Path, tmp_path: Path) -> None:
    """In 45 steps, of as many as 30 images of each class used to be given, running statistics lag far behind."""
    options = ["--epochs", "15", "--batch-size", "32", "--validation", "0.1", "--augmentation", "none"]
    options += ["--out", str(tmp_path / "run"), "--json"]
    done = run_command("train", folder, *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"] == 1
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["validation_accuracy"] == 1


def test_few_images_take_more_passes_and_the_command_says_so(folder: Path, tmp_path: Path) -> None:
    watching = Watching()
    recipe = Recipe(epochs=2, batch_size=64, least_steps=20)
    train(Setup(str(folder), "mobilenet", 0.25, 1, (8, 8), recipe=recipe), tmp_path / "run", watching)
    assert watching.steps == [10, 10]
    (note,) = watching.notes
    for part in ("training images", "10 steps an epoch", "20 steps in all", "--epochs"):
        assert part in note


def test_enough_images_need_no_note(tmp_path: Path) -> None:
    watching = Watching()
    recipe = Recipe(epochs=1, batch_size=256, least_steps=5)
    train(Setup("digits", "mobilenet", 0.25, 1, (8, 8), 1, recipe=recipe), tmp_path / "run", watching)
    assert (watching.notes, watching.warnings) == ([], [])


def relabelled(dataset: ImageDataset) -> ImageDataset:
    """The same images, with another class's label each: what was learnt of them is wrong."""
    dataset.labels = (dataset.labels + 1) % len(dataset.class_names)
    return dataset


@pytest.mark.slow
def test_a_network_that_only_guesses_is_not_passed_over(tmp_path: Path) -> None:
    splits = load_data("digits", image_size=8, channels=1, validation=0.1)
    assert splits.validation is not None
    wrong = Splits(
        splits.train, relabelled(splits.validation), relabelled(splits.test), splits.name, splits.has_own_test
    )

    def read(_setup: Setup, _monitor: Monitor) -> Splits:
        return wrong

    watching = Watching()
    recipe = replace(PAPER, epochs=4)
    train(Setup("digits", "mobilenet", 0.25, 2, (8, 8), 1, recipe=recipe), tmp_path / "run", watching, read)
    (warning,) = watching.warnings
    for part in ("of its training images", "no better than chance", "labelled"):
        assert part in warning


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.slow
def test_the_command_says_so_last(as_json: bool, folder: Path, tmp_path: Path) -> None:
    """Where the test images are in each other's folders."""
    shutil.copytree(folder, tmp_path / "data" / "train")
    for name, other in zip(COLOURS, [*COLOURS][1:] + [*COLOURS][:1], strict=True):
        shutil.copytree(folder / name, tmp_path / "data" / "test" / other)
    options = ["--epochs", "15", "--batch-size", "32", "--augmentation", "none"]
    options += ["--out", str(tmp_path / "run")] + ["--json"] * as_json
    done = CliRunner().invoke(cli.app, ["train", str(tmp_path / "data"), *options])
    assert done.exit_code == 0, done.stderr
    if as_json:
        (warning,) = json.loads(done.stdout)["warnings"]
    else:
        start, warning = done.stderr.splitlines()[-1].split(": ", 1)
        assert start == "warning"
    assert warning.startswith("the network classifies 100% of its training images correctly, but is no better than")
    assert "chance on the 90 test images" in warning


@pytest.mark.parametrize(
    ("confusion", "warned"),
    [
        (((10, 0, 0), (10, 0, 0), (10, 0, 0)), True),  # one class for all
        (((4, 3, 3), (3, 3, 4), (3, 4, 3)), True),
        (((0, 5), (0, 95)), True),  # 95 %, and yet one class for all
        (((2, 3), (0, 95)), False),
        (((1, 1, 0), (0, 1, 1), (1, 0, 1)), False),  # weak, but of so few images it cannot be told
        (((8, 0), (0, 0)), False),  # images of one class only tell nothing
        (((0, 8), (0, 0)), False),
        (((9, 1), (2, 8)), False),
    ],
)
def test_who_guesses(confusion: tuple[tuple[int, ...], ...], warned: bool) -> None:
    names = tuple(map(str, range(len(confusion))))
    evaluation = Evaluation(names, confusion, 1.0, 1)
    assert bool(training._at_chance({"accuracy": 0.99}, evaluation)) == warned
    assert not training._at_chance({"accuracy": 0.5}, evaluation)
