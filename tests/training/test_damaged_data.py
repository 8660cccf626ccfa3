"""Images that are damaged before or during a run: real processes, and runs that resume once a file is restored."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from command_line import NETWORK, fails
from noise_images import image_folder
from processes import run_python

#: The command line with images that are decoded whenever they are used, saving after every step. Where a step and a
#: file are given, the file is damaged when that step of the first epoch has been taken.
COMMAND_LINE = """
import sys
from pathlib import Path
import hybrid_mobilenet.data.splits as splits
import hybrid_mobilenet.training.run as training
from hybrid_mobilenet.cli.app import main

step, file = int(sys.argv.pop(1)), sys.argv.pop(1)
splits.choose_storage = lambda size, bound: "nowhere"
training.SAVE_EVERY = 0.0
save = training.save_checkpoint

def save_and_damage(out, record, progress, *state):
    save(out, record, progress, *state)
    if (progress.epoch, progress.step) == (0, step):
        Path(file).write_bytes(Path(file).read_bytes()[:40])

training.save_checkpoint = save_and_damage
main()
"""
SETTINGS = [*NETWORK, "--epochs", "2", "--batch-size", "8", "--validation", "0.2"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = image_folder(tmp_path / "photos/train", {"a": 20, "b": 20}).parent
    image_folder(root / "test", {"a": 3, "b": 3}, seed=1)
    return root


def train(*arguments: str | Path, damage: tuple[int, str | Path] = (-1, "")) -> subprocess.CompletedProcess[str]:
    return run_python("-c", COMMAND_LINE, *map(str, damage), "train", *arguments)


@pytest.mark.slow
def test_an_image_damaged_during_the_run_is_restored_and_the_run_resumes(photos: Path, tmp_path: Path) -> None:
    out, copy = tmp_path / "run", shutil.copytree(photos, tmp_path / "copy")
    whole = train(photos, *SETTINGS, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    validation = json.loads((tmp_path / "whole/split.json").read_text())["validation"]
    files = sorted((photos / "train").rglob("*.png"))
    damaged = next(file for file in files if hashlib.sha256(file.read_bytes()).hexdigest()[:16] in validation)

    # Two steps after the start. The validation after the epoch cannot read it.
    stopped = train(photos, *SETTINGS, "--out", out, damage=(2, damaged))
    unfinished = shutil.copytree(out, tmp_path / "unfinished")
    again = train("--resume", out)
    for result in (stopped, again):
        assert result.returncode == 2
        error = result.stderr.splitlines()[-1]
        assert error.startswith(f"error: {damaged} can no longer be read: restore the same content, then: ")
        assert result.stderr.endswith(f"hybrid-mobilenet train --resume {out}\n")
    shutil.copy(Path(copy) / damaged.relative_to(photos), damaged)  # with another time
    resumed = train("--resume", out)
    assert resumed.returncode == 0, resumed.stderr
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()

    # Another image in its place is not the same data.
    shutil.copy(photos / "test/a/000.png", damaged)
    other = train("--resume", unfinished)
    assert other.returncode == 2
    assert "has changed since the run" in other.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_damaged_test_image_is_found_before_the_first_step(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    bad = photos / "test/b/001.png"
    content = bad.read_bytes()
    bad.write_bytes(content[:40])
    command: tuple[str | Path, ...] = (photos, *SETTINGS, "--out", out)
    result = train(*command)
    fails(result, f"error: {bad} ", "or leave unreadable images out with --skip-bad")
    assert not out.exists()
    bad.write_bytes(content)
    assert train(*command).returncode == 0


@pytest.mark.slow
def test_a_run_without_the_bad_images_resumes(photos: Path, tmp_path: Path) -> None:
    out, reference = tmp_path / "run", tmp_path / "reference"
    bad = [photos / "train/a/003.png", photos / "test/b/001.png"]
    for file in bad:
        file.write_bytes(file.read_bytes()[:40])
    note = f"2 of 46 images cannot be read and are left out: {bad[0]}, {bad[1]}"
    good = photos / "train/b/007.png"
    content = good.read_bytes()
    command: tuple[str | Path, ...] = (photos, *SETTINGS, "--skip-bad", "--out")
    whole = train(*command, reference)
    assert whole.returncode == 0, whole.stderr
    assert note in whole.stderr
    assert json.loads((reference / "config.json").read_text())["training"]["skip_bad"] is True
    stopped = train(*command, out, damage=(2, good))
    assert stopped.returncode == 2
    assert stopped.stderr.splitlines()[-1].startswith(f"error: {good} can no longer be read: restore the same content")
    good.write_bytes(content)
    resumed = train("--resume", out)
    assert resumed.returncode == 0, resumed.stderr
    assert note in resumed.stderr
    assert (out / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
