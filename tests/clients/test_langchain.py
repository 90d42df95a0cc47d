# SPDX-License-Identifier: Apache-2.0
"""langchain-openai: ChatOpenAI, OpenAI and OpenAIEmbeddings."""

import unittest

import common
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings


class LangChain(unittest.TestCase):
    def setUp(self):
        self.at = dict(base_url=f"http://127.0.0.1:{common.server().port}/v1", api_key="none", model="any", max_retries=0, timeout=120)

    def test_chat(self):
        llm = ChatOpenAI(**self.at, temperature=0, max_tokens=8, extra_body={"compression": "knorm@0.5"})
        ask = [("system", "Be brief."), ("human", "Name the capital of France.")]
        whole = llm.invoke(ask)
        self.assertGreater(whole.usage_metadata["input_tokens"], 10)
        self.assertIn(whole.response_metadata["finish_reason"], ("stop", "length"))
        merged = None
        for chunk in llm.stream(ask, stream_usage=True):
            merged = chunk if merged is None else merged + chunk
        self.assertEqual((merged.content, merged.usage_metadata["output_tokens"]),
                         (whole.content, whole.usage_metadata["output_tokens"]))

    def test_logprobs_and_batch(self):
        llm = ChatOpenAI(**self.at, temperature=0, max_tokens=3, logprobs=True, top_logprobs=2)
        answers = llm.batch(["One", "Two", "Three"])
        self.assertEqual([len(a.response_metadata["logprobs"]["content"]) for a in answers], [a.usage_metadata["output_tokens"] for a in answers])

    def test_responses(self):
        llm = ChatOpenAI(**self.at, temperature=0, max_tokens=8, use_responses_api=True)
        whole = llm.invoke("Name a colour.")
        self.assertEqual("".join(c.text for c in llm.stream("Name a colour.")), whole.text)
        self.assertTrue(whole.text)

    def test_completions(self):
        llm = OpenAI(**self.at, temperature=0, max_tokens=4)
        both = llm.generate(["The sea is", "A ship"])
        self.assertEqual(len(both.generations), 2)
        self.assertEqual(both.llm_output["token_usage"]["completion_tokens"], 8)
        self.assertEqual("".join(llm.stream("The sea is")), both.generations[0][0].text)

    def test_embeddings(self):
        e = OpenAIEmbeddings(**self.at, check_embedding_ctx_length=False)
        many = e.embed_documents(["a ship", "a tax form"] * 70)
        self.assertEqual((len(many), len(many[0])), (140, 576))
        self.assertLess(max(abs(a - b) for a, b in zip(many[1], e.embed_query("a tax form"))), 1e-6)
