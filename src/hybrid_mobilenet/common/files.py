"""Write files and folders atomically."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: temporary files of killed processes are not removed
    HAS_LOCKS = False
else:
    HAS_LOCKS = True


def cache_folder() -> Path:
    """Where files are kept that can be made or fetched again: ~/.cache/hybrid-mobilenet, or below XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybrid-mobilenet"


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, then rename it: readers see the old file or the new one.

    Temporary files of processes that were killed while writing `path` are removed, except on Windows.

    Raises:
        OSError: if the file cannot be written (no permission, disk full), with `path` as its filename. The old file is
            then intact.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with _temporary(path, partial(Path.touch, exist_ok=False)) as temporary:
            with temporary.open("r+b") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        # The error of a failed write has no filename, and that of a failed open names the temporary file.
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill in the `with` block; it replaces `path` at the end of the block.

    If the block fails, the temporary folder is removed and `path` is unchanged. Temporary folders of processes that
    were killed in the block are removed by the next call for the same `path`, except on Windows.

    Raises:
        OSError: if a folder cannot be created beside `path`, with `path` as its filename.
    """
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(_temporary(path, Path.mkdir))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)


@contextmanager
def _temporary(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary file or folder beside `path`, locked while in use: the system unlocks it if the process dies."""
    remove_left_overs(path)
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        make(temporary)
        with ExitStack() as stack:
            with suppress(FileNotFoundError):
                stack.enter_context(_locked(temporary))
            if temporary.exists():  # else another process removed it as a leftover before it was locked
                stack.callback(_remove, temporary)
                yield temporary
                return


def remove_left_overs(path: Path) -> None:
    """Remove temporary files and folders of `path` that no process has locked."""
    name = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}\.tmp")
    with suppress(OSError):  # the folder may be writable but not readable
        for left in [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]:
            with (
                suppress(OSError),
                _locked(left, at_once=True) as is_locked,
            ):  # removed already, or another user's
                if is_locked:
                    _remove(left)


@contextmanager
def _locked(path: Path, *, at_once: bool = False) -> Iterator[bool]:
    """Lock a file or folder; yields whether that succeeded: some file systems have no locks."""
    if not HAS_LOCKS:
        yield False
        return
    descriptor = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if at_once else 0))
            is_locked = True
        except OSError:
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)
