"""Writing files and folders whole or not at all."""

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
except ImportError:  # Windows, where what a kill has left stays
    HAS_LOCKS = False
else:
    HAS_LOCKS = True


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, then rename it: readers see the old file or the new one.

    What a process that was killed while it wrote has left there is removed by the next that writes the same file,
    where there are locks: not on Windows.

    Raises:
        OSError: where it cannot be written (no permission, full disk), naming `path`; the old file is then intact.
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
        # A failed write names no file, and a failed open the temporary one.
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder, to be filled in the `with` block; at its end it takes the place of `path`.

    Where the block fails, nothing is left of it, and what was at `path` stays. What a process that was killed in the
    block has left is removed by the next that writes the same folder, where there are locks.

    Raises:
        OSError: where a folder cannot be made beside `path`, naming `path`.
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
    """What `make` makes beside `path`. Its lock says that somebody is at it; a kill frees that."""
    remove_left_overs(path)
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        make(temporary)
        with ExitStack() as stack:
            with suppress(FileNotFoundError):
                stack.enter_context(_locked(temporary))
            if temporary.exists():  # else another process has taken it for left over, before it was locked
                stack.callback(_remove, temporary)
                yield temporary
                return


def remove_left_overs(path: Path) -> None:
    """Remove temporary files and folders of `path` that nobody holds a lock on."""
    name = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}\.tmp")
    with suppress(OSError):  # a folder that one may write to, but not list
        for left in [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]:
            with suppress(OSError), _locked(left, at_once=True) as is_locked:  # gone already, or somebody else's
                if is_locked:
                    _remove(left)


@contextmanager
def _locked(path: Path, *, at_once: bool = False) -> Iterator[bool]:
    """Hold the lock of a file or folder; whether it was got: not where there are no locks, as in some file systems."""
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
