"""Writing the page's folder: what is in it, where onnxruntime-web comes from, and how exporting it fails."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.common.files import writing_folder
from hybrid_mobilenet.deploy.deployed import ExportError
from hybrid_mobilenet.deploy.onnx import onnx_bytes
from hybrid_mobilenet.deploy.web import export as web
from hybrid_mobilenet.deploy.web import onnxruntime_web
from hybrid_mobilenet.deploy.web.export import export_web
from hybrid_mobilenet.deploy.web.onnxruntime_web import (
    PACKAGE,
    RUNTIME_FILES,
    WebClassifier,
    cached_package,
    runtime_files,
)
from hybrid_mobilenet.network.cost import network_mult_adds

needs_npm = pytest.mark.skipif(
    not (shutil.which("npm") and shutil.which("node")), reason="needs Node.js with npm (Debian: apt-get install npm)"
)


@pytest.fixture(scope="module")
def model() -> HybridMobileNet:
    torch.manual_seed(0)
    return HybridMobileNet("mp3", 0.25, in_channels=1, image_size=(16, 24), class_names=["a", "b", "ü"]).eval()


@pytest.fixture(scope="module")
def folder(model: HybridMobileNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        runtime_files()
    except ExportError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("export") / "web"
    assert export_web(model, path).difference <= 1e-4
    return path


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@needs_npm
@pytest.mark.slow
def test_the_folder_holds_the_page_the_model_and_its_runtime(model: HybridMobileNet, folder: Path) -> None:
    own = {path.name for path in web.PAGE.iterdir()}
    made = {"model.onnx", "model.json", "files.js", *(f"onnxruntime-web/{name}" for name in RUNTIME_FILES)}
    assert files(folder) == own | made
    assert (folder / "model.onnx").read_bytes() == onnx_bytes(model)
    assert json.loads((folder / "model.json").read_text()) == {
        "name": "mp3, alpha 0.25, delta 1",
        "class_names": ["a", "b", "ü"],
        "image_size": [16, 24],
        "in_channels": 1,
        "mult_adds": network_mult_adds(model.network),
    }
    listed = re.fullmatch(r"const FILES = (.*);\n", (folder / "files.js").read_text(), re.DOTALL)
    assert listed
    # The browser itself keeps the service worker and the list that it imports.
    assert set(json.loads(listed[1])) == {"./", *files(folder)} - {"service-worker.js", "files.js"}


@needs_npm
@pytest.mark.slow
def test_node_runs_any_number_of_images_one_call_after_another(model: HybridMobileNet, folder: Path) -> None:
    images = torch.randint(256, (7, 1, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images)
    with WebClassifier(folder) as classifier:
        for count in (7, 1, 3):
            logits, probabilities = classifier.outputs(images[:count])
            torch.testing.assert_close(logits, expected[:count], rtol=0, atol=1e-4)
            torch.testing.assert_close(probabilities, expected[:count].softmax(1), rtol=0, atol=1e-5)


@needs_npm
@pytest.mark.slow
def test_an_older_page_is_replaced_and_nothing_else_is(model: HybridMobileNet, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "web"
    shutil.copytree(folder, page)
    (page / "model.json").write_text("{}")
    export_web(model, page)
    assert json.loads((page / "model.json").read_text())["in_channels"] == 1
    (page / "thesis.txt").write_text("dear to me")
    with pytest.raises(ExportError, match=r"contains thesis\.txt, which is not part of a page: name another folder"):
        export_web(model, page)
    assert (page / "thesis.txt").read_text() == "dear to me"
    assert list(tmp_path.iterdir()) == [page]
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="file is a file: name a folder"):
        export_web(model, tmp_path / "file")


@needs_npm
@pytest.mark.slow
def test_a_page_that_disagrees_is_not_written(
    model: HybridMobileNet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folder.is_dir()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter("classifier.linear.bias").add_(0.001)
    monkeypatch.setattr(web, "onnx_bytes", lambda _: onnx_bytes(other))
    with pytest.raises(ExportError, match=r"disagrees with PyTorch in onnxruntime-web.*no file was written"):
        export_web(model, tmp_path / "web")
    monkeypatch.setattr(web, "onnx_bytes", lambda _: b"no model")
    with pytest.raises(
        ExportError, match=r"onnxruntime-web does not run the model in Node \(.*Error.*\): update Node.js"
    ):
        export_web(model, tmp_path / "web")
    assert list(tmp_path.iterdir()) == []


#: Says more than a pipe holds, classifies images of two classes twice, then fails.
TALKATIVE = """
import struct, sys

for _ in range(2):
    for _ in range(3000):
        print("warning:", "x" * 100, file=sys.stderr)
    (count,) = struct.unpack("<I", sys.stdin.buffer.read(4))
    sys.stdin.buffer.read(count * 8 * 8)
    sys.stdout.buffer.write(struct.pack(f"{4 * count}f", *range(4 * count)))
    sys.stdout.flush()
print("RangeError: out of memory\\n    at somewhere", file=sys.stderr)
"""


def test_node_may_say_as_much_as_it_likes(empty_cache: Path, tmp_path: Path) -> None:
    program(empty_cache, "node", f"exec {sys.executable} -c '{TALKATIVE}'")
    page = {"class_names": ["a", "b"], "image_size": [8, 8], "in_channels": 1}
    (tmp_path / "model.json").write_text(json.dumps(page))
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    with WebClassifier(tmp_path) as classifier:
        waiting = threading.Timer(30, classifier._node.kill)
        waiting.start()
        for _ in range(2):
            logits, probabilities = classifier.outputs(images)
            assert torch.cat([logits, probabilities]).flatten().tolist() == list(range(12))
        with pytest.raises(ExportError, match=r"does not run the model in Node \(RangeError: out of memory\): update"):
            classifier.outputs(images)
        waiting.cancel()


def export(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(cli.app, ["export", *map(str, arguments)])


def fails(result: Result, *parts: str) -> None:
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr


@needs_npm
@pytest.mark.slow
def test_the_command_exports_the_page_beside_other_targets(
    model: HybridMobileNet, folder: Path, tmp_path: Path
) -> None:
    assert folder.is_dir()  # or onnxruntime-web cannot be had, and this is skipped
    model.save_pretrained(tmp_path / "run")
    result = export(tmp_path / "run", "--to", "web,onnx", "--json")
    assert result.exit_code == 0, result.stderr
    page, onnx = json.loads(result.stdout)["files"]
    assert (page["target"], Path(page["path"])) == ("web", tmp_path / "run" / "export" / "web")
    assert files(Path(page["path"])) == files(folder)
    assert page["size"] == sum((Path(page["path"]) / name).stat().st_size for name in files(folder)) > 14e6
    assert page["parity"]["difference"] <= 1e-4
    assert 50 < page["microseconds"] < 1e6
    assert onnx["target"] == "onnx"


def program(folder: Path, name: str, script: str) -> None:
    """A program of that name, alone on the PATH with what scripts need."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No package in the cache, no program on the PATH; the folder that is the PATH."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


@pytest.mark.usefixtures("empty_cache")
def test_without_npm_the_error_says_what_to_install(model: HybridMobileNet, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "run")
    result = export(tmp_path / "run", "--to", "web")
    fails(result, "npm is not installed", "install Node.js with npm")
    assert files(tmp_path / "run") == {"config.json", "model.safetensors"}


def test_without_a_network_the_error_says_where_the_package_can_be_put(empty_cache: Path) -> None:
    program(empty_cache, "npm", "echo 'npm error code EAI_AGAIN\nnpm error network is unreachable' >&2; exit 1")
    with pytest.raises(ExportError) as failure:
        runtime_files()
    assert str(failure.value) == (
        f"npm cannot fetch {PACKAGE} (network is unreachable): connect and try again, or put the file that "
        f"`npm pack {PACKAGE}` makes elsewhere at {cached_package()}"
    )


def test_npm_is_not_waited_for_for_ever(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(empty_cache, "npm", "while :; do :; done")
    monkeypatch.setattr(onnxruntime_web, "NPM_SECONDS", 0.2)
    with pytest.raises(ExportError, match=r"has not fetched .* in 0.2 seconds: connect and try again"):
        runtime_files()


def test_another_package_than_the_published_one_is_refused(empty_cache: Path) -> None:
    program(empty_cache, "npm", "echo tampered > onnxruntime-web.tgz")
    with pytest.raises(ExportError, match=r"is not the published one \(its sha512 differs\)"):
        runtime_files()
    assert not cached_package().exists()


@needs_npm
def test_the_cache_is_used_and_mended(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder.is_dir()
    package = cached_package().read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cached_package().parent.mkdir(parents=True)
    cached_package().write_bytes(package[:1000])  # cut: fetched again
    calls = []

    def fetched(*_: object, **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(options)
        (Path(str(options["cwd"])) / "onnxruntime-web.tgz").write_bytes(package)
        return subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(subprocess, "run", fetched)
    assert set(runtime_files()) == set(RUNTIME_FILES)
    assert cached_package().read_bytes() == package
    assert runtime_files()["ort-wasm-simd-threaded.wasm"].startswith(b"\0asm")
    assert len(calls) == 1


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with writing_folder(target) as new:
        (new / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"

    def failing() -> None:
        with writing_folder(target) as new:
            (new / "a").write_text("2")
            (new / "missing").read_text()

    with pytest.raises(FileNotFoundError):
        failing()
    assert (target / "a").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["folder"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/web"), writing_folder(tmp_path / "file" / "web"):
        pass
