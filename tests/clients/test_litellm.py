# SPDX-License-Identifier: Apache-2.0
"""LiteLLM with its openai, text-completion and anthropic providers."""

import unittest

import common
import litellm


class LiteLLM(unittest.TestCase):
    def setUp(self):
        self.url = f"http://127.0.0.1:{common.server().port}"
        self.at = dict(api_base=self.url + "/v1", api_key="none", num_retries=0, timeout=120)
        self.ask = dict(messages=[{"role": "user", "content": "Name a colour."}], max_tokens=6, temperature=0)

    def test_chat(self):
        whole = litellm.completion(model="openai/any", **self.at, **self.ask)
        chunks = list(litellm.completion(model="openai/any", **self.at, **self.ask, stream=True, stream_options={"include_usage": True}))
        built = litellm.stream_chunk_builder(chunks)
        self.assertEqual(built.choices[0].message.content, whole.choices[0].message.content)
        self.assertEqual(built.usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(built.usage.prompt_tokens, whole.usage.prompt_tokens)

    def test_press_through_extra_body(self):
        r = litellm.completion(model="openai/any", **self.at, **self.ask, extra_body={"compression": "knorm@0.5"})
        self.assertEqual(r.kv_cache["press"], "knorm")

    def test_text_completion(self):
        r = litellm.text_completion(model="text-completion-openai/any", prompt=["The sea is", "A ship"], max_tokens=4, temperature=0, **self.at)
        self.assertEqual((len(r.choices), r.usage.completion_tokens), (2, 8))

    def test_anthropic_provider(self):
        ask = dict(model="anthropic/any", api_base=self.url, api_key="none", num_retries=0, timeout=120, **self.ask)
        whole = litellm.completion(**ask).choices[0].message.content
        said = "".join(c.choices[0].delta.content or "" for c in litellm.completion(**ask, stream=True))
        self.assertEqual(said, whole)
        self.assertEqual(whole, litellm.completion(model="openai/any", **self.at, **self.ask).choices[0].message.content)

    def test_embedding(self):
        r = litellm.embedding(model="openai/any", input=["a ship", "a boat"], encoding_format="float", **self.at)
        self.assertEqual([len(d["embedding"]) for d in r.data], [576, 576])

    def test_errors_keep_their_class(self):
        with self.assertRaises(litellm.ContextWindowExceededError):
            litellm.completion(model="openai/any", **self.at, messages=[{"role": "user", "content": "hi"}], max_tokens=100000)
        with self.assertRaises(litellm.BadRequestError):
            litellm.completion(model="openai/any", **self.at, **{**self.ask, "temperature": 3})
