"""The export targets. Imports nothing slow, so that the command line can list them without loading torch."""

from __future__ import annotations

#: The targets of `export --to`, and the file or folder that each one makes.
FILES = {
    "onnx": "model.onnx",
    "onnx-int8": "model.int8.onnx",
    "executorch": "model.pte",
    "executorch-int8": "model.int8.pte",
    "litert": "model.tflite",
    "litert-int8": "model.int8.tflite",
    "web": "web",
}

#: Targets that are calibrated on training images.
CALIBRATED = {"onnx-int8", "executorch-int8", "litert-int8"}
