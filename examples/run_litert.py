"""Classify an image with a model exported for LiteRT. Only LiteRT and Pillow are needed.

Usage: python run_litert.py model.tflite image.png
"""

import json
import sys
import zipfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps

about = json.loads(zipfile.ZipFile(sys.argv[1]).read("metadata.json"))
interpreter = Interpreter(sys.argv[1])
interpreter.allocate_tensors()
height, width = json.loads(about["image_size"])
image = Image.open(sys.argv[2]).convert("RGB" if about["in_channels"] == "3" else "L")
pixels = np.array(ImageOps.fit(image, (width, height))).reshape(1, height, width, -1)
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels)
interpreter.invoke()
logits, probabilities = (interpreter.get_tensor(output["index"]) for output in interpreter.get_output_details())
best = probabilities[0].argmax()
print(json.loads(about["class_names"])[best], f"{probabilities[0][best]:.1%}")
