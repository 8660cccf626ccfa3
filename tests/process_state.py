"""What test_process_state.py runs: ``process_state.py FOLDER`` calls the Python API, and fails where a call changes
something of the process that is not the API's own.

Prints the names of the calls, then the pages that the system gives for an array after all of them.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import datasets
import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageFile

CALLED: list[str] = []
LOGGERS = ("", "datasets", "huggingface_hub", "matplotlib", "numba", "onnxruntime", "PIL", "torch")


def new_pages() -> int:
    """The fewest new pages of 4 kB that the system gives for an array of 40 MB while others like it are freed."""
    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page would count as one
    given = [getrusage(RUSAGE_SELF).ru_minflt]
    for _ in range(10):
        torch.ones(10_000_000)
        given.append(getrusage(RUSAGE_SELF).ru_minflt)
    return min(later - earlier for earlier, later in pairwise(given))


def state() -> dict[str, object]:
    """What others in this process may rely on."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "torch's random state": torch.get_rng_state().tolist(),
        "GPUs' random states": [each.tolist() for each in torch.cuda.get_rng_state_all()],
        "numpy's random state": str(np.random.get_state(legacy=False)),  # noqa: NPY002
        "Python's random state": random.getstate(),
        "precision of products": torch.get_float32_matmul_precision(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "default type": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "levels of loggers": [logging.getLogger(name).level for name in LOGGERS],
        "handlers of the root logger": list(logging.root.handlers),
        "bars of datasets": datasets.is_progress_bar_enabled(),
        "messages of datasets": datasets.logging.get_verbosity(),
        "environment": dict(os.environ),
        "working folder": Path.cwd(),
        "umask": umask,
        "streams": (sys.stdin, sys.stdout, sys.stderr, *(os.fstat(number)[:3] for number in range(3))),
        "hooks": (sys.excepthook, threading.excepthook, sys.gettrace(), sys.getrecursionlimit()),
        "sys.path": list(sys.path),
        "garbage collection": (gc.isenabled(), gc.get_threshold()),
        "Pillow's bounds": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
        "matplotlib's settings": dict(mpl.rcParams),
        "temporary files": tempfile.gettempdir(),
        # The package keeps its own that decode images.
        "threads left": [each.name for each in threading.enumerate() if not each.name.startswith("decode")],
    }


@contextmanager
def unchanged(name: str) -> Iterator[None]:
    before = state()
    yield
    after = state()
    changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    if changed:
        raise AssertionError(f"{name} changed {', '.join(changed)}: {str(changed)[:1000]}")
    CALLED.append(name)


def main(folder: Path) -> None:
    # Importing these changes warnings and the environment.
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch._dynamo

    from hybrid_mobilenet import HybridMobileNet
    from hybrid_mobilenet.data.splits import load_data
    from hybrid_mobilenet.deploy.classify import load_classifier
    from hybrid_mobilenet.deploy.export import export
    from hybrid_mobilenet.study.estimate import estimate
    from hybrid_mobilenet.study.grid import select
    from hybrid_mobilenet.study.reproduce import Folders
    from hybrid_mobilenet.training.evaluate import evaluate, probabilities
    from hybrid_mobilenet.training.run import resume, train
    from hybrid_mobilenet.training.setup import Interrupted
    from runs import RECIPE, SMALL, Quiet

    datasets.disable_progress_bars()
    parquet(folder / "data.parquet")
    # Settings that are not what the package would choose.
    torch.manual_seed(1234)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    datasets.logging.set_verbosity(datasets.logging.INFO)
    datasets.enable_progress_bars()

    class Stopping(Quiet):
        def on_epoch(self, record: dict[str, Any]) -> None:  # noqa: ARG002
            signal.raise_signal(signal.SIGTERM)

    setup, run = replace(SMALL, recipe=replace(RECIPE, epochs=2)), folder / "run"
    with unchanged("train"):
        train(setup, folder / "undisturbed", Quiet())
    with unchanged("stopped"):
        refuses_to_go_on(Interrupted, lambda: train(setup, run, Stopping()))
    with unchanged("resume"):
        resume(run, Quiet())
    with unchanged("load"):
        splits = load_data("digits", image_size=8, channels=1)
    with unchanged("from_pretrained"):
        model = HybridMobileNet.from_pretrained(run)
    with unchanged("evaluate"):
        evaluate(model, splits.test, passes=2)
    with unchanged("probabilities"):
        probabilities(model, splits.test.batch(torch.arange(8)))
    with unchanged("save_pretrained"):
        model.save_pretrained(folder / "saved")
    with unchanged("load_parquet"):
        load_data(str(folder / "data.parquet"), image_size=8, channels=1)
    untrained = HybridMobileNet(
        **model.network.choices()
    )  # of a short run, rounding is as large as an export may differ
    with unchanged("export"):
        export(untrained, "onnx", folder / "export", test=splits.test)
    with unchanged("load_classifier"):
        load_classifier(str(run))
    with unchanged("estimate"):
        estimate(
            select(data=["digits"], families=["mobilenet"], deltas=[2], alphas=[0.25], epochs=1),
            Folders(folder / "results", folder / "runs"),
            1,
        )
    print(*CALLED)
    print(new_pages())


def refuses_to_go_on(kind: type[BaseException], act: Callable[[], object]) -> None:
    try:
        act()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


def parquet(path: Path) -> None:
    """Twenty images of two classes."""
    images = [Image.fromarray(np.full((8, 8), 10 * index, np.uint8)) for index in range(20)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": images, "label": [index % 2 for index in range(20)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    datasets.Dataset.from_parquet(str(path))  # what it imports when it is needed has settings of its own


if __name__ == "__main__":
    main(Path(sys.argv[1]))
