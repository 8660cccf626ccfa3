"""A device without float64, as Apple's GPUs are: whatever comes from the model is refused in float64 until `.cpu()`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.cli.display import RunDisplay
from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.deploy.deployed import Deployed
from hybrid_mobilenet.network.architecture import FAMILIES, Family
from hybrid_mobilenet.training.evaluate import evaluate
from hybrid_mobilenet.training.recipe import Recipe
from hybrid_mobilenet.training.run import train
from hybrid_mobilenet.training.setup import Setup


class WithoutFloat64(TorchFunctionMode):
    """Takes what the model holds and gives, and all that is computed from it, for tensors of such a device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(getattr(tensor, "is_there", False) for tensor in tensors) or kwargs.get("device") is not None
        if func is Tensor.cpu:
            return result.clone()  # on the host: a tensor of its own, without the mark
        if there and func not in (Tensor.tolist, Tensor.item, Tensor.copy_):
            for each in tree_leaves(result):
                if isinstance(each, Tensor):
                    if each.dtype == torch.float64:
                        raise TypeError(f"{func}: this device has no float64")
                    each.is_there = True  # type: ignore[attr-defined]
        return result


@pytest.fixture
def without_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    forward: Callable[[HybridMobileNet, Tensor], Tensor] = HybridMobileNet.forward

    def marked(model: HybridMobileNet, images: Tensor) -> Tensor:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.is_there = True  # type: ignore[attr-defined]
        logits = forward(model, images)
        logits.is_there = True  # type: ignore[attr-defined]
        return logits

    monkeypatch.setattr(HybridMobileNet, "forward", marked)
    with WithoutFloat64():
        yield


@pytest.mark.usefixtures("without_float64")
def test_it_is_refused() -> None:
    model = HybridMobileNet("mp3", 0.25, 2, 10, 3, 16)
    with pytest.raises(TypeError, match="no float64"):
        model(torch.rand(2, 3, 16, 16)).double()
    with pytest.raises(TypeError, match="no float64"):
        torch.tensor(0.0, dtype=torch.float64, device="cpu")


@pytest.mark.usefixtures("without_float64")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_training_and_evaluation_need_none(family: Family, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, batch_size=256)
    train(Setup("digits", family, 0.25, 1, (8, 8), 1, recipe=recipe), tmp_path / "run", RunDisplay(shown=False))
    model = HybridMobileNet.from_pretrained(tmp_path / "run")
    test = load_data("digits", image_size=8, channels=1).test
    evaluate(model, test, passes=2 if family == "fmp" else 1)
    Deployed(model)
