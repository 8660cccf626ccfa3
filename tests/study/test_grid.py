"""The paper's grid: what is selected, in which order, and when a run is another experiment."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from hybrid_mobilenet.data.dataset import load_data
from hybrid_mobilenet.network import architecture
from hybrid_mobilenet.study.grid import CONFIGURATIONS, DATA_SETS, select
from hybrid_mobilenet.training import recipe as recipe_module
from hybrid_mobilenet.training.recipe import CIFAR100_RECIPES, PAPER_RECIPES


def names(*only: str, seeds: int = 1) -> set[str]:
    return {run.name for run in select(only, seeds)}


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
    assert {run.recipe.epochs for run in select(["family=fmp", "data=cifar10"])} == {123}
    assert {run.recipe for run in select(["family=mp3", "data=cifar10"])} == {PAPER_RECIPES["mp3"]}
    (shortened,) = {run.recipe for run in select(["family=fmp", "data=cifar10"], epochs=6)}
    assert shortened == replace(recipes["fmp"], epochs=6, fixed_epochs=2)


@pytest.mark.parametrize(
    ("only", "count"),
    [
        (["data=cifar10"], 19),
        (["data=cifar10,cifar100"], 38),
        (["data=digits"], 19),
        (["family=fmp"], 12),
        (["family=fmp,mp3"], 24),
        (["family=fmp", "family=mp3"], 24),
        (["family=fmp", "alpha=0.25"], 4),
        (["family=fmp", "alpha=0.25,.5", "delta=2"], 4),
        (["alpha=1.0", "delta=1"], 2),
        (["table=4"], 14),
        (["table=5"], 14),
        (["table=6", "data=cifar10"], 7),
        (["table=4,5"], 26),
    ],
)
def test_only(only: list[str], count: int) -> None:
    assert len(select(only)) == count


def test_table_7_has_four_rows() -> None:
    assert names("table=7", "data=cifar10") == {
        "cifar10-mobilenet-d1-a1-seed0", "cifar10-mobilenet-d2-a0.5-seed0", "cifar10-mp3-d2-a0.5-seed0",
        "cifar10-fmp-d2-a0.25-seed0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (["famly=fmp"], "--only is 'famly=fmp', but must be KEY=VALUE .* data, family, delta, alpha, table: try"),
        (["fmp"], "--only is 'fmp', but must be KEY=VALUE"),
        (["family=vgg"], "--only is 'family=vgg', but family must be one or more of mobilenet, mp3, fmp, separated"),
        (["family="], "--only is 'family=', but family must be"),
        (["alpha=0.75"], "alpha must be one or more of 0.25, 0.5, 1"),
        (["delta=2,3"], "delta must be one or more of 1, 2, 4"),
        (["table=3"], "table must be one or more of 4, 5, 6, 7"),
        (["data=imagenet"], "data must be one or more of cifar10, cifar100, digits"),
        (["alpha=nan"], "alpha must be"),
        (["family=fmp", "delta=1"], "--only family=fmp --only delta=1 leaves nothing: .*baseline"),
    ],
)
def test_only_refuses(only: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(only)


def test_seeds_and_epochs_refuse() -> None:
    with pytest.raises(ValueError, match="--seeds is 0, but must be 1 or more"):
        select(seeds=0)
    with pytest.raises(ValueError, match="epochs is 0, but must be 1 or more"):
        select(epochs=0)


def test_a_fingerprint_covers_data_layers_and_recipe_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = select(["data=cifar10", "family=fmp", "alpha=0.25", "delta=2"])
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
