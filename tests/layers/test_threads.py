"""Kernels give the same results on several threads, torch's own or plain ones, as on one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from hybrid_mobilenet.layers.kernels.cpu import batch_norm, depthwise, pointwise, threads
from hybrid_mobilenet.layers.kernels.cpu import pooling as cpu
from hybrid_mobilenet.layers.pooling import random_sequence
from processes import run_python


@pytest.fixture(params=["openmp", "plain threads"])
def three_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "plain threads":
        monkeypatch.setattr(threads, "_gnu_openmp", lambda: None)
    elif threads._gnu_openmp() is None:
        pytest.skip("this build of torch does not run on GNU OpenMP")
    before = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)  # fills new tensors with NaN: what no thread writes is noticed
    yield
    torch.use_deterministic_algorithms(False)
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


@pytest.mark.usefixtures("three_threads")
def test_threads_share_a_depthwise_convolution() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 16, 40, 30, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(9, 32, dtype=torch.float64)
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        y = depthwise.forward(x, weight, 2)
        assert 9 * y.numel() >= depthwise.PARALLEL_FROM
        results.append((y, *depthwise.backward(y, x, weight, 2, True)))
    torch.testing.assert_close(*results)


@pytest.mark.usefixtures("three_threads")
def test_threads_share_batch_normalisation() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 24, 9, 9, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    assert x.numel() >= batch_norm.PARALLEL_FROM
    gradient = torch.randn_like(x)
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        norm = nn.BatchNorm2d(24).double()
        y, saved = batch_norm.forward(x, norm, True)
        results.append((norm.running_mean, norm.running_var, y, saved, *batch_norm.backward(gradient, x, saved, True)))
    torch.testing.assert_close(*results)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("batch", [2, 5, 700])  # fewer pixels than threads, and blocks of them for each
def test_threads_share_a_pointwise_convolution(batch: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, 512, 1, 1, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(272, 512, dtype=torch.float64)
    gradient = torch.randn(batch, 272, 1, 1, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    assert batch * weight.numel() >= pointwise.PARALLEL_FROM
    assert weight.numel() >= pointwise.PARALLEL_PANELS_FROM
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        before, after = (batch_norm.Norm.of(nn.BatchNorm2d(channels).double()) for channels in (512, 272))
        done = pointwise.forward(x, before, weight, after)
        results.append((*done, *pointwise.backward(gradient, x, weight, *done[1:])))
    torch.testing.assert_close(*results)


@pytest.mark.skipif(threads._gnu_openmp() is None, reason="this build of torch does not run on GNU OpenMP")
@pytest.mark.parametrize("setting", ["OMP_THREAD_LIMIT=1", "OMP_DYNAMIC=true"])
@pytest.mark.slow
def test_fewer_threads_than_requested(setting: str) -> None:
    name, _, value = setting.partition("=")
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "openmp and (share or dtype0)"]
    # OpenMP reads its settings when a process starts. A kernel that waited for missing threads would never return.
    result = run_python(*command, environment={name: value}, timeout=600)
    assert result.returncode == 0, result.stdout[-3000:]
    assert "passed" in result.stdout
