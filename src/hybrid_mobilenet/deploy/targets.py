"""From a trained network to the files that devices run; each is checked in its runtime before it is written.

This module names what there is, for the command line, and imports nothing that is slow.
"""

from __future__ import annotations

#: What `export --to` takes, and the file or folder that it makes.
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
