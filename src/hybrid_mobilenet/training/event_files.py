"""The records of epochs as TensorBoard event files, through torch's own writer, which is imported only if needed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

#: TensorBoard's name of each value of an epoch's record. Names with the same first part share a section.
TAGS = {
    "loss": "loss/training",
    "validation_loss": "loss/validation",
    "accuracy": "accuracy/training",
    "validation_accuracy": "accuracy/validation",
    "validation_balanced_accuracy": "accuracy/validation_balanced",
    "learning_rate": "speed/learning_rate",
    "images_per_second": "speed/images_per_second",
}


def check_tensorboard() -> None:
    """Check that TensorBoard is installed, without importing it.

    Raises:
        ValueError: if it is not.
    """
    if find_spec("tensorboard") is None:
        raise ValueError(
            "log is 'tensorboard', which needs the package tensorboard: pip install hybrid-mobilenet[tensorboard]"
        )


class EventFiles:
    """Writes epochs to an event file in a folder, one step per epoch, counted from 1.

    Args:
        folder: for the event file. TensorBoard shows all event files of a folder as one run.
        first: the first epoch to be written. TensorBoard drops this epoch and later ones from earlier event files: a
            run that was killed before its checkpoint was written repeats them.

    Raises:
        OSError: if the file cannot be written.
    """

    def __init__(self, folder: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder, purge_step=first)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()

    def add(self, record: dict[str, Any]) -> None:
        """Write an epoch's record, a line of metrics.jsonl, at once."""
        for name, tag in TAGS.items():
            if name in record:
                self._writer.add_scalar(tag, record[name], record["epoch"])
        self._writer.flush()
