"""Writing files and folders whole or not at all."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, then rename it: readers see the old file or the new one.

    What a process that was killed while it wrote has left there is removed by the next that writes the same file.

    Raises:
        OSError: where it cannot be written (no permission, full disk), naming `path`; the old file is then intact.
    """
    try:
        with _temporary(path, _new_file) as (temporary, descriptor):
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            temporary.replace(path)
    except OSError as error:
        # A failed write names no file, and a failed open the temporary one.
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder, to be filled in the `with` block; at its end it takes the place of `path`.

    Where the block fails, nothing is left of it, and what was at `path` stays. What a process that was killed in the
    block has left is removed by the next that writes the same folder.

    Raises:
        OSError: where a folder cannot be made beside `path`, naming `path`.
    """
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary, _ = stack.enter_context(_temporary(path, _new_folder))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)


@contextmanager
def _temporary(path: Path, make: Callable[[Path], int]) -> Iterator[tuple[Path, int]]:
    """What `make` makes beside `path`, and its descriptor. Its lock says that somebody is at it; a kill frees that."""
    _remove_left_overs(path)
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        descriptor = make(temporary)
        _lock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():
            break
        os.close(descriptor)  # another process has taken it for left over, before it was locked
    try:
        yield temporary, descriptor
    finally:
        _remove(temporary)
        os.close(descriptor)


def _new_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less what the umask takes away


def _new_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY)


def _remove_left_overs(path: Path) -> None:
    """Remove temporary files and folders of `path` that nobody holds a lock on."""
    name = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}\.tmp")
    with suppress(OSError):  # a folder that one may write to, but not list
        for left in [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]:
            with suppress(OSError):  # gone already, or somebody else's
                descriptor = os.open(left, (os.O_RDONLY if left.is_dir() else os.O_RDWR) | os.O_NOFOLLOW)
                try:
                    if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                        _remove(left)
                finally:
                    os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool:
    """Whether the lock was got: not where another holds it, nor in a file system that has no locks."""
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        return False
    return True


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)
