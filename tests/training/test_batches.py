"""Batches: no image is repeated too early, and the next batch is fetched in time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hybrid_mobilenet.data import splits
from hybrid_mobilenet.data.dataset import ImageDataset
from hybrid_mobilenet.data.images import DataError
from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.training.batches import balanced_batches, prefetched, shuffled_batches

CPU = torch.device("cpu")


def test_no_image_is_repeated_before_all_were_used() -> None:
    batches = shuffled_batches(10, 8, 3, torch.Generator().manual_seed(0))
    assert batches.shape == (8, 3)
    order = batches.flatten().tolist()
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert len(set(order[20:])) == 4
    assert torch.equal(batches, shuffled_batches(10, 8, 3, torch.Generator().manual_seed(0)))


def test_balanced_batches_have_equally_many_images_of_every_class() -> None:
    labels = torch.tensor([3] * 90 + [0] * 7 + [1] * 20)[
        torch.randperm(117, generator=torch.Generator().manual_seed(1))
    ]
    batches = balanced_batches(labels, 9, 13, torch.Generator().manual_seed(0))
    assert batches.shape == (9, 13)
    for part in (*batches, *(half for batch in batches for half in batch.tensor_split(2))):  # also of two processes
        counts = torch.bincount(labels[part], minlength=4)[[0, 1, 3]]
        assert counts.max() - counts.min() <= 2
    assert torch.bincount(labels[batches.flatten()]).tolist() == [39, 39, 0, 39]
    for label, size in ((0, 7), (1, 20), (3, 90)):  # no image is repeated before all of its class were used
        order = [number for number in batches.flatten().tolist() if labels[number] == label]
        for start in range(0, len(order), size):
            assert len(set(order[start : start + size])) == len(order[start : start + size])
    assert torch.equal(batches, balanced_batches(labels, 9, 13, torch.Generator().manual_seed(0)))
    assert not torch.equal(batches, balanced_batches(labels, 9, 13, torch.Generator().manual_seed(1)))


def test_balanced_batches_smaller_than_the_number_of_classes() -> None:
    labels = torch.arange(10).repeat_interleave(torch.arange(1, 11))
    batches = balanced_batches(labels, 5, 4, torch.Generator().manual_seed(0))
    assert all(len(set(labels[batch].tolist())) >= 3 for batch in batches)
    assert torch.bincount(labels[batches.flatten()]).tolist() == [2] * 10


def watched(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Call `act` with the number of batches fetched before, in the thread that fetches."""
    labelled, fetched = ImageDataset.labelled, 0

    def fetch(dataset: ImageDataset, indices: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal fetched
        act(fetched)
        fetched += 1
        return labelled(dataset, indices)

    monkeypatch.setattr(ImageDataset, "labelled", fetch)


def decoded_each_time(monkeypatch: pytest.MonkeyPatch) -> ImageDataset:
    monkeypatch.setattr(splits, "choose_storage", lambda *_: "nowhere")
    return load_data("digits", image_size=8, channels=1).test


def test_batches_in_memory_are_fetched_in_the_same_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_data("digits", image_size=8, channels=1).test
    threads = set()
    watched(monkeypatch, lambda _: threads.add(threading.get_ident()))
    parts = list(torch.split(torch.arange(12), 4))
    for part, (images, labels) in zip(parts, prefetched(digits, parts, CPU), strict=True):
        assert torch.equal(images, digits.batch(part))
        assert torch.equal(labels, digits.labels[part])
    assert threads == {threading.get_ident()}


def test_the_next_batch_is_decoded_while_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = decoded_each_time(monkeypatch)
    started = [threading.Event() for _ in range(3)]
    watched(monkeypatch, lambda number: started[number].set())
    parts = list(torch.split(torch.arange(12), 4))
    for number, (images, labels) in enumerate(prefetched(digits, parts, CPU)):
        assert torch.equal(images, digits.batch(parts[number]))
        assert torch.equal(labels, digits.labels[parts[number]])
        assert number == 2 or started[number + 1].wait(10)
        assert not any(event.is_set() for event in started[number + 2 :])
    assert list(prefetched(digits, [], CPU)) == []


def test_an_image_that_cannot_be_read_is_an_error_of_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> None:
        if number == 1:
            raise DataError("unreadable")

    watched(monkeypatch, fail)
    batches = prefetched(decoded_each_time(monkeypatch), list(torch.split(torch.arange(8), 4)), CPU)
    next(batches)
    with pytest.raises(DataError, match="unreadable"):
        next(batches)
