"""Files for ExecuTorch: XNNPACK runs all of them, and its steps compute what the network's do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_mobilenet import FractionalMaxPool2d, resolve
from hybrid_mobilenet.deploy.deployed import Deployed, GridMaxPool, fixed_pool
from hybrid_mobilenet.deploy.executorch import SlicedMaxPool, concatenate, consecutive, executorch_bytes, for_xnnpack
from hybrid_mobilenet.network.architecture import FAMILIES, Family
from networks import images, network
from runtime_files import is_one_subgraph, needs


@needs("executorch")
@pytest.mark.parametrize("family", FAMILIES)
def test_executorch_has_one_subgraph_of_xnnpack(family: Family) -> None:
    assert is_one_subgraph(executorch_bytes(network(family)))


@needs("executorch")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of ExecuTorch and of torch.export
@pytest.mark.parametrize("backend", ["portable", "xnnpack"])
@pytest.mark.parametrize(
    "pool",
    [{"ratio": 1.44}, {"ratio": 1.44, "overlapping": True}, {"output_size": (20, 16)}],
    ids=str,
)
def test_the_pooling_layer_in_another_model_runs_in_executorch(pool: dict[str, Any], backend: str) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), FractionalMaxPool2d(**pool), nn.Conv2d(8, 4, 3)).eval()
    some = torch.rand(2, 3, 32, 32)
    partitioner = [XnnpackPartitioner()] if backend == "xnnpack" else []
    lowered = to_edge_transform_and_lower(torch.export.export(model, (some,)), partitioner=partitioner)
    program = Runtime.get().load_program(bytes(lowered.to_executorch().buffer))
    (output,) = program.load_method("forward").execute((some,))
    torch.testing.assert_close(output, model(some).detach(), rtol=0, atol=1e-5)


# Steps for XNNPACK, in PyTorch


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_for_xnnpack_change_nothing(family: Family) -> None:
    model, some = network(family, delta=2), images(3).permute(0, 2, 3, 1)
    # In double precision, where rounding in another order cannot hide a difference, nor be taken for one.
    ours, theirs = for_xnnpack(Deployed(model).double())(some), Deployed(model).double()(some)
    for given, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("overlapping", [False, True])
def test_sliced_pooling_is_exact(overlapping: bool) -> None:
    layers = [layer for layer in resolve("fmp", 0.25, 1, 10, 3, (41, 11)).layers if layer.kind == "fractional_max_pool"]
    assert layers[-1].in_size[1] == layers[-1].out_size[1] == 1  # an axis that cannot shrink any more
    pools = [(fixed_pool(layer, overlapping), layer.in_size) for layer in layers]
    grids = [(pool, size) for pool, size in pools if isinstance(pool, GridMaxPool)]
    assert len(grids) >= 5
    for pool, size in grids:
        x = torch.randn(2, 3, *size)
        assert torch.equal(SlicedMaxPool(pool)(x), pool(x))


def test_runs_of_consecutive_pixels() -> None:
    assert consecutive(torch.tensor([0, 1, 2, 2, 3, 4, 4])) == [(0, 3), (2, 3), (4, 1)]
    assert consecutive(torch.tensor([5])) == [(5, 1)]


@pytest.mark.parametrize("count", [1, 2, 5, 6, 26, 31])
def test_concatenation_by_fives(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [torch.full((1, 2), index) for index in range(count)]
    expected, cat = torch.cat(maps, 1), torch.cat
    counts = []

    def counting(tensors: list[Tensor], axis: int) -> Tensor:
        counts.append(len(tensors))
        return cat(tensors, axis)

    monkeypatch.setattr(torch, "cat", counting)
    assert torch.equal(concatenate(maps, 1), expected)
    assert all(1 < number <= 5 for number in counts)
