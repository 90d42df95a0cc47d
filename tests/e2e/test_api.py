# SPDX-License-Identifier: Apache-2.0
"""OpenAI's wire format on a real model: shapes, streams, sampling, the small endpoints."""

import math
import unittest

import common
import openai
import pressd


def client(s, key="none"):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{s.port}/v1", api_key=key, max_retries=0, timeout=120 * pressd.PATIENCE)


def usage_adds_up(test, u):
    test.assertEqual(u["total_tokens"], u["prompt_tokens"] + u["completion_tokens"])
    for name in ("kv_cache_bytes", "kv_cache_bytes_dense", "kv_cache_bytes_peak"):
        test.assertIsInstance(u[name], int, name)
    test.assertGreaterEqual(u["kv_cache_bytes_peak"], u["kv_cache_bytes"])


class Completions(unittest.TestCase):
    def setUp(self):
        self.s = common.server()

    def test_shape(self):
        body = {"model": "m", "prompt": "Once upon a time", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
        status, headers, r = self.s.post("/v1/completions", body)
        self.assertEqual(status, 200)
        self.assertTrue(r["id"].startswith("cmpl-"))
        self.assertEqual(r["object"], "text_completion")
        self.assertIsInstance(r["created"], int)
        choice, = r["choices"]
        self.assertEqual((choice["index"], choice["finish_reason"], choice["logprobs"]), (0, "length", None))
        self.assertTrue(choice["text"])
        usage_adds_up(self, r["usage"])
        self.assertEqual(r["usage"]["completion_tokens"], 5)
        self.assertEqual(r["kv_cache"]["press"], "none")
        self.assertEqual(r["kv_cache"]["page_tokens"], common.PAGE)
        t = r["timings"]
        self.assertEqual((t["prompt_n"], t["predicted_n"]), (r["usage"]["prompt_tokens"], 5))
        for name in ("prompt_ms", "prompt_per_second", "predicted_ms", "predicted_per_second"):
            self.assertGreater(t[name], 0, name)
        self.assertEqual(headers["x-kv-press"], "none")
        for header, name in (("x-kv-cache-bytes", "kv_cache_bytes"), ("x-kv-cache-bytes-dense", "kv_cache_bytes_dense"),
                             ("x-kv-cache-bytes-peak", "kv_cache_bytes_peak")):
            self.assertEqual(int(headers[header]), r["usage"][name])
        self.assertTrue(headers["x-request-id"])

    def test_openai_client(self):
        r = client(self.s).completions.create(model="any", prompt="The opposite of hot is", max_tokens=3, temperature=0)
        self.assertIn("cold", r.choices[0].text)
        self.assertGreater(r.usage.model_extra["kv_cache_bytes"], 0)

    def test_prompt_spellings_agree(self):
        text = "The quick brown fox"
        ids = self.s.ask("/tokenize", {"prompt": text})["tokens"]
        want = common.complete(self.s, text, 8)["choices"]
        for prompt in ([text], ids, [ids]):
            self.assertEqual(common.complete(self.s, prompt, 8)["choices"], want)

    def test_null_means_absent(self):
        names = ("stop", "seed", "logit_bias", "logprobs", "suffix", "user", "n", "response_format", "tools", "top_p",
                 "stream_options", "compression", "echo", "best_of", "presence_penalty", "stream")
        plain = common.complete(self.s, "One two three", 6)["choices"]
        self.assertEqual(common.complete(self.s, "One two three", 6, **{n: None for n in names})["choices"], plain)

    def test_stop(self):
        whole = common.complete(self.s, "List: one, two, three,", 24)["choices"][0]["text"]
        stop = whole[len(whole) // 2:][:5]
        body = {"prompt": "List: one, two, three,", "max_tokens": 24, "temperature": 0, "stop": ["\x01", stop]}
        r = self.s.ask("/v1/completions", body)["choices"][0]
        self.assertEqual((r["text"], r["finish_reason"]), (whole[:whole.index(stop)], "stop"))

    def test_seed(self):
        def text(seed):
            return self.s.ask("/v1/completions", {"prompt": "My favourite", "max_tokens": 24, "temperature": 1.2,
                                                  "seed": seed, "ignore_eos": True})["choices"][0]["text"]
        self.assertEqual(text(7), text(7))
        self.assertGreater(len({text(i) for i in range(4)}), 1)

    def test_logprobs(self):
        r = common.complete(self.s, "The capital of France is", 6, logprobs=5)["choices"][0]
        lp = r["logprobs"]
        self.assertEqual({len(lp[k]) for k in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}, {6})
        self.assertEqual("".join(lp["tokens"]), r["text"])
        for token, p, top in zip(lp["tokens"], lp["token_logprobs"], lp["top_logprobs"]):
            self.assertLessEqual(p, 0)
            self.assertEqual(len(top), 5)
            self.assertAlmostEqual(top[token], p, places=5)
            self.assertEqual(max(top.values()), top[token])  # greedy
            self.assertLessEqual(sum(map(math.exp, top.values())), 1.0001)
        for a, b, token in zip(lp["text_offset"], lp["text_offset"][1:], lp["tokens"]):
            self.assertEqual(b - a, len(token))

    def test_max_tokens_default_is_16(self):
        r = self.s.ask("/v1/completions", {"prompt": "Count: 1 2 3", "temperature": 0, "ignore_eos": True})
        self.assertEqual(r["usage"]["completion_tokens"], 16)


class Chat(unittest.TestCase):
    ASK = [{"role": "user", "content": "How many days are in a week?"}]

    def setUp(self):
        self.s = common.server()

    def test_answers(self):
        r = client(self.s).chat.completions.create(model="any", messages=self.ASK, max_tokens=40, temperature=0)
        self.assertIn("7", r.choices[0].message.content)
        self.assertEqual((r.object, r.choices[0].message.role, r.choices[0].finish_reason),
                         ("chat.completion", "assistant", "stop"))
        self.assertTrue(r.id.startswith("chatcmpl-"))

    def test_shape(self):
        r = self.s.ask("/v1/chat/completions", {"messages": self.ASK, "max_completion_tokens": 4, "temperature": 0})
        message = r["choices"][0]["message"]
        self.assertIn("refusal", message)
        self.assertIsNone(message["refusal"])
        self.assertEqual(r["choices"][0]["finish_reason"], "length")
        self.assertEqual(r["usage"]["completion_tokens"], 4)
        usage_adds_up(self, r["usage"])

    def test_text_parts_and_developer_role(self):
        body = {"max_tokens": 8, "temperature": 0}
        plain = [{"role": "system", "content": "Be brief."}, *self.ASK]
        parts = [{"role": "developer", "content": "Be brief."},
                 {"role": "user", "content": [{"type": "text", "text": self.ASK[0]["content"]}]}]
        a, b = (self.s.ask("/v1/chat/completions", {**body, "messages": m})["choices"] for m in (plain, parts))
        self.assertEqual(a, b)

    def test_logprobs(self):
        r = client(self.s).chat.completions.create(model="any", messages=self.ASK, max_tokens=5, temperature=0,
                                                   logprobs=True, top_logprobs=3)
        content = r.choices[0].logprobs.content
        self.assertEqual(len(content), 5)
        self.assertEqual("".join(c.token for c in content), r.choices[0].message.content)
        for c in content:
            self.assertEqual(bytes(c.bytes).decode(), c.token)
            self.assertEqual([t.logprob for t in c.top_logprobs], sorted((t.logprob for t in c.top_logprobs), reverse=True))
            self.assertEqual((len(c.top_logprobs), c.top_logprobs[0].token), (3, c.token))


class Streams(unittest.TestCase):
    def setUp(self):
        self.s = common.server()

    def events(self, path, body):
        events = [e for _, e in self.s.stream(path, body)]
        self.assertEqual(events.pop(), "[DONE]")
        return events

    def test_completion(self):
        body = {"prompt": "Write about rivers:", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
        whole = self.s.ask("/v1/completions", body)
        events = self.events("/v1/completions", {**body, "stream_options": {"include_usage": True}})
        usage = events.pop()
        self.assertEqual(usage["choices"], [])
        self.assertEqual({**usage["usage"]}, {**whole["usage"]})
        self.assertEqual(usage["kv_cache"]["bytes"], usage["usage"]["kv_cache_bytes"])
        self.assertEqual({e["object"] for e in events}, {"text_completion"})
        self.assertEqual(len({(e["id"], e["created"], e["model"]) for e in events}), 1)
        self.assertTrue(all(e.get("usage") is None for e in events))
        self.assertTrue(all(e.get("timings", 0) is not None for e in events))  # null breaks a client
        reasons = [e["choices"][0]["finish_reason"] for e in events]
        self.assertEqual(reasons, [None] * (len(events) - 1) + ["length"])
        self.assertEqual(events[-1]["choices"][0]["text"], "")
        self.assertEqual(len(events) - 1, 24, "one event per token")
        self.assertEqual("".join(e["choices"][0]["text"] for e in events), whole["choices"][0]["text"])

    def test_chat(self):
        body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 12, "temperature": 0}
        whole = self.s.ask("/v1/chat/completions", body)
        events = self.events("/v1/chat/completions", body)
        self.assertEqual({e["object"] for e in events}, {"chat.completion.chunk"})
        self.assertEqual(events[0]["choices"][0]["delta"]["role"], "assistant")
        self.assertTrue(all("usage" not in e or e["usage"] is None for e in events))
        reasons = [e["choices"][0]["finish_reason"] for e in events]
        self.assertEqual(reasons, [None] * (len(events) - 1) + [whole["choices"][0]["finish_reason"]])
        self.assertEqual("".join(e["choices"][0]["delta"].get("content") or "" for e in events),
                         whole["choices"][0]["message"]["content"])

    def test_headers(self):
        c = self.s.connect()
        self.addCleanup(c.close)
        c.request("POST", "/v1/completions", '{"prompt":"a","max_tokens":2,"stream":true}', {"Content-Type": "application/json"})
        r = c.getresponse()
        self.assertEqual(r.getheader("Content-Type"), "text/event-stream")
        self.assertEqual(r.getheader("Cache-Control"), "no-cache")
        self.assertEqual(r.getheader("X-Accel-Buffering"), "no")
        self.assertTrue(r.read().endswith(b"data: [DONE]\n\n"))

    def test_openai_client_usage(self):
        stream = client(self.s).chat.completions.create(
            model="any", messages=[{"role": "user", "content": "Name a colour."}], max_tokens=8, temperature=0, stream=True,
            stream_options={"include_usage": True}, extra_body={"compression": "knorm@0.25"})
        chunks = list(stream)
        self.assertGreater(chunks[-1].usage.model_extra["kv_cache_bytes"], 0)
        self.assertEqual(chunks[-1].model_extra["kv_cache"]["press"], "knorm")

    def test_unicode_is_never_cut(self):
        body = {"prompt": "Emoji: 😀 😃 😄 日本語 日本", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
        whole = self.s.ask("/v1/completions", body)["choices"][0]["text"]
        parts = [e["choices"][0]["text"] for e in self.events("/v1/completions", body)]
        self.assertEqual("".join(parts), whole)
        for p in parts[:-2]:  # the last bytes of a cut answer may be half a character
            self.assertNotIn("\ufffd", p)

    def test_continuous_usage(self):
        events = self.events("/v1/completions", {"prompt": "a b c", "max_tokens": 5, "temperature": 0, "ignore_eos": True,
                                                 "stream_options": {"include_usage": True, "continuous_usage_stats": True}})
        counts = [e["usage"]["completion_tokens"] for e in events if e["choices"] and e["choices"][0]["finish_reason"] is None]
        self.assertEqual(counts, [1, 2, 3, 4, 5])


class SmallEndpoints(unittest.TestCase):
    def setUp(self):
        self.s = common.server()

    def test_models(self):
        models = client(self.s).models.list().data
        self.assertEqual(len(models), 1)
        m = self.s.get("/v1/models")[2]["data"][0]
        self.assertEqual((m["object"], m["max_model_len"], "root" in m), ("model", 8192, True))
        self.assertEqual(client(self.s).models.retrieve(m["id"]).id, m["id"])
        with self.assertRaises(openai.NotFoundError):
            client(self.s).models.retrieve("nope")
        reply = self.s.ask("/v1/completions", {"prompt": "a", "max_tokens": 1})
        self.assertEqual(reply["model"], m["id"])

    def test_health(self):
        for path in ("/health", "/livez", "/readyz"):
            self.assertEqual(self.s.get(path)[0], 200, path)
        self.assertEqual(self.s.request("HEAD", "/health")[0], 200)
        self.assertIn("version", self.s.get("/version")[2])

    def test_tokenize_round_trip(self):
        for text in ("Hello, world 1234!", "  spaces\t\n\n and\u00a0more", "naïve façade 日本語 😀", "def f(x):\n    return x + 1\n"):
            r = self.s.ask("/tokenize", {"prompt": text})
            self.assertEqual((r["count"], r["max_model_len"]), (len(r["tokens"]), 8192))
            self.assertEqual(self.s.ask("/detokenize", {"tokens": r["tokens"]})["prompt"], text)

    def test_openapi(self):
        status, _, doc = self.s.get("/openapi.json")
        if status == 404:
            self.skipTest("/openapi.json is not served by this build")
        self.assertEqual(status, 200)
        self.assertTrue(doc["openapi"].startswith("3."))
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/compression/explain", "/v1/presses", "/metrics"):
            self.assertIn(path, doc["paths"])

    def test_presses(self):
        r = self.s.get("/v1/presses")[2]
        self.assertEqual(r["object"], "list")
        rows = {p["name"]: p for p in r["data"]}
        for name in ("knorm", "streaming_llm", "snapkv", "expected_attention", "tova", "keydiff", "random", "adakv"):
            self.assertTrue(rows[name]["runnable"], name)
        for p in rows.values():
            self.assertTrue(p["reference_class"] and p["kind"] and p["source"], p["name"])
            for q in p["params"]:
                self.assertTrue(q["doc"], (p["name"], q["name"]))
                self.assertIn("default", q)


if __name__ == "__main__":
    unittest.main()
