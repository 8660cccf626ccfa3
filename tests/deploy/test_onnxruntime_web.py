"""Running the page's model in Node.js, and where onnxruntime-web comes from."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.deploy.deployed import ExportError
from hybrid_mobilenet.deploy.web import onnxruntime_web
from hybrid_mobilenet.deploy.web.onnxruntime_web import (
    PACKAGE,
    RUNTIME_FILES,
    WebClassifier,
    cached_package,
    runtime_files,
)
from npm import needs_npm, program


@needs_npm
@pytest.mark.slow
def test_node_runs_any_number_of_images_one_call_after_another(page_model: HybridMobileNet, page_folder: Path) -> None:
    images = torch.randint(256, (7, 1, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = page_model(images)
    with WebClassifier(page_folder) as classifier:
        for count in (7, 1, 3):
            logits, probabilities = classifier.outputs(images[:count])
            torch.testing.assert_close(logits, expected[:count], rtol=0, atol=1e-4)
            torch.testing.assert_close(probabilities, expected[:count].softmax(1), rtol=0, atol=1e-5)


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
@pytest.mark.slow
def test_the_cache_is_used_and_mended(page_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page_folder.is_dir()
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
