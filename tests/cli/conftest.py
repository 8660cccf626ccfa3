"""A trained run and images, made once for all tests of the command line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from command_line import NETWORK
from processes import run_command
from sweeps import finished, folders, large_batches  # noqa: F401  fixtures


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run in its default place, and what the command printed."""
    folder = tmp_path_factory.mktemp("work")
    result = run_command("train", "digits", *NETWORK, "--epochs", "3", "--batch-size", "128", cwd=folder)
    return folder / "runs" / "digits-fmp-d1-a0.25-s0", result


@pytest.fixture(scope="session")
def model(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    folder, result = trained
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index, pixels in enumerate(load_digits().images[:3]):
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(folder / f"digit {index}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with 200 training images in two classes, given to `train` by its relative name."""
    digits = load_digits()
    for name in ("0", "1"):
        (tmp_path / "work/photos" / name).mkdir(parents=True)
        for index, pixels in enumerate(digits.images[digits.target == int(name)][:130]):
            image = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
            image.save(tmp_path / "work/photos" / name / f"{index}.png")
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "work/photos"
