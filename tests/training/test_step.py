"""A training step: gradients, optimiser, learning rate, precision."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from hybrid_mobilenet.layers import batch_norm, depthwise, pointwise
from hybrid_mobilenet.network.architecture import FAMILIES, Family
from hybrid_mobilenet.network.model import HybridMobileNet
from hybrid_mobilenet.training.augmentation import augment, draw
from hybrid_mobilenet.training.recipe import PAPER, Augmentation, Optimizer, Precision, Recipe
from hybrid_mobilenet.training.step import learning_rates, make_optimizer, train_step


def test_the_learning_rate_falls_as_a_cosine_or_stays() -> None:
    recipe = Recipe(learning_rate=0.01)
    assert [learning_rates(recipe, done).features for done in (0, 0.5, 1)] == pytest.approx([0.01, 0.005, 0])
    falling = [learning_rates(recipe, done / 100).features for done in range(101)]
    assert falling == sorted(falling, reverse=True)
    constant = replace(recipe, schedule="constant")
    assert {learning_rates(constant, done).features for done in (0, 0.3, 1)} == {0.01}


def test_the_learning_rate_warms_up() -> None:
    recipe = Recipe(learning_rate=0.01, schedule="constant", warm_up=0.1)
    rates = [learning_rates(recipe, done).features for done in (0, 0.05, 0.1, 0.5)]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.01])


def test_in_fine_tuning_the_classifier_learns_first_and_faster() -> None:
    recipe = Recipe(learning_rate=0.01, schedule="constant", head_factor=10, frozen=0.1)
    assert recipe.is_fine_tuning
    rates = [learning_rates(recipe, done) for done in (0, 0.09, 0.1, 0.5)]
    assert [rate.features for rate in rates] == [0, 0, 0.01, 0.01]
    assert [rate.classifier for rate in rates] == pytest.approx([0.1] * 4)
    model = HybridMobileNet("fmp", alpha=0.25, delta=1, classes=10, in_channels=1, image_size=8)
    optimizer = make_optimizer(model, recipe)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    learning_rates(recipe, 0).set_in(optimizer)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    images, labels = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8), torch.arange(16) % 10
    train_step(model.train(), optimizer, images, labels)
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed == {"classifier.linear.weight", "classifier.linear.bias"}
    learning_rates(recipe, 0.5).set_in(optimizer)
    train_step(model, optimizer, images, labels)
    assert {name for name, tensor in model.named_parameters() if torch.equal(tensor, before[name])} == set()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weights_decay_and_nothing_else(optimizer: Optimizer) -> None:
    model = HybridMobileNet("fmp", 0.25, 2, 10, 1, (8, 8), class_names=[str(digit) for digit in range(10)])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    # Without momentum, which torch's SGD also gives to the decay.
    recipe = replace(PAPER, learning_rate=0.1, weight_decay=0.5, optimizer=optimizer, beta1=0.0)
    make_optimizer(model, recipe).step()
    for name, parameter in model.named_parameters():
        decays = name.endswith((".conv.weight", ".depthwise.weight", ".pointwise.weight", ".linear.weight"))
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decays else 1))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_optimisers_are_those_of_torch(optimizer: Optimizer) -> None:
    recipe = replace(PAPER, learning_rate=0.01, weight_decay=0.0, optimizer=optimizer)
    reference = torch.nn.Conv2d(3, 4, 3)
    ours = deepcopy(reference)
    optimizers = [
        torch.optim.Adam(reference.parameters(), 0.01, (recipe.beta1, recipe.beta2), recipe.epsilon)
        if optimizer == "adam"
        else torch.optim.SGD(reference.parameters(), 0.01, momentum=0.9, nesterov=True),
        make_optimizer(ours, recipe),
    ]
    images = torch.randn(2, 3, 5, 5)
    for _ in range(3):
        for model, optimizer_of_model in zip((reference, ours), optimizers, strict=True):
            optimizer_of_model.zero_grad()
            model(images).square().sum().backward()
            optimizer_of_model.step()
    torch.testing.assert_close(ours.state_dict(), reference.state_dict())


def test_labels_are_smoothed_or_shares_of_classes() -> None:
    linear = nn.Linear(3, 2)
    images, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    shares = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.25, 0.75], [0.75, 0.25]])
    results = [
        train_step(deepcopy(linear), torch.optim.SGD(linear.parameters(), 0.0), images, target, label_smoothing=share)
        for target, share in ((labels, 0.5), (shares, 0.0))
    ]
    expected = -(linear(images).log_softmax(1) * shares).sum(1).mean()
    for loss, hits in results:
        torch.testing.assert_close(loss, expected.detach())
        assert hits == (linear(images).argmax(1) == labels).sum()


def test_a_step_updates_every_parameter_once() -> None:
    linear = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(linear.parameters(), 0.5)
    before = {name: parameter.detach().clone() for name, parameter in linear.named_parameters()}
    images, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    loss, hits = train_step(linear, optimizer, images, labels)
    logits = images @ before["weight"].t() + before["bias"]
    expected = nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, expected)
    assert hits == (logits.argmax(1) == labels).sum()
    gradient = (logits.softmax(1) - nn.functional.one_hot(labels, 2)) / 4
    torch.testing.assert_close(linear.weight.detach(), before["weight"] - 0.5 * gradient.t() @ images)
    torch.testing.assert_close(linear.bias.detach(), before["bias"] - 0.5 * gradient.sum(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_looks_at_no_value(family: Family) -> None:
    with torch.device("meta"):  # where tensors have no values
        model = HybridMobileNet(family, 0.25, 2, 10).train()
        images, labels = torch.empty(4, 3, 32, 32, dtype=torch.uint8), torch.empty(4, dtype=torch.int64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    augmentation = Augmentation(shift=0.2, scale=0.2, flips="both", colour=0.2, cutout=0.2, combined=0.5)
    with torch.device("meta"):
        images, shares = augment(images, labels, augmentation, 10, draw(4))
    loss, hits = train_step(model, optimizer, images, shares)
    assert (loss.device.type, loss.shape, hits.shape) == ("meta", (), ())


def test_a_step_in_bf16_leaves_weights_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    # The way of a GPU through the model, on the CPU.
    monkeypatch.setattr(depthwise, "_is_training_on_cpu", lambda *_: False)
    for module in (batch_norm, pointwise):
        monkeypatch.setattr(module, "is_training_on_cpu", lambda *_: False)
    losses = {}
    for precision in get_args(Precision):
        torch.manual_seed(0)
        model = HybridMobileNet("fmp", 0.25, 1, 10, 1, (8, 8), dropout=0).train()
        images, labels = torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8), torch.randint(10, (16,))
        optimizer = torch.optim.Adam(model.parameters(), 0.003, fused=True)
        losses[precision] = train_step(model, optimizer, images, labels, precision)[0].item()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.2)  # bfloat16 has 8 bits, and there are 27 layers
