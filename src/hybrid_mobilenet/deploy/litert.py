"""LiteRT (TensorFlow Lite): converted by litert-torch, checked in LiteRT's interpreter before it is written."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..common.files import write_atomically
from ..network.model import HybridMobileNet
from .check import Parity, float_parity, int8_parity
from .deployed import Deployed, single_image_metadata
from .runtimes import METADATA_FILE, LiteRTClassifier, silenced


def export_litert(
    model: HybridMobileNet, path: Path, images: Tensor | None = None, calibration: Tensor | None = None
) -> Parity:
    """Write a model for LiteRT, after running it there.

    The model takes one image, uint8 (1, H, W, C), RGB or grey, 0..255, and gives logits and probabilities, float32
    (1, classes), in this order. Files for batches of any size were not tried. Class names and
    preprocessing are in metadata.json, in a zip archive behind the model in the same file: any zip program opens it.

    Args:
        model: the model; its fractional max pooling is exported with the fixed regions of eval().
        path: the file.
        images: uint8 (n, C, H, W), real images that both are run on; the handwritten digits if None.
        calibration: uint8 (n, C, H, W), training images that the ranges of the maps are taken from: the file is in int8
            where they are given.

    Raises:
        ExportError: where the results differ, or in int8 have little to do with the model's; no file is written then.
        OSError: where the file cannot be written.
    """
    content = litert_bytes(model, calibration)
    compare = float_parity if calibration is None else int8_parity
    parity = compare(model, LiteRTClassifier(content), images)
    write_atomically(path, content)
    return parity


def litert_bytes(model: HybridMobileNet, calibration: Tensor | None = None) -> bytes:
    """The content of the LiteRT file of a model, not run yet; in int8 where there are images for calibration."""
    size, channels = model.network.image_size, model.network.in_channels
    network: nn.Module = Deployed(model)
    config = None
    with silenced():
        import litert_torch

        if calibration is not None:
            from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
            from litert_torch.quantize.quant_config import QuantConfig

            from .pt2e import quantised

            network = quantised(network, calibration.permute(0, 2, 3, 1).contiguous(), fold=False)
            # Says that the graph is quantised; how, the graph itself says.
            config = QuantConfig(PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True)))
        example = torch.zeros(1, *size, channels, dtype=torch.uint8)
        converted = litert_torch.convert(network, (example,), quant_config=config).model_content()
        file = io.BytesIO(_slim(converted))
    with zipfile.ZipFile(file, "a") as archive:  # "a": its offsets count from the start of the file
        archive.writestr(zipfile.ZipInfo(METADATA_FILE), json.dumps(single_image_metadata(model), indent=2))
    return file.getvalue()


def _slim(content: bytes) -> bytes:
    """The same model with names after layers instead of Python's modules, and equal lists written once.

    Every output channel has a zero point of eight bytes, which is 0, in its weights and in its bias: in int8 that is a
    tenth of a small network's file.
    """
    import flatbuffers
    from ai_edge_litert.tools import flatbuffer_utils

    class SharingBuilder(flatbuffers.Builder):  # type: ignore[misc]
        written: dict[tuple[str, bytes], int]

        def StartVector(self, element: int, count: int, alignment: int) -> Any:  # noqa: N802
            return super().StartVector(element, count, 16 if element == 1 else alignment)  # the format's, for weights

        def CreateNumpyVector(self, x: NDArray[Any]) -> int:  # noqa: N802
            key = x.dtype.str, x.tobytes()
            if key not in self.written:
                self.written[key] = super().CreateNumpyVector(x)
            return self.written[key]

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for tensor in model.subgraphs[0].tensors:
        layer = re.search(r"/[\w.]*\.[A-Za-z0-9]+_(\w+);", tensor.name.decode())
        tensor.name = layer[1].encode() if layer else tensor.name
    builder = SharingBuilder(len(content))
    builder.written = {}
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
