r"""How to train on few images: validation accuracy by images per class, batch size, number of steps, and settings.

    HYBRID_MOBILENET_DATA=... python benchmarks/small_folders.py --per-class 100 --steps 2000 3000 \
        --settings '{}' '{"averaging": 0.998}' '{"augmentation": {"shift": 0.125, "flips": "horizontal"}}'

The recipe is the default for images of one's own, changed by each of the settings. Images for training and validation
are drawn from the training images of CIFAR-10 or of the digits. Test images are not used. Each run appends a line of
JSON to runs/small-folders.jsonl, and recorded runs are not repeated. The results are in docs/LOG.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from hybrid_mobilenet.cli.display import RunDisplay
from hybrid_mobilenet.data.dataset import ImageDataset
from hybrid_mobilenet.data.splits import Splits, load_data
from hybrid_mobilenet.training.recipe import Recipe, own_recipe
from hybrid_mobilenet.training.run import train
from hybrid_mobilenet.training.setup import Monitor, Setup

RESULTS = Path("runs/small-folders.jsonl")

#: Validation images per class, at most.
VALIDATION = 200


def sample(dataset: ImageDataset, per_class: int, draw: int) -> tuple[ImageDataset, ImageDataset]:
    """Draw `per_class` images of each class for training, and others for validation."""
    generator = torch.Generator().manual_seed(draw)
    chosen, others = [], []
    for label in range(len(dataset.class_names)):
        members = (dataset.labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        chosen.append(members[:per_class])
        others.append(members[per_class:][-VALIDATION:])
    parts = []
    for indices in (torch.cat(chosen), torch.cat(others)):
        mask = torch.zeros(len(dataset), dtype=torch.bool)
        mask[indices] = True
        part = dataset.subset(mask)
        assert dataset.pixels is not None
        part.pixels = dataset.pixels[mask]
        parts.append(part)
    return parts[0], parts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("cifar10", "digits"), default="cifar10")
    parser.add_argument("--per-class", type=int, nargs="+", default=[5, 20, 100, 500])
    parser.add_argument("--steps", type=int, nargs="+", default=[0], help="minimum numbers of steps; 0: the recipe's")
    parser.add_argument("--settings", nargs="+", default=["{}"], help="settings of the recipe to change, as JSON")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[64])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--draws", type=int, nargs="+", default=[0])
    parser.add_argument("--family", choices=("mobilenet", "mp3", "fmp"), default="fmp")
    parser.add_argument("--alpha", type=float, default=0.25)
    parser.add_argument("--delta", type=int, default=2)
    options = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    done = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    keys = {json.dumps(json.loads(line)["run"]) for line in done}
    everything = load_data(options.data).train
    settings = map(json.loads, options.settings)
    grid = itertools.product(options.draws, options.per_class, options.batch_size, options.steps, settings)
    for draw, per_class, batch_size, steps, changes in grid:
        run = {
            "data": options.data,
            "family": options.family,
            "alpha": options.alpha,
            "delta": options.delta,
            "per_class": per_class,
            "batch_size": batch_size,
            "epochs": options.epochs,
            "least_steps": steps,
            "settings": changes,
            "draw": draw,
        }
        if json.dumps(run) in keys:
            continue
        images, validation = sample(everything, per_class, draw)
        recipe = own_recipe(options.family, len(images), images.class_names).with_epochs(options.epochs)
        recipe = replace(recipe, batch_size=batch_size, least_steps=steps or recipe.least_steps)
        recipe = Recipe.from_record(asdict(recipe) | changes)
        splits = Splits(images, None, validation, options.data, True)

        def read(_setup: Setup, _monitor: Monitor, splits: Splits = splits) -> Splits:
            return splits

        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            setup = Setup(options.data, options.family, options.alpha, options.delta, seed=draw, recipe=recipe)
            result = train(setup, out, RunDisplay(shown=False), read)
            last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
        line = {
            "run": run,
            "validation_accuracy": result.accuracy,
            "validation_loss": result.loss,
            "training_accuracy": last["accuracy"],
            "seconds": round(time.perf_counter() - started),
        }
        print(json.dumps(line), flush=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
