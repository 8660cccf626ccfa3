"""List a folder tree: image files in natural order, without the leftovers of systems and without run folders."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.messages import listed

#: Files and folders that systems leave beside photographs, in lower case. Names that start with a dot are hidden.
_LEFTOVERS = frozenset(
    {
        *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "found.000"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb"),  # Synology, QNAP
        *("lost+found", "__pycache__"),
    }
)

#: The files by which a run folder is recognised: of an unfinished run, and of a finished one. `training` writes them.
RUN_FILES = (frozenset({"checkpoint.safetensors"}), frozenset({"config.json", "model.safetensors", "metrics.jsonl"}))

#: Photographs of phones that Pillow does not read.
_HEIC = (".heic", ".heif", ".hif")
_HEIC_REMEDY = "convert them to JPEG, and set the phone's camera to 'Most Compatible'"


def natural(name: str) -> tuple[Any, ...]:
    """A key that sorts names as people do: 2 before 10, img2 before img10. Only equal names have the same key."""
    parts = re.split(r"([0-9]+)", name)  # text and digits take turns, so that like is compared with like
    digits = (part.lstrip("0") for part in parts[1::2])
    numbers = ((len(part), part) for part in digits)  # int() refuses numbers of thousands of digits
    return tuple(part if index % 2 == 0 else next(numbers) for index, part in enumerate(parts)), name


def normal(name: str) -> str:
    """A name in Unicode's form NFC. macOS may store the same name in another form than Linux and Windows."""
    return unicodedata.normalize("NFC", name)


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name was left by a system, or is hidden."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


@dataclass
class Skipped:
    """What a search leaves out.

    Attributes:
        files: number of files that are not images, by extension in lower case.
        runs: run folders.
        loops: links to a folder above them.
    """

    files: Counter[str] = field(default_factory=Counter)
    runs: list[Path] = field(default_factory=list)
    loops: list[Path] = field(default_factory=list)

    def add(self, other: Skipped) -> None:
        """Add what another search left out."""
        self.files += other.files
        self.runs += other.runs
        self.loops += other.loops

    def notes(self) -> list[str]:
        """One line for each kind of thing that was left out."""
        notes = [f"skipped {self.not_images()}"] if self.files else []
        if self.runs:
            notes.append(f"left alone, since they are run folders: {listed(self.runs)}")
        if self.loops:
            notes.append(f"skipped links that lead to a folder above them: {listed(self.loops)}")
        return notes

    def in_brackets(self) -> str:
        """What is added to an error about missing images."""
        return f" (skipped {self.not_images()})" if self.files else ""

    def not_images(self) -> str:
        """The files that are not images, counted by kind."""
        total = self.files.total()
        kinds = sorted(self.files.items(), key=lambda each: (each[0] not in _HEIC, -each[1], each[0]))
        last_heic = max((place for place, (kind, _) in enumerate(kinds) if kind in _HEIC), default=None)
        counts = [
            f"{count:,} {kind or 'without extension'}{f' ({_HEIC_REMEDY})' if place == last_heic else ''}"
            for place, (kind, count) in enumerate(kinds)
        ]
        of_others = sum(count for _, count in kinds[5:])
        shown = ", ".join(counts[:5]) + (f", {of_others:,} of other kinds" if of_others else "")
        return f"{total:,} file{'s that are not images' if total != 1 else ' that is not an image'}: {shown}"


def is_run_folder(names: Collection[str]) -> bool:
    """Whether a folder with these entries is that of a run."""
    return any(files <= set(names) for files in RUN_FILES)


@dataclass(eq=False)
class Tree:
    """A folder and all below it, without leftovers, run folders and links that lead up.

    Attributes:
        path: the folder.
        entries: its image files and its subfolders, in the natural order of their names.
        count: number of image files in it, to any depth.
        other_files: number of files directly in it that are not images.
        is_run: whether it is a run folder; it then has no entries.
    """

    path: Path
    entries: list[Path | Tree] = field(default_factory=list)
    count: int = 0
    other_files: int = 0
    is_run: bool = False

    @property
    def name(self) -> str:
        return normal(self.path.name)

    @property
    def images(self) -> list[Path]:
        """The image files directly in the folder."""
        return [entry for entry in self.entries if isinstance(entry, Path)]

    @property
    def folders(self) -> list[Tree]:
        """The subfolders, except those for runs."""
        return [folder for folder in self._all_folders if not folder.is_for_runs]

    @property
    def with_images(self) -> list[Tree]:
        """The subfolders with images in them, to any depth."""
        return [folder for folder in self.folders if folder.count]

    @property
    def is_empty(self) -> bool:
        """Whether there is no file in the folder, to any depth."""
        return not self.count and not self.other_files and all(each.is_empty for each in self._all_folders)

    @property
    def is_for_runs(self) -> bool:
        """Whether it is a run folder, or holds run folders and no image, or is `runs` before the first run's files."""
        if self.is_run or self.count:
            return self.is_run
        return any(each.is_for_runs for each in self._all_folders) or (self.name == "runs" and self.is_empty)

    @property
    def _all_folders(self) -> list[Tree]:
        return [entry for entry in self.entries if isinstance(entry, Tree)]

    def files(self) -> Iterator[Path]:
        """The image files in the folder, to any depth."""
        for entry in self.entries:
            if isinstance(entry, Tree):
                yield from entry.files()
            else:
                yield entry


def read_tree(
    folder: Path,
    extensions: Collection[str],
    skipped: Skipped,
    on_irregular: Callable[[Path], None],
    on_error: Callable[[OSError], None],
) -> Tree:
    """List a folder, to any depth. Links to folders are followed, unless they lead to a folder above.

    The folder itself is listed even if it is a run folder.

    Args:
        folder: where to look.
        extensions: of image files, in lower case.
        skipped: receives what is left out, except leftovers.
        on_irregular: called with each entry with the extension of an image that is not a regular file.
        on_error: called with the error of each folder that cannot be listed.
    """
    root = str(folder)

    def read(path: str, chain: tuple[Path, ...]) -> Tree:
        tree = Tree(Path(path))
        try:
            with os.scandir(path) as found:
                entries = [entry for entry in found if not is_leftover(entry.name)]
        except OSError as error:
            on_error(error)
            return tree
        if path != root and is_run_folder([entry.name for entry in entries]):
            tree.is_run = True
            skipped.runs.append(tree.path)
            return tree
        for entry in sorted(entries, key=lambda entry: (natural(normal(entry.name)), entry.name)):
            if _is_folder(entry):
                inner = chain
                if entry.is_symlink():
                    above = (*chain, Path(path).resolve())
                    if any(each.is_relative_to(Path(entry.path).resolve()) for each in above):
                        skipped.loops.append(Path(entry.path))
                        continue
                    inner = above
                below = read(entry.path, inner)
                tree.entries.append(below)
                tree.count += below.count
                continue
            extension = Path(entry.name).suffix.lower()
            if extension not in extensions:
                skipped.files[extension] += 1
                tree.other_files += 1
            elif _is_file(entry):
                tree.entries.append(Path(entry.path))
                tree.count += 1
            else:  # reading a pipe would block forever
                on_irregular(Path(entry.path))
        return tree

    return read(root, ())


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False
