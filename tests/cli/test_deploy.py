"""`export` and `benchmark` from the command line: which data they read, and how they fail."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from command_line import NETWORK, fails, invoke
from processes import run_command


@pytest.mark.slow
def test_export_from_another_folder(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, elsewhere = photos.parent, tmp_path / "elsewhere"
    network = ["--family", "mp3", *NETWORK[2:], "--batch-size", "16"]
    result = run_command("train", "photos", *network, "--epochs", "12", "--out", "run", cwd=work)
    assert result.returncode == 0, result.stderr
    assert json.loads((work / "run/config.json").read_text())["training"]["data"] == str(photos)
    targets = ("--to", "onnx,onnx-int8")
    result = run_command("export", "../work/run", *targets, "--json", cwd=elsewhere)
    assert (result.returncode, result.stderr) == (0, "")
    assert [file["target"] for file in json.loads(result.stdout)["files"]] == ["onnx", "onnx-int8"]

    shutil.rmtree(photos)
    monkeypatch.chdir(elsewhere)
    without = invoke("export", work / "run", *targets, "--out", "files", "--json")
    assert without.exit_code == 2
    assert [file["target"] for file in json.loads(without.stdout)["files"]] == ["onnx"]
    (line,) = without.stderr.splitlines()
    for part in ("error: onnx-int8: it is calibrated on training images", "--data", f"'{photos}'", "cannot be read"):
        assert part in line
    assert [path.name for path in Path("files").iterdir()] == ["model.onnx"]
    # What is named now and cannot be read is a mistake, for all targets.
    fails(invoke("export", work / "run", *targets, "--data", photos, "--out", "others"), f"there is no data '{photos}'")
    assert not Path("others").exists()


def test_few_images_for_int8_are_no_obstacle_for_float32(photos: Path, model: Path, tmp_path: Path) -> None:
    for name in map(str, range(10)):
        (tmp_path / "few" / name).mkdir(parents=True)
        for index in range(3):
            shutil.copy(photos / "0" / f"{index}.png", tmp_path / "few" / name)
    out = tmp_path / "files"
    result = invoke("export", model, "--to", "onnx-int8,onnx", "--data", tmp_path / "few", "--out", out)
    assert result.exit_code == 2
    assert re.fullmatch(r"error: onnx-int8: there are \d+ training images, but int8 [^\n]+\n", result.stderr)
    assert [path.name for path in out.iterdir()] == ["model.onnx"]
