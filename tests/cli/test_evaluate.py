"""`evaluate` and `predict` from the command line: what they print, and how they fail."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from command_line import NETWORK, fails, invoke
from processes import run_command, start_command

# Evaluate


def test_evaluate(model: Path) -> None:
    result = run_command("evaluate", model, "digits")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["Class", "Images", "Recall", "Precision", "F1"]
    assert [line.split()[0] for line in lines[2:12]] == list("0123456789")
    evaluation = json.loads((model / "evaluation.json").read_text())
    start = f"{evaluation['accuracy']:.2%} of 359 test images classified correctly, 1 pass, cross-entropy "
    assert lines[12].startswith(start)
    assert lines[13] == f"balanced accuracy {evaluation['balanced_accuracy']:.2%}: the mean recall of the classes"
    assert lines[14] == "tested: all 359 images of the test split of digits"
    assert " ".join(lines[15:]).replace("  ", " ").startswith("confusion matrix in")
    with Image.open(model / "confusion.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.size == (888, 813)


def test_evaluate_json_agrees_with_the_run(model: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    result = invoke("evaluate", model, "digits", "--json", "--out", picture)
    assert (result.exit_code, result.stderr) == (0, "")
    record = json.loads(result.stdout)
    assert (record.pop("model"), record.pop("data"), record.pop("picture")) == (str(model), "digits", str(picture))
    assert (record.pop("tested"), record.pop("of"), record.pop("used_in_training")) == ("test split", 359, 0)
    assert record.pop("notes") == []
    expected = json.loads((model / "evaluation.json").read_text())
    assert record.pop("loss") == pytest.approx(expected.pop("loss"), abs=1e-5)  # another runtime's rounding
    assert record == expected
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_evaluate_with_passes(model: Path) -> None:
    first, again, other = (
        json.loads(invoke("evaluate", model, "digits", "--passes", "3", "--seed", seed, "--json").stdout)
        for seed in ("1", "1", "2")
    )
    assert first == again
    assert first["passes"] == 3
    assert first["loss"] != other["loss"]
    assert "3 passes with random regions" in invoke("evaluate", model, "digits", "--passes", "3").stdout.replace(
        "\n", " "
    )


@pytest.mark.parametrize("seed", ["-1", "18446744073709551616"])
def test_evaluate_refuses_a_seed(seed: str, model: Path) -> None:
    for passes in ("1", "2"):
        result = invoke("evaluate", model, "digits", "--passes", passes, "--seed", seed)
        fails(result, f"seed is {seed}, but must be 0 or more and less than 2**64")


def test_a_time_is_a_seed(model: Path, tmp_path: Path) -> None:
    options = ("--epochs", "1", "--batch-size", "500", "--seed", "20241124123456")
    result = invoke("train", "digits", *NETWORK, *options, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.stderr
    result = invoke("evaluate", model, "digits", "--passes", "2", "--seed", str(2**64 - 1), "--json")
    assert result.exit_code == 0, result.stderr


def test_a_picture_that_cannot_be_written_costs_the_picture_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, reason in ((tmp_path / "file" / "picture.png", "File exists"), (tmp_path, "Is a directory")):
        result = invoke("evaluate", model, "digits", "--json", "--out", out)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        assert result.stderr.endswith(f": {reason}\n")
        assert json.loads(result.stdout)["images"] == 359
    assert invoke("evaluate", model, "digits", "--out", tmp_path / "new" / "picture.png").exit_code == 0
    assert (tmp_path / "new" / "picture.png").is_file()


# Predict


def test_predict(model: Path, images: Path) -> None:
    result = run_command("predict", model, *sorted(images.iterdir()))
    assert (result.returncode, result.stderr.strip()) == (0, "")
    header, _, *rows = result.stdout.splitlines()
    assert header.split() == ["File", "Class", "Probability", "Then"]
    assert len(rows) == 3
    for index, row in enumerate(rows):
        assert re.fullmatch(rf"\S.*digit {index}\.png +\d +[\d.]+% +\d [\d.]+%, \d [\d.]+% *", row)


def test_predict_one_class(model: Path, images: Path) -> None:
    header, _, *rows = invoke("predict", model, images, "--top", "1").stdout.splitlines()
    assert header.split() == ["File", "Class", "Probability"]
    assert [len(row.split()) for row in rows] == [4, 4, 4]  # "digit 0.png" has a space


@pytest.mark.slow
def test_a_damaged_exif_block_leaves_no_word(model: Path, tmp_path: Path) -> None:
    for name, exif in (("garbage", b"no TIFF header"), ("cut off", b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01")):
        for kind in ("jpg", "png", "webp"):
            Image.new("RGB", (8, 8), (90, 90, 90)).save(tmp_path / f"{name}.{kind}", exif=exif)
    result = run_command("predict", model, tmp_path, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert len(json.loads(result.stdout)) == 6


def test_paths_that_are_no_files_are_named_and_not_read(model: Path, images: Path, tmp_path: Path) -> None:
    link, pipe = tmp_path / "link.png", tmp_path / "pipe.png"
    link.symlink_to(tmp_path / "gone")
    os.mkfifo(pipe)
    result = invoke("predict", model, link, pipe, images, "--json")
    assert result.exit_code == 2
    assert len(json.loads(result.stdout)) == 3
    for line, path in zip(result.stderr.splitlines(), (link, pipe), strict=True):
        assert line.startswith(f"error: {path} is not a regular file")


def test_predict_json(model: Path, images: Path) -> None:
    result = invoke("predict", model, images, "--json", "--top", "10")
    assert (result.exit_code, result.stderr) == (0, "")
    records = json.loads(result.stdout)
    assert [Path(record["file"]).name for record in records] == [f"digit {index}.png" for index in range(3)]
    for record in records:
        assert list(record) == ["file", "class", "probabilities"]
        shares = list(record["probabilities"].values())
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert record["class"] == next(iter(record["probabilities"]))
        assert set(record["probabilities"]) == set("0123456789")
    (one, *_) = json.loads(invoke("predict", model, images, "--json", "--top", "1").stdout)
    assert one["probabilities"] == {records[0]["class"]: records[0]["probabilities"][records[0]["class"]]}


def test_predict_averages_passes(model: Path, images: Path) -> None:
    file = next(iter(sorted(images.iterdir())))
    one, many = (
        json.loads(invoke("predict", model, file, "--passes", passes, "--json", "--top", "10").stdout)[0]
        for passes in ("1", "4")
    )
    assert one["probabilities"] != many["probabilities"]
    assert sum(many["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_a_bad_image_among_good_ones(model: Path, images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    whole = (folder / "digit 0.png").read_bytes()
    (folder / "digit 0.5.png").write_bytes(whole[: len(whole) // 2])
    (folder / "digit 1.5.png").write_text("no image")
    result = invoke("predict", model, folder, "--json")
    assert result.exit_code == 2
    assert [Path(record["file"]).name for record in json.loads(result.stdout)] == [
        f"digit {index}.png" for index in range(3)
    ]
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {folder / 'digit 0.5.png'} ")
    assert second.startswith(f"error: {folder / 'digit 1.5.png'} ")
    result = invoke("predict", model, folder)
    assert result.exit_code == 2
    assert result.stdout.count(".png") == 3


def test_paths_that_are_none_among_good_images(model: Path, images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    (folder / "digit 0.5.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "empty").mkdir()
    paths = (folder / "digit 1.png", tmp_path / "nothere.png", tmp_path / "empty", folder)
    result = invoke("predict", model, *paths, "--json")
    assert result.exit_code == 2
    found = [Path(record["file"]).name for record in json.loads(result.stdout)]
    assert found == ["digit 1.png", "digit 0.png", "digit 1.png", "digit 2.png"]
    missing, empty, link = result.stderr.splitlines()
    assert missing.startswith(f"error: {tmp_path / 'nothere.png'} does not exist")
    assert empty.startswith(f"error: {tmp_path / 'empty'} contains no images")
    assert link.startswith(f"error: {folder / 'digit 0.5.png'} is not a regular file")
    result = invoke("predict", model, images / "digit 1.png", "nothere.png")
    assert (result.exit_code, result.stdout.count("digit 1.png")) == (2, 1)
    assert re.fullmatch(r"error: nothere\.png does not exist[^\n]+\n", result.stderr)


@pytest.fixture(scope="module")
def many_images(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 of them, all the same file."""
    folder = tmp_path_factory.mktemp("many")
    for index in range(2000):
        os.link(images / "digit 0.png", folder / f"{index:04}.png")
    return folder


def first_row(lines: IO[str]) -> str:
    """What is printed up to the first image."""
    text = ""
    while "0000.png" not in text:
        line = lines.readline()
        assert line, text
        text += line
    return text


@pytest.mark.parametrize("as_json", [False, True], ids=["table", "json"])
@pytest.mark.slow
def test_rows_appear_as_they_come_and_ctrl_c_keeps_them(as_json: bool, model: Path, many_images: Path) -> None:
    process = start_command("predict", model, many_images / "missing.png", many_images, *["--json"] * as_json)
    assert process.stdout
    assert process.stderr
    with process:
        text = first_row(process.stdout)
        assert process.poll() is None  # it has hardly begun
        process.send_signal(signal.SIGINT)
        text += process.stdout.read()
        stderr = process.stderr.read()
    assert process.returncode == 130
    if as_json:
        records = json.loads(text)
        assert {len(record["probabilities"]) for record in records} == {3}
        names = [Path(record["file"]).name for record in records]
    else:
        names = re.findall(r"(\d{4}\.png) +\d +[\d.]+% +\d [\d.]+%, \d [\d.]+% *\n", text)
        assert text.count("\n") == 2 + len(names)
    assert names == [f"{index:04}.png" for index in range(len(names))]
    assert 1 <= len(names) < 2000
    missing, interrupted = stderr.splitlines()
    assert missing.startswith(f"error: {many_images / 'missing.png'} does not exist")
    assert interrupted == f"error: interrupted after {len(names):,} images"


@pytest.mark.slow
def test_rows_on_a_terminal(model: Path, many_images: Path) -> None:
    """Both outputs are one terminal, where no bar may run into the rows."""
    ours, theirs = os.openpty()
    terminal_of_120 = {"stdout": theirs, "stderr": theirs, "environment": {"COLUMNS": "120"}}
    with start_command("predict", model, many_images, **terminal_of_120) as process:
        os.close(theirs)
        with os.fdopen(ours, closefd=True) as terminal:
            text = first_row(terminal)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            with suppress(OSError):  # Linux's way to say that the other end is closed
                while line := terminal.readline():
                    text += line
        assert process.wait(60) == 130
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines()
    *rows, interrupted = plain[2:]
    assert [row.split()[0] for row in rows] == [str(many_images / f"{index:04}.png") for index in range(len(rows))]
    assert interrupted == f"error: interrupted after {len(rows):,} images"


@pytest.mark.slow
def test_rows_go_where_standard_output_goes(model: Path, many_images: Path, tmp_path: Path) -> None:
    """The bar is on a terminal, the rows are in a file."""
    ours, theirs = os.openpty()
    some = [str(many_images / f"{index:04}.png") for index in range(20)]
    with (tmp_path / "rows").open("w") as file:
        process = start_command("predict", model, *some, stdout=file, stderr=theirs)
        os.close(theirs)
        sent = b""
        with suppress(OSError):
            while piece := os.read(ours, 4096):
                sent += piece
        os.close(ours)
    assert process.wait(60) == 0
    assert [line.split()[0] for line in (tmp_path / "rows").read_text().splitlines()[2:]] == some
    assert b"predicting" in sent
    assert b".png" not in sent


def test_only_bad_images(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    fails(invoke("predict", model, tmp_path / "bad.png"), "bad.png is empty", "replace or remove it")
    result = invoke("predict", model, tmp_path / "bad.png", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (2, [])


def test_predict_csv(model: Path, images: Path, tmp_path: Path) -> None:
    names = ["plain.png", 'a, "b".png', "two\nlines.png", "caf\udce9.png"]  # the last is not UTF-8
    for name in names:
        shutil.copy(images / "digit 0.png", tmp_path / name)
    files = [tmp_path / name for name in names]
    result = run_command("predict", model, *files, tmp_path / "none.png", "--csv", errors="surrogateescape")
    assert result.returncode == 2
    assert re.fullmatch(r"error: .*none.png does not exist[^\n]*\n", result.stderr)
    header, *rows = csv.reader(io.StringIO(result.stdout))
    assert header == ["file", "class", "probability"]
    records = json.loads(invoke("predict", model, *files, "--json").stdout)
    assert [row[0] for row in rows] == list(map(str, files))
    for row, record in zip(rows, records, strict=True):
        assert (row[1], float(row[2])) == (record["class"], record["probabilities"][record["class"]])


def test_predict_csv_of_several_classes(model: Path, images: Path) -> None:
    header, *rows = csv.reader(io.StringIO(invoke("predict", model, images, "--csv", "--top", "3").stdout))
    assert header == ["file", "class", "probability", "class2", "probability2", "class3", "probability3"]
    records = json.loads(invoke("predict", model, images, "--json").stdout)
    for row, record in zip(rows, records, strict=True):
        assert dict(zip(row[1::2], map(float, row[2::2]), strict=True)) == record["probabilities"]
    header, *_ = csv.reader(io.StringIO(invoke("predict", model, images, "--csv", "--top", "99").stdout))
    assert len(header) == 1 + 2 * 10
    fails(invoke("predict", model, images, "--csv", "--json"), "--csv and --json are two formats")


@pytest.mark.slow
def test_a_reader_may_close_the_pipe(model: Path, many_images: Path) -> None:
    for form in ("--csv", "--json"):
        process = start_command("predict", model, many_images, form)
        assert process.stdout
        assert process.stderr
        with process:
            process.stdout.readline()
            process.stdout.close()  # as `head` does
            assert process.stderr.read() == ""
        assert process.returncode == 1


def test_predict_patterns(model: Path, images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "photos [1]"))
    (folder / "deep").mkdir()
    shutil.copy(images / "digit 0.png", folder / "deep" / "photo[1].png")
    shutil.copy(images / "digit 0.png", folder / "photo1.png")
    (folder / "notes.txt").write_text("no image")

    def predicted(*arguments: str | Path) -> list[str]:
        result = invoke("predict", model, *arguments, "--json")
        assert (result.exit_code, result.stderr) == (0, "")
        return [str(Path(record["file"]).relative_to(folder)) for record in json.loads(result.stdout)]

    digits = [f"digit {index}.png" for index in range(3)]
    assert predicted(folder / "digit*.png") == digits
    assert predicted(folder / "**/*.png") == ["deep/photo[1].png", *digits, "photo1.png"]
    assert predicted(folder / "*") == ["deep/photo[1].png", *digits, "photo1.png"]
    assert predicted(folder / "photo[1].png", folder / "deep/photo[1].png") == ["photo1.png", "deep/photo[1].png"]
    fails(invoke("predict", model, folder / "*.jpg"), "*.jpg is not a file, and as a pattern it matches no images")
    fails(invoke("predict", model, folder / "**.png"), "**.png is not a file, and as a pattern it matches no images")


def gigapixel(path: Path) -> None:
    """A PNG of 40,000 x 40,000 pixels by its header, and without any."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def test_images_of_every_kind(model: Path, tmp_path: Path) -> None:
    Image.new("L", (9, 7), 100).save(tmp_path / "grey.png")
    Image.new("RGBA", (20, 10), (200, 0, 0, 100)).save(tmp_path / "rgba.png")
    Image.fromarray(np.full((12, 12), 40_000, np.uint16)).save(tmp_path / "sixteen bits.png")
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "one pixel.png")
    Image.new("P", (8, 8), 3).save(tmp_path / "palette.gif")
    Image.new("CMYK", (16, 16), (10, 20, 30, 40)).save(tmp_path / "print.jpg")
    result = invoke("predict", model, tmp_path, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(json.loads(result.stdout)) == 6
    gigapixel(tmp_path / "huge.png")
    fails(invoke("predict", model, tmp_path / "huge.png"), str(tmp_path / "huge.png"), "pixels")


def test_predict_refuses(model: Path, images: Path, tmp_path: Path) -> None:
    fails(invoke("predict", model, images, "--top", "0"), "top is 0, but must be 1 or more")
    fails(invoke("predict", model, images, "--passes", "0"), "passes is 0")
    fails(invoke("predict", model, tmp_path / "missing.png"), "missing.png does not exist")
    fails(invoke("predict", model, tmp_path), f"{tmp_path} contains no images")
    assert invoke("predict", model).exit_code == 2


# Models that are none


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_model_that_is_none(command: str, model: Path, images: Path, tmp_path: Path) -> None:
    subject: str | Path = "digits" if command == "evaluate" else images
    fails(invoke(command, tmp_path, subject), "there is no config.json in it")
    bad = Path(shutil.copytree(model, tmp_path / "bad"))
    (bad / "model.safetensors").write_bytes(b"\x80\x05K\x01.")
    fails(invoke(command, bad, subject), str(bad / "model.safetensors"), "not a safetensors file")
    (bad / "config.json").write_text("{")
    fails(invoke(command, bad, subject), str(bad / "config.json"))


@pytest.mark.slow
def test_a_mistyped_model_is_not_looked_for_in_the_hub_where_its_folder_exists(model: Path, images: Path) -> None:
    result = run_command("predict", "runs/digit", images, cwd=model.parents[1])
    fails(result, "model is 'runs/digit', but there is no config.json in it")
    result = run_command("predict", "nobody/nothing", images, cwd=model.parents[1])
    fails(result, "model is 'nobody/nothing', but there is no such folder", "Hub")
