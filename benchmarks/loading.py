"""What augmentation and loading cost: images per second of training from memory and from files, beside bare steps.

    HYBRID_MOBILENET_DATA=... python benchmarks/loading.py

PNG files of 32 pixels and JPEG files of 640x480 are made from images of CIFAR-10. In turns, FMP d2 a0.25 takes training
steps on one batch, and epochs on the files with the augmentation "strong": with the decoded images in memory, in a
temporary file, as those above the bound on memory are, and decoded each time, as if the disk had no room.
Memory is what the process holds after the first and after the last round, without files that are mapped.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from hybrid_mobilenet import HybridMobileNet, load_data
from hybrid_mobilenet.common.memory import keep_freed_memory
from hybrid_mobilenet.data.splits import split_source
from hybrid_mobilenet.data.storage import Storage
from hybrid_mobilenet.training.fit import Training
from hybrid_mobilenet.training.processes import Processes
from hybrid_mobilenet.training.recipe import AUGMENTATIONS, PAPER
from hybrid_mobilenet.training.setup import Silent
from hybrid_mobilenet.training.step import make_optimizer, train_step

BATCH = 64
CPU = torch.device("cpu")


def write_images(folder: Path, count: int, kind: str) -> None:
    """A folder with `count` images in ten classes: "png" of 32 pixels, or "jpeg" of 640x480."""
    images = load_data("cifar10").train
    for number in range(count):
        pixels, label = images[number]
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        if kind == "jpeg":
            picture = picture.resize((640, 480), Image.Resampling.BICUBIC)
        place = folder / images.class_names[label]
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{number:05}.{kind}")


def resident() -> float:
    """Memory of the process without mapped files, in MB; on systems without /proc, the most it has held."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def network(side: int) -> HybridMobileNet:
    return HybridMobileNet("fmp", alpha=0.25, delta=2, classes=10, image_size=side)


def bare_steps(side: int, seconds: float) -> float:
    """Images per second of training steps on one batch."""
    model = network(side).train()
    for pool in model.fractional_max_pools():
        pool.eval()
    images = torch.randint(256, (BATCH, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    step = partial(train_step, model, make_optimizer(model, PAPER), images, torch.randint(10, (BATCH,)))
    step()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        count += BATCH
    return count / (time.perf_counter() - started)


def training_on(folder: Path, side: int, steps: int, storage: Storage) -> Callable[[], float]:
    """An epoch of this number of steps; it returns its images per second, everything included but the validation."""
    splits = split_source(str(folder), image_size=side)
    for what, part in splits.parts.items():
        part.read(what, None, storage)
    recipe = replace(
        PAPER,
        epochs=1000,
        fixed_epochs=1000,
        schedule="constant",
        batch_size=BATCH,
        augmentation=AUGMENTATIONS["strong"],
        least_steps=1000 * steps,
    )
    model = network(side)
    model.class_names = splits.train.class_names
    training = Training(model, splits.train, recipe, 0, CPU, Processes(), Silent())
    training.steps = steps

    def epoch() -> float:
        started = time.perf_counter()
        training.meter = training._meter(replace(training.progress, step=0, epoch=training.progress.epoch + 1))
        training.train_one_epoch(lambda: None)
        return steps * training.batch_size / (time.perf_counter() - started)

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args()
    keep_freed_memory()
    print(f"{torch.get_num_threads()} threads, medians of {options.rounds} rounds")
    for kind, side, count in (("png", 32, 6000), ("jpeg", 96, 1500)):
        with tempfile.TemporaryDirectory() as name:
            write_images(Path(name), count, kind)
            rate = bare_steps(side, options.seconds)
            steps = max(2, round(options.seconds * rate / BATCH))
            on_files = partial(training_on, Path(name), side, steps)
            ways: dict[str, Callable[[], float]] = {
                "bare steps": partial(bare_steps, side, options.seconds),
                "in memory": on_files("memory"),
                "on disk": on_files("disk"),
                "decoded each time": on_files("nowhere"),
            }
            rates: dict[str, list[float]] = {way: [] for way in ways}
            held = []
            for _ in range(options.rounds):
                for way, measure in ways.items():
                    rates[way].append(measure())
                held.append(resident())
            memory = f"memory {held[0]:.0f} MB after a round, {held[-1]:.0f} MB at the end"
            print(f"{count:,} {kind} files, {side} pixels; {memory}")
            for way, found in rates.items():
                ratios = [one / bare for one, bare in zip(found, rates["bare steps"], strict=True)]
                print(f"  {way:17} {statistics.median(found):6.0f} images/s  {statistics.median(ratios):.0%}")


if __name__ == "__main__":
    main()
