#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for the template fuzzer: the small templates of the unit test, alone and in lumps."""
import json
import pathlib
import sys

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
golden = pathlib.Path(__file__).resolve().parents[1] / "golden" / "data" / "jinja.json"
cases = [c["template"] for c in json.loads(golden.read_text(encoding="utf-8"))["cases"]]
lumps = ["\n".join(cases[i:i + 6]) for i in range(0, len(cases), 6)]
contents = ["", "\x01", "a\n\u2028 b <|im_end|>", "é日😀\x01{{ x }}"]
for i, s in enumerate([c for c in cases if len(c) > 40] + lumps + ["{{ " + "(" * 300, "{% if t %}" * 300, "{{ [" * 200]):
    (out / f"{i:04}").write_bytes(s.encode() + b"\0" + contents[i % len(contents)].encode())
