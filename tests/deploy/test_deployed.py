"""The network as exports compute it."""

from __future__ import annotations

import torch

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.deploy.deployed import Deployed


def test_the_deployed_network_leaves_the_model_as_it_is(fmp: HybridMobileNet) -> None:
    before = {name: tensor.clone() for name, tensor in fmp.state_dict().items()}
    deployed = Deployed(fmp)
    for parameter in deployed.parameters():
        parameter.data.zero_()
    for name, tensor in fmp.state_dict().items():
        assert torch.equal(tensor, before[name]), name
