#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for the fuzzer of tools: requests with schemas of every kind, served and not."""
import json
import pathlib
import sys

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
schemas = [None, {}, {"type": "object", "properties": {}}, {"type": "object", "properties": {"x": {"type": "integer", "minimum": -5, "maximum": 70}}, "required": ["x"]},
           {"type": "object", "properties": {"s": {"type": "string", "format": "date"}, "l": {"type": "array", "items": {"enum": ["a", 1, None]}, "maxItems": 2}},
            "required": ["s"], "additionalProperties": False},
           {"type": "object", "properties": {"p": {"$ref": "#/$defs/p"}}, "$defs": {"p": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"n": {"$ref": "#/$defs/p"}}}]}}},
           {"type": "object", "properties": {"x": {"type": "string", "pattern": "^a", "format": "uri"}, "y": {"type": "any"}, "z": False}, "required": ["q"], "additionalProperties": True},
           {"oneOf": [{"type": "object"}, {"type": "string"}]}, {"allOf": [{"type": "object", "properties": {"a": {"const": "é\"\\"}}}, {"type": "object"}]}, {"type": "string"}]
choices = ["auto", "required", "none", {"type": "function", "function": {"name": "f"}}]
form = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "properties": {"y": {"type": "boolean"}}, "required": ["y"]}}}
for i, schema in enumerate(schemas):
    for k, choice in enumerate(choices):
        f = {"name": "f", "parameters": schema, "strict": (i + k) % 3 == 0}
        body = {"tools": [{"type": "function", "function": f}, {"type": "function", "function": {"name": "g"}}][:1 + (i + k) % 2],
                "tool_choice": choice, "parallel_tool_calls": k != 1}
        if k == 0:
            body["response_format"] = form if i % 2 else {"type": "json_object"}
        for kind in range(4):
            (out / f"{i:02}{k}{kind}").write_bytes(bytes([kind, 7 * i]) + json.dumps(body).encode())
