"""Precise statistics of batch normalisation, against those of the training images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.network.architecture import FAMILIES, Family
from hybrid_mobilenet.network.model import HybridMobileNet
from hybrid_mobilenet.training.precise_statistics import set_precise_statistics


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_those_of_the_training_images(family: Family) -> None:
    torch.manual_seed(0)
    images = load_data("digits", image_size=16).train
    model = HybridMobileNet(family, 0.25, 2, 10, 3, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    set_precise_statistics(model, images, 200, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    for name, value in model.state_dict().items():
        assert value.equal(before[name]) or name.endswith(("running_mean", "running_var", "num_batches_tracked"))

    # One batch: normalised by itself, its maps are what eval() makes of them.
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(5))[:200]
    batch = images.batch(drawn)
    by_statistics = model.eval()(batch)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == 0.1
            module.train()
    with torch.no_grad():
        by_batch = model(batch)
    assert (by_statistics - by_batch).abs().max() < 1e-3 * by_batch.std()


def test_statistics_of_several_batches_are_those_of_all_images() -> None:
    torch.manual_seed(0)
    images = load_data("digits", image_size=16).train
    model = HybridMobileNet("mp3", 0.25, 2, 10, 3, 16)
    set_precise_statistics(model, images, len(images))
    x = images.batch(torch.arange(len(images))).float() / 255
    convolution, norm = model.get_submodule("features.conv.conv"), model.get_submodule("features.conv.norm")
    maps = convolution((x - model.mean) / model.std)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert torch.allclose(norm.running_mean, maps.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(norm.running_var, maps.var((0, 2, 3), correction=0), rtol=1e-4)
