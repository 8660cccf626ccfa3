"""The networks as PyTorch modules, and how they are saved and loaded.

A network is its resolved layers, one module each, named as they are named in `architecture`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ..common.files import write_atomically
from ..layers.batch_norm import batch_norm
from ..layers.depthwise import depthwise_convolution, is_depthwise
from ..layers.fast_path import is_plain
from ..layers.pointwise import can_fuse, fused_convolution, is_pointwise
from ..layers.pooling import FractionalMaxPool2d
from ..layers.sizes import PoolingSequence
from .architecture import FMP_RATIO, Activation, Layer, Network, resolve

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

#: Keras's epsilon. Larger than PyTorch's 1e-5, it keeps channels of little variance from being blown up.
BATCH_NORM_EPSILON = 1e-3

ACTIVATIONS: dict[Activation, type[nn.ReLU | nn.ReLU6]] = {"relu": nn.ReLU, "relu6": nn.ReLU6}

#: Arguments of HybridMobileNet that config.json holds under their own names.
OPTIONS = ("mean", "std", "activation", "dropout", "sequence", "overlapping")

#: What else config.json holds may be of several types, or is checked where it is used.
CONFIG_TYPES: dict[str, tuple[type, ...]] = {
    "alpha": (int, float),
    "class_names": (list,),
    "mean": (list,),
    "std": (list,),
    "dropout": (int, float),
    "overlapping": (bool,),
    "training": (dict,),
}

#: Maps of at most this many pixels, and all on a GPU, go through a pointwise convolution as a plain matrix product.
MATRIX_PRODUCT_PIXELS = 4


class ModelError(ValueError):
    """A saved model that cannot be used: not one, damaged, or of another shape than it says."""


class ConvolutionBlock(nn.Module):
    """Convolution without bias, batch normalisation, activation: (N, C, H, W) to (N, C_out, H_out, W_out).

    With a depth multiplier, output ``m * C + c`` of a depthwise convolution is the m-th map of input channel c, and the
    weights are those of a plain depthwise convolution over repeated input channels; Keras and torch's groups put it at
    ``c * delta + m``.

    Padding is torch's, one pixel on every side. TensorFlow's "same" pads bottom and right only at stride 2 on even
    sizes: the maps are as large, and shifted by one pixel.

    Faster functions stand for `conv`, `norm` and `activation` as long as these are what they are built as. With a hook,
    a parametrisation, pruned, or put in another's place, each is called, `conv` with the input channels repeated.
    """

    def __init__(self, layer: Layer, activation: nn.Module) -> None:
        super().__init__()
        depthwise = layer.kind == "depthwise"
        self.copies = layer.out_channels // layer.in_channels if depthwise else 1
        self.conv = nn.Conv2d(
            layer.out_channels if depthwise else layer.in_channels,
            layer.out_channels,
            layer.kernel,
            layer.stride,
            padding=layer.kernel // 2,
            groups=layer.out_channels if depthwise else 1,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(layer.out_channels, eps=BATCH_NORM_EPSILON)
        self.activation = activation

    def forward(self, x: Tensor, before: ConvolutionBlock | None = None, *, normalised: bool = True) -> Tensor:
        """Where a CPU trains, the next block normalises what a depthwise block has convolved, as it reads it.

        Only `HybridMobileNet.forward` gives the last two arguments.

        Args:
            x: maps.
            before: the block that has convolved `x`, and not normalised it.
            normalised: whether to normalise what is convolved here, and to activate it.
        """
        if before is not None:
            relu = is_plain(before.activation, nn.ReLU) and is_plain(self.activation, nn.ReLU)
            if relu and can_fuse(x, before.norm, self.conv, self.norm):
                return fused_convolution(x, before.norm, self.conv, self.norm)
            x = before._normalise(x)
        x = self._convolve(x)
        return self._normalise(x) if normalised else x

    def _convolve(self, x: Tensor) -> Tensor:
        if is_depthwise(self.conv) and self.conv.in_channels == self.copies * x.shape[1]:
            return depthwise_convolution(x, self.conv.weight, self.conv.stride[0])
        x = torch.cat([x] * self.copies, 1) if self.copies > 1 else x
        if is_pointwise(self.conv) and (x.is_cuda or x.shape[2] * x.shape[3] <= MATRIX_PRODUCT_PIXELS):
            return F.linear(x.permute(0, 2, 3, 1), self.conv.weight.flatten(1)).permute(0, 3, 1, 2)
        return cast(Tensor, self.conv(x))

    def _normalise(self, x: Tensor) -> Tensor:
        if is_plain(self.activation, nn.ReLU):
            return batch_norm(x, self.norm, relu=True)
        x = batch_norm(x, self.norm, relu=False)
        if is_plain(self.activation, nn.ReLU6) and is_plain(self.norm, nn.BatchNorm2d):
            return F.relu6(x, inplace=True)
        return cast(Tensor, self.activation(x))


class Classifier(nn.Module):
    """Dropout, then the fully connected layer: (N, C) to (N, classes) logits."""

    def __init__(self, layer: Layer, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(layer.in_channels, layer.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(self.dropout(x)))


class HybridMobileNet(nn.Module):
    """A network of the paper: images to class logits, normalisation of the images included.

    Weights start Glorot-uniform (Glorot and Bengio, 2010), Keras's default, and the bias of the fully connected layer
    at zero. It matters: from He's larger weights, Adam's steps are too small to learn at the same speed.

    Args:
        network: the resolved layers.
        class_names: one per class; "0", "1", ... if None.
        mean: of each input channel over the training images, in 0..1.
        std: standard deviation of each input channel, in 0..1.
        activation: "relu" or "relu6".
        dropout: probability before the fully connected layer.
        sequence: of the fractional max pooling layers, "random" or "pseudorandom".
        overlapping: whether their regions overlap.

    Shape:
        - Input: (N, in_channels, H, W), uint8 in 0..255 or floating point in 0..1.
        - Output: (N, classes) logits.

    Raises:
        ValueError: where class names, mean or std do not fit the network, or another argument is out of range.

    Example:
        >>> import torch
        >>> from hybrid_mobilenet import HybridMobileNet, resolve
        >>> model = HybridMobileNet(resolve("fmp", alpha=0.25, delta=2, classes=10))
        >>> model(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Network,
        *,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        activation: Activation = "relu",
        dropout: float = 0.1,
        sequence: PoolingSequence = "random",
        overlapping: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.class_names = tuple(class_names or map(str, range(network.classes)))
        if len(self.class_names) != network.classes or len(set(self.class_names)) != network.classes:
            raise ValueError(
                f"class_names has {len(set(self.class_names))} different names in {len(self.class_names)}, but the "
                f"network has {network.classes} classes: name each once"
            )
        for name, value, choices in (
            ("activation", activation, get_args(Activation)),
            ("sequence", sequence, get_args(PoolingSequence)),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(choices)}")
        for name, given, default in (("mean", mean, 0.5), ("std", std, 0.25)):
            values = list(given) if given is not None else [default] * network.in_channels
            finite = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
            if len(values) != network.in_channels or not finite or (name == "std" and min(values) <= 0):
                raise ValueError(
                    f"{name} is {values}, but must hold one number per input channel ({network.in_channels})"
                    + (", each above 0" if name == "std" else "")
                )
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.activation: Activation = activation
        self.dropout = dropout
        self.sequence: PoolingSequence = sequence
        self.overlapping = overlapping
        self.training_record: dict[str, Any] = {}
        for layer in network.layers:
            if layer.kind != "global_average_pool":  # without weights or state: a mean in forward
                self.add_module(layer.name, self._build(layer))
        self._initialise()

    def _build(self, layer: Layer) -> nn.Module:
        match layer.kind:
            case "max_pool":
                return nn.MaxPool2d(layer.kernel, layer.stride, padding=layer.kernel // 2)
            case "fractional_max_pool":
                return FractionalMaxPool2d(FMP_RATIO, sequence=self.sequence, overlapping=self.overlapping)
            case "fully_connected":
                return Classifier(layer, self.dropout)
            case _:
                # Not in place, which hooks on the gradients of the normalisation would not allow.
                return ConvolutionBlock(layer, ACTIVATIONS[self.activation]())

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self._normalised(images)
        if not torch._C._are_functorch_transforms_active():  # torch.vmap knows no memory formats
            x = x.contiguous(memory_format=torch.channels_last)
        convolved: nn.Module | None = None
        modules: list[Any] = [getattr(self, layer.name, None) for layer in self.network.layers]
        for layer, module, following in zip(self.network.layers, modules, (*modules[1:], None), strict=True):
            if layer.kind == "global_average_pool":
                x = x.mean((2, 3))
            elif convolved is not None:
                x, convolved = module(x, convolved), None
            elif (
                layer.kind == "depthwise"
                and self.training
                and x.is_cpu
                and is_plain(module, ConvolutionBlock)
                and is_plain(following, ConvolutionBlock)
            ):
                x, convolved = module(x, normalised=False), module
            else:
                x = module(x)
        return x

    def _normalised(self, images: Tensor) -> Tensor:
        """The images as the first convolution takes them: of the model's precision, rounded to it once."""
        if images.dtype == torch.uint8:
            images = images.to(torch.promote_types(self.mean.dtype, torch.float32)) / 255
        elif not images.is_floating_point():
            raise ValueError(
                f"images has dtype {images.dtype}, but must be uint8 in 0..255 or floating point in 0..1: "
                "use images.to(torch.uint8) for pixels in 0..255"
            )
        return ((images - self.mean) / self.std).to(self.mean.dtype)

    def fractional_max_pools(self) -> list[FractionalMaxPool2d]:
        """The fractional max pooling layers, whose train() and eval() choose random or fixed regions."""
        return [module for module in self.modules() if isinstance(module, FractionalMaxPool2d)]

    def config(self) -> dict[str, Any]:
        """What config.json holds: all that is needed to build the model again, and its training record."""
        network = self.network
        return {
            "family": network.family,
            "alpha": network.alpha,
            "delta": network.delta,
            "in_channels": network.in_channels,
            "image_size": list(network.image_size),
            "class_names": list(self.class_names),
            **{
                name: value.flatten().tolist() if isinstance(value := getattr(self, name), Tensor) else value
                for name in OPTIONS
            },
            "training": self.training_record,
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `folder`/model.safetensors and `folder`/config.json, each whole or not at all.

        Raises:
            ModelError: where the model is not built as config.json will say, so that another one would be loaded.
            OSError: where the folder cannot be written.
        """
        self._check_parts()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # safetensors refuses channels-last strides
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(folder / WEIGHTS_FILE, save(weights))
        write_atomically(folder / CONFIG_FILE, (json.dumps(self.config(), indent=2) + "\n").encode())

    def _check_parts(self) -> None:
        """Compare modules and weights with those that config.json stands for."""
        with torch.device("meta"):
            expected = HybridMobileNet(self.network, class_names=self.class_names, activation=self.activation)

        def parts(model: HybridMobileNet) -> dict[str, str]:
            modules = {name: type(module).__name__ for name, module in model.named_modules() if name}
            return modules | {name: f"of shape {tuple(value.shape)}" for name, value in model.state_dict().items()}

        own, its = parts(self), parts(expected)
        for name in [*its, *own]:
            if own.get(name) != its.get(name):
                raise ModelError(
                    f"{name} is {own.get(name, 'missing')}, but {its.get(name, 'missing')} in the model that "
                    f"{CONFIG_FILE} describes, which is what would be loaded: save the state_dict() of a model with "
                    "other parts yourself, or undo the change (prune.remove, parametrize.remove_parametrizations)"
                )

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """Load a model, in eval(), from a folder that save_pretrained wrote, or from the Hugging Face Hub by name.

        Only safetensors are read: no pickle, whatever the source holds. Random states are left as they were.

        Raises:
            ModelError: where the source is not a model, or its config.json does not describe its weights.
        """
        folder = Path(source)
        config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
        # In a folder that exists, a name is a mistyped run, and asking the Hub for it would only take time.
        if not folder.exists() and str(source).count("/") == 1 and not folder.parent.is_dir():
            config_path, weights_path = (_from_hub(str(source), name) for name in (CONFIG_FILE, WEIGHTS_FILE))
        for path in (config_path, weights_path):
            if not path.is_file():
                raise ModelError(
                    f"model is {str(source)!r}, but there is no {path.name} in it: name the folder of a finished "
                    "training run, or a model on the Hugging Face Hub as owner/name"
                )
        # Before memory is taken for what a config.json says, it is compared to the weights.
        with torch.device("meta"):
            weights = cls._from_config(config_path)._matching_weights(weights_path)
        # The weights that it is made with, and that these take the place of, are drawn at random.
        device = torch.get_default_device()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            model = cls._from_config(config_path)
        model.load_state_dict(weights)
        return model.eval()

    @classmethod
    def _from_config(cls, path: Path) -> Self:
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            for name, types in CONFIG_TYPES.items():
                if type(config[name]) not in types:  # not isinstance: a bool is an int
                    raise ValueError(f"{name} is {config[name]!r}, but must be of type {types[-1].__name__}")
            if not all(isinstance(name, str) for name in config["class_names"]):
                raise ValueError(f"class_names is {config['class_names']!r}, but must be a list of names")
            network = resolve(
                config["family"],
                config["alpha"],
                config["delta"],
                len(config["class_names"]),
                config["in_channels"],
                config["image_size"],
            )
            options = {name: config[name] for name in OPTIONS}
            model = cls(network, class_names=config["class_names"], **options)
            model.training_record = config["training"]
        # json's errors are ValueErrors; tensors too large to exist are RuntimeErrors
        except (ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
            raise ModelError(
                f"{path} does not describe a hybrid-mobilenet model ({reason}): train or download it again"
            ) from error
        return model

    def _matching_weights(self, path: Path) -> dict[str, Tensor]:
        try:
            weights = load_file(path, device="cpu")
        except SafetensorError as error:
            raise ModelError(
                f"{path} is damaged or not a safetensors file ({error}): train or download it again"
            ) from error
        expected = self.state_dict()
        for name in [*expected, *sorted(weights.keys() - expected.keys())]:
            ours = tuple(expected[name].shape) if name in expected else "missing"
            theirs = tuple(weights[name].shape) if name in weights else "missing"
            if ours != theirs:
                raise ModelError(
                    f"{path} does not fit its {CONFIG_FILE}: {name} is {theirs} in the weights, but {ours} in the "
                    f"network that {CONFIG_FILE} describes; use both files of one run"
                )
        return weights


def _from_hub(name: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model is {name!r}, but there is no such folder, and the Hugging Face Hub did not give its {file}: "
            f"{first_line}"
        ) from error
