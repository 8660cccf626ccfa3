"""What training would do, in words and in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hybrid_mobilenet.training import plan as plans
from hybrid_mobilenet.training.plan import estimate_seconds, plan, recipe_in_words
from hybrid_mobilenet.training.recipe import Recipe, own_recipe
from hybrid_mobilenet.training.run import train
from hybrid_mobilenet.training.setup import Setup
from hybrid_mobilenet.training.speed import Speed
from runs import RECIPE, SMALL, Quiet

SETUP = Setup("photos")
LONG = Recipe(epochs=20, least_steps=4000, fixed_epochs=4)


def test_few_images_are_passed_several_times() -> None:
    planned = plan(SETUP, LONG, 3, 87, 11, 26)
    assert (planned.batch_size, planned.steps) == (44, 200)
    assert planned.in_words()[:2] == [
        "network fmp, alpha 0.25, delta 2, images of 32x32 pixels",
        "20 epochs of 200 steps of 44 images, each about 101 passes over the images",
    ]


def test_many_images_are_passed_once() -> None:
    planned = plan(replace(SETUP, image_size=(24, 48)), LONG, 10, 45000, 5000, 10000)
    assert planned.in_words()[:2] == [
        "network fmp, alpha 0.25, delta 2, images of 24x48 pixels",
        "20 epochs of 703 steps of 64 images",
    ]


def test_the_recipe_is_described() -> None:
    assert recipe_in_words(LONG) == [
        "AdamW, learning rate 0.01 with cosine decay, weight decay 0.1",
        "augmentation: none; dropout 0.1; fixed pooling regions in the last 4 epochs",
    ]
    assert recipe_in_words(Recipe(schedule="constant"))[0].endswith(
        "learning rate 0.01 with no decay, weight decay 0.1"
    )
    own = own_recipe("fmp", 1000, ["cat", "dog"])
    assert recipe_in_words(own)[0] == "AdamW, learning rate 0.01 with 5% warm-up and cosine decay, weight decay 0.1"
    assert recipe_in_words(own)[1] == f"augmentation: {own.augmentation}; dropout 0.1; fixed pooling regions"
    assert recipe_in_words(Recipe(optimizer="sgd"))[0].startswith("SGD with Nesterov momentum, ")


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 1 training images"):
        plan(SETUP, LONG, 2, 1, 0, 1)


def test_the_estimate_adds_reading_steps_and_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "measure_speed", lambda *_: Speed(step=0.1, image=0.001))
    planned = plan(SETUP, LONG, 10, 6400, 1000, 2000)
    steps = 20 * 200 * 0.1
    validations = 20 * (1000 + 512) * 0.001
    assert estimate_seconds(planned, 7) == pytest.approx(7 + steps + validations + (2000 + 4096) * 0.001)
    without = plan(SETUP, LONG, 10, 6400, 0, 2000)
    assert estimate_seconds(without, 0) == pytest.approx(steps + (2000 + 4096) * 0.001)
    # Streamed: fetching a batch takes longer than a step, and an image longer than its evaluation.
    assert estimate_seconds(without, 0, 0.01) == pytest.approx(4000 * 64 * 0.01 + (2000 + 4096) * 0.01)


class Lengths(Quiet):
    """Records the lengths of an epoch."""

    def on_start(self, epoch: int, epochs: int, step: int, steps: int, batch_size: int) -> None:  # noqa: ARG002
        self.lengths = epochs, steps, batch_size


def test_the_plan_is_what_training_does(tmp_path: Path) -> None:
    monitor, recipe = Lengths(), replace(RECIPE, epochs=1)
    setup = replace(SMALL, recipe=recipe)
    evaluation = train(setup, tmp_path / "run", monitor)
    planned = plan(setup, recipe, 10, 1305, 133, 359)
    assert evaluation.images == planned.test
    assert monitor.lengths == (planned.recipe.epochs, planned.steps, planned.batch_size)
