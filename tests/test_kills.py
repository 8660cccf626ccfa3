"""Real processes that run the command line on images of three channels, killed by SIGKILL and gone on with."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from hybrid_mobilenet import HybridMobileNet, resolve
from hybrid_mobilenet.architecture import FAMILIES, Family
from hybrid_mobilenet.checkpoint import (
    CHECKPOINT_FILE,
    Progress,
    random_states,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from hybrid_mobilenet.model import WEIGHTS_FILE
from hybrid_mobilenet.recipe import PAPER
from hybrid_mobilenet.train import adam

#: The command line, saving after every step in place of every five minutes.
COMMAND_LINE = (
    "import hybrid_mobilenet.train as training; training.SAVE_EVERY = 0.0; "
    "from hybrid_mobilenet.cli import main; main()"
)
EPOCHS = 3


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND_LINE, "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(*arguments: str) -> None:
    process = start(*arguments)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr


def kill_when(process: subprocess.Popen[str], out: Path, epoch: int, step: int) -> Progress:
    """End a process by SIGKILL once its run has saved this step of this epoch, or a later one; what it saved last."""
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        if (out / CHECKPOINT_FILE).is_file():
            _, progress, _ = read_checkpoint(out)
            if (progress.epoch, progress.step) >= (epoch, step):
                break
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return read_checkpoint(out)[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_process_killed_within_an_epoch_and_between_epochs(family: Family, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = f"digits --family {family} --image-size 16 --epochs {EPOCHS} --seed 3 --batch-size 128".split()
    finish(*settings, "--out", str(whole))
    within = kill_when(start(*settings, "--out", str(killed)), killed, 1, 2)
    assert within.epoch >= 1
    assert within.step > 0
    between = kill_when(start("--resume", str(killed)), killed, 2, 0)
    assert between.epoch == 2
    finish("--resume", str(killed))
    assert (killed / WEIGHTS_FILE).read_bytes() == (whole / WEIGHTS_FILE).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_restored_moments_have_the_layout_of_their_parameters(family: Family, tmp_path: Path) -> None:
    """Fused kernels walk parameters and moments as flat memory: in another layout they would be permuted."""
    torch.manual_seed(0)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        optimizer.zero_grad()
        torch.autograd.backward(model(images).square().sum())
        optimizer.step()

    model = HybridMobileNet(resolve(family, 0.25, 2, 10, 3, 16), dropout=0.0)
    optimizer = adam(model, PAPER)
    step(model, optimizer)
    save_checkpoint(tmp_path, {}, Progress(), model, optimizer, random_states())

    restored = HybridMobileNet(resolve(family, 0.25, 2, 10, 3, 16), dropout=0.0)
    restored_optimizer = adam(restored, PAPER)
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
