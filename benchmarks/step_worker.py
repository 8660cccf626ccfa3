"""One side of the training comparison, in a separate process with its own thread pools.

Run by workers.py: step_worker.py SIDE FAMILY ALPHA DELTA BATCH THREADS. SIDE is a module of this folder with
`training_step` and `VERSION`. After a warm-up, it prints the version and the seconds of the first step. Then it reads
numbers of steps, one a line, and for each prints the seconds per step.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from hybrid_mobilenet.network.architecture import resolve
from timing import timed

WARM_UP_STEPS = 3


def main(side: str, family: str, alpha: str, delta: str, batch: str, threads: str) -> None:
    # Libraries sometimes print to standard output, so the answers get their own file descriptor.
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        module = import_module(side)
        network = resolve(family, float(alpha), int(delta))  # type: ignore[arg-type]  # resolve checks the family
        run = timed(module.training_step(network, int(batch), int(threads)))
        first = run(1)
        run(WARM_UP_STEPS)
        print(module.VERSION, first, sep="\t", file=answers)
        for line in sys.stdin:
            print(run(int(line)), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
