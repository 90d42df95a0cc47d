#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for the fuzzer of tool calls: answers in every form, cut and mixed."""
import pathlib
import sys

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
call = '{"name": "now", "arguments": {"a": [1, {"b": "}]\\"é"}], "c": null}}'
texts = ["plain words\n", f"<tool_call>\n{call}\n</tool_call>", f"I look.\n<tool_call>{call}</tool_call>\n<tool_call>{call}</tool_call> done",
         call, call.replace("arguments", "parameters") + "; " + call, f"<|python_tag|>{call}", f"[TOOL_CALLS][{call}, {call}]",
         '[TOOL_CALLS]now[CALL_ID]x[ARGS]{"a": 1}[TOOL_CALLS]weather{"b": {}}', '{"arguments": "{\\"x\\": \\"\\ud83d\\ude00\\u00e9\\n\\"}", "name": "now"}',
         '{"name": "Alice"}', "<tool_call>nothing</tool_call>", "a <tool_ca", "[TOOL_CALLS]", ' {"a": 1}}\n</tool_call>', '<tool_call>{"name": "wea']
for i, text in enumerate(texts):
    for form in range(8):
        (out / f"{i:02}{form}").write_bytes(bytes([form, 3 * i]) + text.encode())
