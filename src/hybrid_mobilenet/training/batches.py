"""The batches of an epoch: which images each has, and how they are fetched while the previous batch trains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ..data.dataset import ImageDataset


def shuffled_batches(images: int, steps: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """Numbers of the images of each step, int64 (steps, batch_size). No image is repeated before all were used."""
    passes = math.ceil(steps * batch_size / images)
    shuffled = torch.cat([torch.randperm(images, generator=generator) for _ in range(passes)])
    return shuffled[: steps * batch_size].view(steps, batch_size)


def prefetched(dataset: ImageDataset, batches: list[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of each batch on a device; the next batch is fetched while the caller uses this one.

    Args:
        dataset: the images.
        batches: numbers of the images of each batch.
        device: where to move them. They reach a GPU from pinned memory, so that the host need not wait.
    """
    is_gpu = device.type == "cuda"

    def fetch(indices: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = dataset.labelled(indices)
        return (images.pin_memory(), labels.pin_memory()) if is_gpu and images.is_cpu else (images, labels)

    with ThreadPoolExecutor(max_workers=1) as fetcher:
        ahead = fetcher.submit(fetch, batches[0]) if batches else None
        for index in range(len(batches)):
            assert ahead is not None
            images, labels = ahead.result()
            if index + 1 < len(batches):
                ahead = fetcher.submit(fetch, batches[index + 1])
            yield images.to(device, non_blocking=is_gpu), labels.to(device, non_blocking=is_gpu)
