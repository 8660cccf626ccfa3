"""Alternative networks, in their usual forms for 32x32 images, as ONNX files for `benchmark`.

Usage: python benchmarks/peers.py FOLDER

Their weights are random: the files serve to measure latency. As in the project's own exports, batch normalisation is
folded and the input is uint8.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from hybrid_mobilenet.common.files import write_atomically


def conv(
    channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: type | None = nn.ReLU
) -> nn.Sequential:
    """Convolution without bias, batch normalisation, activation."""
    layers = [nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out)]
    return nn.Sequential(*layers, *([act(inplace=True)] if act else []))


class Residual(nn.Module):
    """The sum of a branch and a shortcut, followed by an activation."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.activation = branch, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.branch(x) + self.shortcut(x))  # type: ignore[no-any-return]


class Shortcut(nn.Module):
    """ResNet's shortcut without parameters (option A): every second pixel, and zeros for the added channels."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        half = self.added // 2
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.added - half))


def resnet20(classes: int = 10) -> nn.Module:
    """He et al. 2015 (arXiv 1512.03385), section 4.2, n = 3, shortcuts without parameters."""
    layers: list[nn.Module] = [conv(3, 16, 3)]
    channels = 16
    for out in (16, 32, 64):
        for _ in range(3):
            stride = 2 if out != channels else 1
            branch = nn.Sequential(conv(channels, out, 3, stride), conv(out, out, 3, act=None))
            shortcut = Shortcut(out - channels) if stride == 2 else nn.Identity()
            layers.append(Residual(branch, shortcut, nn.ReLU(inplace=True)))
            channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def mobilenet_v2(classes: int = 10, width: float = 0.5) -> nn.Module:
    """Sandler et al. 2018 (arXiv 1801.04381), Table 2. As usual for 32x32 images, the first two strides are 1."""
    channels = divisible(32 * width)
    layers: list[nn.Module] = [conv(3, channels, 3, act=nn.ReLU6)]
    for expansion, base, repeat, stride in (
        (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        out = divisible(base * width)
        for index in range(repeat):
            step, hidden = (stride if index == 0 else 1), channels * expansion
            expand = [conv(channels, hidden, act=nn.ReLU6)] if expansion > 1 else []
            branch = nn.Sequential(
                *expand, conv(hidden, hidden, 3, step, hidden, nn.ReLU6), conv(hidden, out, act=None)
            )
            same = step == 1 and channels == out
            layers.append(Residual(branch, nn.Identity(), nn.Identity()) if same else branch)
            channels = out
    last = divisible(1280 * max(1.0, width))
    head = [conv(channels, last, act=nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes)]
    return nn.Sequential(*layers, *head)


def divisible(channels: float) -> int:
    """MobileNet's rounding: the nearest multiple of 8 that is at least 90 % of `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


class Shuffle(nn.Module):
    """A unit of ShuffleNetV2 (Figure 3c and d): two branches, concatenated and shuffled in two groups."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        half = out // 2
        inner = channels // 2 if stride == 1 else channels
        self.split = stride == 1
        self.left = (
            nn.Identity()
            if self.split
            else nn.Sequential(conv(channels, channels, 3, stride, channels, None), conv(channels, half))
        )
        self.right = nn.Sequential(conv(inner, half), conv(half, half, 3, stride, half, None), conv(half, half))

    def forward(self, x: Tensor) -> Tensor:
        # With plain integers, the exported graph has no nodes that compute shapes.
        half = int(x.shape[1]) // 2
        left, right = (x[:, :half], x[:, half:]) if self.split else (x, x)
        both = torch.cat([self.left(left), self.right(right)], 1)
        channels, height, width = map(int, both.shape[1:])
        return both.view(-1, 2, channels // 2, height, width).transpose(1, 2).reshape(-1, channels, height, width)


def shufflenet_v2(classes: int = 10) -> nn.Module:
    """Ma et al. 2018 (arXiv 1807.11164), Table 5, 0.5x. For 32x32 images, the first stride is 1 without max pooling."""
    layers: list[nn.Module] = [conv(3, 24, 3)]
    channels = 24
    for out, repeat in ((48, 4), (96, 8), (192, 4)):
        layers += [Shuffle(channels, out, 2), *(Shuffle(out, out, 1) for _ in range(repeat - 1))]
        channels = out
    head = [conv(channels, 1024), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, classes)]
    return nn.Sequential(*layers, *head)


#: Builder, parameters and Mult-Adds (both in millions) for 10 classes, as published by
#: github.com/chenyaofo/pytorch-cifar-models. Its ResNet-20 has 40.81 million Mult-Adds: it projects two shortcuts, at
#: 0.131 million each.
PEERS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "shufflenetv2-x0.5": (shufflenet_v2, "0.35", "10.90"),
    "mobilenetv2-x0.5": (mobilenet_v2, "0.70", "27.97"),
    "resnet-20": (resnet20, "0.27", "40.55"),
}


class FromBytes(nn.Module):
    """A network with the interface of the project's exports: uint8 (N, H, W, C) to logits and probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(((images.float() - 120) / 60).permute(0, 3, 1, 2))
        return logits, logits.softmax(1)


def mult_adds(network: nn.Module) -> int:
    """Mult-Adds of convolutions and fully connected layers for one image of 32x32 pixels."""
    total = 0

    def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        total += weight[0].numel() * output[0].numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return total


def write_peers(folder: Path) -> list[Path]:
    """Write each peer as FOLDER/NAME.onnx."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (build, *_) in PEERS.items():
        torch.manual_seed(0)
        paths.append(folder / f"{name}.onnx")
        with warnings.catch_warnings():
            # torch's older exporter also folds batch normalisation, and needs only onnx.
            warnings.simplefilter("ignore")
            example = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
            torch.onnx.export(
                FromBytes(build()).eval(), (example,), str(paths[-1]), dynamo=False, opset_version=17,
                input_names=["images"], output_names=["logits", "probabilities"],
                dynamic_axes={key: {0: "N"} for key in ("images", "logits", "probabilities")},
            )  # fmt: skip
        model = onnx.load(paths[-1])
        metadata = {"class_names": json.dumps(list("0123456789")), "image_size": "[32, 32]", "in_channels": "3"}
        onnx.helper.set_model_props(model, metadata)
        write_atomically(paths[-1], model.SerializeToString())
    return paths


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(*write_peers(Path(sys.argv[1])), sep="\n")
