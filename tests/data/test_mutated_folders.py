"""Folder trees built and changed at random: each one is read as it should be, or refused in one line that names a path.

HYBRID_MOBILENET_FOLDERS sets the number of trees; 2,500 take a few minutes.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import time
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image

from hybrid_mobilenet.data import listing
from hybrid_mobilenet.data.dataset import ImageDataset
from hybrid_mobilenet.data.images import EXTENSIONS, DataError
from hybrid_mobilenet.data.listing import is_leftover
from hybrid_mobilenet.data.source import SourceOptions
from hybrid_mobilenet.data.split_names import split_role
from hybrid_mobilenet.data.splits import Splits, load_data, split_source
from noise_images import noise, parquet

TREES = int(os.environ.get("HYBRID_MOBILENET_FOLDERS", "150"))
#: Seconds of computing time for one tree.
LIMIT = 5.0

CLASSES = [
    *("cat", "dog", "Cat", "bird", "1", "2", "10", "01", "img2", "img10", "K\u00e4fer", "Ka\u0308fer", "\u732b"),
    *("red panda", "a[1]", "a*", "-x", "--labels", "~home", "line\nbreak", "tab\tbed", "#1", "50%", "a.png", "a,b"),
    *("valid", "invalid", "train", "crash_test", "train_station", "dev", "runs", "data", "b" * 200, "\udce9t\udce9"),
    *("'quoted'", "{x}", "trailing ", "b.parquet", "[bold]", "con", "Thumbs"),
]
SPLITS: dict[str, list[str]] = {
    "train": ["train", "Training", "TRAIN", "train_set", "seg_train", "TrainSet", "Train Images", "birds_train"],
    "validation": ["val", "valid", "Validation", "seg_val", "dev", "val2017", "birds_val"],
    "test": ["test", "Testing", "TEST", "test_set", "seg_test", "TestSet", "Test Images", "birds_test"],
}
AROUND = ["archive", "data", "my photos", "set[1]", "-d", "images", "dataset", "x\ny", "M\u00e4rz", "train", "test"]
LEFTOVER_FOLDERS = ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", ".ipynb_checkpoints", ".git", "#recycle"]
LEFTOVER_FILES = [".DS_Store", "Thumbs.db", "desktop.ini", "._1.png", ".hidden.jpg", "Icon\r"]
OTHER_FILES = [
    *("notes.txt", "README", "labels.csv", "metadata.jsonl", "film.mp4", "photo.HEIC", "x.parquet", "image"),
    *("page\n2.pdf", "png", "config.json", "a.png.txt", "-rf"),
]
IMAGE_NAMES = ["{}.png", "{}.jpg", "IMG_{}.PNG", "a b {}.jpeg", "\u00e9{}.png", "-{}.bmp", "x\n{}.png", "{}[1].webp"]
TABLES = [
    b"", b"file,label\n", b"file,label\n0.png,cat\n", b'"', b"\xff\xfe\x00", b"a;b\n1;2;3\n", b"file,label\n\0,x\n",
    b'{"file": "0.png", "label": "cat"}\n', b"[" * 100_000, b"file,label\n../" + b"x" * 300 + b".png,cat\n",
]  # fmt: skip


class Trees:
    """Builds and changes folder trees. The pictures are drawn once, and linked or copied into the trees."""

    def __init__(self, stock: Path, rng: random.Random) -> None:
        self.rng = rng
        self.pictures = [stock / f"{number}.png" for number in range(400)]
        self.used = 0
        stock.mkdir()
        for number, picture in enumerate(self.pictures):
            Image.fromarray(noise(2, 2, seed=number)).save(picture)
        self.table = parquet(stock / "table.parquet", [0, 1, 0, 1, 1, 0])

    def is_so(self, share: float) -> bool:
        return self.rng.random() < share

    def build(self, root: Path) -> None:
        """A tree, as people make them."""
        rng = self.rng
        root.mkdir(parents=True)
        inner = root
        while self.is_so(0.15):
            inner = inner / rng.choice(AROUND)
        names = rng.sample(CLASSES[:6] if self.is_so(0.6) else CLASSES, rng.randrange(1, 6))
        kind = rng.randrange(10)
        if kind < 4:
            self.classes(inner, names)
        elif kind < 9:
            roles = rng.choice([["train"], ["train", "test"], ["train", "validation", "test"], ["train", "validation"]])
            style = rng.randrange(7)
            for role in roles:
                split = inner / (SPLITS[role][style] if self.is_so(0.8) else rng.choice(SPLITS[role]))
                if self.is_so(0.1):
                    split = split / split.name
                if role != "train" and self.is_so(0.15):
                    self.images(split)
                else:
                    self.classes(split, [name for name in names if role == "train" or self.is_so(0.95)])
            if self.is_so(0.2):
                self.classes(inner, names[: rng.randrange(1, 3)])
        else:
            self.images(inner)
        for _ in range(rng.choice((0, 0, 1, 2))):
            self.litter(rng.choice([root, *folders(root)]))

    def classes(self, folder: Path, names: Iterable[str]) -> None:
        for name in names:
            inside = folder / name
            while self.is_so(0.05):
                inside = inside / self.rng.choice([name, "deep", *CLASSES])
            self.images(inside, self.rng.randrange(2, 5))

    def images(self, folder: Path, count: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(self.rng.randrange(1, 4) if count is None else count):
            self.image(folder / self.rng.choice(IMAGE_NAMES if self.is_so(0.2) else IMAGE_NAMES[:1]).format(self.used))

    def image(self, path: Path) -> None:
        picture = self.pictures[self.used % len(self.pictures)]
        self.used += 1
        with contextlib.suppress(OSError):
            (os.link if self.is_so(0.7) else shutil.copyfile)(picture, path)

    def litter(self, folder: Path) -> None:
        """Something that systems, programs or people leave in a folder."""
        rng = self.rng
        match rng.randrange(9):
            case 0:
                self.images(folder / rng.choice(LEFTOVER_FOLDERS))
            case 1:
                (folder / rng.choice(LEFTOVER_FILES)).write_bytes(b"junk")
            case 2:
                with contextlib.suppress(OSError):
                    (folder / rng.choice(OTHER_FILES)).write_bytes(rng.choice([b"", b"text", *TABLES]))
            case 3:
                (folder / rng.choice([*CLASSES, *AROUND, "runs", "new"])).mkdir(exist_ok=True)
            case 4:
                run = folder / rng.choice(["runs/one", "runs/two", "run", "cat"])
                run.mkdir(parents=True, exist_ok=True)
                for name in rng.choice(list(listing.RUN_FILES)):
                    (run / name).write_bytes(b"")
                self.images(run, rng.randrange(2))
            case 5:
                with contextlib.suppress(OSError):
                    shutil.copyfile(
                        self.table, folder / rng.choice(["x.parquet", "train-00000.parquet", "test.parquet"])
                    )
            case 6:  # not an image, but called like one
                (folder / f"broken{rng.randrange(9)}{rng.choice(EXTENSIONS)}").write_bytes(rng.choice([b"", b"text"]))
            case 7:
                self.images(folder)
            case 8:
                with contextlib.suppress(OSError):
                    os.mkfifo(folder / rng.choice(["pipe", "pipe.png"]))

    def change(self, root: Path) -> None:
        """One step, as by a file manager. Whatever is not possible is not done."""
        rng = self.rng
        everything = [Path(parent) / name for parent, *names in os.walk(root) for name in names[0] + names[1]]
        if not everything:
            return
        inside = [root, *folders(root)]
        path = rng.choice([*folders(root), *everything] if self.is_so(0.5) else everything)
        with contextlib.suppress(OSError, shutil.Error):
            match rng.randrange(10):
                case 0:
                    others = [*CLASSES, *AROUND, *chain.from_iterable(SPLITS.values())]
                    path.rename(path.with_name(rng.choice(others) + (path.suffix if path.is_file() else "")))
                case 1:  # the other Unicode form
                    form: Literal["NFC", "NFD"] = rng.choice(["NFC", "NFD"])
                    path.rename(path.with_name(unicodedata.normalize(form, path.name)))
                case 2:
                    path.rename(rng.choice(inside) / path.name)
                case 3:
                    path.rename(path.parent.parent / path.name if path.parent != root else root / path.name)
                case 4:  # a level more
                    (path.parent / "new folder").mkdir()
                    path.rename(path.parent / "new folder" / path.name)
                case 5:
                    copied = rng.choice(inside) / rng.choice([path.name, f"{path.name} (1)", "Copy"])
                    if path.is_dir() and not copied.is_relative_to(path):
                        shutil.copytree(path, copied, symlinks=True)
                    elif path.is_file():
                        shutil.copyfile(path, copied)
                case 6:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                case 7:  # a link in its place
                    aside = root.parent / f"elsewhere {rng.random()}"
                    path.rename(aside)
                    path.symlink_to(aside)
                case 8:  # a link to anywhere in the tree
                    (rng.choice(inside) / rng.choice([path.name, "link", "link.png", *CLASSES])).symlink_to(path)
                case 9:
                    self.litter(rng.choice(inside))


def folders(root: Path) -> list[Path]:
    return [Path(parent) / name for parent, names, _ in os.walk(root) for name in names]


def as_shown(path: Path | str) -> str:
    """A path as messages show it: in one line that can be printed."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(path))


def is_named(path: Path, line: str) -> bool:
    """Whether a line names this path, and not only another below it."""
    return re.search(re.escape(as_shown(path)) + r"(?![^\s,:;()'])", line) is not None


@contextlib.contextmanager
def reversed_listing() -> Iterator[None]:
    """The entries of folders in the reverse order."""
    original = os.scandir

    @contextlib.contextmanager
    def scandir(path: Any) -> Iterator[list[os.DirEntry[str]]]:
        with original(path) as found:
            yield sorted(found, key=lambda entry: entry.name, reverse=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        yield


def outcome(source: str, labels: str | None = None) -> Splits | DataError:
    """The splits of a source, or the error."""
    started = time.thread_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return split_source(source, SourceOptions(labels=labels), image_size=2, validation=None)
    except DataError as error:
        return error
    finally:
        assert time.thread_time() - started < LIMIT


def parts(splits: Splits) -> dict[str, ImageDataset]:
    found = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {what: part for what, part in found.items() if part is not None}


def files(part: ImageDataset) -> list[Path]:
    return [path for _, path in part._source.fetch(part._rows.tolist()) if isinstance(path, Path)]


def summary(result: Splits | DataError) -> object:
    if isinstance(result, DataError):
        return str(result)
    return result.notes, {
        what: (part.class_names, part.labels.tolist(), files(part)) for what, part in parts(result).items()
    }


def assert_error(error: DataError, source: Path, root: Path) -> None:
    """The error is one line, and each path in it exists: the source, or another in its tree."""
    message = str(error)
    assert message.isprintable(), repr(message)
    known = sorted(
        {as_shown(path) for path in [*root.parents, *below(root.parent), *below(source)]}, key=len, reverse=True
    )
    assert as_shown(source) in message
    for start in [match.start() for match in re.finditer(re.escape(as_shown(root.parent)), message)]:
        longest = next(path for path in known if message.startswith(path, start))
        assert not message.startswith("/", start + len(longest)), (message, longest)


def below(folder: Path, depth: int = 12) -> Iterator[Path]:
    """All paths below a folder, also through links."""
    if depth and folder.is_dir():
        for path in folder.iterdir():
            yield path
            yield from below(path, depth - 1)


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Digits before other characters, and numbers by their value."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(each), each) if each[0] in "0123456789" else (1, 0, each) for each in pieces], name


def visible_images(source: Path) -> Iterator[Path]:
    """The files below a folder that are images by their names, without hidden ones and without following links."""
    for parent, names, files_in in os.walk(source):
        names[:] = [name for name in names if not is_leftover(name)]
        for name in files_in:
            path = Path(parent) / name
            if not is_leftover(name) and path.suffix.lower() in EXTENSIONS and path.is_file():
                yield path


def assert_images_are_accounted_for(splits: Splits, source: Path) -> None:
    """Each visible image is used, or a note says that it, or a folder around it, is left alone."""
    used = {path.resolve() for part in parts(splits).values() for path in files(part)}
    left = [note for note in splits.notes if note.startswith(("left alone", "skipped links"))]
    unnamed: set[Path] = set()
    directly: dict[Path, int] = {}
    for path in visible_images(source):
        if path.resolve() in used:
            continue
        around = [path, *(each for each in path.parents if each.is_relative_to(source))]
        if any(f" directly in {as_shown(path.parent)}" in note for note in left):
            directly[path.parent] = directly.get(path.parent, 0) + 1
        elif not any(is_named(each, note) for each in around[:-1] for note in left if " directly in " not in note):
            unnamed.add(path)
    for folder, count in directly.items():
        pattern = rf"left alone: (\d+) images? directly in {re.escape(as_shown(folder))}"
        noted = [int(match[1]) for note in left if (match := re.match(pattern, note))]
        assert max(noted) >= count, (folder, left)  # more where links lead to images that are used
    more = sum(int(count) for note in left for count in re.findall(r" and (\d+) more", note))
    assert len({path.parent for path in unnamed}) <= more, (unnamed, splits.notes)


def assert_splits_are_right(splits: Splits, source: Path) -> None:
    assert all(note.isprintable() for note in splits.notes), splits.notes
    class_names = splits.train.class_names
    assert list(class_names) == sorted(class_names, key=natural_key)
    labels: dict[Path, tuple[str, str]] = {}
    for what, part in parts(splits).items():
        assert len(part) > 0
        assert part.class_names == class_names
        for path, label in zip(files(part), part.labels.tolist(), strict=True):
            name = class_names[label]
            assert path.is_file()
            inside = path.relative_to(source).parts
            assert name in [unicodedata.normalize("NFC", each) for each in inside[:-1]]
            place = what if splits.has_own_test else what.replace("test", "train")
            assert labels.setdefault(path.resolve(), (place, name)) == (place, name), (path, labels[path.resolve()])
            # The last one, since a class in the folder train may be called train.
            depth = max(i for i, each in enumerate(inside[:-1]) if unicodedata.normalize("NFC", each) == name)
            if splits.has_own_test and depth == 0:  # the classes lie in the source itself, and the splits do not
                assert what == "train"
                assert not split_role(name)
    assert set(torch.unique(splits.train.labels).tolist()) == set(range(len(class_names)))
    assert_images_are_accounted_for(splits, source)


def check(source: Path, root: Path, kinds: Counter[str], *, is_loaded: bool) -> None:
    """Open a source in the tree `root`, and check what comes of it."""
    result = outcome(str(source))
    with reversed_listing():
        assert summary(outcome(str(source))) == summary(result)
    if isinstance(result, DataError):
        kinds["refused"] += 1
        assert_error(result, source, root)
    elif not files(result.train):
        kinds["read as tables"] += 1
    else:
        kinds["read"] += 1
        assert_splits_are_right(result, source)
        if is_loaded:
            with contextlib.suppress(DataError):  # of images that cannot be read
                assert len(load_data(str(source), image_size=2).train) == len(result.train)


def check_tables(source: Path) -> None:
    """Open a source with a table of labels, if there is one."""
    for table in [path for path in below(source, 2) if path.name in ("labels.csv", "metadata.jsonl")][:1]:
        labelled = outcome(str(source), str(table))
        if isinstance(labelled, DataError):
            assert str(labelled).isprintable()


def one_tree(trees: Trees, top: Path, kinds: Counter[str]) -> None:
    """Build a tree in the folder `top`, change it step by step, and check what is read of it."""
    rng = trees.rng
    root = top / rng.choice(["photos", "photos", "photos", "-p", "p[1]", "two\nlines", "M\u00e4rz", "train"])
    trees.build(root)
    for step in range(rng.choice((1, 2, 3, 5, 8))):
        if step:
            trees.change(root)
        if root.is_dir():
            source = root if trees.is_so(0.7) else rng.choice([root, *folders(root)])
            check(source, root, kinds, is_loaded=trees.is_so(0.1))
            check_tables(source)


def test_a_folder_is_read_or_refused(tmp_path: Path) -> None:
    trees = Trees(tmp_path / "stock", random.Random(0))
    kinds: Counter[str] = Counter()
    for index in range(TREES):
        one_tree(trees, tmp_path / f"tree {index}", kinds)
        shutil.rmtree(tmp_path / f"tree {index}")
    print(dict(kinds))
    assert kinds["read"] > TREES // 2
    assert kinds["refused"] > TREES // 4
