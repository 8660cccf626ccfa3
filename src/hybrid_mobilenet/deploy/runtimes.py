"""Exported files, run in the runtime they were made for."""

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

from ..data.images import reason
from ..layers.sizes import Size

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Logits and probabilities, (N, classes) each."""


#: In the zip archive that follows a LiteRT model in its file, as LiteRT has it for files that belong to a model.
METADATA_FILE = "metadata.json"


#: Of an ExecuTorch program: takes nothing and returns the same text, JSON.
METADATA_METHOD = "metadata"


class RuntimeFileError(ValueError):
    """A file that is no exported model, or whose runtime is not installed."""


class FileClassifier(ABC):
    """An exported model in its runtime.

    Attributes:
        about: what the file says of itself, texts by name.
        class_names: in the order of the outputs.
        image_size: (height, width) in pixels.
        in_channels: 3 for RGB, 1 for greyscale.
    """

    #: What people call the runtime; the modules that run its files and that make them; the extra that installs both.
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
        """Check that the runtime is installed, and for exporting what makes its files too.

        Raises:
            RuntimeFileError: where it is not, with the command that installs it.
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

    runtime, module, exporter, extra = "ONNX Runtime", "onnxruntime", "onnx", "export"

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


class SingleImageClassifier(FileClassifier):
    """A model that takes one image at a time: more are classified one after another."""

    @abstractmethod
    def run_one(self, image: NDArray[np.uint8]) -> Outputs:
        """Classify one image, uint8 (1, H, W, in_channels)."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        outputs = [self.run_one(images[index : index + 1]) for index in range(len(images))]
        logits, probabilities = map(np.concatenate, zip(*outputs, strict=True))
        return logits, probabilities


class ExecuTorchClassifier(SingleImageClassifier):
    """A program in ExecuTorch; arguments as for `OnnxClassifier`.

    ExecuTorch has one pool of threads for the whole process: the classifier opened last says how many there are, and
    those opened before with another number must not be run any more.
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
                    f"{name} is damaged or no program exported by hybrid-mobilenet ({reason(error)}): export it again"
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
                # A zip's directory is its end, so that a file that is cut off fails here, and not in the interpreter.
                texts = json.loads(zipfile.ZipFile(io.BytesIO(content)).read(METADATA_FILE))
                self.interpreter = Interpreter(model_content=content, num_threads=threads or torch.get_num_threads())
                self.interpreter.allocate_tensors()
            except (zipfile.BadZipFile, KeyError, ValueError, RuntimeError) as error:
                raise RuntimeFileError(
                    f"{name} is damaged or no model exported by hybrid-mobilenet ({reason(error)}): export it again"
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
    """Without what other libraries print, log and warn of while they load or convert: what matters they raise.

    Meanwhile the whole process, in all its threads, prints to nowhere.
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
            # Much of it comes from C++, which knows nothing of sys.stderr.
            os.dup2(nowhere.fileno(), descriptor)
        undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


#: By the ending of a file's name.
CLASSIFIERS: dict[str, type[OnnxClassifier | ExecuTorchClassifier | LiteRTClassifier]] = {
    ".onnx": OnnxClassifier,
    ".pte": ExecuTorchClassifier,
    ".tflite": LiteRTClassifier,
}


def is_exported(path: str | Path) -> bool:
    """Whether a name is that of an exported file, there or not, rather than of a run folder."""
    return Path(path).suffix.lower() in CLASSIFIERS


def can_run(path: Path) -> bool:
    """Whether a file is an exported one, by its name, and its runtime is installed."""
    return is_exported(path) and CLASSIFIERS[path.suffix.lower()].installed()


def open_file(path: Path, threads: int | None = None) -> FileClassifier:
    """An exported file in its runtime.

    While ExecuTorch and LiteRT load, nothing that the process prints is seen.

    Args:
        path: a file that `is_exported`.
        threads: that one image or batch is computed on; torch's number of threads if None.

    Raises:
        RuntimeFileError: where the file is not such a model, is damaged, or its runtime is not installed.
        OSError: where it cannot be read.
    """
    return CLASSIFIERS[path.suffix.lower()](path, threads=threads)
