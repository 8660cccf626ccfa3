"""Recipes and seeds: what they refuse, and what stays when epochs change."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from hybrid_mobilenet.training.recipe import (
    PAPER,
    Augmentation,
    Recipe,
    changes_when_mirrored,
    derived_seed,
    own_recipe,
    paper_recipe,
)


def test_other_epochs_keep_the_share_of_fixed_regions() -> None:
    recipe = replace(PAPER, epochs=40, fixed_epochs=8)
    assert recipe.with_epochs(20) == replace(recipe, epochs=20, fixed_epochs=4)
    assert recipe.with_epochs(1) == replace(recipe, epochs=1, fixed_epochs=0)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("epochs", 0, "1 or more"),
        ("batch_size", 1, "batch normalisation needs two images"),
        ("learning_rate", 0.0, "above 0 and below 1: try 0.001"),
        ("learning_rate", 1.0, "above 0 and below 1: try 0.001"),
        ("learning_rate", float("nan"), "above 0 and below 1: try 0.001"),
        ("schedule", "linear", "cosine or constant"),
        ("weight_decay", -0.1, "0 or more and below 10: try 0.1"),
        ("weight_decay", float("nan"), "0 or more and below 10: try 0.1"),
        ("dropout", 1.0, "0 or more and below 1"),
        ("dropout", -0.1, "0 or more and below 1"),
        ("activation", "gelu", "relu or relu6"),
        ("sequence", "even", "random or pseudorandom"),
        ("precision", "fp16", "fp32 or bf16"),
        ("balance", "loss", "none or sampling"),
        ("patience", -1, "0 or more epochs"),
        ("keep", "first", "last or best"),
        ("fixed_epochs", 61, "between 0 and epochs"),
        ("fixed_epochs", -1, "between 0 and epochs"),
        ("optimizer", "lion", "adam or sgd"),
        ("augmentation", "strong", "an Augmentation, such as"),
        ("warm_up", 1.0, "0 or more and below 1"),
        ("label_smoothing", -0.1, "0 or more and below 1: try 0.1"),
        ("averaging", 1.0, "0 or more and below 1: try 0.999"),
    ],
)
def test_a_recipe_that_cannot_be(field: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} is {value!r}, but must be .*{rule}"):
        replace(PAPER, **{field: value})


def test_seeds_of_draws_are_what_they_were() -> None:
    assert [derived_seed(seed, 4) for seed in (0, 1, 42, 10**12)] == [4, 1_000_007, 42_000_130, 10**12 * 1_000_003 + 4]
    assert {derived_seed(2**64 - 1, number) < 2**64 for number in range(2_000_000, 2_000_010)} == {True}


def test_an_unknown_family_has_no_recipe() -> None:
    family: Any = "resnet"
    with pytest.raises(ValueError, match="family is 'resnet', but must be one of mobilenet, mp3, fmp"):
        paper_recipe(family, "digits")


def test_the_record_of_a_recipe_gives_the_recipe() -> None:
    recipe = replace(PAPER, epochs=3, augmentation=Augmentation(shift=0.1, flips="both"))
    assert Recipe.from_record(json.loads(json.dumps(asdict(recipe)))) == recipe
    older = {name: value for name, value in asdict(PAPER).items() if name not in ("augmentation", "optimizer")}
    assert Recipe.from_record(older) == PAPER


def test_the_paper_has_no_augmentation_and_own_images_do() -> None:
    assert not paper_recipe("fmp", "cifar100").augmentation
    own = own_recipe("fmp", 1000, ["cat", "dog"])
    assert own.augmentation.shift > 0
    assert own.augmentation.flips == "horizontal"
    assert own.fixed_epochs == own.epochs


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("cat", "dog"), False),
        (("0", "1", "2"), True),
        (("00", "01", "42"), True),
        (("a", "b", "space"), True),
        (("turn_left", "turn-right", "stop"), True),
        (("Left", "Right"), True),
        (("leftover", "bright"), False),
        (("b", "cat", "dog"), False),
        (("\u4e2d", "\u6587"), True),
    ],
)
def test_characters_and_directions_change_when_mirrored(names: tuple[str, ...], expected: bool) -> None:
    assert changes_when_mirrored(names) is expected
    assert (own_recipe("mp3", 100, names).augmentation.flips == "none") is expected
