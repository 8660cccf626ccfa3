"""What commands print with: tables and names as they are, JSON lists, and times."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from command_line import NETWORK
from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.cli.output import duration, json_list, print_json


@pytest.mark.slow
def test_names_are_printed_as_they_are(tmp_path: Path) -> None:
    """Folders of runs and data, classes and files: nothing in them is markup, on a terminal or in a picture."""
    names = ("a[b]", "[", "[red]", "$\\frac{$", ":smile:")
    data, out = tmp_path / "[red]data[b]", tmp_path / "run[" / "b]" / "[old]"
    pixels = load_digits().images
    for label, name in enumerate(names):
        (data / name).mkdir(parents=True)
        for index in range(10):
            image = Image.fromarray((pixels[10 * label + index] * 255 / 16).astype(np.uint8))
            image.save(data / name / f"[red]{index}[b].png")

    def shown(*arguments: str | Path, status: int = 0) -> str:
        """What a terminal shows."""
        result = CliRunner(env={"COLUMNS": "1000", "FORCE_COLOR": "1"}).invoke(cli.app, list(map(str, arguments)))
        assert result.exit_code == status, result.output
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stdout)

    network = ("--family", "mobilenet", *NETWORK[2:], "--epochs", "1")
    assert f"evaluation in {out}\n" in shown("train", data, *network, "--out", out)
    text = shown("evaluate", out, data)
    assert [line.split()[0] for line in text.splitlines()[2:7]] == sorted(names)
    assert f"confusion matrix in {out / 'confusion.png'}\n" in text
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")
    text = shown("predict", out, data, "--top", "5")
    for name in names:
        assert str(data / name / "[red]0[b].png") in text
        assert re.search(rf"[ ,]{re.escape(name)} +\d", text)
    text = shown("export", out, "--to", "onnx", "--out", tmp_path / "[b]files[x]")
    assert str(tmp_path / "[b]files[x]/model.onnx") in text
    folder = tmp_path / "[red]speed[b]"
    text = shown("benchmark", out, tmp_path / "[b]files[x]/model.onnx", "--rounds", "1", "--out", folder)
    assert f"written to {folder}" in text
    assert text.count(str(tmp_path / "[b]files[x]/model.onnx")) == 1
    assert f"{out} " in text
    error = CliRunner().invoke(cli.app, ["predict", str(tmp_path / "[/x]"), "x"]).stderr
    assert f"'{tmp_path / '[/x]'}'" in error


@pytest.mark.parametrize("items", [[], [1], [{"a": [1, 2]}, "text"]], ids=str)
def test_a_json_list_is_printed_as_a_whole_one(items: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    with json_list() as add:
        for item in items:
            add(item)
    one_by_one = capsys.readouterr().out
    print_json(items)
    assert one_by_one == capsys.readouterr().out


def test_a_json_list_is_closed_after_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def print_one() -> None:
        with json_list() as add:
            add({"file": "a.png"})
            raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        print_one()
    assert json.loads(capsys.readouterr().out) == [{"file": "a.png"}]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (100, "2 min"), (5000, "83 min"), (11_100, "3 h 05 min"), (200_000, "2 d 7 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
