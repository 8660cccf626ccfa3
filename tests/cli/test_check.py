"""The command `check`: its text, its JSON and its exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from command_line import fails, invoke
from hybrid_mobilenet.training import plan as plans
from noise_images import image_folder
from processes import run_command


@pytest.fixture(autouse=True)
def _measures_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "SECONDS", 0.0)


def check(*arguments: str | Path) -> tuple[int, str]:
    result = invoke("check", *arguments, "--image-size", "8", "--device", "cpu")
    return result.exit_code, result.stdout


def test_a_good_folder(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "my photos", {"cat": 20, "[dog]": 20})
    status, text = check(root)
    assert status == 0
    lines = text.splitlines()
    assert lines[0].startswith(str(tmp_path)[:20])
    assert "40 images in 2 classes" in " ".join(text.split())
    assert [line.split()[0] for line in lines if line.rstrip().endswith("50.0%")] == ["[dog]", "cat"]
    assert "train would start, and take about" in " ".join(text.split())
    assert f"  hybrid-mobilenet train '{root}' --image-size 8" in text.splitlines()  # whole, however long
    assert len(lines) <= 24
    assert "Duplicates" not in text
    assert "Unreadable" not in text


def test_bad_data_is_a_page_and_status_1(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"a": 10, "b": 10})
    for number in range(7):
        (root / f"a/bad{number}.png").write_bytes(b"no image")
    for number in range(9):
        (root / f"a/copy{number}.png").write_bytes((root / f"b/00{number}.png").read_bytes())
    status, text = check(root)
    words = " ".join(text.split())
    assert status == 1
    assert "Unreadable: 7" in words
    unbroken = "".join(words.split())  # long paths are folded
    assert "bad4.png" in unbroken
    assert "bad5.png" not in unbroken
    assert "... 2 more, see --json" in words
    assert "equal in different classes (a wrong label?) 9 18" in words
    assert words.count("equal: a/copy") == 6
    assert "... 3 more groups, see --json or --html" in words
    assert "train would refuse this data: 7 of 36 images cannot be read: repair or remove them" in words
    assert "train would start" not in words


def test_json_has_everything(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"a": 10, "b": 10})
    for number in range(7):
        (root / f"a/bad{number}.png").write_bytes(b"no image")
    status, text = check(root, "--json")
    found = json.loads(text)
    assert status == 1
    assert len(found["unreadable"]) == 7
    assert found["refusals"] == [
        "7 of 27 images cannot be read: repair or remove them, or leave them out with --skip-bad"
    ]
    assert found["training"]["seconds"] is None


def test_many_classes_are_cut_in_the_middle(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {f"class{number:02}": 4 + number for number in range(15)})
    status, text = check(root)
    assert status == 0
    shown = [line.split()[0] for line in text.splitlines() if re.match(r"class\d", line)]
    assert shown == [f"class{number:02}" for number in (14, 13, 12, 11, 10, 9, 5, 4, 3, 2, 1, 0)]
    assert "... 3 more, see --json" in text


def test_the_page_is_written_beside_the_text(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "photos", {"a": 10, "b": 10})
    status, text = check(root, "--html", tmp_path / "page.html")
    assert status == 0
    assert "The same with pictures:" in text
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    fails(invoke("check", root, "--html", tmp_path / "none/page.html"), "none/page.html", "No such file")


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    fails(invoke("check", tmp_path / "none"), "there is no data")
    fails(invoke("check", tmp_path), "no subfolders")
    fails(invoke("check", "digits", "--image-size", "x"), "--image-size is 'x'")
    fails(invoke("check", "digits", "--image-size", "4"), "image_size")
    fails(invoke("check", "digits", "--device", "tpu"), "--device is 'tpu'")


def test_as_a_program(tmp_path: Path) -> None:
    image_folder(tmp_path / "photos", {"a": 10, "b": 1})
    result = run_command("check", "photos", "--json", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (1, "")
    assert json.loads(result.stdout)["train_would_start"] is False


def test_the_command_does_what_was_checked(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "photos", {"a": 20, "b": 20})
    (root / "a/bad.png").write_bytes(b"no image")
    table = tmp_path / "labels.csv"
    files = sorted(root.rglob("*.png"))
    rows = [f"{file.relative_to(root)},{'xy'[number % 2]}" for number, file in enumerate(files)]
    table.write_text("file,label\n" + "\n".join(rows) + "\n")
    status, text = check(root, "--labels", table, "--skip-bad")
    assert status == 0, text
    command = f"hybrid-mobilenet train {root} --image-size 8 --labels {table} --skip-bad"
    assert command in [line.strip() for line in text.splitlines()]
    found = json.loads(check(root, "--labels", table, "--skip-bad", "--json")[1])
    assert sum(sum(counts.values()) for counts in found["classes"].values()) == 40
