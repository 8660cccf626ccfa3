"""The training loop: epochs of steps, each epoch with a validation. `run` adds checkpoints, files and signals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..data.dataset import ImageDataset, check_dataset
from ..network.model import HybridMobileNet, check_model
from .augmentation import augment, draw
from .averaging import WeightAverage
from .batches import balanced_batches, prefetched, shuffled_batches
from .checkpoint import Progress, best_epoch
from .cuda_graph import CapturedSteps
from .distillation import TeacherOutputs
from .evaluate import evaluate
from .meter import Meter
from .precise_statistics import FINAL_IMAGES, VALIDATION_IMAGES, set_precise_statistics
from .processes import Processes, joined
from .recipe import PAPER, Recipe, check_seed, derived_seed
from .setup import Monitor, Silent, check_device, check_validation, choose_batch_size, steps_per_epoch
from .step import Rates, learning_rates, make_optimizer, train_step, training_settings


def fit(
    model: HybridMobileNet,
    dataset: ImageDataset,
    recipe: Recipe = PAPER,
    *,
    validation: ImageDataset | None = None,
    seed: int = 0,
    device: str = "auto",
    monitor: Monitor | None = None,
) -> list[dict[str, Any]]:
    """Train a model in place, without a run folder. `train` does the same with checkpoints and files.

    Afterwards the model is in eval(), on the device it was trained on. Ctrl-C raises KeyboardInterrupt as usual; the
    model keeps the weights of the last step. The process is restored as by `train`.

    Args:
        model: on any device. Its own activation, dropout and pooling are used, not the recipe's.
        dataset: the training images, with the classes, channels and size of the model.
        recipe: optimiser, learning rate, batch size and epochs; `paper_recipe` has the one of a family.
        validation: images on which each epoch is evaluated.
        seed: of the order of the images, dropout and pooling regions, 0 to 2**64 - 1.
        device: as for `choose_device`: "auto" for the GPU if there is one, else the CPU.
        monitor: receives the progress.

    Returns:
        One record per epoch, as in metrics.jsonl: mean loss and accuracy of its steps, learning rate, images
        per second, seconds, and with `validation` also validation_loss, validation_accuracy and
        validation_balanced_accuracy. There are fewer records than epochs if `recipe.patience` ended training.

    Raises:
        ValueError: if an argument is of another type, the images do not fit the model, the recipe needs `validation`,
            the seed or the device is unusable, or training diverges.

    Example:
        >>> from hybrid_mobilenet import HybridMobileNet, evaluate, fit, load_data, paper_recipe
        >>> digits = load_data("digits", image_size=8, channels=1)
        >>> model = HybridMobileNet("fmp", alpha=0.25, delta=1, classes=10, in_channels=1, image_size=8)
        >>> history = fit(model, digits.train, paper_recipe("fmp", "digits").with_epochs(2), device="cpu")
        >>> [record["epoch"] for record in history], history[1]["loss"] < history[0]["loss"]
        ([1, 2], True)
        >>> evaluate(model, digits.test).images
        359
    """
    check_model(model)
    check_dataset(dataset)
    if validation is not None:
        check_dataset(validation)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe is {recipe!r}, but must be a Recipe: use paper_recipe(family, data)")
    check_validation(recipe, has_validation=validation is not None)
    generators = [(pool, pool.generator) for pool in model.fractional_max_pools()]
    with joined(device) as processes:
        chosen = processes.together(lambda: _check(model, dataset, recipe, seed, device, processes))
        processes.require_same("settings or data", repr((recipe, seed, dataset.fingerprint)))
        with training_settings(chosen):
            torch.manual_seed(seed)
            training = Training(model, dataset, recipe, seed, chosen, processes, monitor or Silent(), validation)
            try:
                training.train()
                training.finish()
            finally:
                for pool, generator in generators:
                    pool.generator = generator
    model.eval()
    return training.progress.history


def _check(
    model: HybridMobileNet, dataset: ImageDataset, recipe: Recipe, seed: int, device: str, processes: Processes
) -> torch.device:
    """Check everything that can be checked before the first step; returns the device to train on."""
    check_seed(seed)
    network = model.network
    expected = {
        "class names": (model.class_names, dataset.class_names),
        "channels": (network.in_channels, dataset.channels),
        "image size": (tuple(network.image_size), tuple(dataset.image_size)),
    }
    for what, (in_model, in_data) in expected.items():
        if in_model != in_data:
            raise ValueError(
                f"dataset has the {what} {in_data}, but the model has {in_model}: build the model, or load the data, "
                "to match the other"
            )
    choose_batch_size(recipe, len(dataset), processes)
    return check_device(device, recipe, processes)


class Training:
    """The training of one model, from any point on.

    Args:
        model: is moved to `device`.
        dataset: the training images.
        recipe: how to train.
        seed: of the order of the images.
        device: of this process.
        processes: that train together.
        monitor: receives the progress.
        validation: images on which each epoch is evaluated.
        progress: where to resume; None to start from the beginning.
        teacher: what a teacher says of the training images, for distillation.

    Attributes:
        best: the state of the model, on the CPU, after the epoch with the lowest validation loss so far; empty if the
            recipe keeps the last epoch, or before the first epoch.
    """

    def __init__(
        self,
        model: HybridMobileNet,
        dataset: ImageDataset,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        processes: Processes,
        monitor: Monitor,
        validation: ImageDataset | None = None,
        progress: Progress | None = None,
        teacher: TeacherOutputs | None = None,
    ) -> None:
        self.teacher = teacher
        self.recipe, self.seed, self.device, self.processes, self.monitor = recipe, seed, device, processes, monitor
        self.dataset, self.validation = dataset.to(device), validation
        self.batch_size = choose_batch_size(recipe, len(dataset), processes)
        self.steps = steps_per_epoch(recipe, len(dataset), self.batch_size)
        self.model = model.to(device)
        self.regions = _separate_randomness(model, seed, processes)
        self.optimizer = make_optimizer(model, recipe)
        # Processes.share averages the buffers instead.
        wrapped = DistributedDataParallel(model, broadcast_buffers=False) if processes.size > 1 else model
        self.step = partial(
            train_step,
            wrapped,
            self.optimizer,
            precision=recipe.precision,
            label_smoothing=recipe.label_smoothing,
        )
        self.captured: CapturedSteps | None = None
        self.average = WeightAverage(model, recipe.averaging) if recipe.averaging else None
        self.meter = self._meter(progress or Progress())
        self.best: dict[str, Tensor] = {}

    @property
    def progress(self) -> Progress:
        """How far training is. Losses of the last steps may be missing: see `settle`."""
        return self.meter.progress

    def train(
        self, after_step: Callable[[], None] = lambda: None, after_epoch: Callable[[], None] = lambda: None
    ) -> None:
        """Train the epochs that are left, or until patience ends; their records are in `progress.history`.

        Raises:
            TrainingDiverged: if a loss or a weight is not finite.
        """
        while self.progress.epoch < self.recipe.epochs and not self.is_stalled:
            record = self.train_one_epoch(after_step)
            history = [*self.progress.history, record]
            self.meter = self._meter(Progress(epoch=self.progress.epoch + 1, history=history))
            if self.recipe.keep == "best" and best_epoch(history) == record["epoch"]:
                with self.averaged():
                    self.best = {name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}
            self.monitor.on_epoch(record)
            after_epoch()

    def averaged(self) -> AbstractContextManager[None]:
        """The model has the moving average of its weights, if the recipe has one."""
        return self.average.in_model() if self.average else nullcontext()

    @property
    def is_stalled(self) -> bool:
        """Whether the validation loss has not improved for as many epochs as the recipe allows."""
        progress, patience = self.progress, self.recipe.patience
        return 0 < patience <= progress.epoch - best_epoch(progress.history)

    @property
    def kept_epoch(self) -> int:
        """The epoch, counted from 1, whose weights the model keeps at the end."""
        return best_epoch(self.progress.history) if self.recipe.keep == "best" else self.progress.epoch

    def finish(self) -> None:
        """Load the weights to keep, and recompute their statistics of batch normalisation over more images."""
        if self.best:
            self.model.load_state_dict(self.best)
        elif self.average:
            self.average.exchange()
        self.set_precise_statistics(FINAL_IMAGES)

    def train_one_epoch(self, after_step: Callable[[], None]) -> dict[str, Any]:
        """Take the remaining steps of this epoch, and validate; returns the epoch's record for metrics.jsonl."""
        progress, meter = self.progress, self.meter
        self.monitor.on_start(progress.epoch, self.recipe.epochs, progress.step, self.steps, self.batch_size)
        self.set_modes()
        batches, draws, views, rates = self.schedule()
        first = progress.step
        for take_step in self.take_steps(batches[first:], draws[first:], views[first:], rates[first:]):
            meter.start_step()
            loss, hits = take_step()
            if self.average:
                self.average.update(progress.epoch * self.steps + progress.step + 1)
            meter.end_step(loss, hits)
            after_step()
        self.check_weights()
        record = meter.record(rates[-1].features)
        if self.validation is not None:
            with self.averaged():
                self.set_precise_statistics(VALIDATION_IMAGES)
                result = evaluate(self.model, self.validation, seed=self.seed, processes=self.processes)
            record |= {
                "validation_loss": result.loss,
                "validation_accuracy": result.accuracy,
                "validation_balanced_accuracy": result.balanced_accuracy,
            }
        return record | {"evaluation_seconds": meter.lap()}

    def set_modes(self) -> None:
        """Put the model into train(), except for its pooling layers in the last `fixed_epochs` epochs."""
        self.model.train()
        if self.progress.epoch >= self.recipe.epochs - self.recipe.fixed_epochs:
            for pool in self.model.fractional_max_pools():
                pool.eval()

    def schedule(self) -> tuple[Tensor, Tensor, Tensor, list[Rates]]:
        """The steps of this epoch.

        Returns:
            The numbers of their images, int64 (steps, batch_size); the random numbers of the augmentation, (steps,
            batch_size, DRAWS), empty without one; the views of which there are outputs of the teacher, int64 (steps,
            batch_size), empty without one; and the learning rates.
        """
        epoch = self.progress.epoch
        generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
        if self.recipe.balance == "sampling":
            batches = balanced_batches(self.dataset.labels.cpu(), self.steps, self.batch_size, generator)
        else:
            batches = shuffled_batches(len(self.dataset), self.steps, self.batch_size, generator)
        is_augmented = bool(self.recipe.augmentation)
        if self.teacher is None:
            views = torch.empty(self.steps, 0, dtype=torch.int64)
            draws = draw(self.steps, self.batch_size if is_augmented else 0, generator=generator)
        else:
            views = torch.randint(self.teacher.views, batches.shape, generator=generator)
            draws = self.teacher.draws(batches, views)
        total = self.recipe.epochs * self.steps
        rates = [learning_rates(self.recipe, (epoch * self.steps + step) / total) for step in range(self.steps)]
        return batches.to(self.dataset.labels.device), draws, views, rates

    @property
    def is_captured(self) -> bool:
        """Whether steps are replays of a CUDA graph: in one process, with the images on its GPU.

        A graph has no teacher, and one learning rate.
        """
        is_plain = self.teacher is None and not self.recipe.is_fine_tuning
        return self.processes.size == 1 and self.dataset.labels.is_cuda and is_plain

    def take_steps(
        self, batches: Tensor, draws: Tensor, views: Tensor, rates: list[Rates]
    ) -> Iterator[Callable[[], tuple[Tensor, Tensor]]]:
        """For each batch, a function that trains on it and returns loss and hits."""
        if not self.is_captured:
            return self._single_steps(batches, draws, views, rates)
        if self.captured is None:
            self.captured = CapturedSteps(
                self.model,
                self.optimizer,
                self.dataset.labelled,
                self._augmented_step,
                self.steps,
                self.batch_size,
                draws.shape[1],
            )
        self.captured.schedule(batches, [rate.features for rate in rates], draws)
        return repeat(self.captured.take, len(batches))

    def _single_steps(
        self, batches: Tensor, draws: Tensor, views: Tensor, rates: list[Rates]
    ) -> Iterator[Callable[[], tuple[Tensor, Tensor]]]:
        """Steps whose operations are launched one by one, each process with its part of the batch."""
        parts = [self.processes.part(batch) for batch in batches]
        fetched = prefetched(self.dataset, parts, self.device)
        for rate, batch, numbers, shown, (images, labels) in zip(rates, batches, draws, views, fetched, strict=True):
            rate.set_in(self.optimizer)
            logits = None if self.teacher is None else self.teacher.logits(batch, shown).to(self.device)
            yield partial(self._single_step, images, labels, self.processes.part(numbers).to(self.device), logits)

    def _single_step(
        self, images: Tensor, labels: Tensor, draws: Tensor, teacher_logits: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        step = self._augmented_step(images, labels, draws, teacher_logits)
        return self.processes.share(self.model, *step)

    def _augmented_step(
        self, images: Tensor, labels: Tensor, draws: Tensor, teacher_logits: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        classes = len(self.dataset.class_names)
        batch = augment(images, labels, self.recipe.augmentation, classes, draws)
        return self.step(*batch, teacher_logits=teacher_logits)

    def set_precise_statistics(self, images: int) -> None:
        """Recompute the statistics of batch normalisation for the present weights, over some training images.

        With balanced sampling too, these are in the proportions of the data: with as many images of every class, a
        network that has memorised those of a small class recognises few others of it. docs/LOG.md has the figures.
        """
        set_precise_statistics(self.model, self.dataset, images, self.seed, self.processes)

    def settle(self) -> None:
        """Make `progress` complete, for a checkpoint.

        Raises:
            TrainingDiverged: if a loss or a weight is not finite.
        """
        self.check_weights()
        self.meter.read()
        self.progress.seconds += self.meter.lap()

    def check_weights(self) -> None:
        """Raise `TrainingDiverged` if a weight is not finite. Waits for the device once."""
        finite = torch.stack([tensor.isfinite().all() for tensor in self.model.state_dict().values()])
        self.meter.require_finite(bool(finite.all()))

    def _meter(self, progress: Progress) -> Meter:
        return Meter(progress, self.recipe, self.steps, self.batch_size, self.device, self.monitor)


def _separate_randomness(model: HybridMobileNet, seed: int, processes: Processes) -> torch.Generator | None:
    """Give several processes the same pooling regions but different dropout; returns the generator of the regions."""
    if processes.size == 1:
        return None
    regions = torch.Generator().manual_seed(seed)
    for pool in model.fractional_max_pools():
        pool.generator = regions
    torch.manual_seed(derived_seed(seed, processes.rank))
    return regions
