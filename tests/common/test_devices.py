"""One rule says what every command computes on; a device that is not there is a mistake of one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.common.devices import choose_device
from hybrid_mobilenet.deploy import benchmark, classify
from hybrid_mobilenet.training.processes import Processes

COMMANDS = {
    "train": ("digits", "--epochs", "1"),
    "evaluate": ("RUN", "digits"),
    "predict": ("RUN", "image.png"),
    "benchmark": ("RUN",),
    "reproduce": ("--data", "digits"),
    "reproduce --dry-run": ("--data", "digits"),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    HybridMobileNet("fmp", 0.25, 1, 10, 1, (8, 8)).eval().save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int = 0, mps: bool = False) -> None:
    """A machine with so many GPUs, or Apple's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_what_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus, mps, expected in ((0, False, "cpu"), (1, False, "cuda:0"), (4, False, "cuda:0"), (0, True, "mps")):
        machine(monkeypatch, gpus, mps)
        assert choose_device() == Processes().device("auto") == torch.device(expected)


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpus=2)
    names = {"cpu": "cpu", "cuda": "cuda:0", "cuda:0": "cuda:0", "cuda:1": "cuda:1"}
    assert {name: str(choose_device(name)) for name in names} == names
    assert choose_device("cuda", processes=2).type == choose_device(processes=2).type == "cuda"
    assert choose_device("cpu", processes=2).type == "cpu"
    machine(monkeypatch, mps=True)
    assert choose_device("mps") == torch.device("mps")
    assert choose_device(processes=2) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "gpus", "processes", "parts"),
    [
        ("cuda", 0, 1, ("finds only cpu here", "leave it out, or give cpu")),
        ("mps", 1, 1, ("finds only cpu and cuda:0 here", "give cpu or cuda:0")),
        ("cuda:2", 2, 1, ("finds only cpu and cuda:0 and cuda:1 here",)),
        ("gpu", 1, 1, ("must be auto, cpu, cuda, mps",)),
        ("cuda:x", 1, 1, ("must be auto",)),
        ("", 1, 1, ("must be auto",)),
        ("cuda:1", 2, 2, ("each of 2 processes takes a GPU of its own", "give cuda or cpu")),
    ],
)
def test_devices_that_are_not(
    name: str, gpus: int, processes: int, parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpus)
    with pytest.raises(ValueError, match=rf"^--device is '{name}'") as error:
        choose_device(name, processes)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_device_that_is_not_there(
    command: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    arguments = [str(run) if each == "RUN" else each for each in COMMANDS[command]]
    result = CliRunner().invoke(cli.app, [*command.split(), *arguments, "--device", "cuda:1"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --device is 'cuda:1', but PyTorch finds only cpu here: leave it out")
    assert result.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_models_are_put_where_auto_is(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = torch.device("meta")  # stands for a GPU
    monkeypatch.setattr(classify, "choose_device", {"auto": there}.__getitem__)
    model = classify.load_classifier(str(run))
    assert isinstance(model, HybridMobileNet)
    assert {each.device for each in (*model.parameters(), *model.buffers())} == {there}
    classifier = benchmark.open_model(str(run), 1, there)
    assert isinstance(classifier, benchmark.TorchClassifier)
    assert classifier.model.mean.device == there
    assert benchmark.runtime_name(classifier) == "PyTorch on meta"
    assert benchmark.runtime_name(benchmark.open_model(str(run), 1, torch.device("cpu"))) == "PyTorch"


def test_an_exported_file_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpus=1)
    with pytest.raises(ValueError, match=r"^--device is 'cuda', but an exported file runs on the CPU: leave it out"):
        classify.load_classifier("model.onnx", device="cuda")


@pytest.mark.slow
def test_a_device_is_no_setting(tmp_path: Path) -> None:
    small = ["--family", "mobilenet", "--alpha", "0.25", "--delta", "1", "--image-size", "8", "--in-channels", "1"]
    out = tmp_path / "run"
    options = [*small, "--epochs", "1", "--device", "cpu", "--out", str(out)]
    result = CliRunner().invoke(cli.app, ["train", "digits", *options, "--json"])
    assert result.exit_code == 0, result.stderr
    record = json.loads((out / "config.json").read_text())["training"]
    assert record["device"] == "cpu"  # what it was, not what it must be
    assert "device" not in record["recipe"]
    evaluated = CliRunner().invoke(cli.app, ["evaluate", str(out), "digits", "--device", "cpu", "--json"])
    assert json.loads(evaluated.stdout)["correct"] == json.loads((out / "evaluation.json").read_text())["correct"]


def test_ray_gives_devices_itself() -> None:
    result = CliRunner().invoke(cli.app, ["reproduce", "--engine", "ray", "--device", "cpu"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--device is 'cpu', but with --engine ray, --gpus decides" in result.stderr
