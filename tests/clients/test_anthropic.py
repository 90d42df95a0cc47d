# SPDX-License-Identifier: Apache-2.0
"""Anthropic's Python client on /v1/messages."""

import json
import unittest

import anthropic
import common


WEATHER = {"name": "get_weather", "description": "Weather of a city", "input_schema": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"]}}
NOW = {"name": "now", "description": "The time", "input_schema": {"type": "object", "properties": {}}}
# What a model that knows tools would say by itself.
SAID = ('I will look. <tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')


class Messages(unittest.TestCase):
    def setUp(self):
        self.s = common.server()
        self.c = anthropic.Anthropic(base_url=f"http://127.0.0.1:{self.s.port}", api_key="none", max_retries=0, timeout=120)
        self.ask = dict(model="any", max_tokens=12, system="Be brief.", extra_body={"temperature": 0},
                        messages=[{"role": "user", "content": "What colour is the sky?"}])

    def test_message_is_what_a_chat_is(self):
        m = self.c.messages.create(**self.ask)
        chat = self.s.ask("/v1/chat/completions", {"max_tokens": 12, "temperature": 0, "messages": [
            {"role": "system", "content": "Be brief."}, *self.ask["messages"]]})
        self.assertEqual(m.content[0].text, chat["choices"][0]["message"]["content"])
        self.assertEqual((m.usage.input_tokens, m.usage.output_tokens),
                         (chat["usage"]["prompt_tokens"], chat["usage"]["completion_tokens"]))
        self.assertEqual((m.type, m.role), ("message", "assistant"))
        blocks = [{"type": "text", "text": "What colour is the sky?", "cache_control": {"type": "ephemeral"}}]
        again = self.c.messages.create(**{**self.ask, "system": [{"type": "text", "text": "Be brief."}],
                                          "messages": [{"role": "user", "content": blocks}]})
        self.assertEqual(again.content[0].text, m.content[0].text)

    def test_stream(self):
        whole = self.c.messages.create(**self.ask)
        with self.c.messages.stream(**self.ask) as stream:
            said = list(stream.text_stream)
            final = stream.get_final_message()
        self.assertGreater(len(said), 3)
        self.assertEqual("".join(said), whole.content[0].text)
        self.assertEqual((final.content[0].text, final.stop_reason, final.usage.input_tokens, final.usage.output_tokens),
                         (whole.content[0].text, whole.stop_reason, whole.usage.input_tokens, whole.usage.output_tokens))

    def test_why_it_stopped(self):
        m = self.c.messages.create(**{**self.ask, "extra_body": {"temperature": 0, "ignore_eos": True}})
        self.assertEqual((m.stop_reason, m.stop_sequence, m.usage.output_tokens), ("max_tokens", None, 12))
        word = m.content[0].text.split()[2]
        m = self.c.messages.create(**self.ask, stop_sequences=["never said", word])
        self.assertEqual((m.stop_reason, m.stop_sequence), ("stop_sequence", word))
        self.assertNotIn(word, m.content[0].text)
        eos = self.s.ask("/tokenize", {"prompt": "<|im_end|>"})["tokens"][-1]
        m = self.c.messages.create(**{**self.ask, "extra_body": {"temperature": 0, "logit_bias": {str(eos): 100}}})
        self.assertEqual((m.stop_reason, m.stop_sequence), ("end_turn", None))

    def test_count(self):
        ask = {k: self.ask[k] for k in ("model", "system", "messages")}
        counted = self.c.messages.count_tokens(**ask).input_tokens
        self.assertEqual(counted, self.c.messages.create(**self.ask).usage.input_tokens)

    def test_press(self):
        long = {**self.ask, "messages": [{"role": "user", "content": "The sea is wide. " * 40}]}
        m = self.c.messages.create(**{**long, "extra_body": {"compression": {"press": "knorm", "ratio": 0.5}}})
        self.assertEqual(m.kv_cache["press"], "knorm")
        self.assertLess(m.kv_cache["bytes"], m.kv_cache["bytes_dense"])

    def test_errors_are_its_own(self):
        for bad, where in (({"max_tokens": 0}, "max_tokens"), ({"messages": []}, "messages"), ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
                           ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
                           ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
                           ({"stop_sequences": ["a"] * 5}, "stop_sequences")):
            with self.subTest(bad), self.assertRaises(anthropic.BadRequestError) as e:
                self.c.messages.create(**{**self.ask, **bad})
            self.assertEqual((e.exception.body["type"], e.exception.body["error"]["type"]), ("error", "invalid_request_error"))
            self.assertIn(where, e.exception.body["error"]["message"])


class Tools(unittest.TestCase):
    def setUp(self):
        self.s = common.server()
        self.c = anthropic.Anthropic(base_url=f"http://127.0.0.1:{self.s.port}", api_key="none", max_retries=0, timeout=120)
        self.ask = dict(model="any", max_tokens=160, tools=[WEATHER, NOW], extra_body={"temperature": 0},
                        messages=[{"role": "user", "content": "What is the weather in Paris, and what time is it?"}])

    def both(self, **ask):
        """The same whole and streamed: blocks without their ids, and why it stopped."""
        def shown(m):
            return [(b.type, b.text) if b.type == "text" else (b.type, b.name, b.input) for b in m.content], m.stop_reason
        whole = self.c.messages.create(**ask)
        with self.c.messages.stream(**ask) as stream:
            kinds = [e.type for e in stream]
            final = stream.get_final_message()
        self.assertEqual(shown(final), shown(whole))
        self.assertEqual(kinds.count("content_block_stop"), len(whole.content))
        return whole, *shown(whole)

    def test_a_call_that_must_be_made(self):
        whole, blocks, why = self.both(**self.ask, tool_choice={"type": "tool", "name": "get_weather"})
        self.assertEqual((len(blocks), blocks[0][:2], why), (1, ("tool_use", "get_weather"), "tool_use"))
        self.assertEqual(set(blocks[0][2]), {"city", "unit"})
        _, blocks, why = self.both(**self.ask, tool_choice={"type": "any", "disable_parallel_tool_use": True})
        self.assertEqual((len(blocks), blocks[0][0], why), (1, "tool_use", "tool_use"))

    def test_calls_by_itself(self):
        says = {"temperature": 0, "grammar": "root ::= " + json.dumps(SAID)}
        _, blocks, why = self.both(**{**self.ask, "extra_body": says})
        self.assertEqual((blocks, why), ([("text", "I will look."), ("tool_use", "get_weather", {"city": "Paris", "unit": "celsius"}),
                                          ("tool_use", "now", {})], "tool_use"))
        _, blocks, why = self.both(**{**self.ask, "extra_body": says}, tool_choice={"type": "none"})
        self.assertEqual((blocks, why), ([("text", SAID)], "end_turn"))

    def test_the_next_turn(self):
        first = self.c.messages.create(**self.ask, tool_choice={"type": "tool", "name": "get_weather"})
        talk = [*self.ask["messages"], {"role": "assistant", "content": first.content},  # as it came
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": first.content[0].id, "content": "22 degrees and sunny"}]}]
        second, _, why = self.both(**{**self.ask, "messages": talk})
        self.assertIn(why, ("end_turn", "tool_use", "max_tokens"))
        counted = self.c.messages.count_tokens(model="any", messages=talk, tools=[WEATHER, NOW]).input_tokens
        self.assertEqual(second.usage.input_tokens, counted)
        chat = self.s.ask("/tokenize", {"tools": [{"type": "function", "function": {"name": t["name"], "description": t["description"],
                                                                                    "parameters": t["input_schema"]}} for t in (WEATHER, NOW)],
                                        "messages": [*self.ask["messages"],
                                                     {"role": "assistant", "content": "", "tool_calls": [
                                                         {"id": "x", "type": "function", "function": {"name": "get_weather", "arguments": json.dumps(first.content[0].input)}}]},
                                                     {"role": "tool", "tool_call_id": "x", "content": "22 degrees and sunny"}]})
        self.assertEqual(chat["count"], counted)

    def test_the_clients_own_loop(self):
        """The client's tool runner calls a Python function and goes on with what it gave."""
        asked = []

        @anthropic.beta_tool
        def get_time(zone: str) -> str:
            """The time.

            Args:
                zone: where
            """
            asked.append(zone)
            return "noon"

        says = 'root ::= "<tool_call>\\n{\\"name\\": \\"get_time\\", \\"arguments\\": {\\"zone\\": \\"UTC\\"}}\\n</tool_call>"'
        runner = self.c.beta.messages.tool_runner(model="any", max_tokens=80, tools=[get_time], max_iterations=2,
                                                  messages=self.ask["messages"], extra_body={"temperature": 0, "grammar": says})
        said = list(runner)
        self.assertEqual((said[0].stop_reason, len(said), asked[0]), ("tool_use", 2, "UTC"))

    def test_refusals(self):
        for bad, words in (({"tool_choice": {"type": "tool", "name": "other"}}, "other"), ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]")):
            with self.subTest(bad), self.assertRaises(anthropic.BadRequestError) as e:
                self.c.messages.create(**{**self.ask, **bad})
            self.assertIn(words, e.exception.body["error"]["message"])
