"""Exported files in their runtimes: ONNX Runtime, ExecuTorch and LiteRT behind one interface."""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.messages import reason
from ..layers.sizes import Size

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Logits and probabilities, (N, classes) each."""


#: The metadata of a LiteRT model, in a zip archive that follows the model in its file: LiteRT's own way to add files.
METADATA_FILE = "metadata.json"


#: Method of an ExecuTorch program that takes no argument and returns the metadata as JSON.
METADATA_METHOD = "metadata"


class RuntimeFileError(ValueError):
    """The file is not an exported model, or its runtime is not installed."""


class FileClassifier(ABC):
    """An exported model in its runtime.

    Attributes:
        about: the metadata of the file.
        class_names: in the order of the outputs.
        image_size: (height, width) in pixels.
        in_channels: 3 for RGB, 1 for greyscale.
    """

    #: Name of the runtime; the modules that run and that make its files; the extra that installs both.
    runtime: ClassVar[str]
    module: ClassVar[str]
    exporter: ClassVar[str]
    extra: ClassVar[str]

    about: Mapping[str, str]
    class_names: tuple[str, ...]
    image_size: Size
    in_channels: int

    @classmethod
    def installed(cls) -> bool:
        return find_spec(cls.module) is not None

    @classmethod
    def require(cls, exporting: bool = False) -> None:
        """Check that the runtime is installed, and with `exporting` also its converter.

        Raises:
            RuntimeFileError: if one is not installed, with the command that installs it.
        """
        for module, name in ((cls.module, cls.runtime), (cls.exporter, f"{cls.exporter}, which makes its files,")):
            if find_spec(module) is None:
                raise RuntimeFileError(
                    f"{name} is not installed: pip install 'hybrid-mobilenet[{cls.extra}]', or '.[{cls.extra}]' in "
                    "a checkout"
                )
            if not exporting:
                break

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
        self.about = texts
        try:
            self.class_names = tuple(json.loads(texts["class_names"]))
            height, width = json.loads(texts["image_size"])
            self.image_size, self.in_channels = (int(height), int(width)), int(texts["in_channels"])
        except (KeyError, ValueError, TypeError) as error:
            raise RuntimeFileError(
                f"{name} is not a model exported by hybrid-mobilenet: its metadata lacks class names and image size; "
                "export it again"
            ) from error


class OnnxClassifier(FileClassifier):
    """An ONNX model in ONNX Runtime.

    Args:
        content: the content of the file, or its path.
        name: name of the model in error messages; the path by default.
        threads: number of threads per call; torch's by default.
    """

    runtime, module, exporter, extra = "ONNX Runtime", "onnxruntime", "onnx", "export"

    def __init__(self, content: bytes | Path, name: str = "", threads: int | None = None) -> None:
        self.require()
        import onnxruntime

        name = name or str(content)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised, so they need not be printed
        options.intra_op_num_threads = threads or torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(
                content if isinstance(content, bytes) else content.read_bytes(),
                options,
                providers=["CPUExecutionProvider"],
            )
        except OSError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no common base class
            raise RuntimeFileError(
                f"{name} is damaged or not an ONNX model ({reason(error)}): export it again"
            ) from error
        self._read_metadata(self.session.get_modelmeta().custom_metadata_map, name)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        logits, probabilities = self.session.run(["logits", "probabilities"], {"images": images})
        return logits, probabilities


class SingleImageClassifier(FileClassifier):
    """A model with batch size 1: the images of a batch are classified one after another."""

    @abstractmethod
    def run_one(self, image: NDArray[np.uint8]) -> Outputs:
        """Classify one image, uint8 (1, H, W, in_channels)."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        outputs = [self.run_one(images[index : index + 1]) for index in range(len(images))]
        logits, probabilities = map(np.concatenate, zip(*outputs, strict=True))
        return logits, probabilities


class ExecuTorchClassifier(SingleImageClassifier):
    """A program in ExecuTorch; arguments as for `OnnxClassifier`.

    ExecuTorch has one thread pool per process, with the number of threads of the classifier that was opened last.
    Classifiers opened before with another number must not be run any more.
    """

    runtime, module, exporter, extra = "ExecuTorch", "executorch", "executorch", "executorch"

    def __init__(self, content: bytes | Path, name: str = "", threads: int | None = None) -> None:
        self.require()
        name = name or str(content)
        content = content if isinstance(content, bytes) else content.read_bytes()
        with silenced():
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime

            threads = threads or torch.get_num_threads()
            if portable_lib._threadpool_get_thread_count() != threads:
                portable_lib._unsafe_reset_threadpool(threads)
            try:
                self.program = Runtime.get().load_program(content)
                texts = json.loads(self.program.load_method(METADATA_METHOD).execute([])[0])
                self.forward = self.program.load_method("forward")
            except (RuntimeError, KeyError, ValueError) as error:
                raise RuntimeFileError(
                    f"{name} is damaged or not a program exported by hybrid-mobilenet ({reason(error)}): export it "
                    "again"
                ) from error
        self._read_metadata(texts, name)

    def run_one(self, image: NDArray[np.uint8]) -> Outputs:
        logits, probabilities = self.forward.execute((torch.from_numpy(image),))
        return logits.numpy(), probabilities.numpy()


class LiteRTClassifier(SingleImageClassifier):
    """A LiteRT (TensorFlow Lite) model in LiteRT's interpreter; arguments as for `OnnxClassifier`."""

    runtime, module, exporter, extra = "LiteRT", "ai_edge_litert", "litert_torch", "litert"

    def __init__(self, content: bytes | Path, name: str = "", threads: int | None = None) -> None:
        self.require()
        name = name or str(content)
        content = content if isinstance(content, bytes) else content.read_bytes()
        with silenced():
            from ai_edge_litert.interpreter import Interpreter

            try:
                # A zip's directory is at its end, so a truncated file fails here and not in the interpreter.
                texts = json.loads(zipfile.ZipFile(io.BytesIO(content)).read(METADATA_FILE))
                self.interpreter = Interpreter(model_content=content, num_threads=threads or torch.get_num_threads())
                self.interpreter.allocate_tensors()
            except (zipfile.BadZipFile, KeyError, ValueError, RuntimeError) as error:
                raise RuntimeFileError(
                    f"{name} is damaged or not a model exported by hybrid-mobilenet ({reason(error)}): export it again"
                ) from error
        self._read_metadata(texts, name)
        self._input = self.interpreter.get_input_details()[0]["index"]
        self._outputs = [output["index"] for output in self.interpreter.get_output_details()]

    def run_one(self, image: NDArray[np.uint8]) -> Outputs:
        self.interpreter.set_tensor(self._input, image)
        self.interpreter.invoke()
        logits, probabilities = map(self.interpreter.get_tensor, self._outputs)
        return logits, probabilities


@contextmanager
def silenced() -> Iterator[None]:
    """Discard what libraries print, log and warn about while they load or convert; they raise real errors.

    This redirects the standard streams of the whole process, including its other threads.
    """
    streams = {1: sys.stdout, 2: sys.stderr}
    with ExitStack() as undo:
        nowhere = undo.enter_context(Path(os.devnull).open("wb"))
        for descriptor, stream in streams.items():
            stream.flush()
            before = os.dup(descriptor)
            undo.callback(os.close, before)
            undo.callback(os.dup2, before, descriptor)
            undo.callback(stream.flush)
            # Much of the output comes from C++, which does not use sys.stderr.
            os.dup2(nowhere.fileno(), descriptor)
        undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


#: The classifier for each file suffix.
CLASSIFIERS: dict[str, type[OnnxClassifier | ExecuTorchClassifier | LiteRTClassifier]] = {
    ".onnx": OnnxClassifier,
    ".pte": ExecuTorchClassifier,
    ".tflite": LiteRTClassifier,
}


def is_exported(path: str | Path) -> bool:
    """Whether a path, by its suffix, is that of an exported file and not of a run folder. It need not exist."""
    return Path(path).suffix.lower() in CLASSIFIERS


def can_run(path: Path) -> bool:
    """Whether a path is that of an exported file whose runtime is installed."""
    return is_exported(path) and CLASSIFIERS[path.suffix.lower()].installed()


def open_file(path: Path, threads: int | None = None) -> FileClassifier:
    """Open an exported file in its runtime.

    While ExecuTorch and LiteRT load, the output of the whole process is discarded.

    Args:
        path: a file for which `is_exported` is true.
        threads: number of threads per call; torch's by default.

    Raises:
        RuntimeFileError: if the file is not such a model or is damaged, or if its runtime is not installed.
        OSError: if the file cannot be read.
    """
    return CLASSIFIERS[path.suffix.lower()](path, threads=threads)
