"""Real processes that run the command line on images of three channels, killed by SIGKILL and gone on with."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.network.architecture import FAMILIES, Family
from hybrid_mobilenet.network.model import WEIGHTS_FILE
from hybrid_mobilenet.training.checkpoint import Progress, random_states, read_checkpoint, restore, save_checkpoint
from hybrid_mobilenet.training.recipe import PAPER
from hybrid_mobilenet.training.step import make_optimizer
from processes import run_python

#: The command line, saving after every step in place of every five minutes. Where given an epoch and a step, SIGKILL
#: ends it when it has taken that step and is about to save: what it saved last is the step before.
COMMAND_LINE = """
import os, signal, sys
import hybrid_mobilenet.training.run as training
from hybrid_mobilenet.cli.app import main

save, end = training.save_checkpoint, (int(sys.argv.pop(1)), int(sys.argv.pop(1)))

def save_or_die(out, record, progress, *state):
    if (progress.epoch, progress.step) == end:
        os.kill(os.getpid(), signal.SIGKILL)
    save(out, record, progress, *state)

training.save_checkpoint, training.SAVE_EVERY = save_or_die, 0.0
main()
"""
EPOCHS = 3
NEVER = (-1, -1)


def run(end: tuple[int, int], *arguments: str) -> int:
    """Start the command line in a process of its own; its exit status."""
    done = run_python("-c", COMMAND_LINE, *map(str, end), "train", *arguments)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def saved(out: Path) -> tuple[int, int]:
    """The epoch and step that a run goes on with."""
    _, progress, _ = read_checkpoint(out)
    return progress.epoch, progress.step


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_a_process_killed_within_an_epoch_and_between_epochs(family: Family, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = f"digits --family {family} --image-size 16 --epochs {EPOCHS} --seed 3 --batch-size 128".split()
    settings += (
        ["--augmentation", "strong", "--flips", "both", "--optimizer", "sgd", "--warm-up", "0.2", "--averaging", "0.9"]
        if family == "fmp"
        else []
    )
    assert run(NEVER, *settings, "--out", str(whole)) == 0
    assert run((1, 3), *settings, "--out", str(killed)) == -signal.SIGKILL
    assert saved(killed) == (1, 2)
    assert run((2, 1), "--resume", str(killed)) == -signal.SIGKILL
    assert saved(killed) == (2, 0)
    assert run(NEVER, "--resume", str(killed)) == 0
    assert len((killed / "metrics.jsonl").read_text().splitlines()) == EPOCHS
    assert (killed / WEIGHTS_FILE).read_bytes() == (whole / WEIGHTS_FILE).read_bytes()


@pytest.mark.slow
def test_the_best_weights_outlive_a_kill(tmp_path: Path) -> None:
    """The learning rate is so high that the first epoch is the best. The kills come after it."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    network = ["digits", "--family", "mp3", "--image-size", "8", "--batch-size", "256"]
    settings = [*network, "--learning-rate", "0.9", "--epochs", "6", "--patience", "2", "--keep", "best"]
    assert run(NEVER, *settings, "--out", str(whole)) == 0
    best = kept(whole)
    epochs = len((whole / "metrics.jsonl").read_text().splitlines())
    assert best + 2 == epochs < 6
    assert run((best, 2), *settings, "--out", str(killed)) == -signal.SIGKILL
    assert run((epochs - 1, 0), "--resume", str(killed)) == -signal.SIGKILL
    assert run(NEVER, "--resume", str(killed)) == 0
    assert (kept(killed), len((killed / "metrics.jsonl").read_text().splitlines())) == (best, epochs)
    assert (killed / WEIGHTS_FILE).read_bytes() == (whole / WEIGHTS_FILE).read_bytes()
    assert (killed / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()


def kept(run: Path) -> int:
    """The epoch whose weights a finished run kept, as its files say."""
    training = json.loads((run / "config.json").read_text())["training"]
    assert json.loads((run / "evaluation.json").read_text())["epoch"] == training["kept_epoch"]
    return int(training["kept_epoch"])


def test_a_process_killed_while_it_saved_for_the_first_time(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".checkpoint.safetensors.0123abcd.tmp").write_bytes(b"")  # what it leaves
    settings = f"digits --family mp3 --image-size 8 --epochs 1 --batch-size 500 --out {out}".split()
    done = CliRunner().invoke(cli.app, ["train", *settings])
    assert done.exit_code == 0, done.stderr
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("family", FAMILIES)
def test_restored_moments_have_the_layout_of_their_parameters(family: Family, tmp_path: Path) -> None:
    """Fused kernels walk parameters and moments as flat memory: in another layout they would be permuted."""
    torch.manual_seed(0)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        optimizer.zero_grad()
        torch.autograd.backward(model(images).square().sum())
        optimizer.step()

    def channels_last() -> HybridMobileNet:
        model = HybridMobileNet(family, 0.25, 2, 10, 3, 16, dropout=0.0)
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    model = channels_last()
    assert not model.get_parameter("features.conv.conv.weight").is_contiguous()
    optimizer = make_optimizer(model, PAPER)
    step(model, optimizer)
    save_checkpoint(tmp_path, {}, Progress(), model, optimizer, random_states(), {}, {})

    restored = channels_last()
    restored_optimizer = make_optimizer(restored, PAPER)
    restore(read_checkpoint(tmp_path)[2], restored, restored_optimizer)
    for parameter, its in zip(restored.parameters(), model.parameters(), strict=True):
        assert parameter.stride() == its.stride()
        moments = restored_optimizer.state[parameter]
        assert moments.keys() == {"step", "exp_avg", "exp_avg_sq"}
        for name in ("exp_avg", "exp_avg_sq"):
            assert moments[name].stride() == parameter.stride()
            assert moments[name].equal(optimizer.state[its][name])

    for each, its_optimizer in ((model, optimizer), (restored, restored_optimizer)):
        torch.manual_seed(1)  # the same pooling regions
        step(each, its_optimizer)
    for parameter, its in zip(restored.parameters(), model.parameters(), strict=True):
        assert parameter.equal(its)
