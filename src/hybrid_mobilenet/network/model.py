"""The networks as PyTorch modules, and how they are saved and loaded."""

from __future__ import annotations

import json
import shlex
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, cast, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ..common.files import write_atomically
from ..layers.pooling import FractionalMaxPool2d
from ..layers.sizes import PoolingSequence, Size
from .architecture import CONVOLUTIONS, FMP_RATIO, Activation, Family, Layer, Network, resolve
from .blocks import ConvolutionBlock, DepthwiseSeparableBlock

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
#: In the folder of a run that is not finished.
CHECKPOINT_FILE = "checkpoint.safetensors"

#: Arguments of HybridMobileNet that config.json holds under their own names, besides those that `resolve` has too.
OPTIONS = ("activation", "dropout", "sequence", "overlapping")

#: Entries of config.json whose types are checked here; the others are checked where they are used.
CONFIG_TYPES: dict[str, tuple[type, ...]] = {
    "alpha": (int, float),
    "class_names": (list,),
    "dropout": (int, float),
    "overlapping": (bool,),
    "training": (dict,),
}


class ModelError(ValueError):
    """A saved model that cannot be used: not a model, damaged, or inconsistent with its configuration."""


class HybridMobileNet(nn.Module):
    """A network of the paper: images to class logits, including the normalisation of the images.

    `features` reads like Tables 1 to 3, as a Sequential: conv, pool1, block1, ... Global average pooling follows, and
    then `classifier`, which is dropout and the fully connected layer.

    Weights are initialised Glorot-uniform (Glorot and Bengio, 2010), Keras's default, and the bias of the fully
    connected layer with zeros. This matters: from He's larger weights, Adam's steps are too small to learn as fast.

    Args:
        family: "mobilenet" (Table 1), "mp3" (Table 2) or "fmp" (Table 3).
        alpha: width multiplier, as in `resolve`.
        delta: depth multiplier, as in `resolve`.
        classes: outputs of the classifier; if None, one for each of `class_names`, or 10.
        in_channels: 3 for RGB, 1 for greyscale.
        image_size: side in pixels, or (height, width). Images of another size are accepted as well, but costs and
            exported files are for this one.
        class_names: one per class; "0", "1", ... if None.
        mean: of each input channel over the training images, in 0..1; 0.5 if None.
        std: standard deviation of each input channel, in 0..1; 0.25 if None.
        activation: "relu" or "relu6".
        dropout: probability before the fully connected layer.
        sequence: of the fractional max pooling layers, "random" or "pseudorandom".
        overlapping: whether their regions overlap.

    Shape:
        - Input: (N, in_channels, H, W), uint8 in 0..255 or floating point in 0..1.
        - Output: (N, classes) logits.

    Raises:
        ValueError: if an argument is out of range, or class names, mean or std do not fit the network.

    Example:
        >>> import torch
        >>> from hybrid_mobilenet import HybridMobileNet
        >>> model = HybridMobileNet("fmp", alpha=0.25, delta=2, classes=10)
        >>> model(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> [name for name, _ in model.features.named_children()][:5]
        ['conv', 'pool1', 'block1', 'block2', 'pool2']
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        family: Family,
        alpha: float = 1.0,
        delta: int = 1,
        classes: int | None = None,
        in_channels: int = 3,
        image_size: int | Size = 32,
        *,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
        activation: Activation = "relu",
        dropout: float = 0.1,
        sequence: PoolingSequence = "random",
        overlapping: bool = False,
    ) -> None:
        super().__init__()
        if classes is None:
            classes = 10 if class_names is None else len(class_names)
        network = resolve(family, alpha, delta, classes, in_channels, image_size)
        self._network = network
        self._class_names = _checked_names(class_names, classes)
        for name, value, choices in (
            ("activation", activation, get_args(Activation)),
            ("sequence", sequence, get_args(PoolingSequence)),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(choices)}")
        for name, given, default in (("mean", mean, 0.5), ("std", std, 0.25)):
            chosen = [default] * in_channels if given is None else given
            values = chosen.tolist() if isinstance(chosen, Tensor) else chosen
            _check_normalisation(name, values, in_channels)
            self.register_buffer(name, torch.tensor(values, dtype=torch.get_default_dtype()).view(-1, 1, 1))
        if type(dropout) not in (int, float) or not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout!r}, but must be a number from 0 to below 1: the paper's is 0.1")
        self.activation: Activation = activation
        self.dropout = dropout
        self.sequence: PoolingSequence = sequence
        self.overlapping = overlapping
        self.training_record: dict[str, Any] = {}
        *blocks, _average, _classifier = network.blocks()
        self.features = nn.Sequential(OrderedDict((name, self._new_block(layers)) for name, layers in blocks))
        self.classifier = self._new_classifier()
        self.apply(_initialise)

    def _new_block(self, layers: tuple[Layer, ...]) -> nn.Module:
        layer = layers[0]
        match layer.kind:
            case "convolution":
                return ConvolutionBlock(layer, self.activation)
            case "depthwise":
                return DepthwiseSeparableBlock(layer, layers[1], self.activation)
            case "max_pool":
                return nn.MaxPool2d(layer.kernel, layer.stride, padding=layer.kernel // 2)
            case "fractional_max_pool":
                return FractionalMaxPool2d(FMP_RATIO, sequence=self.sequence, overlapping=self.overlapping)
            case _:
                raise AssertionError(f"{layer.kind} is not a layer of features")

    def _new_classifier(self) -> nn.Sequential:
        layer = self._network.layers[-1]
        linear = nn.Linear(layer.in_channels, layer.out_channels)
        return nn.Sequential(OrderedDict(dropout=nn.Dropout(self.dropout), linear=linear))

    def forward(self, images: Tensor) -> Tensor:
        x = self.normalise(images)
        x = self.features(x)
        return cast(Tensor, self.classifier(x.mean((2, 3))))

    def normalise(self, images: Tensor) -> Tensor:
        """The input of `features`: images less `mean`, divided by `std`, in the precision of the model.

        Shape:
            - Input: (N, in_channels, H, W), uint8 in 0..255 or floating point in 0..1.
            - Output: as the input, in channels-last memory format.

        Raises:
            ValueError: if the images are not a tensor of this shape, or neither uint8 nor floating point.
        """
        if not isinstance(images, Tensor):
            raise ValueError(f"images is a {type(images).__name__}, but must be a tensor: use torch.as_tensor(images)")
        if images.dim() != 4 or images.shape[1] != len(self.mean) or 0 in images.shape[2:]:
            raise ValueError(
                f"images has shape {tuple(images.shape)}, but must be (N, {len(self.mean)}, H, W): use "
                "images.unsqueeze(0) for a single image, and images.permute(0, 3, 1, 2) if the channels come last"
            )
        if images.dtype == torch.uint8:
            images = images.to(torch.promote_types(self.mean.dtype, torch.float32)) / 255
        elif not images.is_floating_point():
            raise ValueError(
                f"images has dtype {images.dtype}, but must be uint8 in 0..255 or floating point in 0..1: "
                "use images.to(torch.uint8) for pixels in 0..255"
            )
        x = ((images - self.mean) / self.std).to(self.mean.dtype)  # rounded to the model's precision once
        if torch._C._are_functorch_transforms_active():  # torch.vmap knows no memory formats
            return x
        return x.contiguous(memory_format=torch.channels_last)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last maps, before global average pooling.

        Shape:
            - Input: (N, in_channels, H, W), as for the network itself.
            - Output: (N, 1024 * alpha, H_out, W_out).

        Example:
            >>> HybridMobileNet("fmp", alpha=0.25).forward_features(torch.rand(2, 3, 64, 64)).shape
            torch.Size([2, 256, 4, 4])
        """
        return cast(Tensor, self.features(self.normalise(images)))

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The maps of every resolution, from the highest to the lowest, for a detector or a segmentation head.

        Each is the last one of its resolution, which the next pooling layer or strided block reads. Their number does
        not depend on the size of the images. Their strides, relative to the images:

        - "mobilenet": 2, 4, 8, 16, 32;
        - "mp3": 1, 2, 4, 8, 16, 32;
        - "fmp": 1, 1.44, 1.44^2, ..., 1.44^7, up to the rounding of map sizes.

        Shape:
            - Input: (N, in_channels, H, W), as for the network itself.
            - Output: (N, C_i, H_i, W_i) each; the last one is that of `forward_features`.

        Example:
            >>> model = HybridMobileNet("fmp", alpha=0.25)
            >>> for maps in model.feature_maps(torch.rand(2, 3, 64, 64)):
            ...     print(*maps.shape[1:])
            8 64 64
            32 44 44
            64 30 30
            128 20 20
            128 13 13
            128 9 9
            256 6 6
            256 4 4
        """
        pairs = pairwise(self._network.blocks())
        last = {name for (name, _), (_, following) in pairs if any(layer.shrinks for layer in following)}
        x = self.normalise(images)
        maps: list[Tensor] = []
        for name, block in self.features.named_children():
            x = block(x)
            if name in last:
                maps.append(x)
        return [*maps, x]

    @property
    def network(self) -> Network:
        """The resolved layers, the last one with as many classes as `classifier.linear` has outputs."""
        linear = getattr(self.classifier, "linear", None)
        network = self._network
        if not isinstance(linear, nn.Linear) or linear.out_features == network.classes:
            return network
        *layers, last = network.layers
        layers.append(replace(last, out_channels=linear.out_features))
        return replace(network, classes=linear.out_features, layers=tuple(layers))

    @property
    def class_names(self) -> tuple[str, ...]:
        """One per class; "0", "1", ... after `classifier.linear` was replaced by one with more or fewer outputs.

        Raises:
            ValueError: if they are set to other than one name per class.
        """
        classes = self.network.classes
        return self._class_names if len(self._class_names) == classes else _checked_names(None, classes)

    @class_names.setter
    def class_names(self, names: Sequence[str]) -> None:
        self._class_names = _checked_names(names, self.network.classes)

    def reset_classifier(self, classes: int, class_names: Sequence[str] | None = None) -> None:
        """Replace the classifier by a newly initialised one, and keep the weights of `features`.

        Args:
            classes: outputs of the new classifier.
            class_names: one per class; "0", "1", ... if None.

        Raises:
            ValueError: if `classes` is less than 2, or the names do not fit it.

        Example:
            >>> model = HybridMobileNet("fmp", alpha=0.25, classes=10)
            >>> model.reset_classifier(3, ["cat", "dog", "bird"])
            >>> model(torch.rand(2, 3, 32, 32)).shape
            torch.Size([2, 3])
        """
        network = resolve(**self._network.choices() | {"classes": classes})
        self._class_names = _checked_names(class_names, classes)
        self._network = network
        classifier = self._new_classifier().apply(_initialise)
        self.classifier = classifier.to(self.mean.device, self.mean.dtype).train(self.training)

    def convolutions(self) -> dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Each convolution with the batch normalisation that follows it, by the name of its layer in `network`."""
        blocks = [each for each in self.features if isinstance(each, ConvolutionBlock | DepthwiseSeparableBlock)]
        pairs = [pair for block in blocks for pair in block.convolutions()]
        names = [layer.name for layer in self._network.layers if layer.kind in CONVOLUTIONS]
        return dict(zip(names, pairs, strict=True))

    def fractional_max_pools(self) -> list[FractionalMaxPool2d]:
        """The fractional max pooling layers, whose train() and eval() choose random or fixed regions."""
        return [module for module in self.modules() if isinstance(module, FractionalMaxPool2d)]

    def config(self) -> dict[str, Any]:
        """The content of config.json: all that is needed to rebuild the model, and its training record."""
        choices = self.network.choices()
        del choices["classes"]  # as many as class names
        return {
            **choices,
            "image_size": list(choices["image_size"]),
            "class_names": list(self.class_names),
            **{name: getattr(self, name) for name in OPTIONS},
            "training": self.training_record,
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `folder`/model.safetensors and `folder`/config.json, each whole or not at all.

        `classifier.linear` may have been replaced by an nn.Linear with other outputs, as `class_names` says.

        Raises:
            ModelError: if other parts were replaced or changed, so that config.json would describe another model.
            OSError: if the folder cannot be written.
        """
        self._check_parts()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # safetensors refuses channels-last strides
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(folder / WEIGHTS_FILE, save(weights))
        write_atomically(folder / CONFIG_FILE, (json.dumps(self.config(), indent=2) + "\n").encode())

    def _check_parts(self) -> None:
        """Compare modules and weights with those of the model that config.json describes."""
        try:
            with torch.device("meta"):
                expected = HybridMobileNet(**self.network.choices(), activation=self.activation)
        except ValueError as error:  # a classifier with a single output
            raise ModelError(str(error)) from error

        def parts(model: HybridMobileNet) -> dict[str, str]:
            modules = {name: type(module).__name__ for name, module in model.named_modules() if name}
            return modules | {name: f"of shape {tuple(value.shape)}" for name, value in model.state_dict().items()}

        ours, theirs = parts(self), parts(expected)
        for name in [*theirs, *ours]:
            if ours.get(name) == theirs.get(name):
                continue
            remedy = "undo the change (prune.remove, parametrize.remove_parametrizations)"
            if name.startswith("classifier"):
                remedy = "assign an nn.Linear with bias to classifier.linear, or call reset_classifier"
            raise ModelError(
                f"{name} is {ours.get(name, 'missing')}, but {theirs.get(name, 'missing')} in the model that "
                f"{CONFIG_FILE} describes, which is what would be loaded: save the state_dict() of a model with other "
                f"parts yourself, or {remedy}"
            )

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, classes: int | None = None, class_names: Sequence[str] | None = None
    ) -> Self:
        """Load a model, in eval(), from a folder that save_pretrained wrote, or from the Hugging Face Hub by name.

        Only safetensors are read, never a pickle. Random states change only if a new classifier is initialised.

        Args:
            source: the folder, or owner/name on the Hub.
            classes: if given, the classifier is replaced by a new one with this many classes: see `reset_classifier`.
            class_names: of the new classifier; without `classes`, their number is the number of classes.

        Raises:
            ModelError: if the source is not a model, or its config.json does not describe its weights.
            ValueError: if `classes` is less than 2, or the names do not fit it.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> with TemporaryDirectory() as folder:
            ...     HybridMobileNet("fmp", alpha=0.25, classes=10).save_pretrained(folder)
            ...     model = HybridMobileNet.from_pretrained(folder, class_names=["cat", "dog"])
            >>> model.network.classes
            2
        """
        folder = Path(source)
        config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
        # Inside a folder that exists, it is a mistyped run, and asking the Hub for it would only take time.
        if not folder.exists() and str(source).count("/") == 1 and not folder.parent.is_dir():
            config_path, weights_path = (_from_hub(str(source), name) for name in (CONFIG_FILE, WEIGHTS_FILE))
        if folder.is_file():
            raise ModelError(f"model is {str(source)!r}, which is a file: give its folder, {str(folder.parent)!r}")
        for path in (config_path, weights_path):
            if not path.is_file():
                if (folder / CHECKPOINT_FILE).is_file():
                    raise unfinished_run(folder)
                raise ModelError(
                    f"model is {str(source)!r}, but there is no {path.name} in it: name the folder of a finished "
                    "training run, or a model on the Hugging Face Hub as owner/name"
                )
        # config.json is compared with the weights before memory is allocated for what it says.
        with torch.device("meta"):
            weights = cls._from_config(config_path)._matching_weights(weights_path)
        # A model is built with random weights, which these replace: keep the random states.
        device = torch.get_default_device()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            model = cls._from_config(config_path)
        model.load_state_dict(weights)
        if class_names is not None and classes is None:
            classes = len(class_names)
        if classes is not None:
            model.reset_classifier(classes, class_names)
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
            arguments = ("family", "alpha", "delta", "in_channels", "image_size", "class_names", *OPTIONS)
            model = cls(**{name: config[name] for name in arguments})
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
        for name in ("mean", "std"):
            try:
                _check_normalisation(name, weights[name].flatten().tolist(), len(expected[name]))
            except ValueError as error:
                raise ModelError(f"{path} cannot be used ({error}): train or download it again") from error
        return weights


def check_model(model: object) -> None:
    """Refuse what is not a model, such as the path of one.

    Raises:
        ValueError: if it is not a HybridMobileNet.
    """
    if not isinstance(model, HybridMobileNet):
        raise ValueError(
            f"model is {model!r:.80}, but must be a HybridMobileNet: load one with HybridMobileNet.from_pretrained(...)"
        )


def _checked_names(names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """The names of so many classes; "0", "1", ... if None."""
    checked = tuple(map(str, range(classes)) if names is None else names)
    if len(checked) != classes or len(set(checked)) != classes:
        raise ValueError(
            f"class_names is {list(checked[:10])}{', ...' * (len(checked) > 10)}, {len(checked)} names of which "
            f"{len(set(checked))} are different, but must name each of the {classes} classes once"
        )
    return checked


def _check_normalisation(name: str, values: Any, in_channels: int) -> None:
    is_list = isinstance(values, list | tuple) and len(values) == in_channels
    is_fraction = is_list and all(isinstance(value, int | float) and 0 <= value <= 1 for value in values)
    if not is_fraction or (name == "std" and 0 in values):
        raise ValueError(
            f"{name} is {values}, but must be a list with one number in 0..1 per input channel ({in_channels})"
            f"{', each above 0' if name == 'std' else ''}: divide by 255 if they are for bytes"
        )


def unfinished_run(folder: Path) -> ModelError:
    """The error for a run that must be finished first."""
    return ModelError(
        f"the run in {folder} is not finished: finish it first, with hybrid-mobilenet train --resume "
        f"{shlex.quote(str(folder))}"
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


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
