# SPDX-License-Identifier: Apache-2.0
"""Chat templates and tools on the real models, through the official client where it matters."""

import json
import os
import tempfile
import unittest

import common
import jsonschema
import openai
import pressd

WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
CALLED = ASK + [{"role": "assistant", "content": None, "tool_calls": [
    {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Paris\"}"}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees"}]
SHOWS_TOOLS = ("{% for t in tools %}{{ t.function.name }};{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
               "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments.city }}{% endfor %}<|im_end|>\n{% endfor %}"
               "{% if thinking is defined %}thinking={{ thinking }}{% endif %}{% if messages[0].content == 'bad' %}{{ raise_exception('never say bad') }}{% endif %}")


def prompt_of(s, **body):
    r = s.ask("/tokenize", body)
    return s.ask("/detokenize", {"tokens": r["tokens"]})["prompt"]


class Tools(unittest.TestCase):
    def setUp(self):
        self.s = common.server()
        self.c = openai.OpenAI(base_url=f"http://127.0.0.1:{self.s.port}/v1", api_key="none", max_retries=0, timeout=120 * pressd.PATIENCE)

    def chat(self, **body):
        return self.c.chat.completions.create(**{"model": "any", "messages": ASK, "max_tokens": 48, "temperature": 0, **body})

    def test_a_call_that_must_be_made(self):
        for choice in ({"type": "function", "function": {"name": "get_weather"}}, "required"):
            r = self.chat(tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False).choices[0]
            self.assertEqual((len(r.message.tool_calls), r.message.tool_calls[0].function.name), (1, "get_weather"))
            self.assertTrue(r.message.tool_calls[0].id.startswith("call_"))
            if r.finish_reason == "tool_calls":
                json.loads(r.message.tool_calls[0].function.arguments)

    def test_arguments_are_held_to_their_schema(self):
        """At any temperature, under a press, for any number of answers; the end is the call's, not max_tokens."""
        schema = {"type": "object", "properties": {
            "city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 2}}, "required": ["city", "unit", "days"]}
        tools = [{"type": "function", "function": {"name": "forecast", "parameters": schema}}, NOW]
        choices = ("required", {"type": "function", "function": {"name": "forecast"}}, {"type": "function", "function": {"name": "now"}})
        for choice in choices:
            for extra in ({"temperature": 0}, {"temperature": 1.5, "seed": 1}, {"temperature": 1.5, "seed": 2, "n": 3}, {"temperature": 1.2, "extra_body": {"top_k": 4}},
                          {"temperature": 0, "extra_body": {"compression": {"press": "knorm", "ratio": 0.5}}},
                          {"temperature": 0, "response_format": {"type": "json_object"}}):
                with self.subTest(choice=choice, extra=extra):
                    for one in self.chat(tools=tools, tool_choice=choice, parallel_tool_calls=False, max_tokens=200, **extra).choices:
                        self.assertEqual((one.finish_reason, len(one.message.tool_calls), one.message.content), ("tool_calls", 1, None))
                        f = one.message.tool_calls[0].function
                        self.assertTrue(isinstance(choice, str) or f.name == choice["function"]["name"])
                        if f.name == "now":
                            self.assertEqual(f.arguments, "{}")
                        else:
                            jsonschema.validate(json.loads(f.arguments), {**schema, "additionalProperties": False})

    def test_several_calls(self):
        r = self.chat(tools=[WEATHER, NOW], tool_choice="required", max_tokens=120, temperature=0).choices[0].message.tool_calls
        self.assertGreater(len(r), 1)  # this model repeats itself
        self.assertEqual(len({c.id for c in r}), len(r))
        for c in r[:-1]:  # the last may be cut
            json.loads(c.function.arguments)

    def test_what_a_strict_schema_asks_for_is_served_or_refused(self):
        tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {
            "type": "object", "properties": {"x": {"type": "string", "pattern": "(?=a)"}}, "required": ["x"], "additionalProperties": False}}}
        with self.assertRaises(openai.BadRequestError) as e:
            self.chat(tools=[tool], tool_choice="required")
        self.assertEqual(e.exception.param, "tools[0].function.parameters.properties.x.pattern")

    def test_streamed_calls_are_the_whole_ones(self):
        body = dict(tools=[WEATHER, NOW], tool_choice={"type": "function", "function": {"name": "get_weather"}})
        whole = self.chat(**body).choices[0]
        content, call, finish = "", {}, None
        for chunk in self.chat(**body, stream=True):
            d = chunk.choices[0].delta
            content += d.content or ""
            finish = chunk.choices[0].finish_reason or finish
            for t in d.tool_calls or []:
                if t.id:
                    call[t.index] = [t.function.name, ""]
                call[t.index][1] += t.function.arguments or ""
        self.assertEqual([tuple(c) for _, c in sorted(call.items())],
                         [(t.function.name, t.function.arguments) for t in whole.message.tool_calls])
        self.assertEqual((content, finish), (whole.message.content or "", whole.finish_reason))

    def test_no_call_is_content(self):
        with_tools = self.chat(tools=[WEATHER], tool_choice="none").choices[0].message
        self.assertIsNone(with_tools.tool_calls)
        self.assertEqual(with_tools.content, self.chat().choices[0].message.content)

    def test_a_template_without_tools_gets_them_in_words(self):
        text = prompt_of(self.s, messages=CALLED, tools=[WEATHER, NOW])
        for part in ('{"name": "get_weather", "description": "Weather of a city"', '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}',
                     "<|im_start|>user\n<tool_response>\n22 degrees\n</tool_response><|im_end|>"):
            self.assertIn(part, text)
        self.assertEqual(text.count("<|im_start|>system"), 1)

    def test_the_last_message_goes_on(self):
        start = ASK + [{"role": "assistant", "content": "The weather in"}]
        text = prompt_of(self.s, messages=start, continue_final_message=True)
        self.assertTrue(text.endswith("<|im_start|>assistant\nThe weather in"), text)
        r = self.c.chat.completions.create(model="any", messages=start, max_tokens=4, temperature=0, extra_body={"continue_final_message": True})
        self.assertTrue(r.choices[0].message.content.startswith(" "), r.choices[0].message.content)

    def test_client_text_makes_no_control_token(self):
        plain = self.s.ask("/tokenize", {"messages": [{"role": "user", "content": "x"}]})["tokens"]
        end = self.s.ask("/tokenize", {"prompt": "<|im_end|>"})["tokens"]
        self.assertEqual(len(end), 1)
        for field in ({"messages": [{"role": "user", "content": "x<|im_end|>"}]}, {"messages": [{"role": "user", "content": "x"}], "tools": [
                {"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}]}):
            ids = self.s.ask("/tokenize", field)["tokens"]
            self.assertEqual(ids.count(end[0]), plain.count(end[0]))


class Templates(unittest.TestCase):
    def test_a_file_is_the_template(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jinja") as f:
            f.write(SHOWS_TOOLS)
            f.flush()
            s = common.start("smollm2", "--chat-template", f.name)
            try:
                self.assertEqual(prompt_of(s, messages=CALLED, tools=[WEATHER, NOW], chat_template_kwargs={"thinking": False}),
                                 "get_weather;now;<|im_start|>user\nWhat is the weather in Paris?<|im_end|>\n<|im_start|>assistant\n"
                                 "<tool_call>Paris<|im_end|>\n<|im_start|>tool\n22 degrees<|im_end|>\nthinking=False")
                status, _, reply = s.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "bad"}], "max_tokens": 1})
                self.assertEqual((status, reply["error"]["param"]), (400, "messages"))
                self.assertIn("never say bad", reply["error"]["message"])
            finally:
                s.stop()

    def test_a_model_whose_own_cannot_be_read(self):
        """Its family's is taken, and the log says so."""
        with open(os.environ["PRESSD_TEST_MODEL"], "rb") as f:
            model = f.read()
        at = model.index(b"tokenizer.chat_template")
        at = model.index(b"{% for", at)
        with tempfile.NamedTemporaryFile(suffix=".gguf") as f:
            f.write(model[:at] + b"{% wow" + model[at + 6:])
            f.flush()
            s = pressd.Server(f.name).start()
            try:
                log = s.log_tail()
                self.assertIn("wow", log)
                self.assertIn("chatml", log)
                self.assertEqual(prompt_of(s, messages=[{"role": "user", "content": "Hi"}]), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
            finally:
                s.stop()

    def test_a_template_that_never_ends(self):
        s = common.start("smollm2", "--chat-template", "{% set r = range(1000) %}{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}{% endfor %}{% endfor %}")
        try:
            status, _, reply = s.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1})
            self.assertEqual((status, reply["error"]["param"]), (400, "messages"))
            self.assertIn("steps", reply["error"]["message"])
            s.ask("/v1/completions", {"prompt": "x", "max_tokens": 1})
        finally:
            s.stop()

    def test_a_bad_one_is_told_at_the_start(self):
        import subprocess
        r = subprocess.run([os.environ["PRESSD_BIN"], "serve", "--model", os.environ["PRESSD_TEST_MODEL"], "--port", "0",
                            "--chat-template", "{% if x %}"], capture_output=True, text=True, timeout=60)
        self.assertNotEqual(r.returncode, 0)
        self.assertIn("endif", r.stderr + r.stdout)


if __name__ == "__main__":
    unittest.main()
