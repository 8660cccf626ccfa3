"""Setups: what they refuse before anything is written, and the length of batches and epochs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_mobilenet.data.splits import load_test
from hybrid_mobilenet.network.model import HybridMobileNet
from hybrid_mobilenet.training.batches import shuffled_batches
from hybrid_mobilenet.training.evaluate import evaluate
from hybrid_mobilenet.training.processes import Processes
from hybrid_mobilenet.training.recipe import Balance, Recipe
from hybrid_mobilenet.training.run import train
from hybrid_mobilenet.training.setup import choose_batch_size, imbalance, steps_per_epoch
from runs import (
    RECIPE,
    SMALL,
    Quiet,
    refuses,
)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"alpha": 0.3}, "alpha is 0.3"),
        ({"delta": 0}, "delta is 0"),
        ({"image_size": (4, 8)}, "image_size is 4x8"),
        ({"channels": 0}, "in_channels is 0"),
        ({"data": "no such data"}, "no such data"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"log": "wandb"}, "log is 'wandb', but must be tensorboard"),
        ({"validation": 0, "recipe": replace(RECIPE, patience=5)}, "patience is 5"),
        ({"validation": 0, "recipe": replace(RECIPE, keep="best")}, "keep is 'best'"),
    ],
)
def test_a_mistake_leaves_no_folder(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    refuses(ValueError, lambda: train(replace(SMALL, **change), tmp_path / "run", Quiet()), part)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30])
def test_a_seed_out_of_range(seed: int, tmp_path: Path) -> None:
    rule = f"seed is {seed}, but must be 0 or more and less than 2\\*\\*64"
    with pytest.raises(ValueError, match=rule):
        train(replace(SMALL, seed=seed), tmp_path / "run", Quiet())
    assert not (tmp_path / "run").exists()
    model = HybridMobileNet("fmp", 0.25, 1, 10, 1, 8)
    with pytest.raises(ValueError, match=rule):
        evaluate(model, load_test("digits", image_size=8, channels=1), 2, seed)


def test_bf16_is_for_gpus(tmp_path: Path) -> None:
    setup = replace(SMALL, recipe=replace(RECIPE, precision="bf16"))
    refuses(
        ValueError, lambda: train(setup, tmp_path / "run", Quiet(), device="cpu"), "'bf16'", "GPU", "--precision fp32"
    )
    assert not (tmp_path / "run").exists()


def test_early_stopping_names_what_it_needs(tmp_path: Path) -> None:
    setup = replace(SMALL, validation=0, recipe=replace(RECIPE, patience=2))
    refuses(
        ValueError,
        lambda: train(setup, tmp_path / "run", Quiet()),
        "patience is 2",
        "no validation images",
        "a validation of 0.1",
    )


@pytest.mark.parametrize(
    ("counts", "balance", "parts"),
    [
        ((950, 50), "none", ("950 training images of 'class 0'", "50 of 'class 1'", "--balance sampling")),
        ((60, 40, 10, 0), "none", ("60 training images of 'class 0'", "10 of 'class 2'")),  # not the empty class
        ((1950, 500), "none", ()),
        ((950, 50), "sampling", ()),
    ],
)
def test_an_imbalance_is_explained(counts: tuple[int, ...], balance: Balance, parts: tuple[str, ...]) -> None:
    dataset = load_test("digits", image_size=8, channels=1)
    dataset.class_names = tuple(f"class {number}" for number in range(len(counts)))
    dataset.labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    note = imbalance(dataset, replace(RECIPE, balance=balance))
    assert bool(note) == bool(parts)
    for part in parts:
        assert part in note


@pytest.mark.parametrize("images", [45, 72, 108, 109, 250, 1294, 50_000])
def test_no_image_is_left_out_where_it_matters(images: int) -> None:
    recipe = Recipe(batch_size=64)
    size = choose_batch_size(recipe, images, Processes())
    steps = steps_per_epoch(recipe, images, size)
    assert size <= 64
    taken = shuffled_batches(images, steps, size, torch.Generator().manual_seed(0)).flatten()
    assert len(set(taken.tolist())) >= 0.98 * images
    assert len(taken) <= 1.2 * images
    if images == 50_000:  # as recorded
        assert (size, steps) == (64, 781)
