"""Weights of depthwise convolutions with a depth multiplier, to and from Keras and torch's grouped convolution.

With a depth multiplier delta, Keras's DepthwiseConv2D and torch's grouped convolution order their output channels by
input channel: output ``c * delta + m`` is the m-th one of input channel c. This package calls that order "grouped". Its
own networks repeat the input channels instead: output ``m * C + c`` is the m-th one of input channel c. Both compute
the same function up to this permutation of channels, which has to be applied to everything up to the next pointwise
convolution, whose output is the same again.

A whole block of a Keras MobileNet is converted as follows, where each line starts from a layer's `get_weights()`::

    depthwise = convert_keras_depthwise(kernel)
    gamma, beta, mean, variance = (convert_grouped_channels(v, delta) for v in vectors)
    pointwise = convert_grouped_channels(kernel.transpose(3, 2, 0, 1), delta, dim=1)

Other layers need no permutation. Note that at stride 2, Keras's "same" padding of an even size is on the bottom and on
the right only, so that the maps are shifted by one pixel against torch's padding.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def convert_keras_depthwise(kernel: Tensor | NDArray[Any]) -> Tensor:
    """Convert the kernel of Keras's DepthwiseConv2D to the weights of this package's depthwise convolution.

    Args:
        kernel: (kh, kw, C, delta), for C input channels and a depth multiplier of delta; a tensor or a NumPy array.

    Returns:
        (C * delta, 1, kh, kw), contiguous: a convolution with ``groups=C * delta`` of the input channels repeated delta
        times. Output ``m * C + c`` is Keras's output ``c * delta + m``.

    Raises:
        ValueError: if `kernel` does not have four dimensions.

    Example:
        A Keras block (depthwise convolution, batch normalisation, ReLU, pointwise convolution) with random weights:

        >>> import torch
        >>> import torch.nn.functional as F
        >>> from hybrid_mobilenet import convert_grouped_channels, convert_keras_depthwise
        >>> channels, delta, outputs = 8, 2, 16
        >>> kernel = torch.rand(3, 3, channels, delta)
        >>> norm = torch.rand(4, channels * delta)  # moving mean, moving variance, gamma, beta
        >>> pointwise = torch.rand(1, 1, channels * delta, outputs)
        >>> x = torch.rand(2, channels, 10, 10)

        In this package's order of channels:

        >>> y = F.conv2d(torch.cat([x] * delta, 1), convert_keras_depthwise(kernel), padding=1, groups=channels * delta)
        >>> y = F.batch_norm(y, *convert_grouped_channels(norm, delta, dim=1), eps=1e-3).relu()
        >>> y = F.conv2d(y, convert_grouped_channels(pointwise.permute(3, 2, 0, 1), delta, dim=1))

        In Keras's, by torch's grouped convolution:

        >>> z = F.conv2d(x, kernel.permute(2, 3, 0, 1).reshape(-1, 1, 3, 3), padding=1, groups=channels)
        >>> z = F.conv2d(F.batch_norm(z, *norm, eps=1e-3).relu(), pointwise.permute(3, 2, 0, 1))
        >>> torch.allclose(y, z, rtol=1e-4)
        True
    """
    weights = torch.as_tensor(kernel)
    if weights.dim() != 4:
        raise ValueError(
            f"kernel has shape {tuple(weights.shape)}, but must be (kh, kw, C, delta): "
            "take it from a DepthwiseConv2D layer's get_weights()"
        )
    height, width, channels, multiplier = weights.shape
    return weights.permute(3, 2, 0, 1).reshape(multiplier * channels, 1, height, width).contiguous()


def to_keras_depthwise(weight: Tensor, multiplier: int) -> Tensor:
    """Convert the weights of this package's depthwise convolution to a kernel of Keras's DepthwiseConv2D.

    Args:
        weight: (C * multiplier, 1, kh, kw).
        multiplier: the depth multiplier, 1 or more.

    Returns:
        (kh, kw, C, multiplier), contiguous: the inverse of `convert_keras_depthwise`.

    Raises:
        ValueError: if `weight` does not have this shape.

    Example:
        >>> import torch
        >>> from hybrid_mobilenet import convert_keras_depthwise, to_keras_depthwise
        >>> kernel = torch.rand(3, 3, 8, 2)
        >>> torch.equal(to_keras_depthwise(convert_keras_depthwise(kernel), multiplier=2), kernel)
        True
    """
    if weight.dim() != 4 or weight.shape[1] != 1:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, but must be (C * multiplier, 1, kh, kw): "
            "take it from a depthwise convolution"
        )
    _check_multiplier(weight, multiplier, 0)
    channels = len(weight) // multiplier
    return weight.reshape(multiplier, channels, *weight.shape[2:]).permute(2, 3, 1, 0).contiguous()


def convert_grouped_channels(tensor: Tensor | NDArray[Any], multiplier: int, dim: int = 0) -> Tensor:
    """Reorder the channels after a depthwise convolution from Keras's and torch's order to this package's.

    It serves for the weights of torch's grouped convolution, (C * multiplier, 1, kh, kw); for the vectors of the batch
    normalisation after the depthwise convolution, (C * multiplier,); and, with ``dim=1``, for the weights of the
    pointwise convolution after it, (C_out, C * multiplier, 1, 1).

    Args:
        tensor: its dimension `dim` has C * multiplier channels; a tensor or a NumPy array.
        multiplier: the depth multiplier, 1 or more.
        dim: the dimension to reorder.

    Returns:
        Contiguous tensor of the same shape, whose channel ``m * C + c`` is channel ``c * multiplier + m`` of `tensor`.

    Raises:
        ValueError: if the number of channels is not a multiple of `multiplier`.

    Example:
        >>> import torch
        >>> from hybrid_mobilenet import convert_grouped_channels
        >>> convert_grouped_channels(torch.tensor([10, 11, 20, 21, 30, 31]), multiplier=2)
        tensor([10, 20, 30, 11, 21, 31])
    """
    values = torch.as_tensor(tensor)
    _check_multiplier(values, multiplier, dim)
    return _transposed(values, values.shape[dim] // multiplier, dim)


def to_grouped_channels(tensor: Tensor, multiplier: int, dim: int = 0) -> Tensor:
    """Reorder the channels after a depthwise convolution from this package's order to Keras's and torch's.

    Args:
        tensor: its dimension `dim` has C * multiplier channels.
        multiplier: the depth multiplier, 1 or more.
        dim: the dimension to reorder.

    Returns:
        Contiguous tensor of the same shape: the inverse of `convert_grouped_channels`.

    Raises:
        ValueError: if the number of channels is not a multiple of `multiplier`.

    Example:
        >>> import torch
        >>> from hybrid_mobilenet import to_grouped_channels
        >>> to_grouped_channels(torch.tensor([10, 20, 30, 11, 21, 31]), multiplier=2)
        tensor([10, 11, 20, 21, 30, 31])
    """
    _check_multiplier(tensor, multiplier, dim)
    return _transposed(tensor, multiplier, dim)


def _transposed(tensor: Tensor, rows: int, dim: int) -> Tensor:
    """Read one dimension as a matrix with this number of rows, and transpose it."""
    dim %= tensor.dim()
    matrix = tensor.reshape(*tensor.shape[:dim], rows, -1, *tensor.shape[dim + 1 :])
    return matrix.transpose(dim, dim + 1).reshape(tensor.shape).contiguous()


def _check_multiplier(tensor: Tensor, multiplier: int, dim: int) -> None:
    if not -tensor.dim() <= dim < tensor.dim():
        raise ValueError(f"dim is {dim}, but the tensor has {tensor.dim()} dimensions: give a smaller number")
    if multiplier < 1 or tensor.shape[dim] % multiplier:
        raise ValueError(
            f"multiplier is {multiplier}, but must be 1 or more and divide the {tensor.shape[dim]} channels of "
            f"dimension {dim}: use the depth multiplier of the depthwise convolution"
        )
