"""Runs that continue a finished run: what they take from it, and that its test images stay held out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_mobilenet.data.held_out import RunImages
from hybrid_mobilenet.data.images import DataError
from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.network.model import HybridMobileNet, ModelError
from hybrid_mobilenet.training.evaluate import evaluate
from hybrid_mobilenet.training.fit import Training
from hybrid_mobilenet.training.run import resume, train
from hybrid_mobilenet.training.setup import Setup
from hybrid_mobilenet.training.start import continue_from
from noise_images import image_folder
from runs import RECIPE, SMALL, STEPS, Killed, Quiet, before_step, kill, refuses, stopped, weights

LOW = replace(RECIPE, epochs=2, learning_rate=1e-4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(replace(SMALL, seed=3, recipe=replace(RECIPE, balance="sampling")), out, Quiet())
    return out


def test_a_run_goes_on_with_its_weights_settings_and_images(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = continue_from(finished)
    digits = tuple("0123456789")
    expected = replace(SMALL, seed=3, recipe=replace(RECIPE, balance="sampling"))
    assert setup == replace(expected, start=str(finished), class_names=digits)
    first: dict[str, torch.Tensor] = {}

    def look(taken: int, model: HybridMobileNet, _optimizer: object) -> None:
        if taken == 0:
            first.update({name: tensor.clone() for name, tensor in model.state_dict().items()})

    before_step(monkeypatch, look)
    out = tmp_path / "more"
    train(replace(setup, recipe=LOW), out, monitor := Quiet())
    before = HybridMobileNet.from_pretrained(finished)
    assert first.keys() == before.state_dict().keys()
    for name, tensor in before.state_dict().items():
        assert torch.equal(first[name], tensor), name
    assert (out / "split.json").read_bytes() == (finished / "split.json").read_bytes()
    record = HybridMobileNet.from_pretrained(out).training_record
    assert (record["start"], record["recipe"]["learning_rate"]) == (str(finished), 1e-4)
    assert record["data_fingerprint"] == before.training_record["data_fingerprint"]
    assert monitor.warnings == []
    # The schedule starts anew.
    assert [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    # It can be continued in turn.
    assert continue_from(out).start == str(out)


def test_a_continuation_resumes_byte_for_byte(finished: Path, tmp_path: Path) -> None:
    start = Path(shutil.copytree(finished, tmp_path / "start"))
    setup = replace(continue_from(start), recipe=LOW)
    train(setup, tmp_path / "whole", Quiet())
    out = stopped(tmp_path / "run", STEPS + 1, kill, Killed, setup)
    shutil.rmtree(start)  # no longer needed
    resume(out, Quiet())
    assert weights(out) == weights(tmp_path / "whole")
    assert (out / "split.json").read_bytes() == (tmp_path / "whole/split.json").read_bytes()


def test_an_exported_file_is_not_a_run(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "export").mkdir()
    file = run / "export/model.onnx"
    file.write_bytes(b"")
    refuses(ValueError, lambda: continue_from(file), str(file), "is an exported file", f"give its run, {run}")


def test_only_a_finished_run_is_continued(finished: Path, tmp_path: Path) -> None:
    out = stopped(tmp_path / "run", STEPS, kill, Killed)
    refuses(ValueError, lambda: continue_from(out), str(out), "not finished", f"train --resume {out}")
    refuses(ModelError, lambda: continue_from(tmp_path / "nowhere"), "nowhere", "finished training run")
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    for training in ({}, {**config["training"], "recipe": {"lr": 1}}):
        (other / "config.json").write_text(json.dumps({**config, "training": training}))
        refuses(ValueError, lambda: continue_from(other), str(other), "config.json")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"alpha": 0.5}, ("alpha is 0.5", "0.25 in the network of")),
        ({"family": "mp3"}, ("family is 'mp3'", "'fmp'")),
        ({"image_size": (8, 16)}, ("image_size is (8, 16)", "(8, 8)")),
        ({"channels": 3}, ("in_channels is 3", "1 in")),
        ({"recipe": replace(LOW, activation="relu6")}, ("activation is 'relu6'", "'relu'")),
        ({"recipe": replace(LOW, overlapping=True)}, ("overlapping is True",)),
    ],
)
def test_another_network_is_refused(
    change: dict[str, object], parts: tuple[str, ...], finished: Path, tmp_path: Path
) -> None:
    setup: Setup = replace(continue_from(finished), **change)  # type: ignore[arg-type]
    refuses(ValueError, lambda: train(setup, tmp_path / "run", Quiet()), *parts, "leave it out")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of two classes, and a run on it."""
    root = tmp_path_factory.mktemp("photos")
    folder = image_folder(root / "photos", {"a": 40, "b": 40}, size=8)
    setup = Setup(str(folder), "fmp", 0.25, 1, (8, 8), validation=0.1, recipe=replace(RECIPE, epochs=1))
    train(setup, root / "run", Quiet())
    return Path(folder), root / "run"


def test_other_data_has_the_same_classes_in_the_order_of_the_model(
    photos: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class of each image is found by name, also when resuming. The model has the order b, a."""
    _, run = photos
    model = HybridMobileNet.from_pretrained(run)
    shutil.copytree(run, tmp_path / "run")
    model.class_names = ("b", "a")
    record = model.training_record
    model.save_pretrained(tmp_path / "run")
    assert HybridMobileNet.from_pretrained(tmp_path / "run").training_record == record
    other = image_folder(tmp_path / "other", {"a": 30, "b": 20}, size=8, seed=5)
    setup = replace(continue_from(tmp_path / "run"), data=str(other), recipe=replace(LOW, batch_size=8))
    assert setup.class_names == ("b", "a")
    seen: list[Training] = []
    train_one_epoch = Training.train_one_epoch

    def watched(training: Training, after_step: Callable[[], None]) -> dict[str, Any]:
        seen.append(training)
        return train_one_epoch(training, after_step)

    monkeypatch.setattr(Training, "train_one_epoch", watched)
    out = stopped(tmp_path / "more", 1, kill, Killed, setup)
    evaluation = resume(out, Quiet())
    names = load_data(str(other), image_size=8, validation=0.1).train
    for training in seen:
        assert training.dataset.class_names == ("b", "a")
        assert training.dataset.labels.tolist() == (1 - names.labels).tolist()
    earlier, both = RunImages.read(run), RunImages.read(out)  # of the run and of its continuation
    assert earlier is not None
    assert both is not None
    assert set(earlier.train) < set(both.train)
    assert set(earlier.held_out) < set(both.held_out)
    assert set(names.contents()) < set(both.train)
    trained = HybridMobileNet.from_pretrained(out)
    assert trained.class_names == evaluation.class_names == ("b", "a")
    test = load_data(str(other), image_size=8).test
    assert evaluate(trained, test).confusion == evaluation.confusion

    third = image_folder(tmp_path / "third", {"a": 5, "b": 5, "c": 5}, size=8, seed=6)
    wrong = replace(setup, data=str(third))
    refuses(
        DataError, lambda: train(wrong, tmp_path / "wrong", Quiet()), "only in the data: c", "only in the model: none"
    )


def test_images_held_out_stay_held_out(photos: tuple[Path, Path], tmp_path: Path) -> None:
    """The data has test images of its own now, and the test images of the run are among its training images."""
    folder, run = photos
    data = Path(shutil.copytree(folder, tmp_path / "data" / "train")).parent
    image_folder(data / "test", {"a": 5, "b": 5}, size=8, seed=9)
    held_out = len(RunImages.read(run).held_out)  # type: ignore[union-attr]
    setup = replace(continue_from(run), data=str(data), validation=0)
    what = f"{held_out} of the training images were held out for testing by {run}"
    refuses(DataError, lambda: train(setup, tmp_path / "more", Quiet()), what, "must stay held out")
    in_validation = replace(setup, validation=0.5)
    refuses(DataError, lambda: train(in_validation, tmp_path / "more", Quiet()), "were held out for testing")
    assert not (tmp_path / "more").exists()


def test_images_that_are_added_leave_the_split_as_it_was(photos: tuple[Path, Path], tmp_path: Path) -> None:
    folder, run = photos
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    added = image_folder(tmp_path / "added", {"a": 40, "b": 40}, size=8, seed=9)
    for file in Path(added).glob("*/*"):
        file.rename(data / file.parent.name / f"new-{file.name}")
    train(replace(continue_from(run), data=str(data), recipe=LOW), tmp_path / "more", monitor := Quiet())
    before, after = RunImages.read(run), RunImages.read(tmp_path / "more")
    assert before is not None
    assert after is not None
    assert set(before.held_out) < set(after.held_out)
    assert set(before.train) < set(after.train)
    assert monitor.warnings == []


def test_test_and_validation_images_that_were_trained_on_are_named(photos: tuple[Path, Path], tmp_path: Path) -> None:
    folder, run = photos
    used = RunImages.read(run)
    assert used is not None
    everything = load_data(str(folder), image_size=8)
    image_folder(tmp_path / "data" / "train", {"a": 8, "b": 8}, size=8, seed=9)
    shutil.copytree(folder, tmp_path / "data" / "test")
    setup = replace(continue_from(run), data=str(tmp_path / "data"), recipe=replace(LOW, batch_size=4))
    train(setup, tmp_path / "test", monitor := Quiet())
    (warning,) = monitor.warnings
    assert f"was trained on {len(everything.train)} of the 80 test images" in warning

    train(replace(continue_from(run), seed=1), tmp_path / "validation", monitor := Quiet())
    (warning,) = monitor.warnings
    assert "validation images" in warning


def test_a_run_that_does_not_say_what_it_held_out(photos: tuple[Path, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(photos[1], tmp_path / "run"))
    (run / "split.json").unlink()
    refuses(DataError, lambda: train(continue_from(run), tmp_path / "more", Quiet()), "no split.json", str(run))


# Fine-tuning


def test_fine_tuning_keeps_the_features_and_the_normalisation(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digits are other classes, of another size."""
    before = HybridMobileNet.from_pretrained(finished).state_dict()
    folder = image_folder(tmp_path / "three", {"a": 12, "b": 12, "c": 12}, size=8)
    seen: dict[int, dict[str, torch.Tensor]] = {}
    rates: list[tuple[float, float]] = []

    def look(taken: int, model: HybridMobileNet, optimizer: torch.optim.Optimizer) -> None:
        seen[taken] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        groups = optimizer.param_groups
        rates.append((groups[0]["lr"], groups[-1]["lr"]))

    before_step(monkeypatch, look)
    setup = Setup(str(folder), "fmp", 0.25, 1, (10, 10), 1, start=str(finished))
    chosen = setup.chosen_recipe(load_data(str(folder), channels=1).train)
    assert (chosen.head_factor, chosen.frozen) == (10, 0.1)
    recipe = replace(chosen, epochs=2, fixed_epochs=2, batch_size=8, least_steps=20, schedule="constant", warm_up=0.0)
    train(replace(setup, recipe=recipe), tmp_path / "tuned", Quiet())
    model = HybridMobileNet.from_pretrained(tmp_path / "tuned")
    assert model.class_names == ("a", "b", "c")
    assert model.network.image_size == (10, 10)
    parameters = {name for name, _ in model.named_parameters()}
    assert len(rates) == 20
    for taken, state in seen.items():
        for name, tensor in state.items():
            if name in ("mean", "std"):
                assert torch.equal(tensor, before[name])
            elif name in parameters and not name.startswith("classifier"):
                assert torch.equal(tensor, before[name]) == (taken <= 2), (name, taken)
    assert [rate for rate, _ in rates[:3]] == [0, 0, recipe.learning_rate]
    assert [rate for _, rate in rates] == pytest.approx([10 * recipe.learning_rate] * 20)
    assert not torch.equal(seen[1]["classifier.linear.weight"], seen[0]["classifier.linear.weight"])


def test_fine_tuning_resumes_byte_for_byte(finished: Path, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "three", {"a": 12, "b": 12, "c": 12}, size=8)
    recipe = replace(RECIPE, epochs=2, batch_size=8, head_factor=10, frozen=0.1)
    setup = Setup(str(folder), "fmp", 0.25, 1, (8, 8), 1, start=str(finished), recipe=recipe)
    train(setup, tmp_path / "whole", Quiet())
    out = stopped(tmp_path / "run", 2, kill, Killed, setup)
    resume(out, Quiet())
    assert weights(out) == weights(tmp_path / "whole")


def test_the_same_classes_keep_their_classifier(
    photos: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = photos
    model = HybridMobileNet.from_pretrained(run)
    reversed_run = tmp_path / "reversed"
    model.reset_classifier(2, ["b", "a"])
    model.save_pretrained(reversed_run)
    shutil.copy(run / "split.json", reversed_run)
    first: dict[str, torch.Tensor] = {}

    def look(taken: int, model: HybridMobileNet, _optimizer: object) -> None:
        if taken == 0:
            first.update({name: tensor.clone() for name, tensor in model.state_dict().items()})

    before_step(monkeypatch, look)
    setup = Setup(str(folder), "fmp", 0.25, 1, (8, 8), start=str(reversed_run), recipe=replace(RECIPE, epochs=1))
    train(setup, tmp_path / "tuned", Quiet())
    assert HybridMobileNet.from_pretrained(tmp_path / "tuned").class_names == ("b", "a")
    assert torch.equal(first["classifier.linear.weight"], model.state_dict()["classifier.linear.weight"])
