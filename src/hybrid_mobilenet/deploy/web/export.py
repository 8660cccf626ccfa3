"""Write the page that runs a model in the browser: a folder for any static file server."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from ...common.files import writing_folder
from ...network.cost import network_mult_adds
from ...network.model import HybridMobileNet
from ..deployed import ExportError
from ..onnx import onnx_bytes
from ..parity import Parity, float_parity
from .onnxruntime_web import MODEL_FILE, WebClassifier, runtime_files

PAGE = Path(__file__).parent / "page"


def export_web(model: HybridMobileNet, folder: Path, images: Tensor | None = None) -> Parity:
    """Write the page of a model, after running the model in the page's own runtime.

    Args:
        model: the model; its fractional max pooling is exported with the fixed regions of eval().
        folder: folder of the page. An older page there is replaced.
        images: uint8 (n, C, H, W), real images for the comparison with PyTorch; the handwritten digits if None.

    Raises:
        ExportError: if the page disagrees with PyTorch, Node.js is not installed, onnxruntime-web cannot be fetched, or
            the folder contains files that are not part of a page. Nothing is written then.
        OSError: if the folder cannot be written.
    """
    files = {path.name: path.read_bytes() for path in PAGE.iterdir()}
    files["model.onnx"] = onnx_bytes(model)
    files[MODEL_FILE] = json.dumps(description(model)).encode()
    files |= {f"onnxruntime-web/{name}": content for name, content in runtime_files().items()}
    # The service worker caches these. The browser itself caches the service worker and this list.
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
    """The content of model.json: what the page shows and needs to know about the model."""
    network = model.network
    return {
        "name": f"{network.family}, alpha {network.alpha:g}, delta {network.delta}",
        "class_names": model.class_names,
        "image_size": network.image_size,
        "in_channels": network.in_channels,
        "mult_adds": network_mult_adds(network),
    }


def _refuse_foreign_files(folder: Path, files: dict[str, bytes]) -> None:
    """Refuse to replace a folder that is not an older page: its files would be deleted."""
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file: name a folder for the page")
    inside = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if foreign := sorted(inside - set(files)):
        raise ExportError(
            f"{folder} contains {foreign[0]}, which is not part of a page: name another folder, or move the file"
        )
