"""Node.js and npm, real or replaced by scripts, for the tests of the exported page."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

needs_npm = pytest.mark.skipif(
    not (shutil.which("npm") and shutil.which("node")), reason="needs Node.js with npm (Debian: apt-get install npm)"
)


def program(folder: Path, name: str, script: str) -> None:
    """A program of that name, alone on the PATH with what scripts need."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
