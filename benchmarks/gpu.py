"""Measure the project on a GPU: pooling against memory bandwidth, training in fp32 and bf16, several runs at once.

python benchmarks/gpu.py writes results/gpu.json. It is not part of make bench, which measures CPUs.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from rich.console import Console

from hybrid_mobilenet.common.files import write_atomically
from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.layers.kernels import reference
from hybrid_mobilenet.layers.pooling import _kernels, random_sequence
from hybrid_mobilenet.network.model import HybridMobileNet
from hybrid_mobilenet.training.cuda_graph import CapturedSteps
from hybrid_mobilenet.training.recipe import PAPER, Precision
from hybrid_mobilenet.training.step import make_optimizer, train_step
from report import Cell, Figure, Section
from training import COMPARISONS

RESULTS = Path(__file__).parent.parent / "results" / "gpu.json"

#: Channels, input side, output side: the four large pooling layers of FMP d2 a0.25.
SHAPES = [(8, 32, 22), (32, 22, 15), (64, 15, 10), (128, 10, 6)]
DTYPES = (torch.float32, torch.bfloat16)
#: Steps in an epoch of CIFAR-10 with the recipe's batch size. Pooling regions are drawn for an epoch at a time.
EPOCH = 781


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS, help="file for the results")
    parser.add_argument("--worker", type=int, metavar="BATCH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: there is no CUDA device here: run this on a machine with an NVIDIA GPU", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    if options.worker:
        work(device, options.worker)
        return 0
    sections = [
        check_kernel(device, 64),
        # First a batch larger than any GPU's cache, then the batch size of training.
        *(time_kernel(device, images, rounds=30) for images in (4096, 64)),
        time_training(device, (64, 1024), rounds=10),
        share((1, 4, 8), 64, seconds=4),
    ]
    console = Console()
    console.width = max(console.width, 120)
    for section in sections:
        section.show(console)
    record = {"environment": environment(), "sections": [section.record() for section in sections]}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.json, (json.dumps(record, indent=2) + "\n").encode())
    console.print(f"Written to {options.json}", markup=False)
    return int(any(section.missed() for section in sections))


def seconds_of(act: Callable[[], object], device: torch.device, rounds: int, times: int = 10) -> float:
    """Seconds per call, launch included: the median over rounds of the mean of `times` calls, after a warm-up."""
    act()
    results = []
    for _ in range(rounds):
        wait(device)
        start = time.perf_counter()
        for _ in range(times):
            act()
        wait(device)
        results.append((time.perf_counter() - start) / times)
    return median(results)


def wait(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_kernel(device: torch.device, images: int) -> Section:
    """Whether the device's kernel equals the reference bit for bit, forward and backward."""
    kernels, rows = _kernels(device.type), list[dict[str, Cell]]()
    for channels, n_in, n_out in SHAPES:
        for dtype in DTYPES:
            for overlapping in (False, True):
                # Small integers give many ties, and sums that are exact in any order.
                x = torch.randint(-4, 5, (images, channels, n_in, n_in), device=device).to(dtype)
                cuts = [random_sequence(n_in, n_out).to(device) for _ in range(2)]
                y, winners = reference.forward(x, cuts[0], cuts[1], overlapping)
                g = torch.randint(-8, 9, y.shape, device=device).to(dtype)
                ours = kernels.forward(x, cuts[0], cuts[1], overlapping)
                both = [
                    module.backward(g, winners, cuts[0], cuts[1], overlapping, n_in, n_in)
                    for module in (kernels, reference)
                ]
                equal = torch.equal(ours[0], y) and torch.equal(ours[1], winners) and torch.equal(both[0], both[1])
                rows.append(
                    {
                        "map": f"{channels} channels, {n_in} -> {n_out}",
                        "type": str(dtype).removeprefix("torch."),
                        "regions": "overlapping" if overlapping else "disjoint",
                        "equal to the reference": Figure(float(equal), 1, ""),
                    }
                )
    return Section(f"The pooling kernel of {kernels.__name__.rpartition('.')[2]} against the reference", rows)


def time_kernel(device: torch.device, images: int, rounds: int) -> Section:
    """Time of forward and backward, and the least time in which the device's memory can move their bytes."""
    kernels, rows = _kernels(device.type), list[dict[str, Cell]]()
    for channels, n_in, n_out in SHAPES:
        for dtype in DTYPES:
            x = torch.rand(images, channels, n_in, n_in, device=device).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            cuts = [random_sequence(n_in, n_out).to(device) for _ in range(2)]
            y, winners = kernels.forward(x, cuts[0], cuts[1], False)
            other = torch.empty_like(x)
            forward = seconds_of(partial(kernels.forward, x, cuts[0], cuts[1], False), device, rounds)
            backward = seconds_of(
                partial(kernels.backward, y, winners, cuts[0], cuts[1], False, n_in, n_in), device, rounds
            )
            # A copy reads and writes each byte. Each kernel reads or writes the map, its pooled form and the winners.
            bandwidth = 2 * x.nbytes / seconds_of(partial(other.copy_, x), device, rounds)
            floor = (x.nbytes + y.nbytes + winners.nbytes) / bandwidth
            rows.append(
                {
                    "map": f"{channels} channels, {n_in} -> {n_out}",
                    "type": str(dtype).removeprefix("torch."),
                    "forward, us": 1e6 * forward,
                    "backward, us": 1e6 * backward,
                    "floor of either, us": 1e6 * floor,
                    "copy, GB/s": bandwidth / 1e9,
                    "forward over floor": forward / floor,
                    "backward over floor": backward / floor,
                }
            )
    return Section(f"The pooling kernel, {images} images, against the bandwidth of a copy of the map", rows)


def training_step(
    device: torch.device, comparison: int, precision: Precision, batch: int, *, captured: bool
) -> Callable[[], object]:
    """A training step of a network on digits on the device, kernel by kernel or as a CUDA graph."""
    network = COMPARISONS[comparison]
    torch.manual_seed(0)
    model = HybridMobileNet(network.family, network.alpha, network.delta).train().to(device)
    torch.set_float32_matmul_precision("high")  # as `train` does
    optimizer = make_optimizer(model, PAPER)
    digits = load_data("digits", image_size=32, channels=3).train.to(device)
    step = partial(train_step, model, optimizer, precision=precision)
    batches = torch.randint(len(digits), (EPOCH, batch)).to(device)
    if not captured:
        images, labels = digits.labelled(batches[0])
        return lambda: step(images, labels)
    steps = CapturedSteps(
        model, optimizer, digits.labelled, lambda images, labels, _: step(images, labels), EPOCH, batch
    )
    steps.schedule(batches, [PAPER.learning_rate] * EPOCH)
    steps.capture()
    return steps.take


def time_training(device: torch.device, batches: tuple[int, ...], rounds: int) -> Section:
    """Images per second of the three families, launched kernel by kernel and as a CUDA graph."""
    rows = list[dict[str, Cell]]()
    for index, network in enumerate(COMPARISONS):
        for batch in batches:
            row: dict[str, Cell] = {"network": network.name, "batch": str(batch)}
            for precision in get_args(Precision):
                for captured in (False, True):
                    step = training_step(device, index, precision, batch, captured=captured)
                    rate = batch / seconds_of(step, device, rounds)
                    row[f"{precision}{', graph' if captured else ''}, images/s"] = rate
            rows.append(row)
    return Section("Training steps", rows)


def share(numbers: tuple[int, ...], batch: int, seconds: float) -> Section:
    """Images per second of several runs of FMP d2 a0.25, in separate processes on one device."""
    rows = list[dict[str, Cell]]()
    for number in numbers:
        with ExitStack() as stack:
            command = [sys.executable, __file__, "--worker", str(batch)]
            workers = [
                stack.enter_context(
                    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
                )
                for _ in range(number)
            ]
            for worker in workers:
                answer(worker)  # waits until it is warm
            for worker in workers:
                assert worker.stdin is not None
                print(seconds, file=worker.stdin)
            rates = [float(answer(worker)) for worker in workers]
        rows.append({"runs": str(number), "images/s of all": sum(rates), "images/s of the slowest": min(rates)})
    return Section(f"Runs of FMP d2 a0.25 that share the device, batch {batch}, fp32", rows)


def answer(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError("one of the runs that share the device ended early: see its error above")
    return line


def work(device: torch.device, batch: int) -> None:
    """One of the runs that share the device. Print "warm", read a number of seconds, and print the rate over them."""
    step = training_step(device, 2, "fp32", batch, captured=True)
    for _ in range(5):
        step()
    wait(device)
    print("warm", flush=True)
    for line in sys.stdin:
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < float(line):
            for _ in range(10):
                step()
            wait(device)
            steps += 10
        print(steps * batch / (time.perf_counter() - start), flush=True)
        return


def environment() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    versions = {}
    for name in ("torch", "triton", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": properties.name,
        "memory_gb": properties.total_memory / 1e9,
        "processors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


if __name__ == "__main__":
    sys.exit(main())
