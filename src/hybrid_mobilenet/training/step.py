"""A training step: loss, optimiser, learning rate, and the settings of the process while steps are taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from inspect import unwrap
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distillation import distillation_loss
from .recipe import Precision, Recipe

#: Key of the optimiser's groups of parameters of the classifier, in fine-tuning.
IS_CLASSIFIER = "is_classifier"


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    precision: Precision = "fp32",
    label_smoothing: float = 0.0,
    teacher_logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Forward pass, loss, backward pass and update on one batch. It does not wait for the device.

    Args:
        model: in train(), on any device; may be wrapped in DistributedDataParallel.
        optimizer: of the model's parameters.
        images: (N, C, H, W), uint8 in 0..255 or floating point in 0..1, on the model's device.
        labels: on the model's device: (N,), int64, or (N, classes), floating point, the share of each class.
        precision: "fp32", or "bf16" for autocast to bfloat16 in the forward pass.
        label_smoothing: share of each label that is spread over all classes, from 0 to 1.
        teacher_logits: of the same images, (N, classes), for `distillation_loss`.

    Returns:
        The mean loss, which is the cross-entropy without a teacher, and the number of correctly classified images,
        scalars on the device. An image of several classes counts as one of the largest share.

    Example:
        >>> import torch
        >>> from hybrid_mobilenet import HybridMobileNet, load_data, train_step
        >>> digits = load_data("digits", image_size=8, channels=1).train
        >>> loader = torch.utils.data.DataLoader(digits, batch_size=64, shuffle=True)
        >>> model = HybridMobileNet("fmp", alpha=0.25, delta=1, classes=10, in_channels=1, image_size=8)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        >>> for images, labels in loader:
        ...     loss, hits = train_step(model.train(), optimizer, images, labels)
        >>> loss.shape, hits.dtype
        (torch.Size([]), torch.int64)
    """
    is_bf16 = precision == "bf16"
    with torch.autocast(images.device.type, torch.bfloat16) if is_bf16 else nullcontext():
        logits = model(images)
    if is_bf16:
        logits = logits.float()
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if teacher_logits is not None:
        loss = distillation_loss(logits, loss, teacher_logits)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()
    expected = labels if labels.dim() == 1 else labels.argmax(1)
    return loss.detach(), (logits.argmax(1) == expected).sum()


class _WithoutWrappers:
    """torch's optimisers without the wrappers that serve torch.compile.

    Each wrapper imports torch._dynamo, which would add more than a second to the start of every training process.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


class AdamW(_WithoutWrappers, torch.optim.AdamW):
    """See `_WithoutWrappers`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update the parameters; see `torch.optim.AdamW.step`."""
        return unwrap(torch.optim.AdamW.step)(self, closure)


class SGD(_WithoutWrappers, torch.optim.SGD):
    """See `_WithoutWrappers`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update the parameters; see `torch.optim.SGD.step`."""
        return unwrap(torch.optim.SGD.step)(self, closure)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of a recipe over the parameters of a model.

    "adam" is Adam; with weight decay, AdamW (Loshchilov and Hutter, 2019). "sgd" has Nesterov momentum.

    Only the weights of convolutions and fully connected layers decay. Decay of a batch normalisation's scale would not
    make the network simpler, since the next normalisation undoes it.
    """
    named = dict(model.named_parameters())
    if recipe.is_fine_tuning:
        features = [parameter for name, parameter in named.items() if not is_classifier(name)]
        classifier = [parameter for name, parameter in named.items() if is_classifier(name)]
        of_classifier = [group | {IS_CLASSIFIER: True} for group in _groups(classifier, recipe)]
        groups = [*_groups(features, recipe), *of_classifier]
    else:
        groups = _groups(list(named.values()), recipe)
    if recipe.optimizer == "sgd":
        return SGD(groups, recipe.learning_rate, momentum=recipe.beta1, nesterov=recipe.beta1 > 0, fused=True)
    return AdamW(groups, recipe.learning_rate, (recipe.beta1, recipe.beta2), recipe.epsilon, fused=True)


def is_classifier(name: str) -> bool:
    """Whether a parameter of a `HybridMobileNet` with this name belongs to its classifier."""
    return name.startswith("classifier.")


def _groups(parameters: list[nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters that decay, and those that do not."""
    weights = [parameter for parameter in parameters if parameter.dim() > 1]
    others = [parameter for parameter in parameters if parameter.dim() <= 1]
    return [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]


class Rates(NamedTuple):
    """The learning rates of a step."""

    features: float
    classifier: float

    def set_in(self, optimizer: torch.optim.Optimizer) -> None:
        """Set them in an optimiser that `make_optimizer` made."""
        for group in optimizer.param_groups:
            group["lr"] = self.classifier if group.get(IS_CLASSIFIER) else self.features


def learning_rates(recipe: Recipe, done: float) -> Rates:
    """The learning rates after a fraction `done` of all steps, in [0, 1]."""
    scale = 1.0 if recipe.schedule == "constant" else (1 + math.cos(math.pi * done)) / 2
    rise = done / recipe.warm_up if done < recipe.warm_up else 1.0
    rate = recipe.learning_rate * scale * rise
    return Rates(0.0 if done < recipe.frozen else rate, rate * recipe.head_factor)


@contextmanager
def training_settings(device: torch.device) -> Iterator[None]:
    """What training changes in the process, restored afterwards.

    These are the random states of the CPU and all GPUs and, on a GPU, the current device and TF32 for matrix products,
    which torch uses for convolutions by default.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=gpus))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("high")
        yield
