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
         '{"name": "now", "arguments": "\\u0é \\ude00\\ud83d \\ud83d\\n\\u12"}',
         '{"name": "Alice"}', "<tool_call>nothing</tool_call>", "a <tool_ca", "[TOOL_CALLS]", ' {"a": 1}}\n</tool_call>', '<tool_call>{"name": "wea']
sep, begin, end, section = "<｜tool▁sep｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁begin｜>"
args = '{"a": [1, {"b": "}"}]}'
texts += [f"{section}{begin}function{sep}now\n```json\n{args}\n```{end}\n{begin}function{sep}weather\n```json\n{{}}\n```{end} so",
          f"ok{section}{begin}now{sep}{args}{end}{begin}x{sep}{args}", f"{begin}{sep}{{}}{end}",
          "<tool_call>\n<function=now>\n<parameter=a>\n5\n</parameter>\n<parameter=é>\n{\"b\": 1}\n</parameter>\n</function>\n</tool_call> end",
          f"<function=now>{args}</function>", "<function=now> </function><function=x>\n<parameter=a", "<seed:tool_call>\n<function=now></function>\n</seed:tool_call>",
          "<tool_call>now\n<arg_key>a</arg_key>\n<arg_value>b c</arg_value>\n<arg_key>d</arg_key><arg_value>True</arg_value></tool_call>",
          "<tool_call>weather</tool_call> and <tool_call>no call <arg_key>", f"<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0"
          f"<|tool_call_argument_begin|>{args}<|tool_call_end|><|tool_call_begin|>functions.x:1<|tool_call_argument_begin|>{{}}<|tool_call_end|><|tool_calls_section_end|>",
          f'<|START_ACTION|>[\n {{"tool_call_id": "0", "tool_name": "now", "parameters": {args}}},\n {{"tool_name": "x", "parameters": {{}}}}]<|END_ACTION|>',
          f"say functools[{call}, {call}] end", "functools[1, 2]", f"<tool_calls>\n{call}\n{call}\n</tool_calls> end"]
for i, text in enumerate(texts):
    for form in range(9):
        (out / f"{i:02}{form}").write_bytes(bytes([form + 16 * (i % 4), 3 * i]) + text.encode())
