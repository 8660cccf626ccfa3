"""Writing the page's folder: what is in it, and how exporting it fails."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from command_line import fails
from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.deploy.deployed import ExportError
from hybrid_mobilenet.deploy.onnx import onnx_bytes
from hybrid_mobilenet.deploy.web import export as web
from hybrid_mobilenet.deploy.web.export import export_web
from hybrid_mobilenet.deploy.web.onnxruntime_web import RUNTIME_FILES
from hybrid_mobilenet.network.cost import network_mult_adds
from npm import needs_npm


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@needs_npm
@pytest.mark.slow
def test_the_folder_holds_the_page_the_model_and_its_runtime(page_model: HybridMobileNet, page_folder: Path) -> None:
    own = {path.name for path in web.PAGE.iterdir()}
    made = {"model.onnx", "model.json", "files.js", *(f"onnxruntime-web/{name}" for name in RUNTIME_FILES)}
    assert files(page_folder) == own | made
    assert (page_folder / "model.onnx").read_bytes() == onnx_bytes(page_model)
    assert json.loads((page_folder / "model.json").read_text()) == {
        "name": "mp3, alpha 0.25, delta 1",
        "class_names": ["a", "b", "ü"],
        "image_size": [16, 24],
        "in_channels": 1,
        "mult_adds": network_mult_adds(page_model.network),
    }
    listed = re.fullmatch(r"const FILES = (.*);\n", (page_folder / "files.js").read_text(), re.DOTALL)
    assert listed
    # The browser itself keeps the service worker and the list that it imports.
    assert set(json.loads(listed[1])) == {"./", *files(page_folder)} - {"service-worker.js", "files.js"}


@needs_npm
@pytest.mark.slow
def test_an_older_page_is_replaced_and_nothing_else_is(
    page_model: HybridMobileNet, page_folder: Path, tmp_path: Path
) -> None:
    page = tmp_path / "web"
    shutil.copytree(page_folder, page)
    (page / "model.json").write_text("{}")
    export_web(page_model, page)
    assert json.loads((page / "model.json").read_text())["in_channels"] == 1
    (page / "thesis.txt").write_text("dear to me")
    with pytest.raises(ExportError, match=r"contains thesis\.txt, which is not part of a page: name another folder"):
        export_web(page_model, page)
    assert (page / "thesis.txt").read_text() == "dear to me"
    assert list(tmp_path.iterdir()) == [page]
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="file is a file: name a folder"):
        export_web(page_model, tmp_path / "file")


@needs_npm
@pytest.mark.slow
def test_a_page_that_disagrees_is_not_written(
    page_model: HybridMobileNet, page_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert page_folder.is_dir()
    other = copy.deepcopy(page_model)
    with torch.no_grad():
        other.get_parameter("classifier.linear.bias").add_(0.001)
    monkeypatch.setattr(web, "onnx_bytes", lambda _: onnx_bytes(other))
    with pytest.raises(ExportError, match=r"disagrees with PyTorch in onnxruntime-web.*no file was written"):
        export_web(page_model, tmp_path / "web")
    monkeypatch.setattr(web, "onnx_bytes", lambda _: b"no model")
    with pytest.raises(
        ExportError, match=r"onnxruntime-web does not run the model in Node \(.*Error.*\): update Node.js"
    ):
        export_web(page_model, tmp_path / "web")
    assert list(tmp_path.iterdir()) == []


def export(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(cli.app, ["export", *map(str, arguments)])


@needs_npm
@pytest.mark.slow
def test_the_command_exports_the_page_beside_other_targets(
    page_model: HybridMobileNet, page_folder: Path, tmp_path: Path
) -> None:
    assert page_folder.is_dir()  # or onnxruntime-web cannot be had, and this is skipped
    page_model.save_pretrained(tmp_path / "run")
    result = export(tmp_path / "run", "--to", "web,onnx", "--json")
    assert result.exit_code == 0, result.stderr
    page, onnx = json.loads(result.stdout)["files"]
    assert (page["target"], Path(page["path"])) == ("web", tmp_path / "run" / "export" / "web")
    assert files(Path(page["path"])) == files(page_folder)
    assert page["size"] == sum((Path(page["path"]) / name).stat().st_size for name in files(page_folder)) > 14e6
    assert page["parity"]["difference"] <= 1e-4
    assert 50 < page["microseconds"] < 1e6
    assert onnx["target"] == "onnx"


@pytest.mark.usefixtures("empty_cache")
def test_without_npm_the_error_says_what_to_install(page_model: HybridMobileNet, tmp_path: Path) -> None:
    page_model.save_pretrained(tmp_path / "run")
    result = export(tmp_path / "run", "--to", "web")
    fails(result, "npm is not installed", "install Node.js with npm")
    assert files(tmp_path / "run") == {"config.json", "model.safetensors"}
