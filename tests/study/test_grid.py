"""The paper's grid: what is selected, in which order, and when a run is another experiment."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.network import architecture
from hybrid_mobilenet.study.grid import ALPHAS, CONFIGURATIONS, DATA_SETS, DELTAS, TABLES, select
from hybrid_mobilenet.training import recipe as recipe_module
from hybrid_mobilenet.training.recipe import CIFAR100_RECIPES, PAPER_RECIPES


def test_the_whole_grid() -> None:
    runs = select(seeds=2)
    assert len(runs) == 2 * 2 * 19
    assert Counter(run.data for run in runs) == {"cifar10": 38, "cifar100": 38}
    assert Counter((run.family, run.delta, run.alpha) for run in runs) == dict.fromkeys(CONFIGURATIONS, 4)
    assert Counter(run.seed for run in runs) == {0: 38, 1: 38}
    assert len({run.name for run in runs}) == len(runs)
    assert {run.recipe for run in runs if run.data == "cifar10"} == set(PAPER_RECIPES.values())
    assert {run.recipe for run in runs if run.data == "cifar100"} == set(CIFAR100_RECIPES.values())


def test_the_cheapest_comes_first() -> None:
    runs = select(seeds=2)
    assert [run.cost for run in runs] == sorted(run.cost for run in runs)
    assert [run.name for run in runs[:3]] == [
        "cifar10-mobilenet-d2-a0.25-seed0", "cifar10-mobilenet-d2-a0.25-seed1", "cifar100-mobilenet-d2-a0.25-seed0",
    ]  # fmt: skip
    assert runs[-1].name == "cifar100-fmp-d4-a1-seed1"
    assert runs[0].cost == 1_611_520 * PAPER_RECIPES["mobilenet"].epochs


def test_a_family_s_recipe_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = {**PAPER_RECIPES, "fmp": replace(PAPER_RECIPES["fmp"], epochs=123, fixed_epochs=41)}
    monkeypatch.setattr(recipe_module, "PAPER_RECIPES", recipes)
    assert {run.recipe.epochs for run in select(families=["fmp"], data=["cifar10"])} == {123}
    assert {run.recipe for run in select(families=["mp3"], data=["cifar10"])} == {PAPER_RECIPES["mp3"]}
    (shortened,) = {run.recipe for run in select(families=["fmp"], data=["cifar10"], epochs=6)}
    assert shortened == replace(recipes["fmp"], epochs=6, fixed_epochs=2)


@pytest.mark.parametrize(
    ("conditions", "count"),
    [
        ({"data": ["cifar10"]}, 19),
        ({"data": ["cifar10", "cifar100"]}, 38),
        ({"data": ["digits"]}, 19),
        ({"families": ["fmp"]}, 12),
        ({"families": ["fmp", "mp3"]}, 24),
        ({"families": ["fmp"], "alphas": [0.25]}, 4),
        ({"families": ["fmp"], "alphas": [0.25, 0.5], "deltas": [2]}, 4),
        ({"alphas": [1], "deltas": [1]}, 2),
        ({"tables": [4]}, 14),
        ({"tables": [5]}, 14),
        ({"tables": [6], "data": ["cifar10"]}, 7),
        ({"tables": [4, 5]}, 26),
    ],
    ids=str,
)
def test_a_run_matches_all_conditions(conditions: dict[str, Any], count: int) -> None:
    assert len(select(**conditions)) == count


def test_table_7_has_four_rows() -> None:
    assert {run.name for run in select(tables=[7], data=["cifar10"])} == {
        "cifar10-mobilenet-d1-a1-seed0", "cifar10-mobilenet-d2-a0.5-seed0", "cifar10-mp3-d2-a0.5-seed0",
        "cifar10-fmp-d2-a0.25-seed0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("conditions", "wanted"),
    [
        ({"families": ["fmp"], "deltas": [1]}, "family fmp, delta 1"),
        ({"families": ["fmp", "mp3"], "tables": [4], "alphas": [0.5]}, "family fmp or mp3, alpha 0.5, table 4"),
        ({"data": ["imagenet"]}, "data imagenet"),
        ({"families": ["vgg"]}, "family vgg"),
        ({"deltas": [3]}, "delta 3"),
        ({"alphas": [0.75]}, "alpha 0.75"),
        ({"tables": [3]}, "table 3"),
    ],
    ids=str,
)
def test_conditions_that_no_run_matches(conditions: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=f"^no configuration of the paper has {wanted}: delta 1 .*the baseline"):
        select(**conditions)


def test_the_values_to_select_are_those_of_the_paper() -> None:
    assert (DELTAS, ALPHAS, tuple(TABLES)) == ((1, 2, 4), (0.25, 0.5, 1), (4, 5, 6, 7))


def test_seeds_and_epochs_refuse() -> None:
    with pytest.raises(ValueError, match="--seeds is 0, but must be 1 or more"):
        select(seeds=0)
    with pytest.raises(ValueError, match="epochs is 0, but must be 1 or more"):
        select(epochs=0)


def test_a_fingerprint_covers_data_layers_and_recipe_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = select(data=["cifar10"], families=["fmp"], alphas=[0.25], deltas=[2])
    assert replace(run, seed=7).fingerprint == run.fingerprint
    others = [replace(run, **change) for change in (
        {"data": "digits"}, {"family": "mp3"}, {"delta": 4}, {"alpha": 0.5},
        {"recipe": replace(run.recipe, learning_rate=0.002)},
    )]  # fmt: skip
    monkeypatch.setattr(architecture, "FMP_RATIO", 1.5)
    others.append(replace(run))
    assert len({each.fingerprint for each in (run, *others)}) == 1 + len(others)
    assert len({each.fingerprint for each in select(seeds=3)}) == 38


def test_digits_are_as_the_grid_says() -> None:
    splits, data = load_data("digits", image_size=8, channels=1), DATA_SETS["digits"]
    assert (len(splits.train), len(splits.test)) == (data.train_images, data.test_images)
    assert len(splits.train.class_names) == data.classes
