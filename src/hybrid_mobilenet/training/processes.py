"""The processes that train one network together: this one alone, or those that torchrun started on one machine or many.

What they say to each other goes through torch.distributed: gloo between CPUs, nccl between GPUs.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Result = TypeVar("Result")


class OtherProcessFailed(ValueError):  # noqa: N818  it is not this one's error
    """Another process failed, and said why."""


class ProcessLost(ValueError):  # noqa: N818  the same
    """Another process is gone, perhaps without a word."""


def rank() -> int:
    """The number of this process among those that torchrun started, from 0; 0 where it started none."""
    return int(os.environ["RANK"]) if _by_torchrun() else 0


def _by_torchrun() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


class Processes:
    """One process among the others. Every method but `part` is to be called by all of them, in the same order.

    Attributes:
        size: how many they are.
        rank: number of this one, from 0.
        local_size: how many of them are on this machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_size: int = 1) -> None:
        self.rank, self.size, self.local_size = rank, size, local_size

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def part(self, batch: Tensor) -> Tensor:
        """The share of this process in a batch whose length is a multiple of `size`."""
        return batch.tensor_split(self.size)[self.rank]

    def together(self, act: Callable[[], Result]) -> Result:
        """What `act()` returns here, where it succeeds in every process.

        Raises:
            OtherProcessFailed: where it failed in another, and in none before this one.
            Exception: its own, in the first process where it failed.
        """
        if self.size == 1:
            return act()
        result, error = [], None
        try:
            result.append(act())
        except Exception as caught:  # to be raised below, once the others know
            error = caught
        failures = self.gather(torch.tensor([error is not None])).flatten().nonzero().flatten().tolist()
        if error is not None and failures[0] == self.rank:
            raise error
        if failures:
            raise OtherProcessFailed(f"process {failures[0]} of {self.size} failed: see its error")
        return result[0]

    def by_first(self, act: Callable[[], object]) -> None:
        """Let the first process act while the others wait; where it fails there, raise in all, as `together`."""
        self.together(lambda: act() if self.first else None)

    def require_same(self, what: str, value: str) -> None:
        """Check that all were given the same.

        Raises:
            ValueError: where they were not; OtherProcessFailed in all but the first process.
        """
        digests = self.gather(torch.tensor(list(hashlib.sha256(value.encode()).digest())))
        different = (digests != digests[0]).any(1).nonzero().flatten().tolist()

        def check() -> None:
            if different:
                raise ValueError(
                    f"process {different[0]} of {self.size} has other {what} than process 0: give all the same"
                )

        self.together(check)

    def highest(self, value: int) -> int:
        """The highest of all values. Devices are not waited for."""
        if self.size == 1:
            return value
        result = torch.tensor(value)
        dist.all_reduce(result, dist.ReduceOp.MAX)
        return int(result)

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all, on the CPU and of one shape, stacked: (...) to (size, ...)."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    def share(self, model: nn.Module, loss: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
        """Make of a step in every process the step that all have taken, without waiting for the device.

        Args:
            model: after the step; the running statistics of its batch normalisations become their mean over all.
            loss: this process's, a scalar.
            hits: this process's, int64, a scalar.

        Returns:
            The mean loss and the sum of the hits.
        """
        if self.size == 1:
            return loss, hits
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        statistics = [each for norm in norms for each in (norm.running_mean, norm.running_var) if each is not None]
        sums = torch.cat([*statistics, loss.float()[None], hits.float()[None]])
        dist.all_reduce(sums)
        means = torch.split(sums / self.size, [*map(len, statistics), 1, 1])
        torch._foreach_copy_(statistics, means[:-2])
        return means[-2][0], sums[-1].long()


@contextmanager
def joined(device: str = "auto") -> Iterator[Processes]:
    """Connect this process to the others that torchrun started; where there are none, it is alone.

    Args:
        device: what they compute on, as `choose_device` takes it.

    Raises:
        ValueError: where there are more processes than GPUs on this machine.
        ProcessLost: when another has ended.
    """
    size = int(os.environ["WORLD_SIZE"]) if _by_torchrun() else 1
    if size == 1:
        yield Processes()
        return
    processes = Processes(rank(), size, int(os.environ["LOCAL_WORLD_SIZE"]))
    gpus = device != "cpu" and torch.cuda.is_available()
    if gpus and torch.cuda.device_count() < processes.local_size:
        raise ValueError(
            f"torchrun started {processes.local_size} processes on a machine with {torch.cuda.device_count()} GPUs: "
            "start one per GPU, with --nproc-per-node gpu, or train on the CPU with --device cpu"
        )
    try:
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
        with warnings.catch_warnings():
            # The new name of DDP's broadcast_buffers is not known to older versions of torch.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            # Weights of 1x1 convolutions lie in memory alike in either memory format: only the names differ.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield processes
    except RuntimeError as error:
        # gloo has no class of its own for them
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ProcessLost(
            f"process {processes.rank} of {size} has lost the connection to another, which has ended: see its error, "
            "then go on with --resume"
        ) from error
