"""An exported model against the model it was made from."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..data import load_test
from ..model import HybridMobileNet
from ..runtimes import FileClassifier
from .deployed import ExportError

#: Largest difference of a logit to PyTorch's that float32 exports may have; in proportion where logits are above 10.
TOLERANCE = 1e-4

CHECKED_IMAGES = 64


def largest_difference(model: HybridMobileNet, exported: FileClassifier, images: Tensor | None) -> float:
    """The largest difference of a logit between PyTorch and a float32 export.

    Args:
        model: in eval() or not; its fixed regions are compared.
        exported: the export, in its runtime.
        images: uint8 (n, C, H, W), real images, of which the first `CHECKED_IMAGES` are run; scikit-learn's handwritten
            digits, resized, if None.

    Raises:
        ExportError: where it is above `TOLERANCE`.
    """
    if images is None:
        digits = load_test("digits", image_size=model.network.image_size, channels=model.network.in_channels)
        images = digits.batch(torch.arange(CHECKED_IMAGES))
    images = images[:CHECKED_IMAGES]
    with torch.no_grad():
        # In double precision, so that the difference is the export's rounding alone, not PyTorch's too.
        expected = copy.deepcopy(model).double().eval()(images.double() / 255)
    logits, probabilities = exported.outputs(images)
    difference: float = (logits - expected).abs().max().item()
    allowed = TOLERANCE * max(1.0, expected.abs().max().item() / 10)
    # not "above", so that NaN fails too
    if not (difference <= allowed and torch.allclose(probabilities, logits.softmax(1), atol=1e-5)):
        raise ExportError(
            f"the exported model disagrees with PyTorch in {exported.runtime}: logits differ by {difference:.2g}, but "
            f"at most {allowed:.2g} is rounding; no file was written: please report it, with the versions installed"
        )
    return difference
