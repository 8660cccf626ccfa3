"""The command line from outside: what it prints, how it fails, and how fast it starts."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import hybrid_mobilenet
from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.data.images import DataError
from hybrid_mobilenet.network.architecture import FAMILIES, resolve
from hybrid_mobilenet.network.cost import network_mult_adds, network_parameters
from hybrid_mobilenet.study.paper import DEVIATIONS, RESULTS

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(hybrid_mobilenet.__file__).parents[1]), "COLUMNS": "80"}

NOT_OURS = "(no message of hybrid-mobilenet's own, so perhaps a bug in it: HYBRID_MOBILENET_DEBUG=1 shows where)"


def run(*arguments: str, interpreter: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *interpreter, "-m", "hybrid_mobilenet", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=60)


def test_tables_prints_the_three_networks() -> None:
    result = run("tables")
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[2].rstrip(",") for line in lines if line and line[0] == "Table"] == list(FAMILIES)
    totals = [line for line in lines if line and line[0] == "Total"]
    assert totals == [["Total", f"{network_mult_adds(resolve(family)):,}", "3,239,114"] for family in FAMILIES]
    repeated = "5 x Conv dw / s1 3 x 3 x 512 2 x 2 x 512 92,160 0.8% 33,280 1.0%"
    assert [" ".join(line) for line in lines].count(repeated) == 2  # Tables 1 and 2
    # Piped output is plain and whole, whatever COLUMNS says.
    assert "\x1b" not in result.stdout
    assert "…" not in result.stdout


def test_rows_of_a_table_add_up_to_its_total() -> None:
    text = run("tables", "--family", "fmp", "--alpha", "0.25", "--delta", "2", "--image-size", "40x24").stdout
    rows = re.findall(r"([\d,]+) +[\d.]+% +([\d,]+) +[\d.]+%$", text, re.MULTILINE)
    mult_adds, parameters = (
        sum(int(figure.replace(",", "")) for figure in column) for column in zip(*rows, strict=True)
    )
    network = resolve("fmp", 0.25, 2, image_size=(40, 24))
    assert (mult_adds, parameters) == (network_mult_adds(network), network_parameters(network))
    totals = [line.split()[-2:] for line in text.splitlines() if line.startswith(("Total", "of them trainable"))]
    assert totals == [[f"{mult_adds:,}", f"{parameters:,}"], ["trainable", "425,506"]]


def test_tables_json_has_every_layer() -> None:
    (record,) = json.loads(run("tables", "--family", "mp3", "--classes", "7", "--in-channels", "1", "--json").stdout)
    network = resolve("mp3", classes=7, in_channels=1)
    assert (record["family"], record["classes"], record["image_size"]) == ("mp3", 7, [32, 32])
    assert [layer["name"] for layer in record["layers"]] == [layer.name for layer in network.layers]
    assert sum(layer["mult_adds"] for layer in record["layers"]) == record["mult_adds"] == network_mult_adds(network)
    assert sum(layer["parameters"] for layer in record["layers"]) == record["parameters"]
    assert record["trainable_parameters"] == network_parameters(network, "trainable")


def test_cost_json_is_the_grid_of_the_paper() -> None:
    result = run("cost", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    records = json.loads(result.stdout)
    assert len(records) == 38
    for record, reported in zip(records, RESULTS, strict=True):
        assert list(record) == [
            "family", "delta", "alpha", "classes", "mult_adds", "parameters", "trainable_parameters",
            "paper_accuracy", "paper_mult_adds", "paper_parameters", "deviations",
        ]  # fmt: skip
        network = resolve(record["family"], record["alpha"], record["delta"], record["classes"])
        assert record["mult_adds"] == network_mult_adds(network)
        assert record["parameters"] == network_parameters(network, "paper")
        assert record["trainable_parameters"] == network_parameters(network, "trainable")
        assert all(type(record[key]) is int for key in ("mult_adds", "parameters", "trainable_parameters", "delta"))
        for key in ("accuracy", "mult_adds", "parameters"):
            figure = getattr(reported, key)
            assert record[f"paper_{key}"] == (None if figure is None else float(figure))
    assert {reason for record in records for reason in record["deviations"]} == {each.reason for each in DEVIATIONS}
    recommended = records[RESULTS.index(next(r for r in RESULTS if (r.family, r.alpha) == ("fmp", 0.25)))]
    assert recommended["paper_accuracy"] == 82.1
    assert len(recommended["deviations"]) == 2


def test_cost_has_a_footnote_for_every_letter() -> None:
    result = run("cost")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    rows = [line.split() for line in lines if line.startswith(FAMILIES)]
    assert len(rows) == 38
    used = {word for row in rows for word in row if len(word) == 1 and word.isalpha()}
    notes = [line[0] for line in lines if line[1:8] == " Table "]
    assert sorted(used) == notes == list("abcdefgh")
    assert "…" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--alpha", "0.3"), "alpha is 0.3"),
        (("--alpha", "nan"), "alpha is nan"),
        (("--alpha", "inf"), "alpha is inf"),
        (("--delta", "0"), "delta is 0"),
        (("--classes", "1"), "classes is 1"),
        (("--in-channels", "0"), "in_channels is 0"),
        (("--image-size", "4"), "image_size is 4x4"),
        (("--image-size", "32x"), "--image-size is '32x'"),
        (("--image-size", "1x2x3"), "--image-size is '1x2x3'"),
        (("--image-size", "-8"), "--image-size is '-8'"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_status_2(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(cli.app, ["tables", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1


def test_a_mistake_in_the_shell() -> None:
    result = run("tables", "--alpha", "0.3")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: alpha is 0.3, but 32 * alpha must be a whole number of channels, 1 or more: "
        "choose a multiple of 1/32, such as 0.25, 0.5 or 1\n"
    )


@pytest.mark.parametrize("arguments", [("tables", "--wdith", "1"), ("tables", "--family", "vgg"), ("nothing",)])
def test_typer_explains_what_it_does_not_know(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "message", "status"),
    [
        (KeyboardInterrupt(), "error: interrupted\n", 130),
        (KeyboardInterrupt("stopped: go on with --resume runs/a"), "error: stopped: go on with --resume runs/a\n", 130),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "error: a.png: No such file or directory\n", 2),
        (OSError(28, "No space left on device"), "error: No space left on device\n", 2),
        (OSError("the disk is gone"), "error: the disk is gone\n", 2),
        (DataError("two\n  lines"), "error: two lines\n", 2),
        (ValueError("two\n  lines"), f"error: two lines {NOT_OURS}\n", 2),
    ],
    ids=repr,
)
def test_what_a_command_raises_becomes_one_line(error: BaseException, message: str, status: int) -> None:
    app = typer.Typer(cls=cli.Commands)

    @app.command()
    def fails() -> None:
        raise error

    @app.command()
    def other() -> None: ...

    result = CliRunner().invoke(app, ["fails"])
    assert (result.exit_code, result.stderr) == (status, message)


def test_an_error_that_nobody_wrote_a_message_for_says_so() -> None:
    """Python's own, of more digits than it takes, in a function of the package that raises mistakes of the user's."""
    for side, is_ours in (("x", True), ("9" * 5000, False)):
        result = CliRunner().invoke(cli.app, ["tables", "--image-size", side])
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert result.stderr.endswith(f" {NOT_OURS}\n") is not is_ours


@pytest.mark.parametrize("arguments", [("--alpha", "0.3"), ("--image-size", "9" * 5000)], ids=["mistake", "bug"])
def test_the_traceback_is_shown_where_it_is_asked_for(
    arguments: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run("tables", *arguments)
    monkeypatch.setitem(ENVIRONMENT, "HYBRID_MOBILENET_DEBUG", "0")
    assert run("tables", *arguments).stderr == plain.stderr
    monkeypatch.setitem(ENVIRONMENT, "HYBRID_MOBILENET_DEBUG", "1")
    shown = run("tables", *arguments)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.startswith("Traceback (most recent call last):\n")
    assert shown.stderr.endswith(f"\n{plain.stderr}")
    assert 'cli.py", line ' in shown.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a Linux device that is always full")
def test_a_full_disk_behind_a_redirection_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "hybrid_mobilenet", "cost", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False, timeout=60,
        )  # fmt: skip
    assert (result.returncode, result.stderr) == (2, "error: No space left on device\n")


COMMANDS = ("tables", "cost", "train", "evaluate", "predict")
STARTING = [("tables",), ("cost",), ("--help",), *((name, "--help") for name in COMMANDS)]


@pytest.fixture(scope="module")
def seconds_to_import_torch() -> float:
    return min(processor_time(sys.executable, "-c", "import torch") for _ in range(2))


def processor_time(*command: str) -> float:
    """Seconds: on a quiet machine about the time that passes, and less moved by what else runs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize("arguments", STARTING, ids=" ".join)
def test_starts_at_once_without_torch(arguments: tuple[str, ...], seconds_to_import_torch: float) -> None:
    # A ratio, since a shared machine took 1.3 s for what is 0.37 s on a quiet one; there it was 0.24 to 0.55.
    command = sys.executable, "-m", "hybrid_mobilenet", *arguments
    assert any(processor_time(*command) < 0.6 * seconds_to_import_torch for _ in range(3))
    imported = set(re.findall(r"\|\s*(\S+)$", run(*arguments, interpreter=("-X", "importtime")).stderr, re.MULTILINE))
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "numba", "datasets", "matplotlib"}


def test_help_teaches() -> None:
    for command in COMMANDS:
        text = run(command, "--help").stdout
        assert "Examples" in text
        assert f"hybrid-mobilenet {command} " in text


def test_the_version() -> None:
    assert run("--version").stdout == f"{hybrid_mobilenet.__version__}\n"


def test_the_package_imports_nothing_heavy_until_it_is_asked() -> None:
    code = (
        "import sys, hybrid_mobilenet; from hybrid_mobilenet import resolve; "
        "assert 'torch' not in sys.modules; resolve('fmp'); "
        "assert set(hybrid_mobilenet.__all__) <= set(dir(hybrid_mobilenet)); "
        "from hybrid_mobilenet import FractionalMaxPool2d; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True, timeout=60)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'MobileNetV2'"):
        _ = hybrid_mobilenet.MobileNetV2
