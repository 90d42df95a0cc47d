#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for the grammar fuzzer: a grammar, a zero byte, an answer."""
import pathlib
import sys

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
seeds = [
    ('root ::= "a"', "a"), ('root ::= "(" root ")" | "x"', "((x))"), ('root ::= [^"\\\\]* # all\n', "é€😀"),
    ('root ::= ("a" | b){2,5}\nb ::= [0-9a-f]+ "\\x41"?', "a0fA"), ("root ::= .{,3}", "abc"), ('root ::= root "a"', ""),
    ('root ::= "{" ws pair (ws "," ws pair)* "}"\nws ::= [ \\n]*\npair ::= "\\"" [a-z]+ "\\":" ("1" | root)', '{"a":{"b":1}, "c":1}'),
    ('root ::= (([a-c]{0,9}){0,9}){0,9}', "abcabc"), ('root ::= [\\u00e0-\\U0001F600]+ | ""', "ж😀"), ("root ::= ((((", ""),
]
for i, (grammar, answer) in enumerate(seeds):
    (out / f"{i:03}").write_bytes(grammar.encode() + b"\0" + answer.encode())
