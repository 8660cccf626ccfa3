"""Networks as if trained, and an exported page, made once for all tests of deployment."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.deploy.deployed import ExportError
from hybrid_mobilenet.deploy.web.export import export_web
from hybrid_mobilenet.deploy.web.onnxruntime_web import runtime_files
from networks import network, trained


@pytest.fixture(scope="session")
def trained_fmp() -> HybridMobileNet:
    return trained("fmp")


@pytest.fixture(scope="session")
def digits() -> Tensor:
    """Training images for calibration."""
    return load_data("digits", image_size=16).train.batch(torch.arange(200))


@pytest.fixture(scope="session")
def fmp() -> HybridMobileNet:
    return network("fmp")


@pytest.fixture(scope="session")
def page_model() -> HybridMobileNet:
    torch.manual_seed(0)
    return HybridMobileNet("mp3", 0.25, in_channels=1, image_size=(16, 24), class_names=["a", "b", "ü"]).eval()


@pytest.fixture(scope="session")
def page_folder(page_model: HybridMobileNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        runtime_files()
    except ExportError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("export") / "web"
    assert export_web(page_model, path).difference <= 1e-4
    return path


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No package in the cache, no program on the PATH; the folder that is the PATH."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"
