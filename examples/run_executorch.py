"""Classify an image with a model exported for ExecuTorch. Only ExecuTorch and Pillow are needed.

Usage: python run_executorch.py model.pte image.png
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from executorch.runtime import Runtime
from PIL import Image, ImageOps

program = Runtime.get().load_program(Path(sys.argv[1]))
about = json.loads(program.load_method("metadata").execute([])[0])
height, width = json.loads(about["image_size"])
image = Image.open(sys.argv[2]).convert("RGB" if about["in_channels"] == "3" else "L")
pixels = np.array(ImageOps.fit(image, (width, height))).reshape(1, height, width, -1)
logits, probabilities = program.load_method("forward").execute([torch.from_numpy(pixels)])
best = probabilities[0].argmax()
print(json.loads(about["class_names"])[best], f"{probabilities[0][best]:.1%}")
