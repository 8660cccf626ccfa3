"""The processes that train one network together: only this one, or those that torchrun started on several machines.

They communicate through torch.distributed: gloo between CPUs, NCCL between GPUs.
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

from ..common.devices import choose_device

Result = TypeVar("Result")


class OtherProcessFailed(ValueError):  # noqa: N818  it is not this one's error
    """Another process failed, and has shown its own error."""


class ProcessLost(ValueError):  # noqa: N818  the same
    """Another process has ended, perhaps without an error."""


def rank() -> int:
    """The number of this process among those that torchrun started, from 0; 0 without torchrun."""
    return int(os.environ["RANK"]) if _by_torchrun() else 0


def _by_torchrun() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


class Processes:
    """One of the processes. All must call the methods in the same order, except `part` and `device`.

    Args:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process among those of its machine, from 0.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of this process. Several processes take one GPU each, in order.

        Args:
            name: as for `choose_device`.

        Raises:
            ValueError: if there is no such device.
        """
        device = choose_device(name, self.size)
        return torch.device("cuda", self.local_rank) if self.size > 1 and device.type == "cuda" else device

    def part(self, batch: Tensor) -> Tensor:
        """Part of a batch for this process; the batch's length is a multiple of `size`."""
        return batch.tensor_split(self.size)[self.rank]

    def together(self, act: Callable[[], Result]) -> Result:
        """Call `act` in every process; returns its result if it succeeds in all of them.

        Raises:
            OtherProcessFailed: if it failed in another process.
            Exception: the error of `act`, in the first process where it failed.
        """
        if self.size == 1:
            return act()
        result, error = [], None
        try:
            result.append(act())
        except Exception as caught:  # raised below, once the others know
            error = caught
        failures = self.gather(torch.tensor([error is not None])).flatten().nonzero().flatten().tolist()
        if error is not None and failures[0] == self.rank:
            raise error
        if failures:
            raise OtherProcessFailed(f"process {failures[0]} of {self.size} failed: see its error")
        return result[0]

    def by_first(self, act: Callable[[], object]) -> None:
        """Call `act` in the first process while the others wait. Where it fails, raise in all, as `together`."""
        self.together(lambda: act() if self.first else None)

    def require_same(self, what: str, value: str) -> None:
        """Check that a value is the same in all processes.

        Raises:
            ValueError: if it differs, in the first process; OtherProcessFailed in the others.
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
        """The maximum over all processes, without waiting for the device."""
        if self.size == 1:
            return value
        result = torch.tensor(value)
        dist.all_reduce(result, dist.ReduceOp.MAX)
        return int(result)

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, stacked: (...) to (size, ...). They are on the CPU and of one shape."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    def share(self, model: nn.Module, loss: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
        """All-reduce loss, hits and batch-norm statistics after a step, without waiting for the device.

        Args:
            model: its running statistics of batch normalisation become their mean over the processes.
            loss: of this process, a scalar.
            hits: of this process, int64, a scalar.

        Returns:
            The mean of the losses and the sum of the hits.
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
    """Connect this process to the others that torchrun started, if any.

    Args:
        device: on which they train, as for `choose_device`.

    Raises:
        ValueError: if there are more processes than GPUs on this machine.
        ProcessLost: when another process has ended.
    """
    size = int(os.environ["WORLD_SIZE"]) if _by_torchrun() else 1
    if size == 1:
        yield Processes()
        return
    processes, local_size = Processes(rank(), size, int(os.environ["LOCAL_RANK"])), int(os.environ["LOCAL_WORLD_SIZE"])
    gpus = device != "cpu" and torch.cuda.is_available()
    if gpus and torch.cuda.device_count() < local_size:
        raise ValueError(
            f"torchrun started {local_size} processes on a machine with {torch.cuda.device_count()} GPUs: "
            "start one per GPU, with --nproc-per-node gpu, or train on the CPU with --device cpu"
        )
    try:
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
        with warnings.catch_warnings():
            # Older versions of torch do not have the new name of DDP's broadcast_buffers.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            # The strides of 1x1 weights differ between memory formats, but their layout in memory does not.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield processes
    except RuntimeError as error:
        # gloo's errors have no class of their own
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ProcessLost(
            f"process {processes.rank} of {size} has lost the connection to another, which has ended: see its error, "
            "then continue with --resume"
        ) from error
