# SPDX-License-Identifier: Apache-2.0
"""Anthropic's Python client on /v1/messages."""

import unittest

import anthropic
import common


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
        for bad, where in (({"max_tokens": 0}, "max_tokens"), ({"messages": []}, "messages"), ({"tools": [{"name": "x"}]}, "tools"),
                           ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
                           ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
                           ({"stop_sequences": ["a"] * 5}, "stop_sequences")):
            with self.subTest(bad), self.assertRaises(anthropic.BadRequestError) as e:
                self.c.messages.create(**{**self.ask, **bad})
            self.assertEqual((e.exception.body["type"], e.exception.body["error"]["type"]), ("error", "invalid_request_error"))
            self.assertIn(where, e.exception.body["error"]["message"])
