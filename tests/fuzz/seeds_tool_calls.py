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
dsml, quote = "｜DSML｜", '<|"|>'
texts += [f'a <|tools_prefix|>[{{"now": {args}}}, {{"weather": {{}}}}]<|tools_suffix|>', f"<|function_call|>{call}<|message_sep|>\n", f"function call<|role_sep|>\n{call}",
          f"<|tool_calls|><|tool_call:begin|>1<|tool_call:name|>now<|tool_call:args|>{args}<|tool_call:end|><|calls|>", f"<|python_start|><|python_end|>{call}{call}",
          f" to=functions.now<|channel|>commentary json<|message|>{args}<|call|>", f"<|channel|>commentary to=functions.now <|constrain|>json<|message|>{args}",
          "<tool_calls:opensource>\n<tool_call:opensource>now<tool_sep:opensource>\n<arg_key:opensource>a</arg_key:opensource>\n<arg_value:opensource>1</arg_value:opensource>\n"
          "</tool_call:opensource>\n</tool_calls:opensource>",
          '<minimax:tool_call>\n<invoke name="now">\n<parameter name="a">[1]</parameter>\n</invoke>\n<invoke name="weather"></invoke></minimax:tool_call>',
          '<atem:function_calls>\n<atem:invoke name="now">\n<atem:parameter name="a">é</atem:parameter>\n</atem:invoke>\n</atem:function_calls> b',
          f'<{dsml}function_calls>\n<{dsml}invoke name="now">\n<{dsml}parameter name="a" string="true">5</{dsml}parameter>\n'
          f'<{dsml}parameter name="b" string="false">x</{dsml}parameter></{dsml}invoke>\n</{dsml}function_calls>',
          """<function name="now"><param name="a">{'b': [True, None, 'it\\'s'], 1: (2, 3)}</param></function>\n<function name="weather"></function>""",
          '<|open|>tools<|sep|><|open|>call tool="now" index="1"<|sep|><|open|>argument key="a" type="string"<|sep|>5<|close|>argument<|sep|><|close|>call<|sep|>'
          '<|close|>tools<|sep|>',
          """I <|tool_call_start|>[now(a='x\\n', b=[1, {"c": null}], d=(1,), e=f(x)), weather()]<|tool_call_end|> so""", "[now(a='\\ud83d\\ude00'), weather(b=\"é\")]",
          "<|tool_call_start|>[now(1, a=", f"<|tool_call>call:now{{a:true,b:{quote}x, }}{quote},c:[{quote}y{quote},word],d:{{e:None}}}}<tool_call|><|tool_call>call:weather{{}}<tool_call|>"]
for i, text in enumerate(texts):
    for form in range(32 if i < 2 else 21):
        (out / f"{i:02}{form:02}").write_bytes(bytes([form + 32 * (i % 4), 3 * i]) + text.encode())
