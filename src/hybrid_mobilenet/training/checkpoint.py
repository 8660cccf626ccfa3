"""The state of a training run on disk, from which a killed run continues bit for bit.

One safetensors file holds weights, optimiser state and random states as tensors, and the rest as JSON in its header. It
is written to a temporary name and renamed, so that a kill at any moment leaves the last whole checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..common.devices import CPU
from ..common.files import write_atomically
from ..network.model import CHECKPOINT_FILE


class CheckpointError(ValueError):
    """A checkpoint from which a run cannot resume: missing, damaged, or written by another program."""


@dataclass
class Progress:
    """How far training is. The sums are over the steps of the present epoch.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the present epoch.
        loss_sum: sum of their losses.
        correct: correctly classified images.
        images: images trained on.
        seconds: time of data, steps and saving.
        step_seconds: time of the steps.
        history: the record of each finished epoch, a line of metrics.jsonl.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    images: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def best_epoch(history: Sequence[dict[str, Any]]) -> int:
    """The epoch with the lowest validation loss, counted from 1; the first of several; 0 before the first epoch.

    The loss is compared, not the accuracy: on few images, many epochs have the same accuracy.
    """
    return min(history, key=itemgetter("validation_loss"))["epoch"] if history else 0


def random_states(regions: torch.Generator | None = None, device: torch.device = CPU) -> dict[str, Tensor]:
    """The states of torch's default generators (CPU and device), and of a separate generator of pooling regions."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    if regions is not None:
        states["regions"] = regions.get_state()
    return states


def save_checkpoint(
    folder: Path,
    setup: dict[str, Any],
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    random: dict[str, Tensor],
    best: dict[str, Tensor],
    average: dict[str, Tensor],
) -> None:
    """Write the state of a run.

    Args:
        folder: the run folder.
        setup: network, recipe, data and seed of the run, as JSON.
        progress: how far it is.
        model: its state_dict is stored.
        optimizer: its state is stored.
        random: by name, the `random_states` of the process, or those of several processes, stacked.
        best: state of the model after its best epoch; empty if the run does not keep it.
        average: moving average of each parameter; empty if the run has none.

    Raises:
        OSError: if the file cannot be written; the previous checkpoint is then intact.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    tensors |= {f"random.{name}": state for name, state in random.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
    header = {"setup": json.dumps(setup), "progress": json.dumps(asdict(progress))}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(folder / CHECKPOINT_FILE, save(contiguous, header))


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], Progress, dict[str, Tensor]]:
    """Read the setup, the progress and the tensors of a checkpoint.

    Args:
        folder: the run folder.

    Raises:
        CheckpointError: if the checkpoint is missing, damaged, or of another program.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        raise CheckpointError(
            f"there is no {CHECKPOINT_FILE} in {folder}: name the folder of a run that `train` started"
        )
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        return json.loads(header["setup"]), Progress(**json.loads(header["progress"])), tensors
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint of hybrid-mobilenet ({error}): start a new run in another folder"
        ) from error


def restore(
    tensors: dict[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    regions: torch.Generator | None = None,
    process: int = 0,
    *,
    has_best: bool = False,
    average: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Load the tensors of a checkpoint into the model, the optimiser and the random generators.

    Args:
        tensors: of the checkpoint.
        model: receives weights and statistics.
        optimizer: receives its state.
        regions: generator of the pooling regions, if not torch's default one.
        process: rank of the process whose random states to load, if the checkpoint has several.
        has_best: whether the checkpoint must have the model's state after its best epoch.
        average: receives the moving average of each parameter, if the run has one.

    Returns:
        That state; empty without `has_best`.

    Raises:
        CheckpointError: if the tensors do not fit the model.
    """
    try:
        model.load_state_dict(_under("model", tensors))
        _restore_optimizer(_under("optimizer", tensors), optimizer)
        best = _under("best", tensors)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()} if has_best else {}
        if {name: tensor.shape for name, tensor in best.items()} != shapes:
            raise ValueError("the weights of the best epoch are incomplete")
        for name, tensor in (average or {}).items():
            tensor.copy_(_under("average", tensors)[name])
        random = {
            name: states if states.dim() < 2 else states[process].clone()
            for name, states in _under("random", tensors).items()
        }
        torch.set_rng_state(random["cpu"])
        device = next(model.parameters()).device
        if device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], device)
        elif device.type == "mps" and "mps" in random:
            torch.mps.set_rng_state(random["mps"])
        if regions is not None:
            regions.set_state(random["regions"])
    except (RuntimeError, KeyError, ValueError, TypeError, IndexError) as error:
        first_line = str(error).splitlines()[0]
        raise CheckpointError(
            f"the checkpoint does not fit its own network ({first_line}): start a new run in another folder"
        ) from error
    return best


def _restore_optimizer(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Load the optimiser's state, each moment in the memory layout of its parameter.

    Fused kernels walk parameter, gradient and moments as flat memory, so all need the same layout. The file holds
    contiguous tensors.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".")
        state.setdefault(int(number), {})[key] = tensor
    _check_optimizer_state(state, parameters)
    for index, parameter in enumerate(parameters):
        for key, tensor in state.get(index, {}).items():
            if tensor.shape == parameter.shape:
                moment = torch.empty_like(parameter, dtype=tensor.dtype, memory_format=torch.preserve_format)
                state[index][key] = moment.copy_(tensor)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _check_optimizer_state(state: dict[int, dict[str, Tensor]], parameters: list[Tensor]) -> None:
    # The optimiser would read past the end of a tensor that is too small.
    whole = not state or sorted(state) == list(range(len(parameters)))
    if not whole or len({frozenset(tensors) for tensors in state.values()}) > 1:
        raise ValueError("the optimiser's state is incomplete")
    for index, tensors in state.items():
        for name, tensor in tensors.items():
            if tensor.shape not in (parameters[index].shape, torch.Size()):  # Adam counts its steps in a scalar
                raise ValueError(f"{name} of parameter {index} has shape {tuple(tensor.shape)}")


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
