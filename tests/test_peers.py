"""The networks that `benchmark` is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hybrid_mobilenet.deploy.runtimes import open_file
from scripts import script

peers = script("benchmarks/peers.py")


@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_have_the_published_size(name: str) -> None:
    build, parameters, mult_adds = peers.PEERS[name]
    network = build()
    counted = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert f"{counted:.2f}" == parameters
    assert f"{peers.mult_adds(network) / 1e6:.{len(mult_adds.partition('.')[2])}f}" == mult_adds


@pytest.mark.slow
def test_peers_run_in_onnx_runtime_as_in_pytorch(tmp_path: Path) -> None:
    for path, (build, *_) in zip(peers.write_peers(tmp_path), peers.PEERS.values(), strict=True):
        torch.manual_seed(0)
        network = peers.FromBytes(build()).eval()
        images = np.random.default_rng(0).integers(256, size=(3, 32, 32, 3), dtype=np.uint8)
        with torch.no_grad():
            logits, probabilities = network(torch.from_numpy(images))
        for expected, given in zip((logits, probabilities), open_file(path).run(images), strict=True):
            np.testing.assert_allclose(given, expected, atol=1e-4)
