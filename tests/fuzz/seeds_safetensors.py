# SPDX-License-Identifier: Apache-2.0
"""Seeds for the safetensors fuzz target: small valid files that between them hold
every element type, escapes, empty and scalar tensors, and metadata.

    python3 tests/fuzz/seeds_safetensors.py DIRECTORY
"""
import json
import os
import struct
import sys

SIZE = {"F32": 4, "F16": 2, "BF16": 2}


def safetensors(tensors, meta=None, pad=0, text=None):
    head, data = {}, b""
    if meta is not None:
        head["__metadata__"] = meta
    for name, dtype, shape in tensors:
        n = SIZE[dtype]
        for d in shape:
            n *= d
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + n]}
        data += bytes(i * 37 & 0x7F for i in range(n))
    head = (text or json.dumps(head)).encode() + b" " * pad
    return struct.pack("<Q", len(head)) + head + data


def main(folder):
    os.makedirs(folder, exist_ok=True)
    seeds = {
        "empty": safetensors([]),
        "types": safetensors([("a", "F32", [2, 3]), ("b", "F16", [4]), ("c.d", "BF16", [1, 1, 2])]),
        "scalar": safetensors([("s", "F32", []), ("none", "F16", [0, 5])], pad=5),
        "meta": safetensors([("w", "F32", [1])], {"model": "0123456789abcdef", "k": "\"\\\u00e9\U0001f600\n"}),
        "escapes": safetensors([], text='{ "__metadata__" : { "\\u0041\\ud83d\\ude00" : "\\b\\f\\/" } }'),
        "unordered": safetensors([], text='{"b":{"data_offsets":[0,0],"shape":[0],"dtype":"F32"},\n'
                                          '"a":{"dtype":"BF16","data_offsets":[0,0],"shape":[3,0]}}'),
    }
    for name, data in seeds.items():
        with open(os.path.join(folder, name + ".safetensors"), "wb") as f:
            f.write(data)


if __name__ == "__main__":
    main(sys.argv[1])
