"""Kernels on several threads: torch's own, or plain ones, give what one thread gives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hybrid_mobilenet.kernels import cpu, threads
from hybrid_mobilenet.pooling import random_sequence


@pytest.fixture(params=["torch's threads", "plain threads"])
def three_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "plain threads":
        monkeypatch.setattr(threads, "_gnu_openmp", lambda: None)
    elif threads._gnu_openmp() is None:
        pytest.skip("this build of torch does not run on GNU OpenMP")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 64])
def test_threads_make_no_difference(batch: int, overlapping: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, 24, 64, 50).to(dtype).contiguous(memory_format=torch.channels_last)
    assert x.numel() >= cpu.PARALLEL_FROM
    rows, columns = random_sequence(64, 40), random_sequence(50, 31)
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        y, winners = cpu.forward(x, rows, columns, overlapping)
        gradient = cpu.backward(y, winners, rows, columns, overlapping, 64, 50)
        results.append((y, winners, gradient))
    assert all(torch.equal(one, several) for one, several in zip(*results, strict=True))
