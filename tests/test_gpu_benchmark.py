"""The GPU benchmark, run on a CPU where possible. Its figures there mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from processes import run_python

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


def test_the_kernel_is_checked_and_timed(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SHAPES", [(8, 5, 4)])
    section = gpu.check_kernel(CPU, 2)
    assert len(section.rows) == 4
    assert not section.missed()
    (row,) = gpu.time_kernel(CPU, 2, rounds=1).rows[:1]
    assert row["forward, us"] > 0
    # A map of 2 * 8 * 25 values and its pooled form of 2 * 8 * 16 in fp32, and a byte per winner.
    assert row["floor of either, us"] == pytest.approx((1600 + 1024 + 256) / row["copy, GB/s"] / 1000)
    monkeypatch.setattr(gpu.reference, "forward", lambda x, *_: (x, x))
    monkeypatch.setattr(gpu.reference, "backward", lambda g, *_: g)
    assert gpu.check_kernel(CPU, 2).missed()


@pytest.mark.slow
def test_training_is_timed(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "get_args", lambda _: ("fp32",))  # the only precision on a CPU
    rows = gpu.time_training(CPU, (4,), rounds=1).rows
    assert [row["network"] for row in rows] == ["MobileNet d1 a1", "MP3 d2 a0.5", "FMP d2 a0.25"]
    assert all(row["fp32, images/s"] > 0 and row["fp32, graph, images/s"] > 0 for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.slow
def test_without_a_gpu_it_ends_with_an_error() -> None:
    done = run_python(BENCHMARKS / "gpu.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no CUDA device here")
    assert done.stderr.count("\n") == 1
