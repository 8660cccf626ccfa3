"""PyTorch's own tooling on a whole network: hooks, pruning, parametrisations, other parts, compilers and counters.

What a tool sees, and what a changed network gives, is compared with the same modules called one by one.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.layers.kernels.cpu import depthwise as depthwise_kernel
from hybrid_mobilenet.layers.kernels.cpu import pointwise as pointwise_kernel
from hybrid_mobilenet.network.architecture import FAMILIES, Activation, Family
from hybrid_mobilenet.network.blocks import ConvolutionBlock, DepthwiseSeparableBlock
from hybrid_mobilenet.network.model import ModelError

Change = Callable[[HybridMobileNet], object]


def network(family: Family = "fmp", activation: Activation = "relu") -> HybridMobileNet:
    """Of double precision, in which all ways to compute agree to many digits; in train()."""
    torch.manual_seed(0)
    model = HybridMobileNet(family, 0.25, 2, 4, 3, 16, activation=activation, dropout=0).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_its_modules(model: HybridMobileNet, images: Tensor) -> Tensor:
    """The network as anybody would write it, every module called."""
    x = ((images - model.mean) / model.std).to(model.mean.dtype)
    for module in model.features:
        if isinstance(module, ConvolutionBlock):
            x = module.activation(module.norm(module.conv(x)))
        elif isinstance(module, DepthwiseSeparableBlock):
            x = module.depthwise(x.repeat(1, model.network.delta, 1, 1))
            x = module.depthwise_activation(module.depthwise_norm(x))
            x = module.pointwise_activation(module.pointwise_norm(module.pointwise(x)))
        else:
            x = module(x)
    x = x.mean((2, 3))
    return model.classifier(x)  # type: ignore[no-any-return]


def run(forward: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Logits, running statistics, and the gradients of images and weights; the same regions each time."""
    torch.manual_seed(2)
    x = x.clone().requires_grad_()
    model.zero_grad()
    logits = forward(x)
    torch.autograd.backward(logits.square().sum())
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"logits": logits, "state": model.state_dict(), "of images": x.grad, "of weights": gradients}


def assert_equal_to_its_modules(change: Change, model: HybridMobileNet | None = None, training: bool = True) -> None:
    """A changed network is what its modules give, in its results and its gradients."""
    model = model or network()
    # Changed each for itself: weights that a hook works out cannot be copied.
    plain = copy.deepcopy(model)
    for each in (model, plain):
        torch.manual_seed(3)
        each.train(training)
        change(each)
    ours = run(model, model, images())
    theirs = run(lambda x: by_its_modules(plain, x), plain, images())
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def leaves(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if not list(module.children())}


def keep(seen: list[Any], argument: int) -> Callable[..., None]:
    """A hook that keeps one of its arguments, not copied: what a hook has kept stays what it was."""

    def hook(*arguments: Any) -> None:
        seen.append(arguments[argument])

    return hook


class Seen:
    """What hooks on modules saw: each one's inputs and results, and the gradients of both."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.maps: dict[str, list[Any]] = {}
        for name, module in modules.items():
            seen = self.maps[name] = []
            module.register_forward_pre_hook(keep(seen, 1))
            module.register_forward_hook(keep(seen, 2))
            module.register_full_backward_pre_hook(keep(seen, 1))
            module.register_full_backward_hook(keep(seen, 1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("family", "activation"), [*((family, "relu") for family in FAMILIES), ("mp3", "relu6")])
def test_hooks_on_all_modules_see_what_plain_modules_give(
    family: Family, activation: Activation, training: bool
) -> None:
    model = network(family, activation).train(training)
    plain = copy.deepcopy(model)
    whole: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if name and name not in leaves(model)
    }
    assert sorted({type(module).__name__ for module in whole.values()}) == [
        "ConvolutionBlock", "DepthwiseSeparableBlock", "Sequential",
    ]  # fmt: skip
    ours, of_whole, theirs = Seen(leaves(model)), Seen(whole), Seen(leaves(plain))
    results = run(model, model, images()), run(lambda x: by_its_modules(plain, x), plain, images())
    torch.testing.assert_close(*results)
    assert len(ours.maps) >= 83
    assert all(len(seen) == 4 for seen in (ours.maps | of_whole.maps).values())
    torch.testing.assert_close(ours.maps, theirs.maps)
    for name, (inputs, output, of_output, of_inputs) in of_whole.maps.items():
        parts = [leaf for leaf in theirs.maps if leaf.startswith(f"{name}.")]
        first, last = theirs.maps[parts[0]], theirs.maps[parts[-1]]
        torch.testing.assert_close((output, of_output), (last[1], last[2]))
        torch.testing.assert_close(inputs[0], first[0][0][:, : inputs[0].shape[1]])  # which may repeat the channels
        assert of_inputs[0].shape == inputs[0].shape


PARTS = [f"{kind}{part}" for kind in ("depthwise", "pointwise") for part in ("", "_norm", "_activation")]


def fused_calls(monkeypatch: pytest.MonkeyPatch) -> Mock:
    fused = Mock(wraps=pointwise_kernel.forward)
    monkeypatch.setattr(pointwise_kernel, "forward", fused)
    return fused


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.slow
def test_a_hook_on_a_part_of_a_block(part: str, activation: Activation, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(activation=activation)
    plain = copy.deepcopy(model)
    ours, theirs = (Seen({"part": each.get_submodule(f"features.block3.{part}")}) for each in (model, plain))
    fused = fused_calls(monkeypatch)
    run(model, model, images())
    # The other blocks are as fast as before, and so is the rest of this one if it reads what the hook has seen.
    assert fused.call_count == (0 if activation == "relu6" else 12 + (part == "depthwise"))
    run(lambda x: by_its_modules(plain, x), plain, images())
    torch.testing.assert_close(ours.maps["part"][:3], theirs.maps["part"][:3])


@pytest.mark.parametrize("part", PARTS)
def test_a_parametrised_part_of_a_block(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Halved(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    def change(model: HybridMobileNet) -> None:
        module = model.get_submodule(f"features.block3.{part}")
        if "activation" in part:
            module.register_parameter("weight", nn.Parameter(torch.ones(1, dtype=torch.float64)))
        parametrize.register_parametrization(module, "weight", Halved())

    fused = fused_calls(monkeypatch)
    assert_equal_to_its_modules(change)
    assert fused.call_count == 12 + (part == "depthwise")


@pytest.mark.parametrize(
    ("whole", "first", "last"),
    [
        ("features", "features.conv.conv", "features.block13.pointwise_activation"),
        ("features.conv", "features.conv.conv", "features.conv.activation"),
        ("features.block3", "features.block3.depthwise", "features.block3.pointwise_activation"),
        ("features.pool3", "features.pool3", "features.pool3"),
        ("classifier", "classifier.dropout", "classifier.linear"),
    ],
)
def test_a_hook_on_a_whole_block_leaves_it_as_fast(
    whole: str, first: str, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    plain = copy.deepcopy(model)
    ours = Seen({"whole": model.get_submodule(whole)}).maps["whole"]
    theirs = Seen({name: plain.get_submodule(name) for name in (first, last)}).maps
    fused = fused_calls(monkeypatch)
    run(model, model, images())
    assert fused.call_count == 13
    run(lambda x: by_its_modules(plain, x), plain, images())
    inputs, output, of_output, _ = ours
    torch.testing.assert_close(inputs[0], theirs[first][0][0][:, : inputs[0].shape[1]])  # which may repeat the channels
    torch.testing.assert_close((output, of_output), (theirs[last][1], theirs[last][2]))


@pytest.mark.parametrize(("whole", "block"), [("features", "block13"), ("features.block3", "block3")])
def test_what_a_hook_on_a_whole_block_returns_goes_on(whole: str, block: str) -> None:
    model = network()
    plain = copy.deepcopy(model)
    for each, name in ((model, whole), (plain, f"features.{block}.pointwise_activation")):
        each.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: 2 * output)
        each.get_submodule(name).register_full_backward_pre_hook(
            lambda _module, gradients: (3 * gradients[0],)  # type: ignore[index]
        )
    results = run(model, model, images()), run(lambda x: by_its_modules(plain, x), plain, images())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-8)
    assert not torch.allclose(results[0]["logits"], run(network(), network(), images())["logits"])


@pytest.mark.parametrize("training", [True, False])
def test_hooks_on_all_modules_of_the_process(training: bool) -> None:
    model = network().train(training)
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, _inputs, _output: seen.append(module))
    try:
        model(images())
    finally:
        handle.remove()
    assert set(seen) == set(model.modules())
    assert len(seen) == len(set(seen))


def convolutions(model: nn.Module, depthwise: bool | None = None) -> Iterator[nn.Conv2d]:
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and depthwise in (None, module.groups > 1):
            yield module


def prune_each(model: HybridMobileNet) -> None:
    for conv in convolutions(model, depthwise=True):
        prune.l1_unstructured(conv, "weight", amount=0.5)  # type: ignore[no-untyped-call]


def prune_all(model: HybridMobileNet) -> None:
    parameters = [(module, "weight") for module in model.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    prune.global_unstructured(parameters, prune.L1Unstructured, amount=0.5)


def old_weight_norm(model: HybridMobileNet) -> None:
    for conv in convolutions(model):
        with pytest.warns(FutureWarning, match="weight_norm"):
            nn.utils.weight_norm(conv)


def old_spectral_norm(model: HybridMobileNet) -> None:
    for conv in convolutions(model):
        nn.utils.spectral_norm(conv)


def weight_norm(model: HybridMobileNet) -> None:
    for conv in convolutions(model):
        parametrizations.weight_norm(conv)


def spectral_norm(model: HybridMobileNet) -> None:
    for conv in convolutions(model):
        parametrizations.spectral_norm(conv)


CHANGES_OF_WEIGHTS = [prune_each, prune_all, old_weight_norm, old_spectral_norm, weight_norm, spectral_norm]


@pytest.mark.parametrize("change", CHANGES_OF_WEIGHTS)
@pytest.mark.slow
def test_weights_that_are_worked_out_train(change: Change) -> None:
    models = [network("mp3"), network("mp3")]
    for model in models:
        torch.manual_seed(3)
        change(model)
    ours, plain = models
    for model, forward in ((ours, ours), (plain, lambda x: by_its_modules(plain, x))):
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(3):
            loss = F.cross_entropy(forward(images()), torch.arange(6) % 4)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images()), by_its_modules(plain.eval(), images()))
    for module in ours.modules():
        if hasattr(module, "weight_mask"):
            weight = module.weight
            assert isinstance(weight, Tensor)
            assert not weight[module.weight_mask == 0].any()


def test_pruned_for_good_it_is_as_fast_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    prune_each(model)
    for conv in convolutions(model, depthwise=True):
        prune.remove(conv, "weight")  # type: ignore[no-untyped-call]
    for kernel in (pointwise_kernel, depthwise_kernel):
        monkeypatch.setattr(kernel, "forward", Mock(wraps=kernel.forward))
    model(images())
    assert pointwise_kernel.forward.call_count == depthwise_kernel.forward.call_count == 13  # type: ignore[attr-defined]


def part(name: str, make: Callable[[Any], nn.Module]) -> Change:
    """Put another module in the place of one, made from it."""

    def change(model: HybridMobileNet) -> None:
        features = model.features
        features.set_submodule(name, make(features.get_submodule(name)).double().train(model.training))

    change.__name__ = name
    return change


def attribute(name: str, attribute: str, value: object) -> Change:
    def change(model: HybridMobileNet) -> None:
        setattr(model.features.get_submodule(name), attribute, value)

    change.__name__ = f"{name}.{attribute}"
    return change


def conv(old: nn.Conv2d, **options: Any) -> nn.Conv2d:
    settings = {"kernel_size": old.kernel_size, "padding": old.padding, "groups": old.groups, "bias": False}
    return nn.Conv2d(old.in_channels, old.out_channels, **(settings | options))


class Twice(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def fuse_for_evaluation(model: HybridMobileNet) -> None:
    for name in ("conv", "block3"):
        block = model.features.get_submodule(name).eval()
        assert isinstance(block, ConvolutionBlock | DepthwiseSeparableBlock)
        names = {id(module): name for name, module in block.named_children()}
        for conv, norm in block.convolutions():
            block.set_submodule(names[id(conv)], nn.utils.fuse_conv_bn_eval(conv, norm))
            block.set_submodule(names[id(norm)], nn.Identity())


def forward_of_its_own(model: HybridMobileNet) -> None:
    for name in ("block3.depthwise", "block4.depthwise_norm", "block5.pointwise_activation"):
        module = model.features.get_submodule(name)
        module.forward = lambda x, forward=module.forward: 2 * forward(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        part("block3.depthwise", lambda old: conv(old, bias=True)),
        part("block3.depthwise", lambda old: conv(old, padding=2, dilation=2)),
        part("block3.depthwise", lambda old: conv(old, padding_mode="circular")),
        part("block3.depthwise", lambda old: conv(old, kernel_size=5, padding=2)),
        part("block3.depthwise", lambda old: conv(old, kernel_size=1, padding=0)),
        part("block3.depthwise", lambda old: conv(old, kernel_size=1, padding=0, groups=1)),
        part("block3.depthwise", lambda old: conv(old, groups=old.groups // 4)),
        part("block3.depthwise", lambda old: Twice(old.in_channels, old.out_channels, 3, padding=1)),
        part("block3.depthwise", lambda _: nn.Identity()),
        part("block3.pointwise", lambda old: conv(old, bias=True)),
        part("block3.pointwise", lambda old: conv(old, groups=2)),
        part("block3.pointwise", lambda old: conv(old, kernel_size=3, padding=1)),
        part("block3.pointwise", lambda old: conv(old, padding=1)),
        # The last maps are a pixel or two, where a convolution of 1x1 kernels is a matrix product.
        part("block13.pointwise", lambda old: conv(old, bias=True)),
        part("block13.pointwise", lambda old: conv(old, padding=1)),
        part("block13.pointwise", lambda old: conv(old, groups=2)),
        attribute("block3.depthwise", "stride", (2, 1)),
        attribute("block3.depthwise", "dilation", (2, 2)),
        attribute("block13.pointwise", "stride", (2, 2)),
        *(
            part(f"block3.{kind}_norm", make)
            for kind in ("depthwise", "pointwise")
            for make in (
                lambda _: nn.Identity(),
                lambda old: nn.GroupNorm(4, old.num_features),
                lambda old: nn.InstanceNorm2d(old.num_features, affine=True),
                lambda old: nn.BatchNorm2d(old.num_features, momentum=None),
                lambda old: nn.BatchNorm2d(old.num_features, affine=False),
                lambda old: nn.BatchNorm2d(old.num_features, track_running_stats=False),
                lambda _: nn.Softmax(1),  # needs its result for backward
            )
        ),
        attribute("block3.depthwise_norm", "track_running_stats", False),
        attribute("block3.pointwise_norm", "track_running_stats", False),
        *(
            part(f"block3.{kind}_activation", make)
            for kind in ("depthwise", "pointwise")
            for make in (
                lambda _: nn.SiLU(),
                lambda _: nn.Identity(),
                lambda _: nn.ReLU6(),
                lambda _: nn.PReLU(),
                lambda _: nn.ReLU(inplace=True),
            )
        ),
        part(
            "block3",
            lambda old: nn.Sequential(nn.Conv2d(old.depthwise.in_channels // 2, old.pointwise.out_channels, 3)),
        ),
        nn.SyncBatchNorm.convert_sync_batchnorm,
        fuse_for_evaluation,
        forward_of_its_own,
    ],
    ids=lambda change: getattr(change, "__name__", None),
)
@pytest.mark.slow
def test_parts_of_another_kind_are_called(change: Change, training: bool) -> None:
    assert_equal_to_its_modules(change, training=training)


def freeze(kind: type[nn.Module] | None) -> Change:
    def change(model: HybridMobileNet) -> None:
        for module in model.modules():
            if kind is None or isinstance(module, kind):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
        model.get_parameter("classifier.linear.weight").requires_grad_()

    return change


def statistics_fixed(*names: str) -> Change:
    def change(model: HybridMobileNet) -> None:
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d) and (not names or name in names):
                module.eval()

    return change


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        freeze(nn.Conv2d),
        freeze(nn.BatchNorm2d),
        freeze(None),
        statistics_fixed(),
        statistics_fixed("features.block3.depthwise_norm"),
        statistics_fixed("features.block3.pointwise_norm"),
    ],
)
def test_frozen_parts(change: Change, training: bool) -> None:
    assert_equal_to_its_modules(change, training=training)


def test_weights_of_a_subclass_see_the_convolution() -> None:
    functions: list[str] = []

    class Watched(nn.Parameter):
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            functions.append(getattr(function, "__name__", ""))
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **(kwargs or {}))

    model = network()
    for name in ("block3.depthwise", "block3.pointwise", "block13.pointwise"):
        conv = model.features.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        conv.weight = Watched(conv.weight.detach())
    model(images())
    assert functions.count("conv2d") == 3


def test_saved_tensors_may_be_laid_out_anew() -> None:
    # As torch.autograd.graph.save_on_cpu(pin_memory=True) does.
    model = network()
    expected = run(model, model, images())
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: x.clone(memory_format=torch.contiguous_format), lambda x: x
    ):
        found = run(model, model, images())
    del found["state"], expected["state"]
    torch.testing.assert_close(found, expected)


def test_flops_of_a_training_step_are_all_counted() -> None:
    model = network()
    counts = []
    for forward in (model, lambda x: by_its_modules(model, x)):
        with FlopCounterMode(display=False) as counter:
            run(forward, model, images())
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("training", [True, False])
# Not MobileNet: with maps of one pixel at stride 2, torch's bfloat16 gradient of depthwise weights is not all written.
@pytest.mark.parametrize("family", ["mp3", "fmp"])
def test_autocast_is_as_near_as_that_of_its_modules(family: Family, training: bool) -> None:
    model = network(family).float().train(training)
    results = []
    for precision in (torch.float32, torch.bfloat16):
        for forward in (model, lambda x: by_its_modules(model, x)):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                found = run(forward, model, images(32).float())
            gradients = torch.cat([gradient.flatten() for gradient in found["of weights"].values()])
            results.append((found["logits"], gradients))
    exact, _, ours, theirs = results
    assert ours[0].dtype == torch.bfloat16
    for i in range(2):
        errors = [(each[i] - exact[i]).norm() / exact[i].norm() for each in (ours, theirs)]
        assert errors[0] < 1.5 * errors[1] + 0.01


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pixels", [torch.uint8, torch.float32])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, torch.float64])
def test_a_network_takes_images_in_every_precision(precision: torch.dtype, pixels: torch.dtype, training: bool) -> None:
    model = network().train(training)
    exactly = copy.deepcopy(model)
    x = (255 * images(8)).to(torch.uint8)
    fractions = x / 255
    model.to(precision)
    results = []
    for forward in (
        lambda: exactly(x),
        lambda: model(x if pixels == torch.uint8 else fractions),
        lambda: by_its_modules(model, fractions),
    ):
        torch.manual_seed(2)
        results.append(forward())
    exact, ours, theirs = results
    assert ours.dtype == precision
    assert (ours - exact).norm() < 1.5 * (theirs - exact).norm() + 1e-6
    torch.autograd.backward(ours.square().mean())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.bool, torch.complex64])
def test_other_pixels_than_uint8_and_floating_point_are_an_error(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"^images has dtype {dtype}, but must be uint8 .*: use images.to"):
        network()(torch.ones(2, 3, 16, 16).to(dtype))


def test_gradients_of_torch_func() -> None:
    model = network("mp3").eval()
    parameters: dict[str, Tensor] = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        logits = torch.func.functional_call(model, parameters, (images(),))
        return logits.square().sum()  # type: ignore[no-any-return]

    expected = run(model, model, images())["of weights"]
    torch.testing.assert_close(torch.func.grad(loss)(parameters), expected)


@pytest.mark.slow
def test_compiled_it_trains_as_eagerly() -> None:
    # The backend that generates code takes a minute for what this one shows in seconds.
    model = network()
    seen: list[Any] = []
    compiled = copy.deepcopy(model)
    for each in (model, compiled):
        each.get_submodule("features.block3.depthwise_norm").register_forward_hook(keep(seen, 2))
    forward = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    results = run(forward, compiled, images()), run(model, model, images())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_it_holds_no_call_of_python(training: bool) -> None:
    model = network("mp3").train(training)
    plain = copy.deepcopy(model)
    traced = torch.jit.trace(model, (images(),), check_trace=False)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, io.BytesIO())
    torch.testing.assert_close(traced(images(3)), plain(images(3)))


def test_exported_it_gives_the_same() -> None:
    model = network().eval()
    program = torch.export.export(model, (images(),))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images()), model(images()))


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_func_gives_the_gradients_of_each_image(family: Family) -> None:
    """torch.vmap over a whole network, in eval(), where images do not depend on each other."""
    model, x, labels = network(family).eval(), images(3), torch.tensor([0, 1, 2])
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, (image[None],)), label[None])

    of_each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, x, labels)
    for index in range(len(x)):
        model.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(x[index : index + 1]), labels[index : index + 1]))
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(of_each[name][index], parameter.grad, rtol=1e-6, atol=1e-8)


def test_what_patches_or_follows_torch_s_functions_is_called() -> None:
    class Counting(TorchFunctionMode):
        seen = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen += func is F.batch_norm
            return func(*args, **(kwargs or {}))

    model = network()
    with Counting() as counting:
        model(images())
    assert counting.seen == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())

    def patch(model: HybridMobileNet) -> None:
        for conv in convolutions(model):
            own = conv._conv_forward
            conv._conv_forward = lambda *inputs, own=own: 2 * own(*inputs)  # type: ignore[method-assign]

    assert_equal_to_its_modules(patch)


def other_activation(model: HybridMobileNet) -> None:
    model.features.get_submodule("block3").pointwise_activation = nn.SiLU()


def classifier_of_other_features(model: HybridMobileNet) -> None:
    model.classifier.linear = nn.Linear(7, 4)


def classifier_without_bias(model: HybridMobileNet) -> None:
    model.classifier.linear = nn.Linear(256, 4, bias=False)


def classifier_of_one_output(model: HybridMobileNet) -> None:
    model.classifier.linear = nn.Linear(256, 1)


def classifier_without_dropout(model: HybridMobileNet) -> None:
    model.set_submodule("classifier", nn.Linear(256, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            prune_each,
            r"block1.depthwise.weight is missing, but .*save the state_dict\(\) .*undo the change \(prune.remove",
        ),
        (weight_norm, r"conv.conv is ParametrizedConv2d, but Conv2d in the model .*remove_parametrizations"),
        (other_activation, "block3.pointwise_activation is SiLU, but ReLU in the model that config.json describes"),
        (classifier_of_other_features, r"classifier.linear.weight is of shape \(4, 7\), but of shape \(4, 256\)"),
        (
            classifier_without_bias,
            "classifier.linear.bias is missing, .*assign an nn.Linear with bias to classifier.linear",
        ),
        (classifier_of_one_output, "classes is 1, but must be a whole number of 2 or more"),
        (classifier_without_dropout, "classifier is Linear, but Sequential .*or call reset_classifier"),
    ],
)
def test_a_changed_model_is_not_saved_as_another(change: Change, message: str, tmp_path: Path) -> None:
    model = network()
    change(model)
    with pytest.raises(ModelError, match=f"^[^\n]*{message}[^\n]*$"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_pruned_model_is_saved_once_that_is_made_final(tmp_path: Path) -> None:
    model = network().float().eval()
    prune_each(model)
    for conv in convolutions(model, depthwise=True):
        prune.remove(conv, "weight")  # type: ignore[no-untyped-call]
    model.save_pretrained(tmp_path)
    x = images().float()
    assert torch.equal(HybridMobileNet.from_pretrained(tmp_path)(x), model(x))
