"""The networks of good_pytorch.py with torch.compile, which needs a C++ compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import partial

import good_pytorch

COMPILER = os.environ.get("CXX", "g++")
VERSION = (
    subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout.partition("\n")[0]
    if shutil.which(COMPILER)
    else good_pytorch.VERSION
)

training_step = partial(good_pytorch.training_step, compiled=True)
