"""The live module: counted by what runs, compared to the same function written otherwise, saved, loaded, damaged."""

from __future__ import annotations

import copy
import doctest
import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hybrid_mobilenet.network import model as model_module
from hybrid_mobilenet.network.architecture import CONVOLUTIONS, FAMILIES, Activation, Family, Network, resolve
from hybrid_mobilenet.network.cost import network_mult_adds, network_parameters
from hybrid_mobilenet.network.model import HybridMobileNet, ModelError
from hybrid_mobilenet.study.paper import RESULTS

SMALL = resolve("fmp", 0.25, 2, classes=3, in_channels=3, image_size=(16, 20))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class MultAdds(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Counts the multiplications of every convolution and matrix product that torch runs, whatever module asked."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.calls[name] += 1
        if name in ("convolution", "mkldnn_convolution"):
            weight = args[1]  # (out, in of one group, kernel height, kernel width)
            self.count += result.numel() * weight[0].numel()
        elif name in ("mm", "bmm"):
            self.count += result.numel() * args[0].shape[-1]
        elif name in ("addmm", "baddbmm", "linear"):
            self.count += result.numel() * args[1].shape[-1]
        return result


def counted(network: Network) -> tuple[int, int, int]:
    """Mult-Adds of one image, and parameters in Keras's and in PyTorch's counting, of the network as a live module."""
    model = HybridMobileNet(**network.choices()).eval()
    with torch.no_grad(), MultAdds() as mult_adds:
        logits = model(torch.rand(1, network.in_channels, *network.image_size))
    assert logits.shape == (1, network.classes)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    moving = sum(
        statistic.numel()
        for norm in norms
        for statistic in (norm.running_mean, norm.running_var)
        if statistic is not None
    )
    return mult_adds.count, trainable + moving, trainable


def declared(network: Network) -> tuple[int, int, int]:
    return network_mult_adds(network), network_parameters(network), network_parameters(network, "trainable")


def test_the_counter_sees_every_form_of_a_product() -> None:
    x = torch.rand(1, 4, 5, 5)
    with torch.no_grad(), MultAdds() as grouped:
        F.conv2d(x, torch.rand(8, 1, 3, 3), padding=1, groups=4)
    assert grouped.count == 9 * 8 * 25
    with torch.no_grad(), MultAdds() as linear:
        F.linear(x.permute(0, 2, 3, 1), torch.rand(7, 4))
        F.linear(torch.rand(1, 4), torch.rand(7, 4), torch.rand(7))
    assert linear.count == 4 * 7 * 25 + 4 * 7


@pytest.mark.parametrize(
    "network",
    [resolve(result.family, result.alpha, result.delta, result.classes) for result in RESULTS],
    ids=lambda network: f"{network.family}-d{network.delta}-a{network.alpha}-{network.classes}",
)
def test_the_paper_s_configurations_cost_what_is_declared(network: Network) -> None:
    assert counted(network) == declared(network)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("image_size", "channels"), [((8, 8), 1), ((9, 33), 3), ((64, 40), 4)])
def test_other_images_cost_what_is_declared(family: Family, image_size: tuple[int, int], channels: int) -> None:
    network = resolve(family, 0.25, 3, classes=7, in_channels=channels, image_size=image_size)
    assert counted(network) == declared(network)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_map_has_the_declared_shape(family: Family) -> None:
    network = resolve(family, 0.25, 2, image_size=(17, 40))
    model = HybridMobileNet(**network.choices())
    shapes: dict[nn.Module, tuple[int, ...]] = {}
    for module in model.modules():
        module.register_forward_hook(lambda module, _inputs, output: shapes.update({module: tuple(output.shape)}))
    model(torch.rand(2, 3, 17, 40))
    *blocks, (_, (average,)), (_, (classifier,)) = network.blocks()
    assert [name for name, _ in model.features.named_children()] == [name for name, _ in blocks]
    for name, layers in blocks:
        block = model.features.get_submodule(name)
        assert shapes[block] == (2, layers[-1].out_channels, *layers[-1].out_size)
        if len(layers) == 2:
            assert shapes[block.get_submodule("depthwise")] == (2, layers[0].out_channels, *layers[0].out_size)
    assert average.kind == "global_average_pool"
    assert shapes[model.classifier] == shapes[model] == (2, classifier.out_channels)


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 2)])
def test_max_pooling_reads_the_pixel_before_and_the_one_after(size: tuple[int, int]) -> None:
    model = HybridMobileNet("mp3", 0.25)
    x = -torch.rand(1, 2, *size)  # padding must never win, not even over negative numbers
    pooled = model.features.get_submodule("pool1")(x)
    height, width = size
    assert pooled.shape[2:] == (-(-height // 2), -(-width // 2))
    for i in range(pooled.shape[2]):
        for j in range(pooled.shape[3]):
            window = x[:, :, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2]
            assert torch.equal(pooled[:, :, i, j], window.amax((2, 3)))


def test_whole_numbers_are_a_normalisation_too() -> None:
    model = HybridMobileNet(**SMALL.choices(), mean=(0, 0, 0), std=(1, 1, 1)).eval()
    x = torch.rand(4, 3, 16, 20)
    assert torch.equal(model.normalise(x), x)


def test_bytes_and_fractions_give_the_same_logits() -> None:
    model = HybridMobileNet(**SMALL.choices()).eval()
    images = torch.randint(0, 256, (4, 3, 16, 20), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model(images), model(images.float() / 255))
        assert not torch.equal(model(images), model(images.float()))


def test_normalisation_is_inside() -> None:
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 1.0)
    model = HybridMobileNet(**SMALL.choices(), mean=mean, std=std).eval()
    plain = HybridMobileNet(**SMALL.choices(), mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    plain.features.load_state_dict(model.features.state_dict())
    plain.classifier.load_state_dict(model.classifier.state_dict())
    x = torch.rand(4, 3, 16, 20)
    with torch.no_grad():
        assert torch.equal(model(x), plain((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)))
        assert not torch.equal(model(x), plain(x))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
def test_maps_stay_channels_last(family: Family, training: bool) -> None:
    model = HybridMobileNet(family, 0.25, 2, image_size=16).train(training)
    maps: list[Tensor] = []
    for module in model.features.children():
        module.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    logits = model(torch.rand(2, 3, 16, 16))
    assert len(maps) >= 14
    assert all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in maps)
    assert logits.is_contiguous()


def test_the_activation_is_that_of_all_blocks() -> None:
    models = [HybridMobileNet(**SMALL.choices(), activation=activation) for activation in ("relu", "relu6")]
    models[1].load_state_dict(models[0].state_dict())
    noise = 50 * torch.randn(4, 3, 16, 20)
    models[0].train()(noise)
    models[1].train()(noise)
    assert not torch.equal(models[0].eval()(noise), models[1].eval()(noise))


def test_regions_are_random_in_training_and_fixed_in_evaluation() -> None:
    model = HybridMobileNet(**SMALL.choices(), dropout=0.0)
    x = torch.rand(4, 3, 16, 20)
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(x), model(x))
        before = torch.get_rng_state()
        model(x)
        assert torch.equal(before, torch.get_rng_state())
        for pool in model.fractional_max_pools():
            pool.train()
        assert not torch.equal(model(x), model(x))
    assert len(model.fractional_max_pools()) == 7
    assert HybridMobileNet("mp3", 0.25).fractional_max_pools() == []


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("family", ["mp3", "fmp"])
def test_what_is_pooled_has_been_through_the_activation(family: Family, activation: Activation) -> None:
    torch.manual_seed(0)
    model = HybridMobileNet(family, 0.25, 1, activation=activation).eval()
    block, pool = model.features.get_submodule("conv"), model.features.get_submodule("pool1")
    maps = block(100 * torch.randn(2, 3, 32, 32))
    activate = nn.ReLU() if activation == "relu" else nn.ReLU6()
    assert maps.min() == 0
    assert (maps.max() <= 6) == (activation == "relu6")
    assert torch.equal(pool(maps), activate(pool(maps)))


def test_weights_start_glorot_uniform() -> None:
    torch.manual_seed(0)
    model = HybridMobileNet("mobilenet", 0.5)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 4:
            fan_in, fan_out = parameter[0].numel(), parameter.shape[0] * parameter[0, 0].numel()
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert parameter.abs().max() <= bound, name
            assert parameter.abs().max() > 0.8 * bound, name
    linear = model.get_submodule("classifier").get_parameter("linear.bias")
    assert not linear.any()


def test_the_same_seed_gives_the_same_weights() -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(HybridMobileNet(**SMALL.choices()).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["a", "b"]}, r"class_names is \['a', 'b'\], 2 names .* must name each of the 3 classes once"),
        (
            {"class_names": ["a", "b", "a"]},
            r"3 names of which 2 are different, but must name each of the 3 classes once",
        ),
        ({"family": "vgg"}, "family is 'vgg', but must be one of mobilenet, mp3, fmp"),
        ({"alpha": 0.3}, "alpha is 0.3"),
        ({"image_size": 4}, "image_size is 4x4"),
        ({"mean": [0.5]}, r"mean is \[0.5\], but must be a list with one number in 0..1 per input channel \(3\)"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean is .*nan"),
        ({"std": [1.0, 1.0, 0.0]}, "each above 0"),
        ({"activation": "gelu"}, "activation is 'gelu', but must be one of relu, relu6"),
        ({"sequence": "even"}, "sequence is 'even', but must be one of random, pseudorandom"),
        ({"mean": [125, 123, 114]}, r"mean is \[125, 123, 114\], .* divide by 255"),
        ({"mean": 0.5}, r"mean is 0.5, but must be a list"),
        ({"alpha": "0.25"}, "alpha is '0.25', but 32"),
        ({"dropout": 1.5}, "dropout is 1.5, but must be a number from 0 to below 1"),
        ({"dropout": "a"}, "dropout is 'a', but must be a number"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HybridMobileNet(**SMALL.choices() | options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 1, 32, 32), r"images has shape \(2, 1, 32, 32\), but must be \(N, 3, H, W\): use"),
        (torch.rand(3, 32, 32), r"images has shape \(3, 32, 32\), .* images.unsqueeze\(0\) for a single image"),
        (torch.rand(2, 32, 32, 3), r"images has shape \(2, 32, 32, 3\), .* images.permute\(0, 3, 1, 2\)"),
        (torch.rand(2, 3, 0, 32), r"images has shape \(2, 3, 0, 32\)"),
        (torch.rand(2, 3, 32, 32).numpy(), r"images is a ndarray, but must be a tensor: use torch.as_tensor"),
    ],
    ids=["grey", "single", "channels last", "empty", "numpy"],
)
def test_images_that_do_not_fit(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HybridMobileNet("fmp", 0.25)(images)


def test_mean_and_std_as_tensors() -> None:
    model = HybridMobileNet("fmp", 0.25, mean=torch.tensor([0.1, 0.2, 0.3]), std=torch.tensor([0.4, 0.5, 0.6]))
    assert torch.equal(model.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(model.std.flatten(), torch.tensor([0.4, 0.5, 0.6]))


def trained(network: Network = SMALL) -> HybridMobileNet:
    """A model whose every number differs from a fresh one's."""
    model = HybridMobileNet(
        **network.choices(),
        class_names=["cat", "dog", 'ünï "x"'],
        mean=(0.4, 0.5, 0.6),
        std=(0.1, 0.2, 0.3),
        activation="relu6",
        dropout=0.25,
        sequence="pseudorandom",
        overlapping=True,
    )
    for _ in range(2):
        model(torch.rand(8, network.in_channels, *network.image_size))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model.training_record = {"seed": 7, "recipe": {"epochs": 1}}
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "model"
    trained().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_saved_and_loaded_is_equal(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path / "new" / "folder")
    loaded = HybridMobileNet.from_pretrained(tmp_path / "new" / "folder")
    assert not any(module.training for module in loaded.modules())
    assert loaded.config() == model.config()
    assert loaded.training_record == {"seed": 7, "recipe": {"epochs": 1}}
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    x = torch.rand(4, 3, 16, 20)
    with torch.no_grad():
        assert torch.equal(model(x), loaded(x))
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]


def test_config_json_holds_what_is_needed_to_build_the_model(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    assert list(config) == [
        "family", "alpha", "delta", "in_channels", "image_size", "class_names",
        "activation", "dropout", "sequence", "overlapping", "training",
    ]  # fmt: skip
    assert config["class_names"] == ["cat", "dog", 'ünï "x"']
    assert (config["image_size"], config["sequence"], config["overlapping"]) == ([16, 20], "pseudorandom", True)


def test_weights_are_named_after_the_blocks(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    assert {name.partition(".")[0] for name in weights} == {"mean", "std", "features", "classifier"}
    blocks = {name for name, layers in SMALL.blocks() if layers[0].kind in CONVOLUTIONS}
    assert {name.split(".")[1] for name in weights if name.startswith("features.")} == blocks
    assert {name.split(".")[2] for name in weights if name.startswith("features.block7.")} == {
        "depthwise", "depthwise_norm", "pointwise", "pointwise_norm",
    }  # fmt: skip
    assert weights["mean"].flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert weights["std"].flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_the_choices_are_those_of_the_rows() -> None:
    model = HybridMobileNet("fmp", 0.25, 2, 3, 1, (16, 20))
    assert model.network == resolve("fmp", 0.25, 2, 3, 1, (16, 20))
    assert HybridMobileNet("mp3", 0.25).network == resolve("mp3", 0.25)
    assert HybridMobileNet(**SMALL.choices()).network == SMALL


def test_as_many_classes_as_names() -> None:
    model = HybridMobileNet("mp3", 0.25, class_names=["cat", "dog", "bird"])
    assert (model.network.classes, model.class_names) == (3, ("cat", "dog", "bird"))
    assert HybridMobileNet("mp3", 0.25, classes=3).class_names == ("0", "1", "2")
    assert HybridMobileNet("mp3", 0.25).network.classes == 10
    with pytest.raises(ValueError, match="classes is 1, but must be a whole number"):
        HybridMobileNet("mp3", 0.25, class_names=["cat"])


# Features


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
def test_features_then_the_mean_then_the_classifier(family: Family, training: bool) -> None:
    model = HybridMobileNet(family, 0.25, 2, image_size=16, dropout=0).train(training)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)

    def maps_and_logits(forward: Callable[[], Tensor]) -> Tensor:
        torch.manual_seed(1)  # the same regions
        with torch.no_grad():
            return forward()

    logits = maps_and_logits(lambda: model(images))
    maps = maps_and_logits(lambda: model.forward_features(images))
    assert torch.equal(maps_and_logits(lambda: model.features(model.normalise(images))), maps)
    with torch.no_grad():
        assert torch.equal(model.classifier(maps.mean((2, 3))), logits)


@pytest.mark.parametrize(
    ("family", "last", "sides"),
    [
        # read off Tables 1 to 3: the input of every strided block, every pooling layer, and of the average
        ("mobilenet", ["block1", "block3", "block5", "block11", "block13"], [16, 8, 4, 2, 1]),
        ("mp3", ["conv", "block1", "block3", "block5", "block11", "block13"], [32, 16, 8, 4, 2, 1]),
        (
            "fmp",
            ["conv", "block2", "block4", "block6", "block8", "block10", "block12", "block13"],
            [32, 22, 15, 10, 6, 4, 2, 1],
        ),
    ],
)
def test_feature_maps_are_the_last_of_every_resolution(family: Family, last: list[str], sides: list[int]) -> None:
    model = HybridMobileNet(family, 0.25, 2).eval()
    seen: dict[str, Tensor] = {}
    for name in last:
        block = model.features.get_submodule(name)
        block.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output}))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        maps = model.feature_maps(images)
        assert torch.equal(maps[-1], model.forward_features(images))
    assert [each.shape[2:] for each in maps] == [(side, side) for side in sides]
    for each, name in zip(maps, last, strict=True):
        torch.testing.assert_close(each, seen[name], rtol=0, atol=0)
    # As many of small images, whose maps cannot shrink as often.
    assert [each.shape[1] for each in model.feature_maps(images[:, :, :8, :8])] == [each.shape[1] for each in maps]


def test_feature_maps_pass_gradients_to_all_blocks_before_them() -> None:
    model = HybridMobileNet("fmp", 0.25, 2)
    model.feature_maps(torch.rand(4, 3, 32, 32))[2].square().sum().backward()  # type: ignore[no-untyped-call]
    reached = {name.split(".")[1] for name, each in model.named_parameters() if each.grad is not None}
    assert reached == {"conv", "block1", "block2", "block3", "block4"}


# Another classifier


def test_a_reset_classifier_is_new_and_the_rest_stays(tmp_path: Path) -> None:
    model = trained()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    model.reset_classifier(4, ["a", "b", "c", "d"])
    after = model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items() if not name.startswith("classifier"))
    assert after["classifier.linear.weight"].shape == (4, 256)
    assert 0.8 < after["classifier.linear.weight"].abs().max() / (6 / (256 + 4)) ** 0.5 <= 1  # Glorot's bound
    assert not after["classifier.linear.bias"].any()
    assert model.network == resolve(**SMALL.choices() | {"classes": 4})
    assert model.class_names == ("a", "b", "c", "d")
    assert not any(module.training for module in model.modules())
    assert model.classifier.get_submodule("dropout").p == 0.25
    model.save_pretrained(tmp_path)
    same(HybridMobileNet.from_pretrained(tmp_path), model)
    model.reset_classifier(5)
    assert list(model.class_names) == ["0", "1", "2", "3", "4"]


def test_a_reset_classifier_is_where_the_model_is() -> None:
    model = HybridMobileNet(**SMALL.choices()).double()
    model.reset_classifier(4)
    assert model(torch.rand(2, 3, 16, 20)).dtype == torch.float64
    assert model.classifier.training
    there = HybridMobileNet(**SMALL.choices()).to("meta")
    there.reset_classifier(4)
    assert {parameter.device.type for parameter in there.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        (1, None, "classes is 1, but must be a whole number"),
        (3, ["a", "b"], r"class_names is \['a', 'b'\], 2 names .* must name each of the 3 classes once"),
        (2, ["a", "a"], "2 names of which 1 are different"),
    ],
)
def test_a_classifier_that_cannot_be(saved: Path, classes: int, names: list[str] | None, message: str) -> None:
    model = trained()
    before = model.network, model.class_names, model.classifier
    with pytest.raises(ValueError, match=message):
        model.reset_classifier(classes, names)
    assert (model.network, model.class_names, model.classifier) == before
    with pytest.raises(ValueError, match=message):
        HybridMobileNet.from_pretrained(saved, classes=classes, class_names=names)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"classes": 5}, ("0", "1", "2", "3", "4")),
        ({"class_names": ["sun", "rain"]}, ("sun", "rain")),
        ({"classes": 2, "class_names": ["sun", "rain"]}, ("sun", "rain")),
        ({"classes": 3}, ("0", "1", "2")),
    ],
)
def test_loaded_with_a_new_classifier(saved: Path, options: dict[str, Any], names: tuple[str, ...]) -> None:
    old, new = HybridMobileNet.from_pretrained(saved), HybridMobileNet.from_pretrained(saved, **options)
    assert new.class_names == names
    assert not any(module.training for module in new.modules())
    x = torch.rand(4, 3, 16, 20)
    with torch.no_grad():
        assert torch.equal(new.forward_features(x), old.forward_features(x))
        assert new(x).shape == (4, len(names))
    new_bias, old_bias = (each.get_parameter("classifier.linear.bias") for each in (new, old))
    assert old_bias.all()
    assert not new_bias.any()  # as it starts, also with as many classes as before


def same(loaded: HybridMobileNet, model: HybridMobileNet) -> None:
    assert loaded.config() == model.config()
    x = torch.rand(4, 3, 16, 20)
    with torch.no_grad():
        assert torch.equal(loaded(x), model.eval()(x))


@pytest.mark.parametrize("place", ["linear", "index"])
def test_a_classifier_replaced_by_hand_is_saved_and_loaded(tmp_path: Path, place: str) -> None:
    model, linear = trained(), nn.Linear(256, 4)
    if place == "linear":
        model.classifier.linear = linear
    else:
        model.classifier[-1] = linear
    assert model.network == resolve(**SMALL.choices() | {"classes": 4})
    assert model.class_names == ("0", "1", "2", "3")
    model.save_pretrained(tmp_path)
    same(HybridMobileNet.from_pretrained(tmp_path), model)
    model.class_names = ["a", "b", "c", "d"]
    model.save_pretrained(tmp_path)
    assert HybridMobileNet.from_pretrained(tmp_path).class_names == ("a", "b", "c", "d")
    with pytest.raises(ValueError, match="3 names of which 3 are different, but must name each of the 4 classes once"):
        model.class_names = ["a", "b", "c"]
    model.classifier.linear = nn.Linear(256, 4)  # as many: they are taken for the same classes
    assert model.class_names == ("a", "b", "c", "d")


def test_mean_and_std_go_with_the_state_dict() -> None:
    model = trained()
    other = HybridMobileNet(**SMALL.choices(), activation="relu6", sequence="pseudorandom", overlapping=True).eval()
    other.load_state_dict(model.state_dict())
    assert other.mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert other.std.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    x = torch.rand(4, 3, 16, 20)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


def test_a_failed_save_leaves_the_last_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        trained().save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def refuses(folder: str | Path, *parts: str) -> None:
    with pytest.raises(ModelError) as caught:
        HybridMobileNet.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return folder


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"alpha": 0.5}, "features.conv.conv.weight is (8, 3, 3, 3) in the weights, but (16, 3, 3, 3)"),
        ({"alpha": 2.0**12}, "features.conv.conv.weight is (8, 3, 3, 3) in the weights"),  # more memory than there is
        ({"delta": 1}, "features.block1.depthwise.weight is (16, 1, 3, 3) in the weights, but (8, 1, 3, 3)"),
        ({"class_names": ["a", "b"]}, "classifier.linear.weight is (3, 256) in the weights, but (2, 256)"),
        ({"in_channels": 1}, "mean is (3, 1, 1) in the weights, but (1, 1, 1)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_config_that_lies_about_the_weights(folder: Path, changes: dict[str, Any], part: str) -> None:
    refuses(edited(folder, **changes), str(folder / "model.safetensors"), part, "use both files of one run")


def test_families_whose_weights_agree_in_shape_are_told_apart_by_the_config_alone(folder: Path) -> None:
    # Pooling has no weights: nothing in the file can tell.
    assert HybridMobileNet.from_pretrained(edited(folder, family="mp3")).network.family == "mp3"


def test_another_image_size_fits_the_same_weights(folder: Path) -> None:
    model = HybridMobileNet.from_pretrained(edited(folder, image_size=[33, 24]))
    with torch.no_grad():
        assert model(torch.rand(2, 3, 33, 24)).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        *(({key: ...}, f"it lacks '{key}'") for key in ("family", "delta", "class_names", "dropout", "training")),
        ({"family": "vgg"}, "family is 'vgg'"),
        ({"family": ["fmp"]}, "unhashable"),
        ({"alpha": "0.25"}, "alpha is '0.25'"),
        ({"alpha": True}, "alpha is True"),
        ({"alpha": 0.3}, "alpha is 0.3"),
        ({"alpha": 1e300}, "("),
        ({"delta": 0}, "delta is 0"),
        ({"delta": 2.0}, "delta is 2.0"),
        ({"delta": 10**30}, "("),
        ({"in_channels": "3"}, "in_channels is '3'"),
        ({"image_size": [16]}, "image_size is [16]"),
        ({"image_size": "16"}, "image_size is '16'"),
        ({"image_size": [16, None]}, "image_size is"),
        ({"image_size": [4, 16]}, "image_size is 4x16"),
        ({"class_names": "cat"}, "class_names is 'cat'"),
        ({"class_names": ["a", "b", "a"]}, "3 names of which 2 are different"),
        ({"class_names": ["a", "b", 3]}, "class_names is"),
        ({"class_names": []}, "classes is 0"),
        ({"activation": "gelu"}, "activation is 'gelu'"),
        ({"activation": ["relu"]}, "activation is ['relu']"),
        ({"sequence": "even"}, "sequence is 'even'"),
        ({"overlapping": "no"}, "overlapping is 'no'"),
        ({"dropout": "0.1"}, "dropout is '0.1'"),
        ({"dropout": 7}, "dropout"),
        ({"training": "long"}, "training is 'long'"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_config_with_a_wrong_value(folder: Path, changes: dict[str, Any], part: str) -> None:
    refuses(edited(folder, **changes), str(folder / "config.json"), part, "train or download it again")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"null", b"{}", b"\xff\xfe\x00", b'{"family": "fmp"}'], ids=repr
)
def test_a_config_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    refuses(folder, str(folder / "config.json"), "train or download it again")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def empty(path: Path) -> None:
    path.write_bytes(b"")


class Trap:
    """What unpickling it would do."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (Path("unpickled"), "code of a stranger ran")


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap()))


def torch_pickled(path: Path) -> None:
    torch.save({"weights": Trap()}, path)


@pytest.mark.parametrize("damage", [truncated, cut_in_the_header, empty, pickled, torch_pickled])
def test_damaged_weights(
    folder: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    damage(folder / "model.safetensors")
    refuses(folder, str(folder / "model.safetensors"), "train or download it again")
    assert not (tmp_path / "unpickled").exists()


def test_a_pickle_beside_or_instead_of_the_weights_is_not_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled(folder / "pytorch_model.bin")
    torch_pickled(folder / "model.pt")
    HybridMobileNet.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    refuses(folder, "there is no model.safetensors in it", "name the folder of a finished training run")
    assert not (tmp_path / "unpickled").exists()


def test_weights_of_another_program(folder: Path) -> None:
    save_file({"layer.weight": torch.zeros(3)}, folder / "model.safetensors")
    refuses(folder, str(folder / "model.safetensors"), "missing")


@pytest.mark.parametrize("change", ["one tensor less", "one tensor more", "another shape"])
def test_weights_that_do_not_fit_by_one_tensor(folder: Path, change: str) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "features.block2.pointwise_norm.weight"
    if change == "one tensor less":
        del weights[name]
    elif change == "one tensor more":
        name = "features.block2.pointwise.bias"
        weights[name] = torch.zeros(32)
    else:
        weights[name] = torch.zeros(1)
    save_file(weights, folder / "model.safetensors")
    refuses(folder, f"{name} is", "does not fit its config.json")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("mean", [0.5, 0.5, float("nan")]),
        ("std", [0.5, 0.5, float("inf")]),
        ("std", [0.5, 0.5, 0.0]),
        ("std", [0.5, -0.5, 0.5]),
    ],
)
def test_a_normalisation_that_gives_no_numbers(folder: Path, name: str, values: list[float]) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name: torch.tensor(values).view(3, 1, 1)}, path)
    refuses(
        folder,
        str(path),
        f"{name} is {values}, but must be a list with one number in 0..1 per input channel (3)",
        "train or download",
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refuses(folder, f"there is no {name} in it", "name the folder of a finished training run")


def test_what_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_arguments: str) -> str:
        raise AssertionError("the Hub must not be asked")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "file").write_text("")
    for source in ("runs/mistyped", "runs", "missing", "", "a/b/c", "/missing"):
        refuses(source, "there is no config.json in it", repr(source))
    refuses("file", "model is 'file', which is a file: give its folder, '.'")


def test_a_model_of_the_hub(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(name: str, file: str) -> str:
        assert name == "owner/name"
        return str(saved / file)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model = HybridMobileNet.from_pretrained("owner/name")
    assert model.class_names[:2] == ("cat", "dog")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_arguments: str) -> str:
        raise LocalEntryNotFoundError("no connection\nmore about it")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    refuses("owner/name", "'owner/name'", "no such folder", "config.json", "no connection")


def test_the_examples_of_the_docstrings_run() -> None:
    results = doctest.testmod(model_module)
    assert results.attempted >= 14
    assert results.failed == 0
