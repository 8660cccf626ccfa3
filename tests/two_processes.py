"""What each of two processes does in test_processes.py: ``two_processes.py FOLDER``, with torchrun's environment.

Writes what it saw to FOLDER/RANK.json. The last thing is that process 1 fails and process 0 loses it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_mobilenet import HybridMobileNet, fit
from hybrid_mobilenet.data.dataset import ImageDataset
from hybrid_mobilenet.data.images import DataError
from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.layers.pooling import FractionalMaxPool2d
from hybrid_mobilenet.layers.sizes import Size
from hybrid_mobilenet.training import run as training
from hybrid_mobilenet.training.checkpoint import read_checkpoint
from hybrid_mobilenet.training.evaluate import Evaluation, evaluate
from hybrid_mobilenet.training.processes import OtherProcessFailed, Processes, ProcessLost
from hybrid_mobilenet.training.setup import Interrupted, TrainingDiverged, build_model
from runs import RECIPE, SMALL, STEPS, Quiet, before_step, poison

FOLDER, RANK = Path(sys.argv[1]), int(os.environ["RANK"])


def digest(tensors: list[torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


class Watch:
    """The model and the regions of the runs within the `with` block."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.models: list[HybridMobileNet] = []
        self.regions: list[torch.Tensor] = []
        self.batches: list[torch.Tensor] = []
        self.random = torch.empty(0)
        finish, draw, fetch = training._Run.write_results, FractionalMaxPool2d.regions, ImageDataset.batch

        def building(*arguments: Any) -> HybridMobileNet:
            self.models.append(build_model(*arguments))
            return self.models[-1]

        def finishing(run: training._Run) -> Evaluation:
            self.random = torch.get_rng_state()  # after training, it is as it was before
            return finish(run)

        def drawing(pool: FractionalMaxPool2d, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
            regions = draw(pool, size)
            if pool.training:
                self.regions.extend(regions)
            return regions

        def fetching(dataset: ImageDataset, indices: torch.Tensor) -> torch.Tensor:
            if len(indices) == RECIPE.batch_size // 2:
                self.batches.append(indices)
            return fetch(dataset, indices)

        patch.setattr(training, "build_model", building)
        patch.setattr(training._Run, "write_results", finishing)
        patch.setattr(FractionalMaxPool2d, "regions", drawing)
        patch.setattr(ImageDataset, "batch", fetching)

    def weights(self) -> str:
        return digest(list(self.models[-1].state_dict().values()))


def undisturbed(seen: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        evaluation = training.train(SMALL, FOLDER / "undisturbed", Quiet())
    seen["weights"] = watch.weights()
    seen["regions"] = digest(watch.regions)
    seen["draws"] = len(watch.regions)
    seen["random"] = digest([watch.random])
    seen["batches"] = [batch.tolist() for batch in watch.batches]
    seen["evaluation"] = evaluation.record()
    # The same by one process alone, on data whose batches are 256 and 103 images, and on one batch.
    splits = load_data("digits", image_size=8, channels=1, validation=0.1)
    assert splits.validation is not None
    seen["alone"] = evaluate(watch.models[-1], splits.test).record()
    together = Processes(RANK, 2)
    seen["one batch"] = evaluate(watch.models[-1], splits.validation, processes=together).record()
    seen["one batch alone"] = evaluate(watch.models[-1], splits.validation).record()


def fitted(seen: dict[str, Any]) -> None:
    """`fit`, with other weights in each process at first."""
    torch.manual_seed(RANK)
    model = HybridMobileNet("fmp", 0.25, 1, 10, 1, (8, 8))
    digits = load_data("digits", image_size=8, channels=1)
    seen["history"] = [record["loss"] for record in fit(model, digits.train, RECIPE, validation=digits.test)]
    seen["fitted weights"] = digest(list(model.state_dict().values()))
    seen["generators"] = [pool.generator is None for pool in model.fractional_max_pools()]


def interrupted(seen: dict[str, Any]) -> None:
    """A signal to process 1 alone stops both after the step under way, and they go on to the same weights."""
    out = FOLDER / "interrupted"

    def stop(taken: int, _model: object, _optimizer: object) -> None:
        if RANK == 1 and taken == STEPS + 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, stop)
        with pytest.raises(Interrupted):
            training.train(SMALL, out, Quiet())
    progress = read_checkpoint(out)[1]
    seen["stopped at"] = [progress.epoch, progress.step]
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        training.resume(out, Quiet())
    seen["resumed weights"] = watch.weights()


def diverged(seen: dict[str, Any]) -> None:
    """A weight that is no number in process 1 alone."""
    with pytest.MonkeyPatch.context() as patch:
        if RANK == 1:
            before_step(patch, poison("classifier.linear.bias"))
        with pytest.raises(TrainingDiverged) as caught:
            training.train(SMALL, FOLDER / "diverged", Quiet())
    seen["diverged"] = str(caught.value)


def refused(seen: dict[str, Any]) -> None:
    """Mistakes are told by one process, and stop both."""
    for name, setup in {
        "mistake of both": replace(SMALL, alpha=0.3),
        "mistake of 1": replace(SMALL, delta=0) if RANK == 1 else SMALL,
        "other settings": replace(SMALL, seed=RANK),
        "odd batch": replace(SMALL, recipe=replace(RECIPE, batch_size=33)),
        "small batch": replace(SMALL, recipe=replace(RECIPE, batch_size=2)),
    }.items():
        with pytest.raises(ValueError) as caught:  # noqa: PT011  test_processes.py looks at the message
            training.train(setup, FOLDER / name, Quiet())
        silent = isinstance(caught.value, OtherProcessFailed)
        seen[name] = f"{'silent: ' if silent else ''}{caught.value}"


def lost(seen: dict[str, Any]) -> None:
    """An image that process 1 cannot read, in the middle of an epoch."""
    read = ImageDataset.batch

    def failing(dataset: ImageDataset, indices: torch.Tensor) -> torch.Tensor:
        failing.calls += 1  # type: ignore[attr-defined]
        if RANK == 1 and failing.calls > STEPS + 8:  # type: ignore[attr-defined]
            raise DataError("unreadable")
        return read(dataset, indices)

    failing.calls = 0  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDataset, "batch", failing)
        try:
            training.train(SMALL, FOLDER / "lost", Quiet())
        except (DataError, ProcessLost) as error:
            seen["lost"] = f"{type(error).__name__}: {error}"


def main() -> None:
    torch.set_num_threads(1)
    seen: dict[str, Any] = {}
    for act in (undisturbed, fitted, interrupted, diverged, refused, lost):
        act(seen)
    (FOLDER / f"{RANK}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
