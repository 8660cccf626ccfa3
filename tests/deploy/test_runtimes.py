"""Files for ExecuTorch and LiteRT; `make test-runtimes` installs both and runs these tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hybrid_mobilenet import FractionalMaxPool2d, HybridMobileNet, __version__, resolve
from hybrid_mobilenet.data.dataset import load_data, load_test
from hybrid_mobilenet.deploy.deployed import Deployed, ExportError, GridMaxPool, fixed_pool
from hybrid_mobilenet.deploy.executorch import (
    SlicedMaxPool,
    concatenate,
    consecutive,
    executorch_bytes,
    for_xnnpack,
)
from hybrid_mobilenet.deploy.export import export_file
from hybrid_mobilenet.deploy.litert import litert_bytes
from hybrid_mobilenet.deploy.runtimes import ExecuTorchClassifier, LiteRTClassifier, RuntimeFileError, open_file
from hybrid_mobilenet.layers.sizes import Size
from hybrid_mobilenet.network.architecture import FAMILIES, Family
from networks import images, network, trained
from processes import run_command

ROOT = Path(__file__).parents[2]
SIZES: tuple[Size, ...] = ((32, 32), (40, 24))
CLASSIFIERS = {"executorch": ExecuTorchClassifier, "litert": LiteRTClassifier}
BYTES = {"executorch": executorch_bytes, "litert": litert_bytes}
FILES = {"executorch": "model.pte", "litert": "model.tflite"}


def needs(runtime: str) -> pytest.MarkDecorator:
    classifier = CLASSIFIERS[runtime]
    missing = not all(find_spec(module) for module in (classifier.module, classifier.exporter))
    return pytest.mark.skipif(
        missing, reason=f"{runtime} is not installed: make test-runtimes installs it and runs this"
    )


RUNTIMES = [pytest.param(runtime, marks=needs(runtime)) for runtime in CLASSIFIERS]


@pytest.fixture(scope="module")
def model() -> HybridMobileNet:
    return trained("fmp")


@pytest.fixture(scope="module", params=RUNTIMES)
def file(request: pytest.FixtureRequest, model: HybridMobileNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained network, exported."""
    path = tmp_path_factory.mktemp(request.param) / FILES[request.param]
    assert 0 < export_file(model, request.param, path).difference <= 1e-4
    return path


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own: what C++ prints passes by Python's streams."""
    return run_command(*arguments, timeout=600)


def printed(*arguments: str | Path) -> Any:
    result = command(*arguments, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


# What the files compute


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("family", "alpha", "delta", "classes", "size"),
    list(product(FAMILIES, (0.25, 1.0), (1, 2), (10, 100), SIZES)),
    ids=lambda value: str(value).replace(" ", ""),
)
def test_agrees_with_pytorch(runtime: str, family: Family, alpha: float, delta: int, classes: int, size: Size) -> None:
    model = network(family, alpha, delta, classes, size)
    some = images(2, size, seed=1)
    with torch.no_grad():
        expected = model(some)
    logits, probabilities = CLASSIFIERS[runtime](BYTES[runtime](model)).outputs(some)
    assert expected.std(0).max() > 0.1  # that logits depend on the image
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(probabilities, expected.softmax(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("options", [{"overlapping": True}, {"activation": "relu6"}], ids=str)
def test_options_of_the_model_are_exported(runtime: str, options: dict[str, Any]) -> None:
    model, plain, some = network("fmp", **options), network("fmp"), images(4)
    # The same weights and statistics: only the option makes the difference.
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        expected, other = model(some), plain(some)
    logits, _ = CLASSIFIERS[runtime](BYTES[runtime](model)).outputs(some)
    assert (expected - other).abs().max() > 1e-2
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_greyscale(runtime: str) -> None:
    torch.manual_seed(0)
    model = HybridMobileNet("fmp", 0.25, 4, 10, 1, 8, mean=[0.3], std=[0.4]).eval()
    some = images(4, (8, 8), 1)
    with torch.no_grad():
        expected = model(some)
    logits, _ = CLASSIFIERS[runtime](BYTES[runtime](model)).outputs(some)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_what_the_file_says(file: Path) -> None:
    classifier = open_file(file, threads=1)
    assert (classifier.class_names, classifier.image_size, classifier.in_channels) == (tuple("0123456789"), (16, 16), 3)
    assert isinstance(classifier, ExecuTorchClassifier | LiteRTClassifier)
    about = classifier.about
    assert {key: about[key] for key in ("family", "alpha", "delta", "version")} == {
        "family": "fmp", "alpha": "0.25", "delta": "2", "version": __version__,
    }  # fmt: skip
    assert "uint8 (1, 16, 16, 3), RGB, 0..255" in about["preprocessing"]
    assert about["outputs"].startswith("logits and probabilities: float32 (1, classes)")


def test_images_do_not_depend_on_each_other(file: Path) -> None:
    classifier, some = open_file(file), images(5, (16, 16))
    together, shares = classifier.outputs(some)
    assert together.shape == shares.shape == (5, 10)
    torch.testing.assert_close(shares.sum(1), torch.ones(5))
    for index in (4, 0):
        assert torch.equal(classifier.outputs(some[index : index + 1])[0][0], together[index])


def executorch_plan(content: bytes) -> Any:
    from executorch.exir._serialize._program import deserialize_pte_binary

    (plan,) = (plan for plan in deserialize_pte_binary(content).program.execution_plan if plan.name == "forward")
    return plan


def is_one_subgraph(content: bytes) -> bool:
    """Whether nothing is left to ExecuTorch's portable kernels but bytes to float."""
    plan = executorch_plan(content)
    operators = [operator.name for operator in plan.operators]
    return [delegate.id for delegate in plan.delegates] == ["XnnpackBackend"] and operators == [
        "dim_order_ops::_to_dim_order_copy"
    ]


@needs("executorch")
@pytest.mark.parametrize("family", FAMILIES)
def test_executorch_has_one_subgraph_of_xnnpack(family: Family) -> None:
    assert is_one_subgraph(executorch_bytes(network(family)))


@needs("executorch")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of ExecuTorch and of torch.export
@pytest.mark.parametrize("backend", ["portable", "xnnpack"])
@pytest.mark.parametrize(
    "pool",
    [{"ratio": 1.44}, {"ratio": 1.44, "overlapping": True}, {"output_size": (20, 16)}],
    ids=str,
)
def test_the_pooling_layer_in_another_model_runs_in_executorch(pool: dict[str, Any], backend: str) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), FractionalMaxPool2d(**pool), nn.Conv2d(8, 4, 3)).eval()
    some = torch.rand(2, 3, 32, 32)
    partitioner = [XnnpackPartitioner()] if backend == "xnnpack" else []
    lowered = to_edge_transform_and_lower(torch.export.export(model, (some,)), partitioner=partitioner)
    program = Runtime.get().load_program(bytes(lowered.to_executorch().buffer))
    (output,) = program.load_method("forward").execute((some,))
    torch.testing.assert_close(output, model(some).detach(), rtol=0, atol=1e-5)


# int8


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("family", "options"), [("mobilenet", {}), ("mp3", {"activation": "relu6"}), ("fmp", {})], ids=str
)
def test_int8_agrees_and_computes_in_integers_but_for_few_channels(
    runtime: str, family: Family, options: dict[str, Any], tmp_path: Path
) -> None:
    calibration = load_data("digits", image_size=16).train.batch(torch.arange(200))
    path = tmp_path / f"int8-{FILES[runtime]}"
    assert (
        export_file(trained(family, **options), f"{runtime}-int8", path, calibration=calibration).signal_to_noise >= 15
    )
    content = path.read_bytes()
    assert len(content) < 620_000  # where float32 has 1.7 MB; the bytes besides weights are those of tiny maps too
    if runtime == "executorch":
        assert is_one_subgraph(content)
        return
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    from hybrid_mobilenet.deploy.pt2e import FEW_CHANNELS, FEW_CHANNELS_DEPTHWISE

    plain = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    most = {"CONV_2D": FEW_CHANNELS, "DEPTHWISE_CONV_2D": FEW_CHANNELS_DEPTHWISE}
    channels = [
        (operator["op_name"], plain._get_tensor_details(operator["inputs"][0], 0)["shape"][-1])
        for operator in plain._get_ops_details()
        if np.float32 in (*operator["operand_types"], *operator["result_types"])
    ]
    assert {name for name, _ in channels} - most.keys() <= {
        "CAST",
        "SUB",
        "PAD",
        "CONCATENATION",
        "QUANTIZE",
        "DEQUANTIZE",
        "SOFTMAX",
    }
    assert all(count <= most[name] for name, count in channels if name in most)
    assert ("CONV_2D", 3) in channels  # the first layer takes an image


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_takes_about_a_third_of_the_bytes(runtime: str) -> None:
    """A quarter for the weights; the rest are names, and a scale and a zero point for each channel."""
    model, most = network("fmp", delta=2), {"executorch": 0.31, "litert": 0.35}
    assert len(BYTES[runtime](model, images(100))) <= most[runtime] * len(BYTES[runtime](model))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_that_disagrees_leaves_no_file(runtime: str, model: HybridMobileNet, tmp_path: Path) -> None:
    black = torch.zeros(100, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ExportError, match=r"signal-to-noise ratio is -?\d.* dB, but must be 10 or more"):
        export_file(model, f"{runtime}-int8", tmp_path / FILES[runtime], calibration=black)
    assert list(tmp_path.iterdir()) == []


# Steps for XNNPACK, in PyTorch


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_for_xnnpack_change_nothing(family: Family) -> None:
    model, some = network(family, delta=2), images(3).permute(0, 2, 3, 1)
    # In double precision, where rounding in another order cannot hide a difference, nor be taken for one.
    ours, theirs = for_xnnpack(Deployed(model).double())(some), Deployed(model).double()(some)
    for given, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("overlapping", [False, True])
def test_sliced_pooling_is_exact(overlapping: bool) -> None:
    layers = [layer for layer in resolve("fmp", 0.25, 1, 10, 3, (41, 11)).layers if layer.kind == "fractional_max_pool"]
    assert layers[-1].in_size[1] == layers[-1].out_size[1] == 1  # an axis that cannot shrink any more
    pools = [(fixed_pool(layer, overlapping), layer.in_size) for layer in layers]
    grids = [(pool, size) for pool, size in pools if isinstance(pool, GridMaxPool)]
    assert len(grids) >= 5
    for pool, size in grids:
        x = torch.randn(2, 3, *size)
        assert torch.equal(SlicedMaxPool(pool)(x), pool(x))


def test_runs_of_consecutive_pixels() -> None:
    assert consecutive(torch.tensor([0, 1, 2, 2, 3, 4, 4])) == [(0, 3), (2, 3), (4, 1)]
    assert consecutive(torch.tensor([5])) == [(5, 1)]


@pytest.mark.parametrize("count", [1, 2, 5, 6, 26, 31])
def test_concatenation_by_fives(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [torch.full((1, 2), index) for index in range(count)]
    expected, cat = torch.cat(maps, 1), torch.cat
    counts = []

    def counting(tensors: list[Tensor], axis: int) -> Tensor:
        counts.append(len(tensors))
        return cat(tensors, axis)

    monkeypatch.setattr(torch, "cat", counting)
    assert torch.equal(concatenate(maps, 1), expected)
    assert all(1 < number <= 5 for number in counts)


# What is refused


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_export_that_disagrees_leaves_no_file(
    runtime: str, model: HybridMobileNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = trained("fmp")
    with torch.no_grad():
        changed.get_parameter("classifier.linear.bias")[3] += 1e-3
    content = BYTES[runtime](changed)
    monkeypatch.setattr(f"hybrid_mobilenet.deploy.{runtime}.{runtime}_bytes", lambda *_: content)
    with pytest.raises(ExportError, match=r"disagrees with PyTorch in .*: logits differ by 0\.001"):
        export_file(model, runtime, tmp_path / FILES[runtime])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 1, 100, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_in_the_middle(file: Path, tmp_path: Path, keep: float) -> None:
    content = file.read_bytes()
    cut = tmp_path / file.name
    cut.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(RuntimeFileError, match=r"is damaged or not .*export it again"):
        open_file(cut)
    if keep == 0.5:
        Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
        result = command("predict", cut, tmp_path / "image.png")
        assert (result.returncode, result.stdout) == (2, "")
        assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_of_another_kind(runtime: str, tmp_path: Path) -> None:
    foreign = tmp_path / FILES[runtime]
    foreign.write_bytes(bytes(range(256)) * 100)
    with pytest.raises(RuntimeFileError, match="damaged or not"):
        open_file(foreign)


# The commands


def test_export_predict_evaluate_and_benchmark(model: HybridMobileNet, file: Path, tmp_path: Path) -> None:
    target = next(target for target, name in FILES.items() if name == file.name)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    (record,) = printed("export", folder, "--to", target, "--data", "digits")["files"]
    exported = folder / "export" / file.name
    assert (record["target"], record["path"], record["size"]) == (target, str(exported), exported.stat().st_size)
    assert 0 < record["parity"]["difference"] <= 1e-4
    test = load_test("digits", image_size=16)
    with torch.no_grad():
        right = model(test.batch(torch.arange(len(test)))).argmax(1) == test.labels
    assert record["accuracy"] == pytest.approx(right.float().mean().item(), abs=1 / len(test))

    Image.fromarray(test.batch(torch.arange(1))[0].permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    with torch.no_grad():
        expected = model(test.batch(torch.arange(1))).softmax(1)[0]
    (prediction,) = printed("predict", exported, tmp_path / "image.png", "--top", "10")
    for index, share in enumerate(expected.tolist()):
        assert prediction["probabilities"][str(index)] == pytest.approx(share, abs=1e-5)
    evaluation = printed("evaluate", exported, "digits", "--out", tmp_path / "confusion.png")
    assert evaluation["accuracy"] == record["accuracy"]

    rows = printed("benchmark", folder, "--rounds", "1", "--threads", "1,2", "--out", tmp_path)
    runtime = CLASSIFIERS[target].runtime
    assert [(row["runtime"], row["threads"]) for row in rows["measurements"]] == [
        ("PyTorch", 1), (runtime, 1), ("PyTorch", 2), (runtime, 2),
    ]  # fmt: skip
    assert all(row["latency"]["median"] > 1e-6 for row in rows["measurements"])
    assert target.replace("litert", "ai-edge-litert") in rows["environment"]["versions"]


def test_the_example(model: HybridMobileNet, file: Path, tmp_path: Path) -> None:
    one = load_test("digits", image_size=16).batch(torch.arange(1))
    Image.fromarray(one[0].permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    with torch.no_grad():
        share, best = model(one).softmax(1)[0].max(0)
    target = next(target for target, name in FILES.items() if name == file.name)
    # Outside the checkout, and without the package.
    example = ROOT / "examples" / f"run_{target}.py"
    assert "hybrid_mobilenet" not in example.read_text()
    call = [sys.executable, str(example), str(file), "image.png"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == f"{best.item()} {share.item():.1%}\n"
