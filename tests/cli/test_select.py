"""`select`: the best network within a budget, from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from command_line import fails, invoke
from hybrid_mobilenet.deploy import benchmark
from hybrid_mobilenet.deploy.latency import Latency
from hybrid_mobilenet.deploy.runtimes import OnnxClassifier
from hybrid_mobilenet.network.architecture import resolve
from hybrid_mobilenet.network.cost import network_mult_adds, network_parameters
from hybrid_mobilenet.study.recorded import recorded
from processes import run_command, run_python


def selected(*arguments: str) -> dict[str, Any]:
    result = invoke("select", *arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def names(found: dict[str, Any]) -> list[tuple[str, int, float]]:
    return [(each["family"], each["delta"], each["alpha"]) for each in found["networks"]]


def test_select_lists_what_a_budget_allows_the_most_accurate_first() -> None:
    result = run_command("select", "--mult-adds", "10M", "--data", "cifar10")
    assert (result.returncode, result.stderr) == (0, "")
    rows = re.findall(
        r"^(MobileNet|MP3|FMP) d(\d) a([\d.]+) .* ([\d,]+) +([\d,]+) +[\d,]+ +[\d,]+ +([\d.]+)% +(\d)$",
        result.stdout,
        re.MULTILINE,
    )
    accuracies = {each.configuration: each for each in recorded() if each.data == "cifar10"}
    shown = []
    for family, delta, alpha, mult_adds, parameters, accuracy, seeds in rows:
        each = accuracies[family.lower(), int(delta), float(alpha)]
        network = resolve(each.family, each.alpha, each.delta)
        assert (mult_adds, parameters) == (f"{network_mult_adds(network):,}", f"{network_parameters(network):,}")
        assert (accuracy, seeds) == (f"{100 * each.accuracy:.2f}", str(len(each.accuracies)))
        shown.append(each)
    assert [each.accuracy for each in shown] == sorted((each.accuracy for each in shown), reverse=True)
    cheap = {key for key, each in accuracies.items() if network_mult_adds(resolve(key[0], key[2], key[1])) <= 10e6}
    assert {each.configuration for each in shown} == cheap
    best = shown[0]
    command = f"hybrid-mobilenet train cifar10 --family {best.family} --alpha {best.alpha:g} --delta {best.delta}"
    assert result.stdout.splitlines()[-1] == command


def test_every_limit_counts() -> None:
    every = selected("--data", "cifar10")
    assert len(every["networks"]) == sum(each.data == "cifar10" for each in recorded())
    for option, field, unit in (
        ("mult-adds", "mult_adds", ""),
        ("parameters", "parameters", ""),
        ("bytes", "int8_bytes", "B"),
    ):
        limits = sorted({each[field] for each in every["networks"]})
        limit = limits[len(limits) // 2]
        for text, allowed in ((f"{limit / 1e6:f}M{unit}", limit), (f"{limit - 1}{unit}", limit - 1)):
            found = selected("--data", "cifar10", f"--{option}", text)
            assert names(found) == [
                name for name, each in zip(names(every), every["networks"], strict=True) if each[field] <= allowed
            ]
    both = selected("--data", "cifar10", "--mult-adds", "10M", "--parameters", "500k")
    assert all(each["mult_adds"] <= 10e6 and each["parameters"] <= 500e3 for each in both["networks"])


def test_costs_are_for_the_image_size_and_classes() -> None:
    found = selected("--image-size", "48x64", "--classes", "7")
    for each in found["networks"]:
        network = resolve(each["family"], each["alpha"], each["delta"], 7, image_size=(48, 64))
        assert each["mult_adds"] == network_mult_adds(network)
    assert (found["image_size"], found["classes"], found["recorded_image_size"]) == ([48, 64], 7, [32, 32])
    assert found["command"].endswith(" --image-size 48x64")
    text = invoke("select", "--image-size", "48x64").stdout
    assert "The accuracies were recorded on images of 32x32 pixels." in text
    assert "recorded on images" not in invoke("select").stdout
    assert selected("--data", "cifar100")["classes"] == 100


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--mult-adds", "10x"], ["--mult-adds is '10x'", "500k"]),
        (["--bytes", "0KB"], ["--bytes is '0KB'", "500kB"]),
        (["--parameters", "-5"], ["--parameters is '-5'"]),
        (["--classes", "0"], ["classes is 0", "2 or more"]),
        (["--image-size", "4"], ["image_size is 4x4", "8 or more"]),
        (["--mult-adds", "1k"], ["the budget is 1,000 Mult-Adds", "32x32 pixels", "the closest is MobileNet d2 a0.25"]),
    ],
)
def test_select_refuses(arguments: list[str], parts: list[str]) -> None:
    fails(invoke("select", *arguments), *parts)


def test_microseconds_are_measured_here() -> None:
    limits = ["--mult-adds", "7M", "--parameters", "500k", "--image-size", "16"]
    found = selected(*limits, "--microseconds", "1M")
    assert found["runtime"] == "ONNX Runtime"
    assert len(found["networks"]) >= 2
    assert all(0 < each["microseconds"] < 1e6 for each in found["networks"])
    assert names(found) == names(selected(*limits))
    fails(invoke("select", *limits, "--microseconds", "0.01"), "--microseconds is 0.01", "takes", "in ONNX Runtime")


def test_slow_networks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_cost(networks: Any, _rounds: int, _advance: Any) -> tuple[str, list[Latency]]:
        seconds = [network_mult_adds(network) / 1e12 for network in networks]  # a microsecond per million
        return "a runtime", [Latency(each, each, each) for each in seconds]

    monkeypatch.setattr(benchmark, "untrained_latencies", by_cost)
    fast = selected("--microseconds", "10")
    assert names(fast) == names(selected("--mult-adds", "10M"))
    text = invoke("select", "--microseconds", "10").stdout
    assert "One image, us" in text
    assert "measured here in a runtime on one thread" in " ".join(text.split())


def test_without_onnx_runtime_pytorch_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxClassifier, "module", "no_such_module")
    limits = ["--mult-adds", "2M", "--parameters", "500k", "--image-size", "16"]
    assert selected(*limits, "--microseconds", "10M")["runtime"] == "PyTorch"


def test_select_without_microseconds_needs_no_torch() -> None:
    script = (
        "import sys; from hybrid_mobilenet.cli.app import app\n"
        "app(['select', '--json'], standalone_mode=False)\nsys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert run_python("-c", script).returncode == 0


def test_accuracies_come_with_the_package(tmp_path: Path) -> None:
    result = run_command("select", "--json", cwd=tmp_path)  # outside a checkout
    assert json.loads(result.stdout)["networks"]
