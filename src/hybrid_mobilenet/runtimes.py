"""Exported files, run in the runtime they were made for."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .architecture import Size
from .images import reason

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Logits and probabilities, (N, classes) each."""


class RuntimeFileError(ValueError):
    """A file that is no exported model, or whose runtime is not installed."""


class FileClassifier(ABC):
    """An exported model in its runtime.

    Attributes:
        class_names: in the order of the outputs.
        image_size: (height, width) in pixels.
        in_channels: 3 for RGB, 1 for greyscale.
    """

    #: What people call the runtime, its module, and the extra that installs it.
    runtime: ClassVar[str]
    module: ClassVar[str]
    extra: ClassVar[str]

    class_names: tuple[str, ...]
    image_size: Size
    in_channels: int

    @classmethod
    def installed(cls) -> bool:
        return find_spec(cls.module) is not None

    @classmethod
    def require(cls) -> None:
        """Raises:
        RuntimeFileError: where the runtime is not installed, with the command that installs it.
        """
        if not cls.installed():
            raise RuntimeFileError(
                f"{cls.runtime} is not installed: pip install 'hybrid-mobilenet[{cls.extra}]', or '.[{cls.extra}]' in "
                "a checkout"
            )

    @abstractmethod
    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Classify images, uint8 (N, H, W, in_channels)."""

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities, float32 (N, classes) each, of images, uint8 (N, in_channels, H, W)."""
        logits, probabilities = self.run(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()))
        return torch.from_numpy(logits), torch.from_numpy(probabilities)

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities, float32 (N, classes), of images, uint8 (N, in_channels, H, W)."""
        return self.outputs(images)[1]

    def _read_metadata(self, texts: Mapping[str, str], name: str) -> None:
        try:
            self.class_names = tuple(json.loads(texts["class_names"]))
            height, width = json.loads(texts["image_size"])
            self.image_size, self.in_channels = (int(height), int(width)), int(texts["in_channels"])
        except (KeyError, ValueError, TypeError) as error:
            raise RuntimeFileError(
                f"{name} is no model exported by hybrid-mobilenet: its metadata lacks class names and image size; "
                "export it again"
            ) from error


class OnnxClassifier(FileClassifier):
    """An ONNX model in ONNX Runtime.

    Args:
        content: the file, or its path.
        name: what errors call it.
        threads: that one image or batch is computed on.
    """

    runtime, module, extra = "ONNX Runtime", "onnxruntime", "export"

    def __init__(self, content: bytes | Path, name: str = "", threads: int | None = None) -> None:
        self.require()
        import onnxruntime

        name = name or str(content)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised: no need to print them too
        options.intra_op_num_threads = threads or torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(
                content if isinstance(content, bytes) else content.read_bytes(),
                options,
                providers=["CPUExecutionProvider"],
            )
        except OSError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise RuntimeFileError(f"{name} is damaged or no ONNX model ({reason(error)}): export it again") from error
        self._read_metadata(self.session.get_modelmeta().custom_metadata_map, name)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        logits, probabilities = self.session.run(["logits", "probabilities"], {"images": images})
        return logits, probabilities


#: By the ending of a file's name.
CLASSIFIERS: dict[str, type[OnnxClassifier]] = {".onnx": OnnxClassifier}


def is_exported(path: str | Path) -> bool:
    """Whether a name is that of an exported file, there or not, rather than of a run folder."""
    return Path(path).suffix.lower() in CLASSIFIERS


def open_file(path: Path, threads: int | None = None) -> FileClassifier:
    """An exported file in its runtime.

    Args:
        path: a file that `is_exported`.
        threads: that one image or batch is computed on; torch's number of threads if None.

    Raises:
        RuntimeFileError: where the file is not such a model, is damaged, or its runtime is not installed.
        OSError: where it cannot be read.
    """
    return CLASSIFIERS[path.suffix.lower()](path, threads=threads)
