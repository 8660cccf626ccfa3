"""Distillation: the loss, the stored outputs of a teacher, and runs with one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from command_line import fails, invoke
from hybrid_mobilenet import Augmentation, HybridMobileNet, Recipe, load_data
from hybrid_mobilenet.training import distillation
from hybrid_mobilenet.training.augmentation import augment
from hybrid_mobilenet.training.distillation import (
    PLAIN_TEMPERATURE,
    TEACHER_WEIGHT,
    TeacherOutputs,
    distillation_loss,
    standardised,
)
from hybrid_mobilenet.training.evaluate import probabilities
from hybrid_mobilenet.training.run import train
from hybrid_mobilenet.training.setup import Setup
from noise_images import image_folder

SHIFTED = Augmentation(shift=0.25, flips="horizontal")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def teacher() -> HybridMobileNet:
    torch.manual_seed(0)
    model = HybridMobileNet("fmp", alpha=0.25, delta=1, classes=10, in_channels=1, image_size=8).eval()
    model.training_record = {"recipe": {"epochs": 10, "fixed_epochs": 2}}
    return model


# The loss


def test_loss_does_not_depend_on_shift_and_scale_of_many_logits() -> None:
    torch.manual_seed(0)
    ours, theirs, zero = torch.randn(6, 10), torch.randn(6, 10), torch.tensor(0.0)
    loss = distillation_loss(ours, zero, theirs)
    assert loss > 0.1
    torch.testing.assert_close(distillation_loss(3 * ours - 7, zero, 0.2 * theirs + 5), loss)
    assert distillation_loss(theirs * 4, zero, theirs).abs() < 1e-5
    torch.testing.assert_close(distillation_loss(ours, torch.tensor(2.0), theirs) - loss, torch.tensor(0.2))
    torch.testing.assert_close(standardised(ours).std(1), torch.ones(6))


def test_loss_of_few_classes_tells_how_sure_the_teacher_is() -> None:
    ours = torch.tensor([[0.0, 2.0]])
    zero = torch.tensor(0.0)
    sure, unsure = (distillation_loss(ours, zero, torch.tensor([[0.0, value]])) for value in (2.0, 0.5))
    assert sure.abs() < 1e-6
    p, q = (F.softmax(torch.tensor([0.0, value]) / PLAIN_TEMPERATURE, 0) for value in (0.5, 2.0))
    expected = TEACHER_WEIGHT * PLAIN_TEMPERATURE**2 * (p * (p / q).log()).sum()
    torch.testing.assert_close(unsure, expected)


# Stored outputs


def test_outputs_are_those_of_the_views(teacher: HybridMobileNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "VIEWS", 3)
    monkeypatch.setattr(distillation, "BATCH_SIZE", 100)
    digits = load_data("digits", image_size=8, channels=1).test
    outputs = TeacherOutputs.compute(teacher, digits, SHIFTED)
    assert outputs.views == 3
    images, views = torch.tensor([5, 150, 5, 358]), torch.tensor([0, 2, 1, 0])
    draws = outputs.draws(images, views)
    assert len(torch.unique(draws[:, 0])) == 4  # each image has views of its own
    assert draws.min() >= 0
    assert draws.max() < 1
    expected = []
    for index, (image, view) in enumerate(zip(images.tolist(), views.tolist(), strict=True)):
        first = image // 100 * 100
        batch = torch.arange(first, min(first + 100, len(digits)))
        numbers = outputs.draws(batch, torch.full_like(batch, view))
        assert torch.equal(numbers[image - first], draws[index])
        # The regions are drawn anew for each batch of a view.
        torch.manual_seed(view)
        for earlier in range(0, first, 100):
            probabilities(teacher, digits.batch(torch.arange(earlier, earlier + 100)), distillation.PASSES)
        varied, _ = augment(digits.batch(batch), digits.labels[batch], SHIFTED, 10, numbers)
        expected.append(probabilities(teacher, varied, distillation.PASSES)[image - first].log())
    torch.testing.assert_close(outputs.logits(images, views), torch.stack(expected), atol=5e-3, rtol=2e-3)


def test_outputs_are_computed_once_and_an_interruption_costs_one_view(
    teacher: HybridMobileNet, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "VIEWS", 4)
    digits = load_data("digits", image_size=8, channels=1).test
    calls: list[tuple[str, int, int]] = []

    def interrupt(what: str, done: int, total: int) -> None:
        calls.append((what, done, total))
        if done > 2 * len(digits):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TeacherOutputs.compute(teacher, digits, SHIFTED, interrupt)
    assert len(list(own_cache.rglob("*.safetensors"))) == 2
    damaged = next(own_cache.rglob("01.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-7])
    calls.clear()
    whole = TeacherOutputs.compute(teacher, digits, SHIFTED, lambda *call: calls.append(call))
    assert {(done - 1) // len(digits) for _, done, _ in calls} == {1, 2, 3}
    assert calls[-1] == ("computing the teacher's outputs for", 4 * len(digits), 4 * len(digits))
    calls.clear()
    again = TeacherOutputs.compute(teacher, digits, SHIFTED, lambda *call: calls.append(call))
    assert calls == []
    everything = torch.arange(len(digits))
    for view in range(4):
        views = torch.full_like(everything, view)
        assert torch.equal(again.logits(everything, views), whole.logits(everything, views))
    # Everything that they depend on counts.
    monkeypatch.setattr(distillation, "VIEWS", 1)
    for other, images, augmentation in (
        (HybridMobileNet("fmp", alpha=0.25, delta=1, classes=10, in_channels=1, image_size=8), digits, SHIFTED),
        (teacher, load_data("digits", image_size=8, channels=1).train, SHIFTED),
        (teacher, digits, Augmentation()),
    ):
        calls.clear()
        TeacherOutputs.compute(other, images, augmentation, lambda *call: calls.append(call))
        assert calls


def test_a_teacher_trained_with_fixed_regions_keeps_them(teacher: HybridMobileNet) -> None:
    digits = load_data("digits", image_size=8, channels=1).test
    everything = torch.arange(len(digits))
    fixed = HybridMobileNet(**teacher.network.choices()).eval()
    fixed.load_state_dict(teacher.state_dict())
    fixed.training_record = {"recipe": {"epochs": 10, "fixed_epochs": 10}}
    logits = TeacherOutputs.compute(fixed, digits, Augmentation()).logits(everything, torch.zeros_like(everything))
    expected = probabilities(fixed, digits.batch(everything))
    torch.testing.assert_close(logits.softmax(1), expected, atol=2e-3, rtol=1e-2)


def test_classes_in_another_order(teacher: HybridMobileNet) -> None:
    digits = load_data("digits", image_size=8, channels=1).test
    names = tuple(reversed(digits.class_names))
    everything = torch.arange(len(digits))
    one = TeacherOutputs.compute(teacher, digits, Augmentation()).logits(everything, torch.zeros_like(everything))
    other = TeacherOutputs.compute(teacher, digits.with_classes(names), Augmentation())
    assert torch.equal(other.logits(everything, torch.zeros_like(everything)), one.flip(1))


# Runs


RECIPE = Recipe(epochs=10, fixed_epochs=10, batch_size=64, augmentation=Augmentation(shift=0.125))
SETUP = Setup("digits", "fmp", alpha=0.25, delta=1, image_size=(8, 8), channels=1, recipe=RECIPE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    train(SETUP, folder, device="cpu")
    return folder


def test_a_student_learns_from_its_teacher_alone(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any weight of the labels, a student agrees with a teacher that it never saw otherwise."""
    monkeypatch.setattr(distillation, "LABEL_WEIGHT", 0.0)
    monkeypatch.setattr(distillation, "VIEWS", 4)
    train(replace(SETUP, teacher=str(run), seed=1), tmp_path / "student", device="cpu")
    record = json.loads((tmp_path / "student/config.json").read_text())["training"]
    assert record["teacher"] == str(run)
    assert len(record["teacher_fingerprint"]) == 64
    student, teacher = (HybridMobileNet.from_pretrained(folder) for folder in (tmp_path / "student", run))
    test = load_data("digits", image_size=8, channels=1).test
    images = test.batch(torch.arange(len(test)))
    agreement = (student(images).argmax(1) == teacher(images).argmax(1)).float().mean()
    assert agreement > 0.4  # chance is 0.1


def test_default_recipe_of_a_student_has_fixed_regions() -> None:
    digits = load_data("digits", image_size=8, channels=1).train
    assert Setup("digits").chosen_recipe(digits).fixed_epochs == 5
    assert Setup("digits", teacher="runs/large").chosen_recipe(digits).fixed_epochs == 25
    assert Setup("digits", "mp3", teacher="runs/large").chosen_recipe(digits).fixed_epochs == 0


def test_what_a_teacher_must_be(run: Path, tmp_path: Path) -> None:
    size = replace(SETUP, teacher=str(run), image_size=(9, 9))
    with pytest.raises(ValueError, match=r"teacher is .*, with image size \(8, 8\), but this run has"):
        train(size, tmp_path / "a", device="cpu")
    combined = replace(SETUP, teacher=str(run), recipe=replace(RECIPE, augmentation=Augmentation(combined=0.5)))
    with pytest.raises(ValueError, match=r"combined is 0.5, but must be 0 with a teacher"):
        train(combined, tmp_path / "a", device="cpu")
    with pytest.raises(ValueError, match=r"there is no split.json in"):
        train(replace(SETUP, teacher=str(tmp_path)), tmp_path / "a", device="cpu")
    assert not (tmp_path / "a").exists()


def test_the_command_line(tmp_path: Path, own_cache: Path) -> None:
    """What the teacher held out of a folder stays held out."""
    photos = image_folder(tmp_path / "photos", {"a": 20, "b": 20, "c": 20}, size=8)
    options = ["--image-size", "8", "--delta", "1", "--epochs", "2", "--batch-size", "16"]

    def command(*arguments: str | Path) -> None:
        result = invoke("train", *arguments)
        assert result.exit_code == 0, result.stderr

    command(photos, *options, "--out", tmp_path / "teacher")
    command(photos, *options, "--teacher", tmp_path / "teacher", "--out", tmp_path / "student")
    split, student = (json.loads((tmp_path / run / "split.json").read_text()) for run in ("teacher", "student"))
    assert split == student
    assert own_cache.is_dir()
    other = image_folder(tmp_path / "other", {"a": 9, "b": 9}, size=8, seed=5)
    result = invoke("train", other, *options, "--teacher", tmp_path / "teacher", "--out", tmp_path / "no")
    fails(result, "teacher is", "with classes ['a', 'b', 'c'], but this run has ['a', 'b']")
