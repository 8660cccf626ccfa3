"""The wheel as a user gets it: built, installed into a fresh virtual environment, run outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_trains_outside_the_checkout(tmp_path: Path) -> None:
    builder = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*builder, "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("hybrid_mobilenet-*.whl")

    # Dependencies come from this environment, so that they are not downloaded again; the package itself must not.
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", wheel], check=True)
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(own) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = "--family mobilenet --alpha 0.25 --image-size 8 --epochs 1 --out run"
    done = subprocess.run(
        [environment / "bin" / "hybrid-mobilenet", "train", "digits", *options.split()],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").stat().st_size > 100_000

    where = "import hybrid_mobilenet.training.run as t; print(t.__file__, t.__version__)"
    file, version = subprocess.run(
        [python, "-c", where], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True
    ).stdout.split()
    assert Path(file).is_relative_to(own)
    assert version in wheel.name
    page = ("page/index.html", "page/style.css", "page/worker.js", "page/icon.svg", "run_page.mjs")
    assert all((Path(file).parents[1] / "deploy/web" / name).is_file() for name in page)
