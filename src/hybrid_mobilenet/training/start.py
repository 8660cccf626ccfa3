"""The earlier runs that a run builds on: the one whose weights it starts from, its teacher, and what they held out."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..common.messages import reason
from ..data.dataset import ImageDataset
from ..data.held_out import SPLIT_FILE, RunImages, run_file
from ..data.images import DataError
from ..data.source import SourceOptions
from ..data.sources import open_source
from ..data.splits import Splits
from ..network.model import CHECKPOINT_FILE, CONFIG_FILE, HybridMobileNet, unfinished_run
from .recipe import Recipe
from .setup import SCRATCH, Monitor, Setup
from .step import is_classifier


def continue_from(run: str | Path) -> Setup:
    """The setup with which `train` continues a finished run: its network, classes, data and settings, and its weights.

    The continuation is a run of its own, with a new folder and a new learning-rate schedule. Change its settings with
    `dataclasses.replace`; those of the network must stay. Other data must have the same classes.

    Args:
        run: the folder of the finished run.

    Raises:
        ModelError: if the folder has no trained model.
        ValueError: if the run is not finished, or its config.json does not say how it was trained.

    Example:
        >>> import tempfile
        >>> from dataclasses import replace
        >>> from hybrid_mobilenet import Setup, continue_from, paper_recipe, train
        >>> recipe = paper_recipe("fmp", "digits").with_epochs(1)
        >>> setup = Setup("digits", "fmp", alpha=0.25, delta=1, image_size=(8, 8), channels=1, recipe=recipe)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = train(setup, f"{folder}/run", device="cpu")
        ...     setup = continue_from(f"{folder}/run")
        ...     setup = replace(setup, recipe=replace(setup.recipe, learning_rate=1e-3))
        ...     evaluation = train(setup, f"{folder}/run-continued", device="cpu")
        >>> evaluation.images
        359
    """
    folder = finished_run(run)
    model = HybridMobileNet.from_pretrained(folder)
    try:
        setup = Setup.from_record({field.name: model.training_record[field.name] for field in fields(Setup)})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"config.json in {folder} does not say how the model was trained ({reason(error)}): name the folder of a "
            "run of this version"
        ) from error
    return replace(setup, start=str(folder), class_names=model.class_names)


def finished_run(run: str | Path) -> Path:
    """The absolute path of a run folder.

    Raises:
        ValueError: if the run is not finished, or is a file in one.
    """
    folder = Path(run).resolve()
    if folder.is_file() and (config := run_file(folder, CONFIG_FILE)) is not None:
        raise ValueError(f"{run} is an exported file, from which training cannot start: give its run, {config.parent}")
    if (folder / CHECKPOINT_FILE).exists():
        raise unfinished_run(folder)
    return folder


def is_continued(start: str, data: str | None, options: dict[str, Any]) -> bool:
    """Whether a run on `data` continues the run `start`: it has no other data, or other images of the same classes.

    Otherwise it fine-tunes the model `start`.

    Args:
        start: a run folder, or another model that `HybridMobileNet.from_pretrained` takes.
        data: as for `load_data`; None for that of the run.
        options: how to read `data`, by the names in `SourceOptions`.

    Raises:
        ModelError: if `start` is not a model.
        DataError: if the data cannot be opened.
        ValueError: if there is no data for a model that is not a run.
    """
    if Path(start).exists():
        finished_run(start)
    elif data is None:
        raise ValueError(f"--from is {start!r}, which is not a run folder: name a run, or give DATA to fine-tune it on")
    if data is None:
        return True
    names = HybridMobileNet.from_pretrained(start).class_names
    how = SourceOptions(**{each.name: options[each.name] for each in fields(SourceOptions)})
    return Path(start).exists() and set(open_source(data, how).train.class_names) == set(names)


def start_network(start: str) -> dict[str, Any]:
    """The network of a model whose weights a run starts from, as fields of a `Setup`."""
    network = HybridMobileNet.from_pretrained(start).network
    return {
        "family": network.family,
        "alpha": network.alpha,
        "delta": network.delta,
        "channels": network.in_channels,
        "image_size": network.image_size,
    }


def read_start(setup: Setup) -> HybridMobileNet | None:
    """The model whose weights a run starts from; None for random weights.

    Raises:
        ModelError: if it cannot be read.
        ValueError: if its network is not that of the setup. With new classes, the image size may differ.
    """
    if setup.start == SCRATCH:
        return None
    model = HybridMobileNet.from_pretrained(setup.start)
    network = model.network
    expected = network.choices() | {"activation": model.activation, "overlapping": model.overlapping}
    given = setup.network(network.classes).choices()
    if setup.class_names is None:
        given["image_size"] = expected["image_size"]
    if isinstance(setup.recipe, Recipe):  # else it is not chosen yet
        given |= {"activation": setup.recipe.activation, "overlapping": setup.recipe.overlapping}
    for name, value in given.items():
        if value != expected[name]:
            raise ValueError(
                f"{name} is {value!r}, but {expected[name]!r} in the network of {setup.start}, whose weights are for "
                "that: leave it out, or start from scratch"
            )
    return model


def load_start(start: HybridMobileNet, model: HybridMobileNet) -> None:
    """Give a new model the weights that a run starts from.

    The classifier stays new and random, unless `start` has the same classes. The mean and standard deviation become
    those of the images that `start` was trained on, since its features expect them.
    """
    is_same = set(start.class_names) == set(model.class_names)
    kept = {name: tensor for name, tensor in start.state_dict().items() if is_same or not is_classifier(name)}
    model.load_state_dict(model.state_dict() | kept)


def read_teacher(setup: Setup, images: ImageDataset) -> HybridMobileNet | None:
    """The teacher of a run on these images; None without one.

    Raises:
        ModelError: if it cannot be read.
        ValueError: if its classes or the shape of its images are not those of the run, or it is not finished.
    """
    if setup.teacher is None:
        return None
    teacher = HybridMobileNet.from_pretrained(finished_run(setup.teacher))
    network = teacher.network
    expected = {
        "classes": (sorted(teacher.class_names), sorted(images.class_names)),
        "image size": (tuple(network.image_size), images.image_size),
        "channels": (network.in_channels, images.channels),
    }
    for what, (theirs, ours) in expected.items():
        if theirs != ours:
            raise ValueError(
                f"teacher is {setup.teacher!r}, with {what} {theirs}, but this run has {ours}: give a "
                "teacher that was trained on the same classes, at the same image size"
            )
    return teacher


def earlier_images(setup: Setup) -> RunImages | None:
    """The images of the run that `setup` continues, of its teacher's, and of those before; None without these.

    Raises:
        DataError: if the split.json of one is missing or damaged.
    """
    found: RunImages | None = None
    for run in _earlier_runs(setup):
        images = _images_of(run)
        found = images if found is None else found.joined(images)
    return found


def _earlier_runs(setup: Setup) -> list[str]:
    """Run folders. What published weights were trained on is not known image by image."""
    start = setup.start if setup.start != SCRATCH and Path(setup.start).is_dir() else None
    return [run for run in (start, setup.teacher) if run is not None]


def _images_of(run: str) -> RunImages:
    images = RunImages.read(run)
    if images is None:
        raise DataError(
            f"there is no {SPLIT_FILE} in {run}, so it is not known which images were held out from training: restore "
            "it, or train without this run"
        )
    return images


def check_held_out(setup: Setup, splits: Splits, monitor: Monitor) -> None:
    """Check that the images held out by the run that `setup` continues, and by its teacher's, stay held out.

    It warns if test or validation images were training images of one of them, since their figures are then too high.

    Raises:
        DataError: if training or validation images are among those that a run held out, or it is not known which
            they are.
    """
    for run in _earlier_runs(setup):
        _check_held_out_by(run, setup, splits, monitor)


def _check_held_out_by(run: str, setup: Setup, splits: Splits, monitor: Monitor) -> None:
    earlier = _images_of(run)
    for what, part in (("training", splits.train), ("validation", splits.validation)):
        count = 0 if part is None else int(earlier.is_held_out(part.contents(monitor.on_data)).sum())
        if count:
            raise DataError(
                f"{setup.data}: {count:,} of the {what} images were held out for testing by {run}, and must stay held "
                "out: move them into a folder of test images, remove them, or train without this run"
            )
    used = np.union1d(earlier.train, earlier.validation)
    for what, part, seen in (("test", splits.test, used), ("validation", splits.validation, earlier.train)):
        count = 0 if part is None else int(np.isin(part.contents(monitor.on_data), seen).sum())
        if part is not None and count:
            monitor.on_warning(
                f"{run} was trained on {count:,} of the {len(part):,} {what} images, so the figures on them are too "
                "high"
            )
