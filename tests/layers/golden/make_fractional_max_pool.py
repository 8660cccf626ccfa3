"""Write fractional_max_pool.json: what TensorFlow's tf.nn.fractional_max_pool answers, for test_pooling.py to compare.

Run with TensorFlow installed (`pip install tensorflow-cpu`): python tests/golden/make_fractional_max_pool.py

Per case the file holds TensorFlow's pooling sequences, its outputs and the gradient of sum(output * weight). Inputs
and weights are not stored but follow from `integers`, which the test repeats. Every array is NCHW, flattened, as
test_pooling.py reads it. How TensorFlow's operator relates to ours, found by running it:

- its sequences have n_out + 1 entries from 0 to n_in, like ours, so its regions are ours for equal sequences. (The
  example in its documentation, [0, 2, 4] for 5 values, ends early and is not what the operator returns.);
- its pseudorandom sequences force the two ends, where ours shift the whole: it returns some that no u gives in ours
  (steps 2, 2, 2, 1, 2, 1 for 10 -> 6), so the test takes the sequences as given;
- overlapping regions are [a_(i-1), a_i] clipped at the edge: ours;
- its gradient goes to the first maximum of a region row by row; ours to the first column by column, which
  is the same on transposed maps, so that ties compare too.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Shape = tuple[int, int, int, int]

#: Input shape (N, C, H, W), pooling ratio (height, width), and the number of distinct values: few make many ties.
CASES: list[tuple[Shape, tuple[float, float], int]] = [
    ((1, 1, 32, 32), (1.44, 1.44), 997),
    ((1, 2, 22, 22), (1.44, 1.44), 97),
    ((2, 3, 7, 7), (1.39, 1.39), 97),
    ((1, 2, 9, 14), (1.44, 1.8), 11),
    ((2, 2, 10, 10), (1.44, 1.44), 3),
]


def integers(shape: Shape, modulus: int, multiplier: int) -> npt.NDArray[np.int64]:
    """Integers below `modulus` that look shuffled, the same on every machine and in every library."""
    index = np.arange(np.prod(shape), dtype=np.int64)
    return ((index * index * multiplier + index * 7919) % 10007 % modulus).reshape(shape)


def golden(
    shape: Shape, ratio: tuple[float, float], modulus: int, pseudorandom: bool, overlapping: bool
) -> dict[str, Any]:
    """One case as TensorFlow computes it."""
    nhwc = tf.constant(integers(shape, modulus, 31).transpose(0, 2, 3, 1), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(nhwc)
        output, rows, columns = tf.nn.fractional_max_pool(
            nhwc, (1.0, *ratio, 1.0), pseudo_random=pseudorandom, overlapping=overlapping, seed=sum(shape)
        )
        nchw = tf.transpose(output, (0, 3, 1, 2))
        weight = integers(tuple(nchw.shape), 9, 17) + 1
        loss = tf.reduce_sum(nchw * tf.constant(weight, tf.float32))
    gradient = tf.transpose(tape.gradient(loss, nhwc), (0, 3, 1, 2))
    return {
        "shape": shape,
        "modulus": modulus,
        "pseudorandom": pseudorandom,
        "overlapping": overlapping,
        "rows": rows.numpy().tolist(),
        "columns": columns.numpy().tolist(),
        "output": nchw.numpy().astype(int).ravel().tolist(),
        "gradient": gradient.numpy().astype(int).ravel().tolist(),
    }


if __name__ == "__main__":
    cases = [
        golden(*case, pseudorandom, overlapping)
        for case in CASES
        for pseudorandom in (False, True)
        for overlapping in (False, True)
    ]
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    text = f'{{"tensorflow":"{tf.__version__}","cases":[\n{lines}\n]}}\n'
    Path(__file__).with_name("fractional_max_pool.json").write_text(text)
