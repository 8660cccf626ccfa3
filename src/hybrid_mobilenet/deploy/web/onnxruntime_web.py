"""onnxruntime-web: fetched with npm, cached for the user, and run in Node to check a page before it is written."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ...common.files import cache_folder, write_atomically
from ..deployed import ExportError
from ..runtimes import FileClassifier, Outputs

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"

#: Hash of the published package, from `npm view onnxruntime-web@VERSION dist.integrity`.
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="

#: The files of the package that run a model in WebAssembly.
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")

#: The description of the model in the page's folder: class names, image size.
MODEL_FILE = "model.json"

RUNNER = Path(__file__).parent / "run_page.mjs"
NPM_SECONDS = 600


def cached_package() -> Path:
    """Path of the cached package. A user without a network can put the file there by hand."""
    return cache_folder() / f"onnxruntime-web-{VERSION}.tgz"


def runtime_files() -> dict[str, bytes]:
    """The content of `RUNTIME_FILES`, by name.

    The package comes from the cache, or from npm, which has the user's registry and proxy settings. In both cases its
    hash must be that of the published package.

    Raises:
        ExportError: if the package is not in the cache, and npm is not installed or cannot fetch it.
    """
    path = cached_package()
    package = path.read_bytes() if path.is_file() else b""
    if not _is_published(package):
        package = _fetched()
        if not _is_published(package):
            raise ExportError(
                f"npm's {PACKAGE} is not the published one (its sha512 differs): see npm's registry setting"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, package)
    files: dict[str, bytes] = {}
    # "r|gz" reads in one pass: seeking back would decompress again.
    with tarfile.open(fileobj=io.BytesIO(package), mode="r|gz") as archive:
        for member in archive:
            name = member.name.removeprefix("package/dist/")
            if name in RUNTIME_FILES and (content := archive.extractfile(member)):
                files[name] = content.read()
    return files


def _is_published(package: bytes) -> bool:
    digest = base64.b64encode(hashlib.sha512(package).digest()).decode()
    return f"sha512-{digest}" == INTEGRITY


def _fetched() -> bytes:
    npm = _program("npm")
    by_hand = f"connect and try again, or put the file that `npm pack {PACKAGE}` makes elsewhere at {cached_package()}"
    with tempfile.TemporaryDirectory() as folder:
        options = ["--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
        try:
            done = subprocess.run(
                [npm, "pack", PACKAGE, *options],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
                timeout=NPM_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise ExportError(f"npm has not fetched {PACKAGE} in {NPM_SECONDS} seconds: {by_hand}") from None
        packages = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(packages) != 1:
            # Lines begin with "npm error", or "npm ERR!" until npm 9. Take the first that is not only a code.
            said = re.findall(r"^npm (?:error|ERR!) (?!code |errno |syscall )(.+)$", done.stderr, re.MULTILINE)
            why = said[0] if said else f"exit status {done.returncode}"
            raise ExportError(f"npm cannot fetch {PACKAGE} ({why}): {by_hand}")
        return packages[0].read_bytes()


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ExportError(
            f"{name} is not installed, and exporting a page needs it (serving one does not): install Node.js with npm"
        )
    return found


class WebClassifier(FileClassifier):
    """The model of an exported page in the page's own onnxruntime-web, run by Node. A context manager that ends Node.

    Args:
        folder: folder of the page.
        threads: number of threads per call.

    Raises:
        ExportError: if Node.js is not installed.
    """

    runtime = "onnxruntime-web"

    def __init__(self, folder: Path, threads: int = 1) -> None:
        node = _program("node")
        description = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
        self.class_names = tuple(description["class_names"])
        self.image_size, self.in_channels = tuple(description["image_size"]), description["in_channels"]
        # A file: a full pipe that is never read would block Node for ever.
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  closed in __exit__
        self._node = subprocess.Popen(
            [node, str(RUNNER), str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._node.kill()
        self._node.communicate()
        self._messages.close()

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Classify images, uint8 (N, H, W, in_channels).

        Raises:
            ExportError: if Node or onnxruntime-web fails, with its message.
        """
        assert self._node.stdin
        assert self._node.stdout
        shape = len(images), len(self.class_names)
        length = 2 * 4 * shape[0] * shape[1]
        try:
            self._node.stdin.write(struct.pack("<I", len(images)) + images.tobytes())
            self._node.stdin.flush()
            answer = self._node.stdout.read(length)
        except BrokenPipeError:
            answer = b""
        if len(answer) != length:
            self._node.communicate()
            self._messages.seek(0)
            said = self._messages.read().decode(errors="replace")
            error = next(
                (line for line in said.splitlines() if "Error" in line), f"exit status {self._node.returncode}"
            )
            raise ExportError(f"onnxruntime-web does not run the model in Node ({error.strip()}): update Node.js")
        logits, probabilities = np.frombuffer(answer, np.float32).reshape(2, *shape).copy()
        return logits, probabilities
