"""A page that runs a model in the browser: a folder for any static file server."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from ...common.files import writing_folder
from ...network.cost import network_mult_adds
from ...network.model import HybridMobileNet
from ..check import Parity, float_parity
from ..deployed import ExportError
from ..onnx import onnx_bytes
from .onnxruntime_web import MODEL_FILE, WebClassifier, runtime_files

PAGE = Path(__file__).parent / "page"


def export_web(model: HybridMobileNet, folder: Path, images: Tensor | None = None) -> Parity:
    """Write a page for a model, after running the model in the page's own runtime.

    Args:
        model: the model; its fractional max pooling is exported with the fixed regions of eval().
        folder: the page's folder. An older page there is replaced.
        images: uint8 (n, C, H, W), real images that both are run on; the handwritten digits if None.

    Raises:
        ExportError: where the results differ, Node.js is not installed, onnxruntime-web cannot be fetched, or the
            folder holds files that are not a page's; nothing is written then.
        OSError: where the folder cannot be written.
    """
    files = {path.name: path.read_bytes() for path in PAGE.iterdir()}
    files["model.onnx"] = onnx_bytes(model)
    files[MODEL_FILE] = json.dumps(description(model)).encode()
    files |= {f"onnxruntime-web/{name}": content for name, content in runtime_files().items()}
    # For the service worker; of itself and of this list the browser keeps copies anyway.
    kept = ["./", *sorted(files.keys() - {"service-worker.js"})]
    files["files.js"] = f"const FILES = {json.dumps(kept, indent=2)};\n".encode()
    _refuse_foreign_files(folder, files)
    with writing_folder(folder) as new:
        for name, content in files.items():
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_bytes(content)
        with WebClassifier(new) as classifier:
            return float_parity(model, classifier, images)


def description(model: HybridMobileNet) -> dict[str, object]:
    """What the page shows and needs to know of a model."""
    network = model.network
    return {
        "name": f"{network.family}, alpha {network.alpha:g}, delta {network.delta}",
        "class_names": model.class_names,
        "image_size": network.image_size,
        "in_channels": network.in_channels,
        "mult_adds": network_mult_adds(network),
    }


def _refuse_foreign_files(folder: Path, files: dict[str, bytes]) -> None:
    """Replacing a folder deletes what is in it: that must be an older page."""
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file: name a folder for the page")
    inside = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if foreign := sorted(inside - set(files)):
        raise ExportError(f"{folder} holds {foreign[0]}, which is no part of a page: name another folder, or move it")
