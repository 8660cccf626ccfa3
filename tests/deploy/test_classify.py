"""Classifying with a model from any source: `predict` gives what the model itself gives."""

from __future__ import annotations

import doctest
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import hybrid_mobilenet
from command_line import invoke
from hybrid_mobilenet import HybridMobileNet, predict
from hybrid_mobilenet.data.images import DataError, read_image
from hybrid_mobilenet.deploy import classify
from hybrid_mobilenet.deploy.classify import Prediction, evaluate_classifier, load_classifier
from hybrid_mobilenet.deploy.export import export
from hybrid_mobilenet.deploy.runtimes import FileClassifier, Outputs
from hybrid_mobilenet.training.evaluate import evaluate, probabilities
from networks import network
from processes import run_python

NAMES = ("cat", "dog", "owl")


@pytest.fixture
def model() -> HybridMobileNet:
    """In train mode, so that it would show if it were changed."""
    return network("fmp", classes=3, size=(16, 16), class_names=NAMES).train()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(("b.png", "a.png", "c.png")):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def expected(model: HybridMobileNet, file: Path) -> dict[str, float]:
    p = probabilities(model, read_image(file, (16, 16), 3)[None])[0].tolist()
    return dict(sorted(zip(NAMES, p, strict=True), key=lambda pair: -pair[1]))


def test_a_model_in_memory(model: HybridMobileNet, photos: Path) -> None:
    predictions = predict(model, photos)
    assert [each.file for each in predictions] == [photos / name for name in ("a.png", "b.png", "c.png")]
    for each in predictions:
        assert each.probabilities == pytest.approx(expected(model, each.file), abs=1e-5)  # of a batch: other rounding
        assert list(each.probabilities) == list(expected(model, each.file))  # most probable first
        assert each.class_name == next(iter(each.probabilities))
        assert sum(each.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert len({str(each.probabilities) for each in predictions}) == 3  # of different images
    assert model.training  # left in its mode


def test_files_as_they_are_given(model: HybridMobileNet, photos: Path) -> None:
    one = predict(model, str(photos / "c.png"))
    assert one == predict(model, photos / "c.png") == predict(model, [photos / "c.png"])
    files: list[str | Path] = [str(photos / "c.png"), photos / "a.png"]
    assert [str(each.file) for each in predict(model, files)] == [str(file) for file in files]
    assert predict(model, []) == []


def test_a_run_folder_and_an_exported_file(model: HybridMobileNet, photos: Path, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "run")
    export(model, "onnx", tmp_path)
    for source in (tmp_path / "run", str(tmp_path / "run"), tmp_path / "model.onnx"):
        for each in predict(source, photos, device="cpu"):
            assert each.probabilities == pytest.approx(expected(model, each.file), abs=1e-5)


def test_top(model: HybridMobileNet, photos: Path) -> None:
    everything = predict(model, photos)
    for top in (1, 2, 3, 99):
        for each, whole in zip(predict(model, photos, top=top), everything, strict=True):
            assert list(each.probabilities.items()) == list(whole.probabilities.items())[:top]


def test_passes_are_averaged(model: HybridMobileNet, photos: Path) -> None:
    torch.manual_seed(1)
    several = predict(model, photos / "a.png", passes=3)
    torch.manual_seed(1)
    image = read_image(photos / "a.png", (16, 16), 3)[None]
    p = dict(zip(NAMES, probabilities(model, image, 3)[0].tolist(), strict=True))
    assert several[0].probabilities == pytest.approx(p, abs=1e-5)  # in another memory format: other rounding
    assert several != predict(model, photos / "a.png")


def test_the_command_prints_what_the_function_returns(model: HybridMobileNet, photos: Path, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "run")
    printed = json.loads(invoke("predict", tmp_path / "run", photos, "--top", "2", "--json").stdout)
    assert printed == [each.record() for each in predict(tmp_path / "run", photos, top=2)]


def test_images_are_predicted_as_they_are_found_in_batches(
    model: HybridMobileNet, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(model, "onnx", tmp_path)
    classifier = load_classifier(tmp_path / "model.onnx")
    assert isinstance(classifier, FileClassifier)
    (photos / "b.png").write_bytes(b"")
    files = [photos / f"{name}.png" for name in "abc"] * 40
    found: list[Path] = []
    sizes: list[int] = []
    run = classifier.run

    def counted(images: NDArray[np.uint8]) -> Outputs:
        sizes.append(len(images))
        return run(images)

    monkeypatch.setattr(classifier, "run", counted)

    def finding() -> Iterator[Path]:
        for file in files:
            found.append(file)
            yield file

    results = classify.predictions(classifier, finding(), top=1)
    first = next(results)
    assert isinstance(first, Prediction)
    assert first.file == files[0]
    assert (len(found), sizes) == (classify.AHEAD + 1, [1])
    everything = [first, *results]
    # Of three images, the second is damaged.
    assert sizes == [1, 1, 3, 5, 11, 21, 21, 17]
    assert len(everything) == len(files)
    alone = {file: predict(tmp_path / "model.onnx", file, top=1)[0] for file in set(files) - {photos / "b.png"}}
    for file, result in zip(files, everything, strict=True):
        if isinstance(result, DataError):
            assert result.images == (str(file),) == (str(photos / "b.png"),)
        else:
            assert result.file == file
            assert result.probabilities == pytest.approx(alone[file].probabilities, abs=1e-6)


def test_random_regions_are_drawn_for_each_image(model: HybridMobileNet, photos: Path) -> None:
    torch.manual_seed(1)
    together = predict(model, photos, passes=2)
    torch.manual_seed(1)
    assert together == [predict(model, photos / name, passes=2)[0] for name in ("a.png", "b.png", "c.png")]


def test_patterns(model: HybridMobileNet, photos: Path) -> None:
    assert predict(model, photos / "[ac].png") == predict(model, [photos / "a.png", photos / "c.png"])
    with pytest.raises(DataError, match="matches no images"):
        predict(model, str(photos / "*.jpg"))


def test_what_cannot_be_predicted(model: HybridMobileNet, photos: Path, tmp_path: Path) -> None:
    (photos / "d.png").write_text("not an image")
    with pytest.raises(DataError, match=r"d\.png"):
        predict(model, photos)
    with pytest.raises(DataError, match=r"nothing\.png does not exist"):
        predict(model, tmp_path / "nothing.png")
    with pytest.raises(ValueError, match=r"^top is 0, but must be 1 or more$"):
        predict(model, photos / "a.png", top=0)
    with pytest.raises(ValueError, match=r"^passes is 0, but must be 1 or more"):
        predict(model, photos / "a.png", passes=0)
    with pytest.raises(ValueError, match=r"model is .*nothing"):
        predict(tmp_path / "nothing", photos / "a.png")
    with pytest.raises(ValueError, match=r"^device is 'cuda', but a model .* move the model with model.to\('cuda'\)$"):
        predict(model, photos / "a.png", device="cuda")


def test_evaluation_in_pytorch_and_in_a_runtime(model: HybridMobileNet, photos: Path, tmp_path: Path) -> None:
    from hybrid_mobilenet.data.held_out import load_to_evaluate

    for name in NAMES:
        (tmp_path / "data" / name).mkdir(parents=True)
        for file in photos.iterdir():
            (tmp_path / "data" / name / file.name).write_bytes(file.read_bytes())
    test = load_to_evaluate(str(tmp_path / "data"), None, NAMES, image_size=16, channels=3).images
    counted: list[int] = []
    in_pytorch = evaluate_classifier(model, test, 2, 7, counted.append)
    assert in_pytorch == evaluate(model, test, 2, 7)
    assert sum(counted) == len(test) == 9
    export(model, "onnx", tmp_path)
    in_runtime = evaluate_classifier(load_classifier(tmp_path / "model.onnx"), test)
    assert in_runtime.loss == pytest.approx(evaluate(model, test).loss, abs=1e-5)
    assert in_runtime.confusion == evaluate(model, test).confusion


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(classify)
    assert (results.failed, results.attempted) == (0, 6)


@pytest.mark.slow
def test_predict_is_a_name_of_the_package() -> None:
    assert "predict" in hybrid_mobilenet.__all__
    code = "import sys; import hybrid_mobilenet; assert 'torch' not in sys.modules; hybrid_mobilenet.predict"
    assert run_python("-c", code).stderr == ""
