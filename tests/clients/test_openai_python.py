# SPDX-License-Identifier: Apache-2.0
"""OpenAI's Python client: what tests/e2e/test_openai.py does not ask, responses and embeddings first."""

import math
import unittest

import common
import openai


def client(s):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{s.port}/v1", api_key="none", max_retries=0, timeout=120)


class OpenAI(unittest.TestCase):
    def setUp(self):
        self.s = common.server()
        self.c = client(self.s)

    def test_response(self):
        ask = dict(model="any", input="Name a colour.", instructions="Answer in one word.", max_output_tokens=6, temperature=0)
        r = self.c.responses.create(**ask)
        chat = self.c.chat.completions.create(model="any", max_tokens=6, temperature=0, messages=[
            {"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Name a colour."}])
        self.assertEqual(r.output_text, chat.choices[0].message.content)
        self.assertEqual((r.usage.input_tokens, r.usage.output_tokens), (chat.usage.prompt_tokens, chat.usage.completion_tokens))
        self.assertEqual(r.status, {"stop": "completed", "length": "incomplete"}[chat.choices[0].finish_reason])
        self.assertEqual(r.instructions, "Answer in one word.")
        same = self.c.responses.create(**{**ask, "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Name a colour."}]}]})
        self.assertEqual(same.output_text, r.output_text)

    def test_response_as_a_stream(self):
        word = self.s.ask("/tokenize", {"prompt": " sea"})["tokens"]
        ends = {"min_tokens": 8, "logit_bias": {str(word[0]): 100}, "stop_token_ids": word}  # with the ninth token
        ask = dict(model="any", input="Tell me of the sea.", temperature=0, extra_body={"compression": "knorm@0.5", **ends})
        whole = self.c.responses.create(**ask)
        self.assertEqual((whole.status, whole.usage.output_tokens), ("completed", 8))
        types, said = [], ""
        with self.c.responses.stream(**ask) as stream:
            for e in stream:
                types.append(e.type)
                said += e.delta if e.type == "response.output_text.delta" else ""
            final = stream.get_final_response()
        self.assertEqual(types[:4], ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"])
        self.assertEqual(types[-4:], ["response.output_text.done", "response.content_part.done", "response.output_item.done",
                                      "response.completed"])
        self.assertEqual((said, final.output_text), (whole.output_text,) * 2)
        self.assertEqual(final.kv_cache["press"], "knorm")
        raw = [e.sequence_number for e in self.c.responses.create(**ask, stream=True)]
        self.assertEqual(raw, list(range(len(raw))))

    def test_response_refusals(self):
        for field, value, param in (("previous_response_id", "resp_1", None), ("tools", [{"type": "web_search"}], "tools[0]"), ("background", True, None)):
            with self.subTest(field), self.assertRaises(openai.BadRequestError) as e:
                self.c.responses.create(model="any", input="Hi", **{field: value})
            self.assertEqual(e.exception.param, param or field)
        with self.assertRaises(openai.BadRequestError) as e:
            self.c.responses.create(model="any", input=[{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}])
        self.assertIn("input[0].content[0]", e.exception.message)

    def embed(self, x, **kw):
        return [d.embedding for d in self.c.embeddings.create(model="any", input=x, **kw).data]

    def test_embeddings(self):
        texts = ["A ship sails on the sea.", "A boat travels over the ocean.", "The tax form is due in April."]
        batch = self.embed(texts)  # base64: the client's default
        self.assertEqual({len(v) for v in batch}, {576})
        for v in batch:
            self.assertAlmostEqual(math.fsum(x * x for x in v), 1, places=5)
        near, far = (sum(a * b for a, b in zip(batch[0], batch[i])) for i in (1, 2))
        self.assertGreater(near, far)
        for text, v in zip(texts, batch):
            plain, = self.embed(text, encoding_format="float")
            ids = self.s.ask("/tokenize", {"prompt": text})["tokens"]
            for other in (plain, *self.embed(ids), *self.embed([ids])):
                self.assertLess(max(abs(a - b) for a, b in zip(v, other)), 1e-6)
        last, = self.embed(texts[0], extra_body={"pooling": "last"})
        self.assertGreater(max(abs(a - b) for a, b in zip(last, batch[0])), 0.01)
        usage = self.c.embeddings.create(model="any", input=texts).usage
        self.assertEqual(usage.prompt_tokens, sum(self.s.ask("/tokenize", {"prompt": t})["count"] for t in texts))
        self.assertEqual(len(self.embed(texts[0], dimensions=576)), 1)
        with self.assertRaises(openai.BadRequestError) as e:
            self.embed(texts[0], dimensions=128)
        self.assertEqual(e.exception.param, "dimensions")

    def test_nulls_everywhere(self):
        fields = ("best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream "
                  "stream_options suffix temperature top_p user").split()
        r = self.c.completions.create(model="any", prompt="Hi", extra_body=dict.fromkeys(fields))
        self.assertEqual(len(r.choices), 1)
        fields = ("audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens metadata modalities n "
                  "parallel_tool_calls prediction presence_penalty reasoning_effort response_format seed service_tier stop store "
                  "stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options").split()
        r = self.c.chat.completions.create(model="any", messages=[{"role": "user", "content": "Hi"}], max_tokens=2,
                                           extra_body=dict.fromkeys(fields))
        self.assertEqual(r.usage.completion_tokens, 2)

    def test_suffix_is_refused_clearly(self):
        with self.assertRaises(openai.BadRequestError) as e:
            self.c.completions.create(model="any", prompt="a", suffix="b")
        self.assertEqual(e.exception.param, "suffix")

    def test_several_answers_share_one_prefill(self):
        before = self.s.get("/metrics")[2]
        r = self.c.chat.completions.create(model="any", messages=[{"role": "user", "content": "Hello " * 50}], n=3, max_tokens=3)
        after = self.s.get("/metrics")[2]
        read = [next(float(line.split()[-1]) for line in (m if isinstance(m, str) else m.decode()).splitlines()
                     if line.startswith("vllm:prompt_tokens_total")) for m in (before, after)]
        self.assertEqual(len(r.choices), 3)
        self.assertEqual(read[1] - read[0], r.usage.prompt_tokens)
