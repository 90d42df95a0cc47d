# SPDX-License-Identifier: Apache-2.0
"""Random gates for fastkvzip in the form they are imported in: published names and shapes, as safetensors.

Drawn from a seed by the standard library alone, so that the recorder and the checker have the same ones.
"""

import array
import json
import random
import struct
import sys

SIZE = 16


def shapes(heads, group, width):
    """name -> (shape, offset, scale) of one layer's tensors."""
    return {
        "q_proj.weight": ((heads * group * SIZE, width), 0.0, 0.1), "q_proj.bias": ((heads * group * SIZE,), 0.0, 0.5),
        "k_proj.weight": ((heads * SIZE, width), 0.0, 0.1), "q_norm.weight": ((SIZE,), 1.0, 0.3),
        "k_norm.weight": ((SIZE,), 1.0, 0.3), "k_base": ((heads, 1, SIZE, SIZE), 0.0, 2.0), "b": ((heads, 1, group), 2.5, 1.0),
    }


def draw(seed, layers, heads, group, width):
    """name -> (shape, array of f32), every layer's."""
    rng, out = random.Random(seed), {}
    for i in range(layers):
        for name, (shape, offset, scale) in shapes(heads, group, width).items():
            n = 1
            for x in shape:
                n *= x
            out[f"layers.{i}.{name}"] = shape, array.array("f", (offset + scale * (2 * rng.random() - 1) for _ in range(n)))
    return out


def write(path, tensors):
    head, at = {}, 0
    for name, (shape, values) in tensors.items():
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * len(values)]}
        at += 4 * len(values)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, values in tensors.values():
            if sys.byteorder == "big":
                values.byteswap()
            f.write(values.tobytes())
