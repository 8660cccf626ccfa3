"""What a run starts from, if not random weights: the model of a finished run, and the images that run held out."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from ..common.messages import reason
from ..data.held_out import SPLIT_FILE, RunImages
from ..data.images import DataError
from ..data.splits import Splits
from ..network.model import CHECKPOINT_FILE, HybridMobileNet
from .recipe import Recipe
from .setup import SCRATCH, Monitor, Setup


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
    folder = Path(run).resolve()
    if (folder / CHECKPOINT_FILE).exists():
        raise ValueError(
            f"the run in {folder} is not finished: finish it first, with "
            f"hybrid-mobilenet train --resume {shlex.quote(str(folder))}"
        )
    model = HybridMobileNet.from_pretrained(folder)
    try:
        setup = Setup.from_record({field.name: model.training_record[field.name] for field in fields(Setup)})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"config.json in {folder} does not say how the model was trained ({reason(error)}): name the folder of a "
            "run of this version"
        ) from error
    return replace(setup, start=str(folder), class_names=model.class_names)


def read_start(setup: Setup) -> HybridMobileNet | None:
    """The model whose weights a run starts from; None for random weights.

    Raises:
        ModelError: if it cannot be read.
        ValueError: if its network is not that of the setup.
    """
    if setup.start == SCRATCH:
        return None
    model = HybridMobileNet.from_pretrained(Path(setup.start).resolve())
    network = model.network
    expected = network.choices() | {"activation": model.activation, "overlapping": model.overlapping}
    given = setup.network(network.classes).choices()
    if isinstance(setup.recipe, Recipe):  # else it is not chosen yet
        given |= {"activation": setup.recipe.activation, "overlapping": setup.recipe.overlapping}
    for name, value in given.items():
        if value != expected[name]:
            raise ValueError(
                f"{name} is {value!r}, but {expected[name]!r} in the network of {setup.start}, whose weights are for "
                "that: leave it out, or start from scratch"
            )
    return model


def earlier_images(setup: Setup) -> RunImages | None:
    """The images of the run that `setup` continues, and of those before; None if it starts from scratch.

    Raises:
        DataError: if its split.json is missing or damaged.
    """
    if setup.start == SCRATCH:
        return None
    images = RunImages.read(setup.start)
    if images is None:
        raise DataError(
            f"there is no {SPLIT_FILE} in {setup.start}, so it is not known which images were held out from training: "
            "restore it, or start from scratch"
        )
    return images


def check_held_out(setup: Setup, splits: Splits, monitor: Monitor) -> None:
    """Check that the images held out by the run that `setup` continues stay held out.

    It warns if test or validation images were training images of that run, since their figures are then too high.

    Raises:
        DataError: if training or validation images are among those that the run held out, or it is not known which
            they are.
    """
    earlier = earlier_images(setup)
    if earlier is None:
        return
    for what, part in (("training", splits.train), ("validation", splits.validation)):
        count = 0 if part is None else int(earlier.is_held_out(part.contents(monitor.on_data)).sum())
        if count:
            raise DataError(
                f"{setup.data}: {count:,} of the {what} images were held out for testing by {setup.start}, and must "
                "stay held out: move them into a folder of test images, remove them, or start from scratch"
            )
    used = np.union1d(earlier.train, earlier.validation)
    for what, part, seen in (("test", splits.test, used), ("validation", splits.validation, earlier.train)):
        count = 0 if part is None else int(np.isin(part.contents(monitor.on_data), seen).sum())
        if part is not None and count:
            monitor.on_warning(
                f"{setup.start} was trained on {count:,} of the {len(part):,} {what} images, so the figures on them "
                "are too high"
            )
