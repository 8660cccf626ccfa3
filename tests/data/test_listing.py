"""Listing of folders: natural order, leftovers, run folders, links, and the line that counts what is skipped."""

from __future__ import annotations

import random
import time
import unicodedata
from pathlib import Path

import pytest

from hybrid_mobilenet.data.images import tree_below
from hybrid_mobilenet.data.listing import RUN_FILES, Skipped, is_leftover, natural, normal
from hybrid_mobilenet.network.model import CHECKPOINT_FILE, CONFIG_FILE, WEIGHTS_FILE
from hybrid_mobilenet.training.run import METRICS_FILE


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def found(root: Path, skipped: Skipped | None = None) -> list[str]:
    return [file.relative_to(root).as_posix() for file in tree_below(root, skipped=skipped).files()]


@pytest.mark.parametrize(
    "names",
    [
        ["1", "2", "10", "11", "12", "100"],
        ["img2.png", "img10.png", "img010b.png"],
        ["0", "00", "000", "001", "01", "1", "2", "002b"],
        ["", "1", "1a", "2", "A", "a", "a1", "a1b", "a2", "a10", "b", "é1", "é10"],
        ["v1.2", "v1.10", "v2.1"],
        ["9" * 200, "1" + "0" * 200, "x" + "7" * 5000],
    ],
)
def test_natural_order(names: list[str]) -> None:
    shuffled = names[:]
    for seed in range(20):
        random.Random(seed).shuffle(shuffled)
        assert sorted(shuffled, key=natural) == names


@pytest.mark.parametrize(
    "name",
    [
        *(".DS_Store", "._cat.png", ".ipynb_checkpoints", ".hidden", "__MACOSX", "Icon\r"),
        *("Thumbs.db", "thumbs.db", "ehthumbs.db", "Desktop.ini", "desktop.ini", "$RECYCLE.BIN"),
        *("System Volume Information", "@eaDir", "#recycle", "@Recycle", "lost+found", "__pycache__"),
    ],
)
def test_leftovers_of_systems(name: str, tmp_path: Path) -> None:
    assert is_leftover(name)
    touch(tmp_path, "a/1.png", f"a/{name}/2.png", f"{name}/a/3.png", f"b/deep/{name}/4.png")
    skipped = Skipped()
    assert found(tmp_path, skipped) == ["a/1.png"]
    assert skipped == Skipped()  # they are not worth a line


def test_names_that_are_no_leftovers() -> None:
    assert not any(map(is_leftover, ["thumbs", "recycle", "lost", "found", "icon", "System", "desktop", "tmp"]))


def test_files_and_folders_are_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path, "b10.png", "b2.png", "a/9.png", "a/10.png", "b3/1.PNG", "b/x.jpeg")
    assert found(tmp_path) == ["a/9.png", "a/10.png", "b/x.jpeg", "b2.png", "b3/1.PNG", "b10.png"]


def test_what_is_skipped_is_counted_in_one_line(tmp_path: Path) -> None:
    assert Skipped().notes() == []
    touch(tmp_path, "a/1.png", "a/notes.txt")
    skipped = Skipped()
    found(tmp_path, skipped)
    assert skipped.notes() == ["skipped 1 file that is not an image: 1 .txt"]
    touch(tmp_path, *(f"a/{i}.HEIC" for i in range(8)), "b/x.heif", "b/y.txt", "z.txt", "a/film.mp4", "a/film2.mp4")
    skipped = Skipped()
    assert found(tmp_path, skipped) == ["a/1.png"]
    assert skipped.notes() == [
        "skipped 14 files that are not images: 8 .heic, 1 .heif (convert them to JPEG, and set the phone's camera to "
        "'Most Compatible'), 3 .txt, 2 .mp4"
    ]
    touch(tmp_path, "README", "a/a.pdf", "a/b.pdf", "a/c.svg", "a/d.raw", "a/e.cr2")
    skipped = Skipped()
    found(tmp_path, skipped)
    (note,) = skipped.notes()
    assert note.startswith("skipped 20 files that are not images: 8 .heic, 1 .heif (")
    assert note.endswith("'), 3 .txt, 2 .mp4, 2 .pdf, 4 of other kinds")


def test_run_folders_are_recognised_by_the_files_that_training_writes(tmp_path: Path) -> None:
    assert [sorted(files) for files in RUN_FILES] == [[CHECKPOINT_FILE], [CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE]]
    touch(tmp_path, "a/1.png", "runs/one/checkpoint.safetensors", "runs/one/x.png", "a/two/curves.png")
    touch(tmp_path, *(f"a/two/{name}" for name in RUN_FILES[1]), "c/config.json", "c/1.png", "runs/notes.txt")
    skipped = Skipped()
    tree = tree_below(tmp_path, skipped=skipped)
    assert found(tmp_path) == ["a/1.png", "c/1.png"]
    assert [folder.name for folder in tree.folders] == ["a", "c"]
    assert skipped.notes()[1] == f"left alone, since they are run folders: {tmp_path}/a/two, {tmp_path}/runs/one"
    assert found(tmp_path / "runs/one") == ["x.png"]  # given itself, for example to predict


def test_a_folder_of_runs_before_the_first_file_of_its_first_run(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "empty/first").mkdir(parents=True)
    assert [folder.name for folder in tree_below(tmp_path).folders] == ["a", "empty"]


def test_links_are_followed_unless_they_lead_up(tmp_path: Path) -> None:
    touch(tmp_path, "root/a/1.png", "elsewhere/2.png", "elsewhere/deep/3.png", "other/4.png")
    for link, target in (
        ("root/b", "elsewhere"),
        ("root/a/in", "other"),
        ("root/a/self", "root/a"),
        ("root/a/up", "root"),
        ("root/top", "root"),
        ("elsewhere/deep/round", "root"),  # a cycle through another folder
        ("other/back", "other"),
        ("root/a/broken", "gone"),
        ("root/a/loop", "root/a/loop"),
    ):
        (tmp_path / link).symlink_to(tmp_path / target)
    skipped = Skipped()
    assert found(tmp_path / "root", skipped) == ["a/1.png", "a/in/4.png", "b/2.png", "b/deep/3.png"]
    assert {path.name for path in skipped.loops} == {"self", "up", "top", "round", "back"}
    assert skipped.notes()[-1].startswith("skipped links that lead to a folder above them: ")


def test_names_are_normalised(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Käfer")
    touch(tmp_path, f"{decomposed}/1.png")
    assert normal(decomposed) == "Käfer" != decomposed
    (folder,) = tree_below(tmp_path).folders
    assert folder.name == "Käfer"
    assert [file.exists() for file in folder.files()] == [True]


def test_a_hundred_thousand_files_are_listed_in_seconds(tmp_path: Path) -> None:
    """A twentieth of them here, in half a second of processor time."""
    for label in range(5):
        folder = tmp_path / f"class{label}"
        folder.mkdir()
        for index in range(1000):
            (folder / f"{index}.jpg").touch()
    start = time.process_time()
    assert tree_below(tmp_path).count == 5000
    assert time.process_time() - start < 0.5
