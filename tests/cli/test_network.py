"""`tables` and `cost`: every layer, exact totals, and the paper's figures."""

from __future__ import annotations

import json
import re

import pytest

from command_line import fails, invoke
from hybrid_mobilenet.network.architecture import FAMILIES, resolve
from hybrid_mobilenet.network.cost import network_mult_adds, network_parameters
from hybrid_mobilenet.study.paper import DEVIATIONS, RESULTS
from processes import run_command


def test_tables_prints_the_three_networks() -> None:
    result = run_command("tables")
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
    text = run_command("tables", "--family", "fmp", "--alpha", "0.25", "--delta", "2", "--image-size", "40x24").stdout
    rows = re.findall(r"([\d,]+) +[\d.]+% +([\d,]+) +[\d.]+%$", text, re.MULTILINE)
    mult_adds, parameters = (
        sum(int(figure.replace(",", "")) for figure in column) for column in zip(*rows, strict=True)
    )
    network = resolve("fmp", 0.25, 2, image_size=(40, 24))
    assert (mult_adds, parameters) == (network_mult_adds(network), network_parameters(network))
    totals = [line.split()[-2:] for line in text.splitlines() if line.startswith(("Total", "of them trainable"))]
    assert totals == [[f"{mult_adds:,}", f"{parameters:,}"], ["trainable", "425,506"]]


def test_tables_json_has_every_layer() -> None:
    options = ["--family", "mp3", "--classes", "7", "--in-channels", "1", "--json"]
    (record,) = json.loads(run_command("tables", *options).stdout)
    network = resolve("mp3", classes=7, in_channels=1)
    assert (record["family"], record["classes"], record["image_size"]) == ("mp3", 7, [32, 32])
    assert [layer["name"] for layer in record["layers"]] == [layer.name for layer in network.layers]
    assert sum(layer["mult_adds"] for layer in record["layers"]) == record["mult_adds"] == network_mult_adds(network)
    assert sum(layer["parameters"] for layer in record["layers"]) == record["parameters"]
    assert record["trainable_parameters"] == network_parameters(network, "trainable")


def test_cost_json_is_the_grid_of_the_paper() -> None:
    result = run_command("cost", "--json")
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
    result = run_command("cost")
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
    result = invoke("tables", *arguments)
    fails(result)
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.endswith("\n")
