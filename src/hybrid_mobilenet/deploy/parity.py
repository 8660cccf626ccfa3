"""Parity: an exported model must compute what the PyTorch model computes."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.splits import load_test
from ..network.model import HybridMobileNet
from .deployed import ExportError
from .runtimes import FileClassifier

#: Largest difference between a float32 export's logit and the exact one. It grows with the largest logit above 10. A
#: network that amplifies rounding may differ more: by so many times what PyTorch's own float32 differs.
TOLERANCE = 1e-4
TIMES_PYTORCH = 4

#: Smallest signal-to-noise ratio of int8 exports, in dB. Trained networks have 25 to 30, broken ones less than 5.
INT8_SIGNAL_TO_NOISE = 10.0

#: Number of images that are compared.
CHECKED_IMAGES = 256


@dataclass(frozen=True)
class Parity:
    """The difference between the logits of an exported file and PyTorch's, on real images.

    Attributes:
        difference: the largest absolute difference of a logit.
        signal_to_noise: the variance of the logits (per class) over the mean squared difference, in dB.
        images: the number of images compared.
    """

    difference: float
    signal_to_noise: float
    images: int


def float_parity(model: HybridMobileNet, exported: FileClassifier, images: Tensor | None) -> Parity:
    """Compare a float32 export with PyTorch.

    Args:
        model: the model, in train() or eval(): it is compared in eval(), with fixed pooling regions.
        exported: the export in its runtime.
        images: uint8 (n, C, H, W), real images; the handwritten digits, resized, if None.

    Raises:
        ExportError: if a logit differs by more than rounding explains: see `TOLERANCE`.
    """
    parity, largest, rounding = _compare(model, exported, images)
    allowed = max(TOLERANCE * max(1.0, largest / 10), TIMES_PYTORCH * rounding)
    if not parity.difference <= allowed:  # not ">", so that NaN fails too
        raise ExportError(
            f"the exported model disagrees with PyTorch in {exported.runtime}: logits differ by "
            f"{parity.difference:.2g}, but rounding explains at most {allowed:.2g}; no file was written: please report "
            "it, with the versions installed"
        )
    return parity


def int8_parity(model: HybridMobileNet, exported: FileClassifier, images: Tensor | None) -> Parity:
    """Compare an int8 export with PyTorch; arguments as for `float_parity`.

    Raises:
        ExportError: if the signal-to-noise ratio of the logits is below `INT8_SIGNAL_TO_NOISE`.
    """
    parity, *_ = _compare(model, exported, images)
    if not parity.signal_to_noise >= INT8_SIGNAL_TO_NOISE:
        raise ExportError(
            f"the int8 model disagrees with PyTorch in {exported.runtime}: the logits' signal-to-noise ratio is "
            f"{parity.signal_to_noise:.1f} dB, but must be {INT8_SIGNAL_TO_NOISE:g} or more; the int8 file was not "
            "written: train for longer, calibrate on images like the training images (--data), or export to float32"
        )
    return parity


def _compare(model: HybridMobileNet, exported: FileClassifier, images: Tensor | None) -> tuple[Parity, float, float]:
    """The parity, the largest absolute logit, and the largest difference of PyTorch's own float32."""
    if images is None:
        digits = load_test("digits", image_size=model.network.image_size, channels=model.network.in_channels)
        images = digits.batch(torch.arange(CHECKED_IMAGES))
    images = images[:CHECKED_IMAGES]
    with torch.no_grad():
        # In double precision, so that the difference is the rounding of the export alone.
        single = copy.deepcopy(model).cpu().eval()
        ours = single(images)
        expected = single.double()(images.double() / 255)
    logits, probabilities = exported.outputs(images)
    if not torch.allclose(probabilities, logits.softmax(1), atol=1e-5, equal_nan=True):
        raise ExportError(
            f"the probabilities are not the softmax of the logits in {exported.runtime}: please report it"
        )
    noise = (logits - expected).square().mean().item()
    signal = (expected - expected.mean(0)).square().mean().item()
    decibels = 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else math.inf if noise == 0 else -math.inf
    parity = Parity((logits - expected).abs().max().item(), decibels, len(images))
    return parity, expected.abs().max().item(), (ours - expected).abs().max().item()
