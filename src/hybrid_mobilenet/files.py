"""Writing files and folders whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, then rename it: readers see the old file or the new one.

    Raises:
        OSError: where it cannot be written (no permission, full disk), naming `path`; the old file is then intact.
    """
    try:
        _write_and_rename(path, content)
    except OSError as error:
        # A failed write names no file, and a failed open the temporary one.
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder, to be filled in the `with` block; at its end it takes the place of `path`.

    Where the block fails, nothing is left of it, and what was at `path` stays.

    Raises:
        OSError: where a folder cannot be made beside `path`, naming `path`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    with temporary as name:
        new, old = Path(name) / "new", Path(name) / "old"
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)


def _write_and_rename(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp's files are private
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
