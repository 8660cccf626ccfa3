"""Names of splits as people write them."""

from __future__ import annotations

import pytest

from hybrid_mobilenet.data.split_names import split_role, split_roles


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("train", "train training Train TRAIN Training train_set train-set trainset TrainSet seg_train train2017"),
        ("train", "training_data train_images images_train TrainImages dataset_train trn"),
        ("validation", "val valid validation VAL Validation dev valid_set val2017 seg_val ValidationSet"),
        ("test", "test testing Test TESTING test_set seg_test test1 TestImages test-images tests"),
        (None, "cats trains trained train_station test_tube invalid valley developer testament attest train_test"),
        (None, "latest value Übungtrain birds_train train_Übung 12 _ set images"),
    ],
)
def test_names_of_splits(role: str | None, names: str) -> None:
    assert {name: split_role(name) for name in names.split()} == dict.fromkeys(names.split(), role)


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (["asl_alphabet_train", "asl_alphabet_test"], ["train", "test"]),
        (["birds train", "birds val", "birds test"], ["train", "validation", "test"]),
        (["train", "test", "seg_pred"], ["train", "test", None]),
        (["train_station", "bus_station"], [None, None]),
        (["train_station", "test_tube"], [None, None]),
        (["asl_train"], [None]),
    ],
)
def test_names_of_splits_beside_each_other(names: list[str], roles: list[str | None]) -> None:
    assert [split_roles(names).get(name) for name in names] == roles
