"""Evaluation against scikit-learn's, and Graham's averaging against its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, classification_report, confusion_matrix, log_loss
from torch import Tensor, nn

from hybrid_mobilenet.data.dataset import ImageDataset
from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.network.architecture import Family
from hybrid_mobilenet.network.model import HybridMobileNet
from hybrid_mobilenet.training.evaluate import Evaluation, evaluate, probabilities


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_data("digits", image_size=16, channels=1).test


def all_images(dataset: ImageDataset) -> Tensor:
    return dataset.batch(torch.arange(len(dataset)))


def network(digits: ImageDataset, family: Family = "fmp", classes: int = 10) -> HybridMobileNet:
    """An untrained network whose predictions differ from image to image."""
    torch.manual_seed(5)
    model = HybridMobileNet(family, 0.25, 1, classes, 1, 16, mean=(0.3,), std=(0.4,)).train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # moving statistics are then those of the images from the first batch on
        for _ in range(5):
            model(all_images(digits))
    return model


def test_figures_are_scikit_learn_s(digits: ImageDataset) -> None:
    model = network(digits)
    result = evaluate(model, digits)
    with torch.no_grad():
        logits = model.eval()(all_images(digits))
    truth, predicted = digits.labels.numpy(), logits.argmax(1).numpy()
    assert len(set(predicted)) > 2
    assert result.accuracy == pytest.approx(accuracy_score(truth, predicted), abs=1e-15)
    assert result.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, predicted), abs=1e-15)
    assert result.balanced_accuracy != pytest.approx(result.accuracy, abs=1e-4)
    assert [list(row) for row in result.confusion] == confusion_matrix(truth, predicted, labels=range(10)).tolist()
    assert (result.images, result.correct) == (359, int((truth == predicted).sum()))
    assert result.loss == pytest.approx(log_loss(truth, logits.double().softmax(1).numpy()), rel=1e-5)
    report = classification_report(
        truth, predicted, labels=range(10), target_names=list(digits.class_names), output_dict=True, zero_division=0
    )
    for name, figures in result.per_class().items():
        for ours, theirs in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score"), ("images", "support")):
            assert figures[ours] == pytest.approx(report[name][theirs], abs=1e-12), (name, ours)
    record = result.record()
    assert list(record) == [
        "accuracy",
        "balanced_accuracy",
        "correct",
        "images",
        "loss",
        "passes",
        "per_class",
        "confusion",
    ]
    assert (record["accuracy"], record["balanced_accuracy"]) == (result.accuracy, result.balanced_accuracy)
    assert next(iter(replace(result, epoch=7).record().items())) == ("epoch", 7)


def test_a_class_without_images_or_predictions() -> None:
    result = Evaluation(("a", "b", "c"), ((2, 0, 1), (0, 0, 0), (1, 0, 0)), 0.5, 1)
    assert result.accuracy == 0.5
    assert result.balanced_accuracy == pytest.approx((2 / 3 + 0) / 2)
    assert result.per_class() == {
        "a": {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "images": 3},
        "b": {"precision": None, "recall": None, "f1": None, "images": 0},
        "c": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "images": 1},
    }
    assert result.absent == ("b",)


def test_one_class_has_a_recall_alone() -> None:
    result = Evaluation(("a", "b"), ((3, 1), (0, 0)), 0.5, 1)
    assert result.per_class()["a"] == {"precision": None, "recall": 0.75, "f1": None, "images": 4}


def test_one_pass_is_the_softmax_of_fixed_regions(digits: ImageDataset) -> None:
    model = network(digits)
    images = all_images(digits)[:50]
    with torch.no_grad():
        expected = model.eval()(images).double().softmax(1).float()
    assert torch.equal(probabilities(model, images), expected)
    torch.testing.assert_close(expected.sum(1), torch.ones(50))


@pytest.mark.parametrize("passes", [2, 5])
def test_passes_are_averaged_over_fresh_random_regions(digits: ImageDataset, passes: int) -> None:
    model = network(digits)
    images = all_images(digits)[:50]
    torch.manual_seed(9)
    result = probabilities(model, images, passes)

    model.eval()
    for pool in model.fractional_max_pools():
        pool.train()
    torch.manual_seed(9)
    with torch.no_grad():
        each = torch.stack([model(images).double().softmax(1) for _ in range(passes)])
    torch.testing.assert_close(result, each.mean(0).float(), rtol=1e-6, atol=1e-7)
    assert not torch.equal(each[0], each[1])


def test_evaluation_averages_by_its_seed_and_leaves_the_generator_alone(digits: ImageDataset) -> None:
    model = network(digits)
    before = torch.get_rng_state()
    results = [evaluate(model, digits, 3, seed) for seed in (4, 4, 5)]
    assert torch.equal(torch.get_rng_state(), before)
    assert results[0] == results[1]
    assert results[0].loss != results[2].loss
    assert results[0].passes == 3
    # 359 images are two batches: the regions of the second follow those of the first.
    torch.manual_seed(4)
    p = torch.cat([probabilities(model, images, 3) for images in torch.split(all_images(digits), 256)])
    expected = -p.gather(1, digits.labels[:, None]).log().mean().item()
    assert results[0].loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_every_mode_is_put_back(digits: ImageDataset, training: bool) -> None:
    model = network(digits).train(training)
    model.fractional_max_pools()[0].train(not training)
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, digits, 2)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="images has shape"):
        probabilities(model, torch.zeros(1, 7, 16, 16), 2)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(("family", "passes"), [("mobilenet", 2), ("mp3", 12), ("fmp", 0), ("fmp", -1)])
def test_passes_that_make_no_sense(digits: ImageDataset, family: Family, passes: int) -> None:
    with pytest.raises(ValueError, match=f"^passes is {passes}, but must be 1 or more.*this network is {family}$"):
        evaluate(network(digits, family), digits, passes)


def test_other_classes(digits: ImageDataset) -> None:
    with pytest.raises(
        ValueError, match=r"of '3', '4', '5', '6' and 3 more, but the model knows 3 classes \(0, 1, 2\)"
    ):
        evaluate(network(digits, classes=3), digits)


def test_progress_counts_every_image(digits: ImageDataset) -> None:
    counts: list[int] = []
    evaluate(network(digits, "mobilenet"), digits, on_images=counts.append)
    assert counts == [256, 103]
