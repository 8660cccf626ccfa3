"""Labels in a table beside a folder of images: CSV and JSON lines as people write them, and errors."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hybrid_mobilenet.data.images import DataError
from hybrid_mobilenet.data.splits import Splits, load_data
from noise_images import noise

FILES = ["a1.png", "a2.png", "a3.png", "deep/b1.png", "deep/b2.png", "deep/b3.png"]
LABELS = ["ant", "ant", "ant", "bee", "bee", "bee"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index, name in enumerate(FILES):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(8, 8, seed=index)).save(file)
    return tmp_path / "photos"


def write(path: Path, lines: list[str], encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def load(photos: Path, table: Path, **options: Any) -> Splits:
    return load_data(str(photos), image_size=8, labels=table, **options)


def labelled(splits: Splits) -> dict[bytes, str]:
    """The label of each image, by its pixels."""
    found = {}
    for part in (splits.train, splits.validation, splits.test):
        if part is not None:
            for pixels, label in zip(part.batch(torch.arange(len(part))), part.labels.tolist(), strict=True):
                found[pixels.permute(1, 2, 0).numpy().tobytes()] = part.class_names[label]
    return found


EXPECTED = {noise(8, 8, seed=index).tobytes(): label for index, label in enumerate(LABELS)}


@pytest.mark.parametrize(
    ("file", "label"),
    [
        *(
            ("file", "label"),
            ("filename", "class"),
            ("file_name", "labels"),
            ("File Name", "Class Name"),
            ("path", "y"),
        ),
        *(("image", "target"), ("Image_ID", "Category"), ("id", "breed"), ("filepaths", "label"), ("img", "species")),
        *(("picture no", "label"), ("file", "what it is")),  # of two columns, one name is enough
    ],
)
def test_names_of_columns(file: str, label: str, photos: Path, tmp_path: Path) -> None:
    rows = [f"{file},{label}", *map(",".join, zip(FILES, LABELS, strict=True))]
    splits = load(photos, write(tmp_path / "labels.csv", rows))
    assert splits.train.class_names == ("ant", "bee")
    assert labelled(splits) == EXPECTED
    assert not splits.has_own_test
    assert splits.notes == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name,
        lambda name: name.removesuffix(".png"),
        lambda name: name.rpartition("/")[2],  # only one file fits
        lambda name: name.rpartition("/")[2].removesuffix(".png"),
        lambda name: f"./{name}",
        lambda name: f"photos/{name}",  # relative to the table
        lambda name: f"../input/photos/{name}",  # where the folder was before
        lambda name: f"C:\\data\\photos\\{name}".replace("/", "\\"),
        lambda name: f" {name} ",
        lambda name: f'"{name}"',
    ],
)
def test_ways_to_name_a_file(change: object, photos: Path, tmp_path: Path) -> None:
    assert callable(change)
    rows = ["file,label", *(f"{change(file)},{label}" for file, label in zip(FILES, LABELS, strict=True))]
    assert labelled(load(photos, write(tmp_path / "labels.csv", rows))) == EXPECTED


def test_absolute_paths_and_files_outside_the_folder(photos: Path, tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8, seed=99)).save(tmp_path / "outside.png")
    rows = [f"{photos / file},{label}" for file, label in zip(FILES, LABELS, strict=True)]
    splits = load(photos, write(tmp_path / "labels.csv", ["file,label", *rows, "outside.png,ant"]))
    assert labelled(splits) == EXPECTED | {noise(8, 8, seed=99).tobytes(): "ant"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_files_of_spreadsheets(encoding: str, separator: str, photos: Path, tmp_path: Path) -> None:
    names = {"ant": f'"red{separator} small"', "bee": unicodedata.normalize("NFD", "Käfer")}
    rows = [f"{file}{separator}{names[label]}{separator}" for file, label in zip(FILES, LABELS, strict=True)]
    table = write(tmp_path / "labels.csv", [f"file{separator}label{separator}", *rows, "", separator * 2], encoding)
    assert load(photos, table).train.class_names == (unicodedata.normalize("NFC", "Käfer"), f"red{separator} small")
    quoted = [separator.join(f'"{cell}"' for cell in row) for row in zip(FILES, LABELS, strict=True)]
    table = write(tmp_path / "quoted.csv", ["", separator, f'"file"{separator}"label"', *quoted], encoding)
    assert labelled(load(photos, table)) == EXPECTED


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json"])
def test_json_lines(suffix: str, photos: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"file_name": file, "label": label}) for file, label in zip(FILES, LABELS, strict=True)]
    assert labelled(load(photos, write(tmp_path / f"labels{suffix}", [*rows, ""]))) == EXPECTED


def test_numbers_as_labels_are_in_natural_order(photos: Path, tmp_path: Path) -> None:
    rows = [
        json.dumps({"file": file, "label": number}) for file, number in zip(FILES, (10, 9, 10, 9, 2, 2), strict=True)
    ]
    assert load(photos, write(tmp_path / "labels.jsonl", rows)).train.class_names == ("2", "9", "10")
    # As pandas writes a column of numbers with gaps.
    rows = [row.replace("}", ".0}") for row in rows]
    assert load(photos, write(tmp_path / "floats.jsonl", rows)).train.class_names == ("2", "9", "10")


@pytest.mark.parametrize("column", ["split", "Subset", "data set"])
def test_splits(column: str, photos: Path, tmp_path: Path) -> None:
    splits = ["train", "Test", "valid", "training", "testing", "train"]
    rows = [",".join(row) for row in zip(FILES, LABELS, splits, strict=True)]
    table = write(tmp_path / "labels.csv", [f"file,label,{column}", *rows])
    loaded = load_data(str(photos), image_size=8, validation=0.1, labels=str(table))
    assert loaded.has_own_test
    assert loaded.validation is not None
    assert [part.labels.tolist() for part in (loaded.train, loaded.validation, loaded.test)] == [[0, 1, 1], [0], [0, 1]]
    assert loaded.notes == ("there are no validation images of bee",)
    assert labelled(loaded) == EXPECTED


def test_columns_can_be_chosen_and_are_noted(photos: Path, tmp_path: Path) -> None:
    rows = [f"{i},{file},{label},{label[0]}" for i, (file, label) in enumerate(zip(FILES, LABELS, strict=True))]
    table = write(tmp_path / "labels.csv", ["id,picture,label,letter", *rows])
    assert load(photos, table).notes == (f"{table}: files from column 'picture', labels from column 'label'",)
    splits = load(photos, table, image_column="picture", label_column="letter")
    assert splits.train.class_names == ("a", "b")
    for option in ("image_column", "label_column"):
        with pytest.raises(
            DataError,
            match=rf"--{option.replace('_', '-')} is 'x', but the columns are id, picture, label, letter in .*: name",
        ):
            load(photos, table, **{option: "x"})


def test_other_images_and_files_are_noted(photos: Path) -> None:
    (photos / "deep" / "film.mp4").write_bytes(b"")
    rows = ["file,label", "a1,ant", "a2,ant", "a2.png,ant", "b1,bee", "b2,bee"]  # a2 twice, with the same label
    table = write(photos / "labels.csv", rows)
    splits = load(photos, table)
    assert len(splits.train) + len(splits.test) == 4
    assert splits.notes == (
        f"left alone: 2 images in {photos} that are not in {table}",
        "skipped 2 files that are not images: 1 .csv, 1 .mp4",
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,label", "a1.png,ant", "a9.png,ant", "a8.png,ant"], r"line 3: 'file' is 'a9.png', but there is no such "
         r".* below .*photos \(1 more rows name no image either\): correct the names, or remove the rows"),
        (["file,label", "a1.png,ant", "a2.png,"], "line 3: 'label' is empty: fill it in, or remove the row"),
        (["file,label", ",ant"], "line 2: 'file' is empty: fill it in, or remove the row"),
        (["file,label", "a1.png,ant", "a1,bee"], "line 3: .*a1.png is 'bee', but .*line 2 says 'ant': remove one"),
        (["file,label,split", "a1,ant,train", "a1,ant,test"], "line 3: .*a1.png is 'test', but .*line 2 says 'train'"),
        (["file,label,split", "a1,ant,fold 1"], "line 2: 'split' is 'fold 1', but must be train, validation or test"),
        (["file,label,split", "a1,ant,test"], "labels.csv has no training images: give some rows the split 'train'"),
        (["a1.png,ant", "a2.png,ant"], r"no column that is clearly the file: the columns are a1.png, ant: name it with "
         r"--image-column, or give the first line the column 'file'"),
        (["file,height,width", "a1.png,1,2"], r"clearly the label: .* file, height, width: name it with --label-colu"),
        (["file", "a1.png"], "no column that is clearly the label"),
        (["file,label", "a1.png,small, red"], "line 2 has 3 fields, but the first line has 2: put fields that"),
        (["file,label", 'a1.png,"ant', "a2.png,ant"], r"cannot be read as CSV \(.*\): save it again as CSV"),
        (["file,label,label", "a1.png,ant,bee"], "has several columns named 'label': rename one of them"),
        (["file,label"], "has no rows: give it a line for each image"),
        ([""], "has no rows"),
    ],
)  # fmt: skip
def test_bad_tables(lines: list[str], message: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as raised:
        load(photos, write(tmp_path / "labels.csv", lines))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("line", ["[1, 2]", "{'file': 1}", "{", '"a"', "[" * 100_000])
def test_bad_json_lines(line: str, photos: Path, tmp_path: Path) -> None:
    good = '{"file": "a1.png", "label": "ant"}'
    with pytest.raises(DataError, match=r"labels.jsonl, line 2 must be a JSON object such as"):
        load(photos, write(tmp_path / "labels.jsonl", [good, line]))
    with pytest.raises(DataError, match=r"line 2: 'label' is \['x'\], but must be one text or number"):
        load(photos, write(tmp_path / "labels.jsonl", [good, '{"file": "a2.png", "label": ["x"]}']))


def test_a_name_that_is_too_long(photos: Path, tmp_path: Path) -> None:
    name = f"../{'x' * 300}.png"
    with pytest.raises(DataError, match=f"line 2: 'file' is '{name}', but there is no such image below"):
        load(photos, write(tmp_path / "labels.csv", ["file,label", f"{name},ant"]))


def test_a_name_that_fits_several_files(photos: Path, tmp_path: Path) -> None:
    (photos / "more").mkdir()
    for name in ("deep/a.png", "more/a.png", "more/a.jpg"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photos / name)
    for name, files in (("a", "deep/a.png, .*more/a.jpg, .*more/a.png"), ("a.png", "deep/a.png, .*more/a.png")):
        with pytest.raises(DataError, match=f"line 2: '{name}' could be .*{files}: add the folder and the extension"):
            load(photos, write(tmp_path / "labels.csv", ["file,label", f"{name},ant"]))
    rows = ["file,label", "a.jpg,ant", "deep/a.png,ant", "more/a.png,ant", "b1,bee", "b2,bee"]
    load(photos, write(tmp_path / "labels.csv", rows))


def test_unusable_files(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(photos / "labels.csv", ["file,label"])
    with pytest.raises(
        DataError, match=r"--labels is 'labels.csv', but there is no such file \(did you mean '.*photos/l"
    ):
        load(photos, Path("labels.csv"))
    with pytest.raises(DataError, match=r"--labels is 'labels.xlsx', but must be a .csv, .tsv, .jsonl, .* save it as"):
        load(photos, write(Path("labels.xlsx"), ["file,label"]))
    with pytest.raises(DataError, match=r"latin.csv is not in UTF-8: save it as CSV in UTF-8"):
        load(photos, write(Path("latin.csv"), ["file,label", "a1,Käfer"], "latin-1"))
    with pytest.raises(DataError, match=r"--labels is .*, but .*labels.csv is not a folder of images: give one, or no"):
        load(photos / "labels.csv", photos / "labels.csv")
