"""Which images a file, a folder or a pattern names."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_mobilenet.data.images import DataError
from hybrid_mobilenet.data.listing import Skipped
from hybrid_mobilenet.data.patterns import find_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat/1.png", "cat/2.jpg", "cat/10.png", "dog/photo[1].jpg", "dog/old/3.webp", "a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name in ("cat/4.HEIC", "cat/Thumbs.db", ".hidden/5.png", "dog/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name in ("config.json", "model.safetensors", "metrics.jsonl", "curves.png"):
        (tmp_path / "runs/one").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs/one" / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", ["a.png", "cat/1.png", "cat/2.jpg", "cat/10.png", "dog/old/3.webp", "dog/photo[1].jpg"]),
        ("cat/*.png", ["cat/1.png", "cat/10.png"]),
        ("cat/?.*", ["cat/1.png", "cat/2.jpg"]),
        ("dog/photo[1].jpg", ["dog/photo[1].jpg"]),
        ("*", ["a.png", "cat/1.png", "cat/2.jpg", "cat/10.png", "dog/old/3.webp", "dog/photo[1].jpg"]),
        ("**/*.png", ["a.png", "cat/1.png", "cat/10.png"]),
        ("**", ["a.png", "cat/1.png", "cat/10.png", "cat/2.jpg", "dog/old/3.webp", "dog/photo[1].jpg"]),
        ("*/old", ["dog/old/3.webp"]),
    ],
)
def test_files_folders_and_patterns(photos: Path, pattern: str, found: list[str]) -> None:
    assert list(find_images([photos / pattern])) == [photos / name for name in found]


def test_what_a_folder_leaves_out_is_counted(photos: Path) -> None:
    skipped = Skipped()
    list(find_images([photos / "cat", photos / "dog"], skipped=skipped))
    (note,) = skipped.notes()
    assert note.startswith("skipped 2 files that are not images: 1 .heic (convert them to JPEG")


def test_a_pattern_without_images_is_an_error(photos: Path) -> None:
    with pytest.raises(DataError, match=r"\*\.gif is not a file, and as a pattern it matches no images"):
        list(find_images([photos / "*.gif"]))
    problems: list[Exception] = []
    assert list(find_images([photos / "*.gif", photos / "a.png"], problems.append)) == [photos / "a.png"]
    assert len(problems) == 1
