"""One epoch of training: the time outside the steps, the time for precise statistics, and the peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.network.model import HybridMobileNet
from hybrid_mobilenet.training.precise_statistics import FINAL_IMAGES, VALIDATION_IMAGES, set_precise_statistics
from hybrid_mobilenet.training.recipe import paper_recipe
from report import Figure, Section

FOLDER = Path(__file__).parent
NETWORK = ("--family", "fmp", "--alpha", "0.25", "--delta", "2")
EPOCHS = 1


def measure() -> Section:
    """Train on CIFAR-10 for one epoch with the command line, in a separate process.

    Raises:
        RuntimeError: if the command fails. The message is the last line of its output.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        run = Path(folder) / "run"
        options = (*NETWORK, "--epochs", str(EPOCHS), "--out", str(run))
        process = subprocess.Popen(
            [sys.executable, "-m", "hybrid_mobilenet", "train", "cifar10", *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(FOLDER.parent / "src")},
        )
        # wait4 gives the peak of this process. RUSAGE_CHILDREN would give the highest of all child processes so far.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            raise RuntimeError(output.read().strip().rpartition("\n")[2])
        epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        statistics = _seconds_of_statistics(HybridMobileNet.from_pretrained(run))
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # in bytes on macOS, else in KiB
    recorded = paper_recipe("fmp", "cifar10").epochs
    seconds, step_seconds = (sum(epoch[key] for epoch in epochs) for key in ("seconds", "step_seconds"))
    return Section(
        "An epoch of training on CIFAR-10",
        [
            {
                "network": "FMP d2 a0.25",
                "seconds": seconds,
                "not in the step": Figure(100 * (1 - step_seconds / seconds), 5, "%", at_most=True),
                # The share in a run with the recipe's number of epochs and a validation after each.
                "precise statistics": Figure(
                    100 * (statistics[VALIDATION_IMAGES] + statistics[FINAL_IMAGES] / recorded) / seconds,
                    2,
                    "%",
                    at_most=True,
                ),
                "peak memory": Figure(peak / 1e9, 1.5, " GB", at_most=True),
            }
        ],
    )


def _seconds_of_statistics(model: HybridMobileNet) -> dict[int, float]:
    """Seconds that precise statistics take, by the number of images they are computed from."""
    images = load_data("cifar10").train
    set_precise_statistics(model, images, VALIDATION_IMAGES)  # the first call compiles or loads kernels
    seconds = {}
    for count in (VALIDATION_IMAGES, FINAL_IMAGES):
        start = time.perf_counter()
        set_precise_statistics(model, images, count)
        seconds[count] = time.perf_counter() - start
    return seconds
