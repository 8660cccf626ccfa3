"""Classify an image with a model exported to ONNX. Only ONNX Runtime and Pillow are needed.

Usage: python run_onnx.py model.onnx image.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map
height, width = json.loads(about["image_size"])
image = Image.open(sys.argv[2]).convert("RGB" if about["in_channels"] == "3" else "L")
pixels = np.array(ImageOps.fit(image, (width, height))).reshape(1, height, width, -1)
logits, probabilities = session.run(None, {"images": pixels})
best = probabilities[0].argmax()
print(json.loads(about["class_names"])[best], f"{probabilities[0][best]:.1%}")
