"""The image files that a user names: files, folders of images, and patterns such as photos/*.jpg."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .images import EXTENSIONS, DataError, Report, _raise, image_files, tree_below
from .listing import Skipped, is_leftover, is_run_folder


def find_images(paths: Iterable[Path | str], report: Report = _raise, skipped: Skipped | None = None) -> Iterator[Path]:
    """Find the named image files, path by path: work on the first can start before all folders are listed.

    A pattern has the wildcards of a shell: ``*``, ``?``, ``[abc]``, and ``**`` for folders to any depth. A path that
    exists is not a pattern: photo[1].jpg may be the name of a file.

    Args:
        paths: files, folders and patterns, in the order in which their images are returned. Folders are searched to any
            depth. Within a folder or pattern, images are in the natural order of their names.
        report: called with each of the errors below instead of raising it.
        skipped: receives what is left out of folders.

    Raises:
        DataError: if a pattern matches no images; also as `image_files`.
        OSError: if a folder cannot be listed.
    """
    for path in paths:
        for match in _matches(Path(path), report):
            yield from image_files([match], report, skipped)


def _is_in_run(path: Path, folder: Path) -> bool:
    """Whether a path in a folder is in a run folder there, or is one."""
    above = [path, *path.parents]
    inside = above[: above.index(folder)] if folder in above else above
    return any(is_run_folder([entry.name for entry in each.iterdir()]) for each in inside if each.is_dir())


def _matches(path: Path, report: Report) -> list[Path]:
    """The path itself, or if it is a pattern, the images and folders that match it."""
    if not glob.has_magic(str(path)) or os.path.lexists(path):
        return [path]
    folder = next(parent for parent in path.parents if parent.exists() or parent == parent.parent or parent == Path())
    pattern = path.relative_to(folder)
    if pattern.name == "**":  # in Python before 3.13 it matches folders only
        pattern /= "*"
    is_recursive = "**" in pattern.parts
    try:
        found = sorted(folder.glob(str(pattern)))
    except ValueError:  # such as **.jpg
        found = []
    matches = [
        each
        for each in found
        if not any(map(is_leftover, each.relative_to(folder).parts))
        and not _is_in_run(each, folder)
        # ** matches folders and also what is in them.
        and (not is_recursive and tree_below(each).count if each.is_dir() else each.suffix.lower() in EXTENSIONS)
    ]
    if not matches:
        report(DataError(f"{path} is not a file, and as a pattern it matches no images: correct it"))
    return matches
