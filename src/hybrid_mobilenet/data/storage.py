"""Where decoded images are kept: in memory, in a temporary file on disk, or nowhere."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Storage = Literal["memory", "disk", "nowhere"]
"""Images that are kept nowhere are decoded each time they are fetched."""


def choose_storage(size: int, memory_bound: int) -> Storage:
    """Where to keep `size` bytes: in memory up to `memory_bound`, on disk if they fit in half of its free space."""
    if size <= memory_bound:
        return "memory"
    with suppress(OSError):  # no such folder
        if size <= shutil.disk_usage(temporary_folder()).free // 2:
            return "disk"
    return "nowhere"


def temporary_folder() -> Path:
    """Where temporary files go: TMPDIR if it is set, else /var/tmp if there is one, since /tmp is often in memory."""
    lasting = Path("/var/tmp")
    if not os.environ.get("TMPDIR") and lasting.is_dir() and os.access(lasting, os.W_OK):
        return lasting
    return Path(tempfile.gettempdir())


class PixelFile:
    """Decoded pixels, written one after the other to a temporary file without a name, then mapped into memory.

    The system reads the parts that are used, and drops them when it needs the memory. A process that is killed leaves
    nothing behind.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        with suppress(OSError):
            self._file = tempfile.TemporaryFile(dir=temporary_folder())  # noqa: SIM115 - `__exit__` closes it

    def __enter__(self) -> PixelFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_up()

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Append pixels. If the disk is full, all are given up."""
        if self._file is not None:
            try:
                self._file.write(pixels.data)
            except OSError:
                self._give_up()

    def mapped(self, shape: tuple[int, ...]) -> Tensor | None:
        """All pixels in this shape, or None if they could not be written. The map outlives the file object."""
        if self._file is None or 0 in shape:
            return None
        try:
            self._file.flush()
            return torch.from_numpy(np.memmap(self._file, np.uint8, "r+", shape=shape))
        except OSError:
            return None

    def _give_up(self) -> None:
        with suppress(OSError):  # what is left in its buffer does not fit on the disk
            if self._file is not None:
                self._file.close()
        self._file = None
