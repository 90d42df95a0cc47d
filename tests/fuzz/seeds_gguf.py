# SPDX-License-Identifier: Apache-2.0
"""Seeds for the gguf fuzz target: small valid files that between them hold every
metadata type and every tensor type.

    python3 tests/fuzz/seeds_gguf.py DIRECTORY
"""
import os
import struct
import sys

SCALAR = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
# tensor type -> (elements, bytes) per block
TENSOR = {0: (1, 4), 1: (1, 2), 30: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
          20: (32, 18), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
          23: (256, 136)}


def text(s):
    return struct.pack("<Q", len(s)) + s


def gguf(version, kvs, tensors, align=32):
    out = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(kvs))
    for key, kind, value in kvs:
        out += text(key) + struct.pack("<I", kind) + value
    offset, data = 0, b""
    for name, ty, dims in tensors:
        block, size = TENSOR[ty]
        n = size
        for d in (dims[0] // block, *dims[1:]):
            n *= d
        out += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        out += struct.pack("<IQ", ty, offset)
        data += bytes(i * 37 & 0x3B for i in range(n)) + bytes(-n % align)
        offset = len(data)
    return out + bytes(-len(out) % align) + data


def main(folder):
    os.makedirs(folder, exist_ok=True)
    seeds = {"empty": gguf(3, [], [])}
    scalars = [(b"k%d" % t, t, struct.pack(f, 1)) for t, f in SCALAR.items()]
    arrays = [(b"a%d" % t, ARRAY, struct.pack("<IQ", t, 2) + struct.pack(f, 1) * 2) for t, f in SCALAR.items()]
    words = [(b"general.architecture", STRING, text(b"llama")),
             (b"tokens", ARRAY, struct.pack("<IQ", STRING, 3) + text(b"a") + text(b"") + text(b"bc"))]
    seeds["metadata"] = gguf(2, scalars + words, [])
    seeds["arrays"] = gguf(3, arrays, [])
    seeds["aligned"] = gguf(3, [(b"general.alignment", 4, struct.pack("<I", 64))],
                            [(b"a", 0, (4, 2)), (b"b", 8, (32, 1, 2))], 64)
    for t, (block, _) in TENSOR.items():
        seeds[f"type{t}"] = gguf(3, words[:1], [(b"w", t, (block, 2)), (b"v", 0, (3,))])
    for name, data in seeds.items():
        with open(os.path.join(folder, name + ".gguf"), "wb") as f:
            f.write(data)


if __name__ == "__main__":
    main(sys.argv[1])
