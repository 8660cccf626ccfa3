"""The networks in Keras on TensorFlow, the paper's framework. Only this module imports TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import keras

from hybrid_mobilenet.network.architecture import FMP_RATIO, Layer, Network

VERSION = f"tensorflow {tf.__version__}"


def training_step(network: Network, batch: int, threads: int) -> Callable[[], object]:
    """A complete training step on one batch of normalised images, compiled to a graph.

    A tf.function is as fast as model.train_on_batch, within 5 %. XLA is several times slower.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    keras.utils.set_random_seed(0)
    model = build(network)
    optimizer = keras.optimizers.Adam(1e-3)
    loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    random = np.random.default_rng(0)
    images = tf.constant(random.normal(size=(batch, *network.image_size, network.in_channels)), tf.float32)
    labels = tf.constant(random.integers(network.classes, size=batch))

    @tf.function  # type: ignore[untyped-decorator]
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = loss_function(labels, model(images, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return lambda: float(step())


def build(network: Network) -> Any:
    """The functional model, from images (N, H, W, C) to logits."""
    images = keras.Input((*network.image_size, network.in_channels))
    x = images
    for layer in network.layers:
        x = apply(layer, x)
    return keras.Model(images, x)


def apply(layer: Layer, x: Any) -> Any:
    layers = keras.layers
    match layer.kind:
        case "max_pool":
            return layers.MaxPooling2D(layer.kernel, layer.stride, padding="same")(x)
        case "fractional_max_pool":
            return layers.Lambda(fractional_max_pool, output_shape=(*layer.out_size, layer.out_channels))(x)
        case "global_average_pool":
            return layers.GlobalAveragePooling2D()(x)
        case "fully_connected":
            return layers.Dense(layer.out_channels)(layers.Dropout(0.1)(x))
        case "depthwise":
            multiplier = layer.out_channels // layer.in_channels
            convolution = layers.DepthwiseConv2D(
                layer.kernel, layer.stride, padding="same", depth_multiplier=multiplier, use_bias=False
            )
        case _:
            convolution = layers.Conv2D(layer.out_channels, layer.kernel, layer.stride, padding="same", use_bias=False)
    return layers.ReLU()(layers.BatchNormalization()(convolution(x)))


def fractional_max_pool(x: Any) -> Any:
    return tf.nn.fractional_max_pool(x, (1.0, FMP_RATIO, FMP_RATIO, 1.0))[0]
