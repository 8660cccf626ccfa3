"""What training on a data set would do, and how long it would take here."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.devices import choose_device
from .evaluate import ALONE
from .precise_statistics import FINAL_IMAGES, VALIDATION_IMAGES
from .recipe import Recipe
from .setup import Setup, choose_batch_size, steps_per_epoch
from .speed import measure_speed

#: Steps are timed for this many seconds, and evaluations too.
SECONDS = 1.0


@dataclass(frozen=True)
class Plan:
    """What training would do.

    Attributes:
        setup: the settings.
        recipe: how the network is trained.
        classes: number of classes.
        train: number of training images.
        validation: number of images on which every epoch is evaluated.
        test: number of images on which the model is evaluated at the end.
        batch_size: images of a step.
        steps: steps of an epoch.
    """

    setup: Setup
    recipe: Recipe
    classes: int
    train: int
    validation: int
    test: int
    batch_size: int
    steps: int

    def in_words(self) -> list[str]:
        """Network, lengths and recipe, a line each."""
        setup, recipe = self.setup, self.recipe
        height, width = setup.image_size
        passes = self.steps * self.batch_size / self.train
        repeated = f", each about {passes:.0f} passes over the images" if passes >= 1.5 else ""
        return [
            f"network {setup.family}, alpha {setup.alpha:g}, delta {setup.delta}, images of {height}x{width} pixels",
            f"{recipe.epochs} epochs of {self.steps:,} steps of {self.batch_size} images{repeated}",
            *recipe_in_words(recipe),
        ]


def recipe_in_words(recipe: Recipe) -> list[str]:
    """Optimiser and regularisation, a line each."""
    warm_up = f"{recipe.warm_up:.0%} warm-up and " if recipe.warm_up else ""
    decay = "cosine decay" if recipe.schedule == "cosine" else "no decay"
    rate = f"{recipe.learning_rate:g} with {warm_up}{decay}"
    optimizer = "AdamW" if recipe.optimizer == "adam" else "SGD with Nesterov momentum"
    regular = [f"augmentation: {recipe.augmentation}", f"dropout {recipe.dropout:g}"]
    if recipe.fixed_epochs == recipe.epochs:
        regular.append("fixed pooling regions")
    elif recipe.fixed_epochs:
        regular.append(f"fixed pooling regions in the last {recipe.fixed_epochs} epochs")
    return [
        f"{optimizer}, learning rate {rate}, weight decay {recipe.weight_decay:g}",
        "; ".join(regular),
    ]


def plan(setup: Setup, recipe: Recipe, classes: int, train: int, validation: int, test: int) -> Plan:
    """Plan the training of a setup, by its recipe, on this number of classes and images.

    Raises:
        ValueError: if there are too few images.
    """
    batch_size = choose_batch_size(recipe, train, ALONE)
    steps = steps_per_epoch(recipe, train, batch_size)
    return Plan(setup, recipe, classes, train, validation, test, batch_size, steps)


def estimate_seconds(plan: Plan, reading: float, fetching: float = 0.0, device: str = "auto") -> float:
    """How long training would take: a few steps and evaluations are measured on noise.

    Args:
        plan: what training would do.
        reading: seconds to read all images once.
        fetching: seconds to read an image for a step; 0 if they are in memory.
        device: as for `choose_device`.

    Raises:
        ValueError: if there is no such device.
    """
    setup, recipe, epochs = plan.setup, plan.recipe, plan.recipe.epochs
    evaluated = max(plan.validation, plan.test, 1)
    network = setup.network(plan.classes)
    speed = measure_speed(network, recipe, plan.batch_size, evaluated, choose_device(device), SECONDS)
    step = max(speed.step, plan.batch_size * fetching)  # the next batch is fetched during a step
    validation = plan.validation + min(plan.train, VALIDATION_IMAGES) if plan.validation else 0
    images = epochs * validation + plan.test + min(plan.train, FINAL_IMAGES)
    return reading + epochs * plan.steps * step + images * max(speed.image, fetching)
