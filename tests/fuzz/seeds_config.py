#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for the settings fuzzer: one file per key and kind of value, and the shipped example."""
import json
import pathlib
import sys

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
top = pathlib.Path(__file__).resolve().parents[2]
seeds = [p.read_text() for p in sorted((top / "config" / "examples").glob("*.json"))]
values = [0, 1, 65536, -1, 1.5, True, None, "", "x", "512M", "1TiB", "é", [1], {"press": "knorm", "ratio": 0.5}]
for key in ("model", "ctx_size", "port", "api_key", "metrics", "compute", "kv_cache_bytes", "compression", "prot"):
    seeds += [json.dumps({key: v}) for v in values]
seeds += ["", "[]", "{", '{"port": 1, "port": 2}', '{"alias": "\\u0000"}', "[" * 3000]
for i, s in enumerate(seeds):
    (out / f"{i:03}.json").write_text(s, encoding="utf-8")
