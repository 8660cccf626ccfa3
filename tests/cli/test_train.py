"""`train` from the command line: what it prints, and how it fails."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from command_line import NETWORK, fails, invoke
from hybrid_mobilenet.cli import train as command
from hybrid_mobilenet.cli.display import RunDisplay
from hybrid_mobilenet.study.selection import Budget, best_networks
from hybrid_mobilenet.training import recipe as recipe_module
from hybrid_mobilenet.training import run as training
from hybrid_mobilenet.training import setup as training_setup
from hybrid_mobilenet.training.evaluate import Evaluation
from hybrid_mobilenet.training.recipe import AUGMENTATIONS, PAPER_RECIPES, Augmentation, Recipe
from hybrid_mobilenet.training.setup import Setup
from processes import run_command, start_command


def test_train_prints_epochs_and_result(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, result = trained
    assert result.returncode == 0
    first, second = result.stdout.splitlines()
    assert re.fullmatch(r"\d+\.\d\d% of 359 test images classified correctly after the last epoch", first)
    assert second == "model, curves and evaluation in runs/digits-fmp-d1-a0.25-s0"
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    pattern = r"epoch (\d)/3  loss \d\.\d{4}  accuracy [\d.]+%  validation [\d.]+%  [\d,]+ images/s"
    epochs = [match[1] for line in lines if (match := re.fullmatch(pattern, line))]
    assert epochs == ["1", "2", "3"]
    assert "\x1b" not in result.stdout + result.stderr
    assert first.startswith(f"{json.loads((folder / 'evaluation.json').read_text())['accuracy']:.2%} of")


def test_train_json_is_all_that_is_printed(tmp_path: Path) -> None:
    result = invoke("train", "digits", *NETWORK, "--epochs", "1", "--out", tmp_path / "run", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    record = json.loads(result.stdout)
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert record == {
        "run": str(tmp_path / "run"),
        "accuracy": evaluation["accuracy"],
        "balanced_accuracy": evaluation["balanced_accuracy"],
        "images": 359,
        "notes": [],
        "warnings": [],
    }


@pytest.mark.slow
def test_every_option_reaches_the_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "epochs": 2, "batch-size": 500, "learning-rate": 0.01, "weight-decay": 0.1, "activation": "relu6",
        "sequence": "pseudorandom", "fixed-epochs": 1, "validation": 0.2, "seed": 3, "optimizer": "sgd",
        "warm-up": 0.1, "label-smoothing": 0.2, "balance": "sampling", "patience": 5, "keep": "best",
    }  # fmt: skip
    given = [text for name, value in options.items() for text in (f"--{name}", value)]
    network = ["--family", "fmp", "--alpha", "0.5", "--delta", "2", "--image-size", "8x12", "--in-channels", "3"]
    out = tmp_path / "run"
    result = invoke("train", "digits", *network, *map(str, given), "--overlapping", "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    config = json.loads((out / "config.json").read_text())
    record = config["training"] | config["training"]["recipe"]
    assert {name: record[name.replace("-", "_")] for name in options} == options
    assert (config["alpha"], config["delta"], config["image_size"], config["in_channels"]) == (0.5, 2, [8, 12], 3)
    assert (config["activation"], config["sequence"], config["overlapping"]) == ("relu6", "pseudorandom", True)


def test_fewer_epochs_have_fewer_with_fixed_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(PAPER_RECIPES["fmp"], epochs=30, fixed_epochs=15, batch_size=500)
    monkeypatch.setattr(recipe_module, "PAPER_RECIPES", {**PAPER_RECIPES, "fmp": recipe})
    network = ["--alpha", "0.25", "--delta", "1", "--image-size", "8", "--in-channels", "1"]
    result = invoke("train", "digits", *network, "--epochs", "2", "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.stderr
    trained = json.loads((tmp_path / "run/config.json").read_text())["training"]["recipe"]
    assert trained == asdict(replace(recipe, epochs=2, fixed_epochs=1))


def test_what_is_not_given_comes_from_the_family_s_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = {
        family: replace(recipe.with_epochs(1), batch_size=500, learning_rate=0.001 * (1 + index))
        for index, (family, recipe) in enumerate(PAPER_RECIPES.items())
    }
    monkeypatch.setattr(recipe_module, "PAPER_RECIPES", recipes)
    monkeypatch.setattr(training_setup, "LEAST_STEPS", 3)
    for family in ("mp3", "fmp"):
        network = ["--family", family, "--alpha", "0.25", "--delta", "1", "--image-size", "8", "--in-channels", "1"]
        out = tmp_path / family
        result = invoke("train", "digits", *network, "--fixed-epochs", "1", "--out", out, "--json")
        assert result.exit_code == 0, result.stderr
        recipe = json.loads((out / "config.json").read_text())["training"]["recipe"]
        assert recipe == asdict(replace(recipes[family], fixed_epochs=1, least_steps=3))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), replace(AUGMENTATIONS["medium"], flips="none")),  # the classes are 0 and 1
        (("--augmentation", "none"), Augmentation()),
        (("--augmentation", "light", "--flips", "both"), Augmentation(shift=0.125, flips="both")),
        (("--flips", "horizontal"), AUGMENTATIONS["medium"]),
    ],
)
def test_own_images_are_augmented(
    photos: Path, tmp_path: Path, options: tuple[str, ...], expected: Augmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network = ["--alpha", "0.25", "--delta", "1", "--image-size", "8", "--epochs", "1"]
    result = invoke("train", photos, *network, *options, "--out", "run", "--json")
    assert result.exit_code == 0, result.stderr
    recipe = json.loads(Path("run/config.json").read_text())["training"]["recipe"]
    assert recipe["augmentation"] == asdict(expected)
    assert (recipe["epochs"], recipe["fixed_epochs"], recipe["least_steps"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("train takes DATA", "or --resume RUN", "or --from RUN")),
        (("digits", "--resume", "run"), ("train takes DATA", "or --resume RUN")),
        (("--from", "run", "--resume", "run"), ("train takes DATA", "or --resume RUN", "or --from RUN")),
        (("--from", "scratch"), ("train takes DATA",)),
        (("--from", "nowhere"), ("nowhere", "not a run folder", "give DATA")),
        (("digits", "--patience", "3", "--validation", "0"), ("patience is 3", "no validation images")),
        (
            ("digits", "--keep", "best", "--validation", "0"),
            ("keep is 'best'", "no validation images", "leave keep out"),
        ),
        (("digits", "--patience", "-1"), ("patience is -1",)),
        (("--resume", "run", "--log", "tensorboard", "--balance", "none"), ("leave out --balance, --log",)),
        (("--resume", "run", "--alpha", "0.25", "--epochs", "3"), ("leave out --alpha, --epochs",)),
        (("--resume", "nowhere"), ("no checkpoint.safetensors in nowhere",)),
        (("digits", "--alpha", "0.3"), ("alpha is 0.3", "choose a multiple of 1/32")),
        (("digits", "--delta", "0"), ("delta is 0",)),
        (("digits", "--image-size", "7"), ("image_size is 7x7", "must be 8 or more")),
        (("digits", "--image-size", "x"), ("--image-size is 'x'",)),
        (("digits", "--in-channels", "2"), ("2", "channels")),
        (("digits", "--epochs", "0"), ("epochs is 0",)),
        (("digits", "--batch-size", "1"), ("batch_size is 1",)),
        (("digits", "--learning-rate", "0"), ("learning_rate is 0",)),
        (("digits", "--weight-decay", "-1"), ("weight_decay is -1",)),
        (("digits", "--validation", "1"), ("validation is 1",)),
        (("digits", "--augmentation", "much"), ("--augmentation is 'much'", "none, light, medium, strong")),
        (("digits", "--fixed-epochs", "99", "--epochs", "9"), ("fixed_epochs is 99",)),
        (("digits", "--seed", "-1"), ("seed is -1", "0 or more and less than 2**64")),
        (("digits", "--seed", "18446744073709551616"), ("seed is 18446744073709551616", "less than 2**64")),
        (("digit",), ("there is no data 'digit'", "did you mean 'digits'?")),
        (("digits", "--budget", "lots"), ("--budget is 'lots'", "9.6M")),
        (("digits", "--budget", "1k"), ("1,000 Mult-Adds", "32x32 pixels and 10 classes", "the closest is MobileNet")),
        (
            ("digits", "--budget", "10M", "--family", "fmp"),
            (
                "--budget 10M",
                "so does --family: leave one",
            ),
        ),
        (
            ("digits", "--budget", "10M", "--alpha", "1"),
            (
                "--budget 10M",
                "so does --alpha: leave one",
            ),
        ),
        (
            ("digits", "--budget", "10M", "--delta", "1"),
            (
                "--budget 10M",
                "so does --delta: leave one",
            ),
        ),
        (
            ("digits", "--budget", "10M", "--from", "run"),
            (
                "--budget 10M",
                "so does --from: leave one",
            ),
        ),
        (
            ("--resume", "run", "--budget", "10M"),
            (
                "--budget 10M",
                "so does --resume: leave one",
            ),
        ),
        (("digit", "--budget", "10M"), ("there is no data 'digit'", "did you mean 'digits'?")),
    ],
    ids=" ".join,
)
def test_train_refuses(
    arguments: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(invoke("train", *arguments), *parts)
    assert list(tmp_path.iterdir()) == []


def test_a_budget_chooses_the_network(photos: Path) -> None:
    """Its Mult-Adds are those of the run: here for small grey images of two classes."""
    limits: dict[str, Any] = {"classes": 2, "in_channels": 1, "image_size": (16, 16)}
    every = best_networks(Budget(), "cifar10", **limits)
    limit = sorted(each.mult_adds for each in every)[len(every) // 2]
    best, *_ = best_networks(Budget(limit), **limits)
    options = ["--image-size", "16", "--in-channels", "1", "--epochs", "1"]
    arguments = ["train", "photos", "--budget", str(limit), *options, "--out", "run", "--json"]
    result = run_command(*arguments, cwd=photos.parent)
    assert (result.returncode, result.stderr) == (0, "")
    note = json.loads(result.stdout)["notes"][0]
    assert note.startswith(f"chosen within {limit:,} Mult-Adds: {best.name} (--family {best.network.family} --alpha ")
    assert f", with {best.mult_adds:,} for images of 16x16 pixels and 2 classes; its recorded accuracy" in note
    assert re.search(rf" on CIFAR-100? is {best.recorded.accuracy:.2%} \(\d seed", note)
    config = json.loads((photos.parent / "run/config.json").read_text())
    assert [config["training"][name] for name in ("family", "delta", "alpha")] == [*best.recorded.configuration]
    assert "budget" not in config["training"]


def test_a_budget_names_the_run_folder_after_the_network(tmp_path: Path) -> None:
    options = ["--image-size", "8", "--in-channels", "1", "--epochs", "1"]
    result = run_command("train", "digits", "--budget", "500k", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "chosen within 500,000 Mult-Adds: " in result.stderr.splitlines()[0]
    (run,) = (tmp_path / "runs").iterdir()
    best, *_ = best_networks(Budget(500e3), classes=10, in_channels=1, image_size=(8, 8))
    network = best.network
    assert run.name == f"digits-{network.family}-d{network.delta}-a{network.alpha:g}-s0"


def test_train_does_not_overwrite_a_run(model: Path) -> None:
    before = (model / "model.safetensors").read_bytes()
    fails(invoke("train", "digits", *NETWORK, "--out", model), str(model), "exists already", "--out", "--resume")
    fails(invoke("train", "--resume", model), "is finished")
    assert (model / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_mistakes_in_the_shell_leave_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run_command("train", "digits", *NETWORK, "--epochs", "1", "--out", tmp_path / "file" / "run")
    fails(result, f"out is '{tmp_path / 'file' / 'run'}'", "Not a directory", "choose another with --out")
    result = run_command("train", "digits", "--family", "vgg")
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


def test_train_from_a_run(model: Path, tmp_path: Path) -> None:
    run = shutil.copytree(model, tmp_path / "digits")
    settings = ["--epochs", "1", "--learning-rate", "0.001", "--alpha", "0.25"]
    result = invoke("train", "--from", run, *settings)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1].endswith("digits-continued")
    before, after = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("digits", "digits-continued")
    )
    expected = before["training"]["recipe"] | {"epochs": 1, "learning_rate": 0.001, "fixed_epochs": 0}
    assert after["training"]["recipe"] == expected
    for name in ("data", "seed", "validation", "image_size", "channels", "data_fingerprint"):
        assert after["training"][name] == before["training"][name]
    assert after["training"]["start"] == str(tmp_path / "digits")
    fails(invoke("train", "--from", run), "digits-continued", "exists already", "--out")
    for option, value, part in (("--in-channels", "3", "in_channels is 3"), ("--image-size", "16", "(16, 16)")):
        out = tmp_path / "other"
        fails(invoke("train", "--from", run, option, value, "--out", out), part, "leave it out")
        assert not out.exists()


def test_train_from_a_run_on_other_classes(model: Path, photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The run has the classes 0 to 9, the photos 0 and 1."""
    monkeypatch.chdir(tmp_path)
    result = invoke("train", photos, "--from", model, "--epochs", "1", "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    before, after = (json.loads((Path(run) / "config.json").read_text()) for run in (model, printed["run"]))
    assert Path(printed["run"]).parent == Path("runs")
    for name in ("family", "alpha", "delta", "in_channels", "image_size"):
        assert after[name] == before[name]
    assert after["class_names"] == ["0", "1"]
    assert after["training"]["start"] == str(model)
    assert after["training"]["recipe"]["head_factor"] == 10
    scratch = invoke("train", photos, "--from", "scratch", *NETWORK, "--epochs", "1", "--out", "scratch", "--json")
    assert scratch.exit_code == 0, scratch.stderr
    recipe = json.loads(Path("scratch/config.json").read_text())["training"]["recipe"]
    assert recipe["head_factor"] == 1


def test_epochs_of_a_continuation_are_passes(photos: Path, tmp_path: Path) -> None:
    """Its run was trained for more steps than an epoch has, for lack of images."""
    recipe = Recipe(epochs=2, batch_size=32, least_steps=20)
    run = tmp_path / "run"
    training.train(Setup(str(photos), "mp3", 0.25, 1, (8, 8), 1, recipe=recipe), run)
    for options, epochs, steps in ((("--epochs", "1"), 1, 0), ((), 2, 20)):
        out = tmp_path / f"{epochs}"
        result = invoke("train", "--from", run, *options, "--out", out, "--json")
        assert result.exit_code == 0, result.stderr
        settings = json.loads((out / "config.json").read_text())["training"]["recipe"]
        assert (settings["epochs"], settings["least_steps"]) == (epochs, steps)


def test_the_result_says_which_weights_and_how_balanced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    evaluation = Evaluation(("a", "b"), ((95, 0), (5, 0)), 0.2, 1)
    command.print_result(evaluation, tmp_path, RunDisplay(shown=False), as_json=False)
    (line, _) = capsys.readouterr().out.splitlines()
    expected = "95.00% of 100 test images classified correctly after {}, balanced accuracy 50.00%"
    assert line == expected.format("the last epoch")
    command.print_result(replace(evaluation, epoch=7), tmp_path, RunDisplay(shown=False), as_json=False)
    assert capsys.readouterr().out.startswith(expected.format("epoch 7, the best in validation"))
    command.print_result(replace(evaluation, epoch=7), tmp_path, RunDisplay(shown=False), as_json=True)
    assert json.loads(capsys.readouterr().out)["epoch"] == 7


@pytest.mark.slow
def test_a_run_resumes_from_another_folder(photos: Path, tmp_path: Path) -> None:
    network = (*NETWORK, "--epochs", "8", "--batch-size", "16")
    process = start_command("train", "photos", *network, "--out", "a [run]", cwd=photos.parent)
    assert process.stderr
    with process:
        assert process.stderr.readline().startswith("epoch 1/8")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().splitlines()[-1].endswith("train --resume 'a [run]'")  # to be pasted into a shell
    assert process.returncode == 130
    run = photos.parent / "a [run]"
    result = run_command("train", "--resume", run, cwd=tmp_path / "elsewhere")
    assert result.returncode == 0, result.stderr
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 8
    assert json.loads((run / "evaluation.json").read_text())["images"] == 56


def test_names_of_data_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybrid_mobilenet.data.sources import whole_name

    monkeypatch.chdir(tmp_path)
    for name in ("digits", "cifar10", "cifar100", "owner/name", "nothing", ""):
        assert whole_name(name) == name
    for folder in ("digits", "photos", "owner2/name"):  # a folder called as data of the package is not meant
        (tmp_path / folder).mkdir(parents=True)
    assert whole_name("digits") == "digits"
    assert whole_name("photos") == str(tmp_path / "photos")
    assert whole_name("owner2/name") == str(tmp_path / "owner2/name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert whole_name("~/photos") == str(tmp_path / "photos")
