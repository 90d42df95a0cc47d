# SPDX-License-Identifier: Apache-2.0
"""Golden data for the element types: random and extreme blocks with the floats
that the Python package gguf makes of them.

    python tests/golden/quants.py tests/golden/data/quants.bin

Little-endian, one record per type:  u32 type id | u32 blocks | u32 bytes per
block | u32 elements per block | the blocks | the f32 results.
"""
import struct
import sys

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

# type -> byte offsets of the f16 numbers in a block
F16_AT = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.IQ4_NL: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_XS: [0],
}
# f16 bit patterns: smallest subnormal, largest subnormal, smallest normal, -0, largest, -largest
EXTREME = [0x0001, 0x03FF, 0x0400, 0x8000, 0x7BFF, 0xFBFF]
RANDOM_BLOCKS = 3


def blocks_of(t, rng):
    """Random bits with ordinary scales, then random bits with each extreme scale,
    then all bits clear and all bits set under an ordinary scale."""
    block, size = GGML_QUANT_SIZES[t]
    n = RANDOM_BLOCKS + len(EXTREME) + 2
    out = rng.integers(0, 256, (n, size), dtype=np.uint8)
    out[-2], out[-1] = 0, 255
    for k, at in enumerate(F16_AT[t]):
        scale = (rng.standard_normal(n) * 0.1).astype(np.float16).view(np.uint16)
        for i, bits in enumerate(EXTREME):
            scale[RANDOM_BLOCKS + i] = np.roll(EXTREME, k)[i]  # another one for the minimum
        out[:, at:at + 2] = scale.astype("<u2").view(np.uint8).reshape(n, 2)
    return out


def plain(t, rng):
    """64 elements of a float type: every special value that is finite, then random ones."""
    if t == T.F32:
        bits = rng.integers(0, 0x7F800000, 64, dtype=np.uint32)
        bits[:5] = [0, 0x80000000, 1, 0x7F7FFFFF, 0xFF7FFFFF]
        return bits.astype("<u4").view(np.uint8)
    top = 0x7C00 if t == T.F16 else 0x7F80
    bits = rng.integers(0, top, 64, dtype=np.uint16) | (rng.integers(0, 2, 64, dtype=np.uint16) << 15)
    bits[:8] = [0, 0x8000, 1, 0x8001, top - 1, (top - 1) | 0x8000, 0x03FF, 0x0400]
    return bits.astype("<u2").view(np.uint8)


def main(path):
    rng = np.random.default_rng(20240229)
    with open(path, "wb") as f:
        for t in [T.F32, T.F16, T.BF16, *F16_AT]:
            block, size = GGML_QUANT_SIZES[t]
            data = blocks_of(t, rng) if t in F16_AT else plain(t, rng).reshape(-1, size)
            want = dequantize(np.ascontiguousarray(data), t)
            want = np.ascontiguousarray(want, dtype="<f4").reshape(-1)
            assert want.size == len(data) * block and np.isfinite(want).all()
            f.write(struct.pack("<4I", t, len(data), size, block))
            f.write(data.tobytes())
            f.write(want.tobytes())


if __name__ == "__main__":
    main(sys.argv[1])
