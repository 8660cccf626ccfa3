"""The live module: counted by what runs, compared to the same function written otherwise, saved, loaded, damaged."""

from __future__ import annotations

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
from hybrid_mobilenet.network.architecture import FAMILIES, Activation, Family, Layer, Network, resolve
from hybrid_mobilenet.network.cost import network_mult_adds, network_parameters
from hybrid_mobilenet.network.model import ConvolutionBlock, HybridMobileNet, ModelError
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
    model = HybridMobileNet(network).eval()
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
    model = HybridMobileNet(network)
    shapes: dict[nn.Module, tuple[int, ...]] = {}
    for module in model.children():
        module.register_forward_hook(lambda module, _inputs, output: shapes.update({module: tuple(output.shape)}))
    model(torch.rand(2, 3, 17, 40))
    *layers, average, classifier = network.layers
    for layer in layers:
        assert shapes.pop(model.get_submodule(layer.name)) == (2, layer.out_channels, *layer.out_size)
    assert average.kind == "global_average_pool"
    assert list(shapes.values()) == [(2, classifier.out_channels)]


def whole_numbers(*shape: int) -> Tensor:
    """Small integers as floats: their sums and products are exact in any order."""
    return torch.randint(-8, 9, shape).float()


def with_whole_weights(layer: Layer) -> ConvolutionBlock:
    block = ConvolutionBlock(layer, nn.ReLU()).eval()
    with torch.no_grad():
        block.conv.weight.copy_(whole_numbers(*block.conv.weight.shape))
    return block


@pytest.mark.parametrize("delta", [1, 2, 3])
def test_delta_by_repeated_channels_is_a_grouped_convolution(delta: int) -> None:
    channels = 5
    layer = Layer("block", "depthwise", channels, channels * delta, (6, 7), (3, 4), 3, 2)
    block = with_whole_weights(layer)
    x = whole_numbers(2, channels, 6, 7)
    # Grouped convolution puts map m of channel c at c * delta + m, we put it at m * C + c.
    ours = torch.arange(channels * delta).view(delta, channels).t().reshape(-1)
    maps = F.conv2d(x, block.conv.weight[ours], stride=2, padding=1, groups=channels)
    with torch.no_grad():
        expected = F.relu(block.norm(maps))
        assert torch.equal(block(x)[:, ours], expected)
    assert expected.any()


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (4, 1), (2, 3), (5, 5)])
@pytest.mark.parametrize("training", [False, True])
def test_a_pointwise_layer_is_a_1x1_convolution_however_it_runs(size: tuple[int, int], training: bool) -> None:
    block = with_whole_weights(Layer("block", "pointwise", 6, 9, size, size))
    x = whole_numbers(3, 6, *size).contiguous(memory_format=torch.channels_last)
    plain = nn.BatchNorm2d(9, eps=block.norm.eps)
    block.train(training)
    plain.train(training)
    with torch.no_grad():
        expected = F.relu(plain(F.conv2d(x, block.conv.weight)))
        torch.testing.assert_close(block(x), expected, rtol=1e-6, atol=1e-6)
    # Before normalisation, whose sums may run in another order, equality is exact.
    block.norm = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        assert torch.equal(block(x), F.relu(F.conv2d(x, block.conv.weight)))


def test_gradients_do_not_depend_on_how_a_pointwise_layer_runs() -> None:
    for size in ((1, 1), (2, 2), (6, 6)):
        block = with_whole_weights(Layer("block", "pointwise", 6, 9, size, size))
        block.norm = nn.Identity()  # type: ignore[assignment]
        x = whole_numbers(3, 6, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
        block(x).square().sum().backward()
        other = x.detach().clone().requires_grad_()
        weight = block.conv.weight.detach().clone().requires_grad_()
        F.relu(F.conv2d(other, weight)).square().sum().backward()  # type: ignore[no-untyped-call]
        for ours, theirs in ((x.grad, other.grad), (block.conv.weight.grad, weight.grad)):
            assert ours is not None
            assert theirs is not None
            assert torch.equal(ours, theirs)
            assert ours.any()


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
@pytest.mark.parametrize("kind", ["convolution", "depthwise"])
def test_a_strided_convolution_is_centred_on_even_pixels(size: tuple[int, int], kind: Any) -> None:
    # Padding of one pixel on every side; TensorFlow's "same" would centre on odd pixels where the size is even.
    height, width = size
    layer = Layer("conv", kind, 1, 1, size, (-(-height // 2), -(-width // 2)), 3, 2)
    block = ConvolutionBlock(layer, nn.ReLU()).eval()
    block.norm = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        block.conv.weight.zero_()
        block.conv.weight[:, :, 1, 1] = 1
        x = torch.arange(1.0, height * width + 1).view(1, 1, height, width)
        assert torch.equal(block(x), x[:, :, ::2, ::2])


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 2)])
def test_max_pooling_reads_the_pixel_before_and_the_one_after(size: tuple[int, int]) -> None:
    model = HybridMobileNet(resolve("mp3", 0.25))
    x = -torch.rand(1, 2, *size)  # padding must never win, not even over negative numbers
    pooled = model.get_submodule("pool1")(x)
    height, width = size
    assert pooled.shape[2:] == (-(-height // 2), -(-width // 2))
    for i in range(pooled.shape[2]):
        for j in range(pooled.shape[3]):
            window = x[:, :, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2]
            assert torch.equal(pooled[:, :, i, j], window.amax((2, 3)))


def test_bytes_and_fractions_give_the_same_logits() -> None:
    model = HybridMobileNet(SMALL).eval()
    images = torch.randint(0, 256, (4, 3, 16, 20), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model(images), model(images.float() / 255))
        assert not torch.equal(model(images), model(images.float()))


def test_normalisation_is_inside() -> None:
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 1.5)
    model = HybridMobileNet(SMALL, mean=mean, std=std).eval()
    plain = HybridMobileNet(SMALL, mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.rand(4, 3, 16, 20)
    with torch.no_grad():
        assert torch.equal(model(x), plain((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)))
        assert not torch.equal(model(x), plain(x))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
def test_maps_stay_channels_last(family: Family, training: bool) -> None:
    model = HybridMobileNet(resolve(family, 0.25, 2, image_size=16)).train(training)
    maps: list[Tensor] = []
    for module in model.children():
        module.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    model(torch.rand(2, 3, 16, 16))
    *maps, logits = maps
    assert len(maps) >= 27
    assert all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in maps)
    assert logits.is_contiguous()


def test_relu6_clips_at_6() -> None:
    layer = Layer("conv", "convolution", 1, 1, (4, 4), (4, 4), 3)
    blocks = [ConvolutionBlock(layer, activation).eval() for activation in (nn.ReLU(), nn.ReLU6())]
    blocks[1].load_state_dict(blocks[0].state_dict())
    x = 100 * torch.randn(2, 1, 4, 4)
    with torch.no_grad():
        relu, relu6 = (block(x) for block in blocks)
    assert relu.max() > 6
    assert relu6.max() == 6
    assert torch.equal(relu.clamp(max=6), relu6)
    models = [HybridMobileNet(SMALL, activation=activation) for activation in ("relu", "relu6")]
    models[1].load_state_dict(models[0].state_dict())
    noise = 50 * torch.randn(4, 3, 16, 20)
    models[0].train()(noise)
    models[1].train()(noise)
    assert not torch.equal(models[0].eval()(noise), models[1].eval()(noise))


def test_regions_are_random_in_training_and_fixed_in_evaluation() -> None:
    model = HybridMobileNet(SMALL, dropout=0.0)
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
    assert HybridMobileNet(resolve("mp3", 0.25)).fractional_max_pools() == []


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("family", ["mp3", "fmp"])
def test_what_is_pooled_has_been_through_the_activation(family: Family, activation: Activation) -> None:
    torch.manual_seed(0)
    model = HybridMobileNet(resolve(family, 0.25, 1), activation=activation).eval()
    block, pool = model.get_submodule("conv"), model.get_submodule("pool1")
    maps = block(100 * torch.randn(2, 3, 32, 32))
    activate = nn.ReLU() if activation == "relu" else nn.ReLU6()
    assert maps.min() == 0
    assert (maps.max() <= 6) == (activation == "relu6")
    assert torch.equal(pool(maps), activate(pool(maps)))


def test_weights_start_glorot_uniform() -> None:
    torch.manual_seed(0)
    model = HybridMobileNet(resolve("mobilenet", 0.5))
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
        states.append(HybridMobileNet(SMALL).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["a", "b"]}, "class_names has 2 different names in 2, but the network has 3 classes"),
        ({"class_names": ["a", "b", "a"]}, "class_names has 2 different names in 3, but the network has 3 classes"),
        ({"mean": [0.5]}, r"mean is \[0.5\], but must hold one number per input channel \(3\)"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean is .*nan"),
        ({"std": [1.0, 1.0, 0.0]}, "each above 0"),
        ({"activation": "gelu"}, "activation is 'gelu', but must be one of relu, relu6"),
        ({"sequence": "even"}, "sequence is 'even', but must be one of random, pseudorandom"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HybridMobileNet(SMALL, **options)


def trained(network: Network = SMALL) -> HybridMobileNet:
    """A model whose every number differs from a fresh one's."""
    model = HybridMobileNet(
        network,
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
        "mean", "std", "activation", "dropout", "sequence", "overlapping", "training",
    ]  # fmt: skip
    assert config["class_names"] == ["cat", "dog", 'ünï "x"']
    assert (config["image_size"], config["sequence"], config["overlapping"]) == ([16, 20], "pseudorandom", True)
    assert config["mean"] == pytest.approx([0.4, 0.5, 0.6])


def test_weights_are_named_after_the_layers(saved: Path) -> None:
    layers = {layer.name for layer in SMALL.layers if layer.kind not in ("fractional_max_pool", "global_average_pool")}
    assert {name.partition(".")[0] for name in load_file(saved / "model.safetensors")} == layers


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
        ({"alpha": 0.5}, "conv.conv.weight is (8, 3, 3, 3) in the weights, but (16, 3, 3, 3)"),
        ({"alpha": 2.0**12}, "conv.conv.weight is (8, 3, 3, 3) in the weights"),  # more memory than there is
        ({"delta": 1}, "block1_depthwise.conv.weight is (16, 1, 3, 3) in the weights, but (8, 1, 3, 3)"),
        ({"class_names": ["a", "b"]}, "classifier.linear.weight is (3, 256) in the weights, but (2, 256)"),
        ({"in_channels": 1, "mean": [0.5], "std": [0.5]}, "conv.conv.weight is (8, 3, 3, 3) in the weights"),
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
        *(({key: ...}, f"it lacks '{key}'") for key in ("family", "delta", "class_names", "std", "training")),
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
        ({"class_names": ["a", "b", "a"]}, "class_names has 2 different names"),
        ({"class_names": ["a", "b", 3]}, "class_names is"),
        ({"class_names": []}, "classes is 0"),
        ({"mean": [0.5]}, "mean is [0.5]"),
        ({"mean": None}, "mean is None"),
        ({"mean": ["a", "b", "c"]}, "mean is ['a'"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean is [0.5, 0.5, nan]"),
        ({"std": [0.5, 0.5, 0.0]}, "std is"),
        ({"std": [0.5, 0.5, float("inf")]}, "std is"),
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
    name = "block2_pointwise.norm.weight"
    if change == "one tensor less":
        del weights[name]
    elif change == "one tensor more":
        name = "block2_pointwise.conv.bias"
        weights[name] = torch.zeros(32)
    else:
        weights[name] = torch.zeros(1)
    save_file(weights, folder / "model.safetensors")
    refuses(folder, f"{name} is", "does not fit its config.json")


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
    for source in ("runs/mistyped", "runs", "missing", "file", "", "a/b/c", "/missing"):
        refuses(source, "there is no config.json in it", repr(source))


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
    assert results.attempted >= 3
    assert results.failed == 0
