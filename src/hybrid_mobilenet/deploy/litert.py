"""LiteRT (TensorFlow Lite), converted by litert-torch.

The model takes one image, uint8 (1, H, W, C), RGB or grey, 0..255, and returns logits and probabilities, float32
(1, classes), in this order. Class names and preprocessing are in metadata.json, in a zip archive that follows the model
in the same file: any zip program opens it.
"""

from __future__ import annotations

import io
import json
import zipfile

import torch
from torch import Tensor, nn

from ..network.model import HybridMobileNet
from .deployed import Deployed, single_image_metadata
from .runtimes import METADATA_FILE, silenced


def litert_bytes(model: HybridMobileNet, calibration: Tensor | None = None) -> bytes:
    """The LiteRT file of a model; arguments as for `executorch.executorch_bytes`."""
    size, channels = model.network.image_size, model.network.in_channels
    network: nn.Module = Deployed(model)
    config = None
    with silenced():
        import litert_torch

        if calibration is not None:
            from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
            from litert_torch.quantize.quant_config import QuantConfig

            from .pt2e import quantised

            network = quantised(network, calibration, fold=False)
            # Marks the graph as quantised. The scales are in the graph itself.
            config = QuantConfig(PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True)))
        example = torch.zeros(1, *size, channels, dtype=torch.uint8)
        converted = litert_torch.convert(network, (example,), quant_config=config).model_content()
    file = io.BytesIO(converted)
    with zipfile.ZipFile(file, "a") as archive:  # "a": its offsets count from the start of the file
        archive.writestr(zipfile.ZipInfo(METADATA_FILE), json.dumps(single_image_metadata(model), indent=2))
    return file.getvalue()
