"""Files for ExecuTorch and LiteRT in int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.deploy.deployed import ExportError
from hybrid_mobilenet.deploy.export import export_file
from hybrid_mobilenet.network.architecture import Family
from networks import images, network, trained
from runtime_files import BYTES, FILES, RUNTIMES, is_one_subgraph


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("family", "options"), [("mobilenet", {}), ("mp3", {"activation": "relu6"}), ("fmp", {})], ids=str
)
def test_int8_agrees_and_computes_in_integers_but_for_few_channels(
    runtime: str, family: Family, options: dict[str, Any], tmp_path: Path
) -> None:
    calibration = load_data("digits", image_size=16).train.batch(torch.arange(200))
    path = tmp_path / f"int8-{FILES[runtime]}"
    assert (
        export_file(trained(family, **options), f"{runtime}-int8", path, calibration=calibration).signal_to_noise >= 15
    )
    content = path.read_bytes()
    assert len(content) < 620_000  # where float32 has 1.7 MB; the bytes besides weights are those of tiny maps too
    if runtime == "executorch":
        assert is_one_subgraph(content)
        return
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    from hybrid_mobilenet.deploy.pt2e import FEW_CHANNELS, FEW_CHANNELS_DEPTHWISE

    plain = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    most = {"CONV_2D": FEW_CHANNELS, "DEPTHWISE_CONV_2D": FEW_CHANNELS_DEPTHWISE}
    channels = [
        (operator["op_name"], plain._get_tensor_details(operator["inputs"][0], 0)["shape"][-1])
        for operator in plain._get_ops_details()
        if np.float32 in (*operator["operand_types"], *operator["result_types"])
    ]
    assert {name for name, _ in channels} - most.keys() <= {
        "CAST",
        "SUB",
        "PAD",
        "CONCATENATION",
        "QUANTIZE",
        "DEQUANTIZE",
        "SOFTMAX",
    }
    assert all(count <= most[name] for name, count in channels if name in most)
    assert ("CONV_2D", 3) in channels  # the first layer takes an image


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_takes_about_a_third_of_the_bytes(runtime: str) -> None:
    """A quarter for the weights; the rest are names, and a scale and a zero point for each channel."""
    model, most = network("fmp", delta=2), {"executorch": 0.31, "litert": 0.35}
    assert len(BYTES[runtime](model, images(100))) <= most[runtime] * len(BYTES[runtime](model))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.slow
def test_int8_that_disagrees_leaves_no_file(runtime: str, trained_fmp: HybridMobileNet, tmp_path: Path) -> None:
    black = torch.zeros(100, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ExportError, match=r"signal-to-noise ratio is -?\d.* dB, but must be 10 or more"):
        export_file(trained_fmp, f"{runtime}-int8", tmp_path / FILES[runtime], calibration=black)
    assert list(tmp_path.iterdir()) == []
