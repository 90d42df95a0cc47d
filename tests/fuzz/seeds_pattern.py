#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for the pattern fuzzer: a regular expression, a zero byte, a text."""
import pathlib
import sys

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
seeds = [
    ("a", "a"), ("^[a-z]+$", "word"), (r"(\d{3})-(?:\d{4}|x)?", "123-4567"), (r"[^\s\"\\]*|é+?", "ée"), (r"(?<n>a|b){2,}\.", "ab."),
    (r"\x41\u20ac\n\t\0?", "A€\n\t"), (".{0,3}", "a€😀"), ("(^a|b$)", "b"), (r"[\w.-]+@[\W_]", "a.b@-"), ("(((a?){9}){9}){9}", "aaa"), (r"[\]\[^-]", "^"),
    (r"(?=a)\1\b\p{L}(?i)", ""), ("a{2,1}[z-a](", ""),
]
for i, (pattern, text) in enumerate(seeds):
    (out / f"{i:03}").write_bytes(pattern.encode() + b"\0" + text.encode())
