# SPDX-License-Identifier: Apache-2.0
"""Bad requests: each gets the right status, names its field, and leaves the server as it was."""

import json
import unittest

import common
import openai

C, CHAT, EXPLAIN = "/v1/completions", "/v1/chat/completions", "/v1/compression/explain"
INVALID = "invalid_request_error"


def prompt(**fields):
    return {"prompt": "Hello there", "max_tokens": 2, **fields}


def press(value):
    return prompt(compression=value)


def chat(messages, **fields):
    return {"messages": messages, "max_tokens": 2, **fields}


ASK = [{"role": "user", "content": "Hi"}]

# path, body (text goes as it is), status, param, code, what the message must name
TABLE = [
    (C, "", 400, None, "invalid_json", "empty"),
    (C, "{", 400, None, "invalid_json", "line 1"),
    (C, "[1]", 400, None, None, "object"),
    (C, '"text"', 400, None, None, ""),
    (C, "[" * 100 + "]" * 100, 400, None, "invalid_json", "32"),
    (C, b'{"prompt":"\xff"}', 400, None, "invalid_json", ""),
    (C, '{"prompt":"a","prompt":NaN}', 400, None, "invalid_json", ""),
    (C, {"max_tokens": 1}, 400, "prompt", None, "missing"),
    (C, prompt(prompt=5), 400, "prompt", None, "prompt"),
    (C, prompt(prompt=[]), 400, "prompt", None, "empty"),
    (C, prompt(prompt=[0, -1]), 400, "prompt[1]", None, "-1"),
    (C, prompt(prompt=[49152]), 400, "prompt[0]", None, "49151"),
    (C, prompt(prompt=[1.5]), 400, "prompt[0]", None, ""),
    (C, prompt(prompt=["a", [7, -1]]), 400, "prompt[1][1]", None, "-1"),
    (C, prompt(prompt=["a"] * 129), 400, "prompt", None, "129"),
    (C, prompt(max_tokens=-1), 400, "max_tokens", None, "-1"),
    (C, prompt(max_tokens="9"), 400, "max_tokens", None, "string"),
    (C, prompt(max_tokens=1.5), 400, "max_tokens", None, "1.5"),
    (C, prompt(max_tokens=100000), 400, None, "context_length_exceeded", "8192"),
    (C, prompt(temperature=3), 400, "temperature", None, "3"),
    (C, prompt(temperature="hot"), 400, "temperature", None, "number"),
    (C, prompt(top_p=0), 400, "top_p", None, "0"),
    (C, prompt(top_p=1.01), 400, "top_p", None, "1.01"),
    (C, prompt(min_p=-0.5), 400, "min_p", None, "-0.5"),
    (C, prompt(seed="x"), 400, "seed", None, ""),
    (C, prompt(logprobs=101), 400, "logprobs", None, "100"),
    (C, prompt(stop=["a", "b", "c", "d", "e"]), 400, "stop", None, "4"),
    (C, prompt(stop=["ok", ""]), 400, "stop[1]", None, "empty"),
    (C, prompt(stop="x" * 300), 400, "stop", None, "256"),
    (C, prompt(stream=1), 400, "stream", None, ""),
    (C, prompt(stream_options={"include_usage": True}), 400, "stream_options", None, "stream"),
    (C, prompt(model=7), 400, "model", None, "string"),
    (C, prompt(n=0), 400, "n", None, "128"),
    (C, prompt(prompt=["a"] * 64, n=3), 400, "n", None, "192"),
    (C, prompt(n=3, best_of=2), 400, "best_of", None, "3"),
    (C, prompt(best_of=3, stream=True), 400, "best_of", None, "stream"),
    (C, prompt(echo="yes"), 400, "echo", None, "a string"),
    (C, prompt(prompt_logprobs=101), 400, "prompt_logprobs", None, "100"),
    (C, prompt(prompt_logprobs=1, stream=True), 400, "prompt_logprobs", None, "stream"),
    (C, prompt(prompt=[5] * 6000, echo=True, logprobs=100), 400, "logprobs", None, "524288"),
    (C, prompt(logit_bias={"5": 101}), 400, "logit_bias.5", None, "101"),
    (C, prompt(logit_bias={"99999999": 1}), 400, "logit_bias", None, "99999999"),
    (C, prompt(presence_penalty=-2.5), 400, "presence_penalty", None, "-2.5"),
    (C, prompt(repetition_penalty=0), 400, "repetition_penalty", None, "(0, 2]"),
    (C, prompt(stop_token_ids=[1, -7]), 400, "stop_token_ids[1]", None, "-7"),
    (C, prompt(min_tokens=17), 400, "min_tokens", None, "17"),
    (C, prompt(model="m@nosuch:0.5"), 400, "model", None, "nosuch"),
    (C, prompt(model="m@knorm"), 400, "model", None, "ratio"),
    (C, prompt(model="m@knorm:0.5", compression="knorm@0.5"), 400, "compression", None, "twice"),
    (C, press(5), 400, "compression", None, ""),
    (C, press({"press": "nosuch", "ratio": 0.5}), 400, "compression.press", None, "nosuch"),
    (C, press({"press": "knorm", "ratio": 1}), 400, "compression.ratio", None, "1"),
    (C, press({"press": "knorm", "ratio": -0.1}), 400, "compression.ratio", None, "-0.1"),
    (C, press({"press": "knorm", "ratio": "half"}), 400, "compression.ratio", None, ""),
    (C, press({"press": "knorm"}), 400, "compression.ratio", None, "ratio"),
    (C, press({"press": "knorm", "ratio": 0.5, "budget_tokens": 9}), 400, "compression.ratio", None, "exactly one"),
    (C, press({"press": "knorm", "ratio": 0.5, "colour": 1}), 400, "compression.colour", None, "colour"),
    (C, press({"press": "snapkv", "params": {"window": 4}, "ratio": 0.5}), 400, "compression.params.window", None, "window"),
    (C, press({"press": "snapkv", "params": {"window_size": -4}, "ratio": 0.5}), 400, "compression.params.window_size", None, "-4"),
    (C, press({"press": "adakv", "ratio": 0.5}), 400, "compression.press", None, "adakv"),
    (C, press({"press": {"name": "knorm", "press": "snapkv"}, "ratio": 0.5}), 400, None, None, "knorm"),
    (C, press({"press": "knorm", "ratio": 0.5, "scope": "context"}), 400, "compression.scope", None, "context"),
    (C, press({"press": "knorm", "ratio": 0.5, "scope": {"context_tokens": 0}}), 400, "compression.scope.context_tokens", None, "0"),
    (C, press({"decode": {"press": "knorm"}}), 400, "compression.decode", None, "target_tokens"),
    (C, press("knorm:bogus"), 400, "compression", None, ""),
    (C, press("knorm@0.5(("), 400, "compression", None, ""),
    (CHAT, {"max_tokens": 1}, 400, "messages", None, "missing"),
    (CHAT, chat([]), 400, "messages", None, "empty"),
    (CHAT, chat(["hi"]), 400, "messages[0]", None, "object"),
    (CHAT, chat([{"content": "x"}]), 400, "messages[0].role", None, "role"),
    (CHAT, chat([{"role": "user", "content": 5}]), 400, "messages[0].content", None, ""),
    (CHAT, chat([{"role": "user", "content": [{"type": "image_url"}]}]), 400, "messages[0].content[0]", None, "image_url"),
    (CHAT, chat(ASK, top_logprobs=2), 400, "top_logprobs", None, "logprobs"),
    (CHAT, chat(ASK, tools=[{"type": "function"}]), 400, "tools[0]", None, "name"),
    (CHAT, chat(ASK, response_format={"type": "xml"}), 400, "response_format", None, "xml"),
    (EXPLAIN, {"prompt": "a b c", "compression": "knorm@0.5", "ratios": [2]}, 400, "ratios[0]", None, ""),
    (EXPLAIN, {"prompt": "a b c", "compression": "knorm@0.5", "compare": ["knorm@0.5"]}, 400, "compare", None, ""),
    (EXPLAIN, {"prompt": "a b c", "compare": []}, 400, "compare", None, ""),
    (EXPLAIN, {"prompt": "a b c", "compare": ["knorm@0.5", "nothing@0.5"]}, 400, "compare[1]", None, "unknown press"),
    (EXPLAIN, {"prompt": "a b c", "compare": ["none"]}, 400, "compare[0]", None, ""),
    (EXPLAIN, {"prompt": "a b c", "compare": [{"press": "knorm", "budget_bytes": 9}]}, 400, "compare[0]", None, "budget_bytes"),
    ("/tokenize", {}, 400, "prompt", None, "prompt"),
    ("/detokenize", {"tokens": ["a"]}, 400, "tokens", None, "tokens[0]"),
    ("/v1/nosuch", {}, 404, None, "not_found", "/v1/nosuch"),
    ("/v1/models", {}, 405, None, "method_not_allowed", "POST"),
]


class BadRequests(unittest.TestCase):
    def setUp(self):
        self.s = common.server()

    def refused(self, reply, status, param, code, names):
        got, headers, body = reply
        self.assertEqual(got, status, body)
        self.assertEqual(headers["content-type"], "application/json")
        error = body["error"]
        more = {"n_prompt_tokens", "n_ctx"} if error["code"] == "context_length_exceeded" else set()  # as llama.cpp
        self.assertEqual(set(error), {"message", "type", "param", "code"} | more)
        self.assertTrue(error["message"] and "\n" not in error["message"])
        self.assertIn(names, error["message"])
        if status == 400:
            self.assertEqual(error["type"], INVALID)
        if param is not None:
            self.assertEqual(error["param"], param, error)
        if code is not None:
            self.assertEqual(error["code"], code, error)

    def test_table(self):
        before = common.complete(self.s, "Still here", 4)["choices"]
        for path, body, *want in TABLE:
            with self.subTest(path=path, body=body if isinstance(body, (str, bytes)) else json.dumps(body)[:120]):
                self.refused(self.s.post(path, body), *want)
        self.assertEqual(common.complete(self.s, "Still here", 4)["choices"], before)
        self.assertTrue(common.idle(self.s))

    def test_body_too_large(self):
        """Refused by its announced length: the head alone is enough."""
        c = self.s.connect()
        self.addCleanup(c.close)
        c.putrequest("POST", C)
        c.putheader("Content-Type", "application/json")
        c.putheader("Content-Length", str(10_000_000))
        c.endheaders()
        r = c.getresponse()
        reply = r.status, {"content-type": r.getheader("Content-Type")}, json.loads(r.read())
        self.refused(reply, 413, None, "request_too_large", "10000000")

    def test_content_type(self):
        reply = self.s.post(C, prompt(), headers={"Content-Type": "text/plain"})
        self.refused(reply, 415, None, "unsupported_media_type", "text/plain")

    def test_stream_is_refused_before_it_begins(self):
        self.refused(self.s.post(C, prompt(stream=True, temperature=9)), 400, "temperature", None, "9")

    def test_openai_exceptions(self):
        c = openai.OpenAI(base_url=f"http://127.0.0.1:{self.s.port}/v1", api_key="x", max_retries=0)
        with self.assertRaises(openai.BadRequestError) as e:
            c.completions.create(model="m", prompt="a", extra_body={"compression": {"press": "nosuch", "ratio": 0.5}})
        self.assertEqual((e.exception.param, e.exception.type), ("compression.press", INVALID))
        self.assertIn("knorm", str(e.exception))  # the known ones are listed


class OwnServer(unittest.TestCase):
    """Refusals that need a server with tight settings."""

    @classmethod
    def setUpClass(cls):
        cls.s = common.start("smollm2", "--ctx-size", "640", "--kv-cache-bytes", "8M", "--api-key", "sesame,open")
        cls.addClassCleanup(cls.s.stop)
        cls.key = {"Authorization": "Bearer sesame"}

    def post(self, body, **headers):
        return self.s.post(C, body, headers={**self.key, **headers})

    def test_key(self):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sesame"}):
            status, heads, body = self.s.post(C, prompt(), headers=headers)
            self.assertEqual((status, body["error"]["code"]), (401, "invalid_api_key"))
            self.assertIn("www-authenticate", heads)
            self.assertNotIn("sesame", json.dumps(body))
        self.assertEqual(self.post(prompt())[0], 200)
        self.assertEqual(self.post(prompt(), Authorization="Bearer open")[0], 200)
        self.assertEqual(self.s.get("/health")[0], 200)

    def test_context(self):
        for n, max_tokens in ((700, 1), (600, 41)):
            status, _, body = self.post({"prompt": [100] * n, "max_tokens": max_tokens})
            self.assertEqual((status, body["error"]["code"]), (400, "context_length_exceeded"))
            self.assertIn("640", body["error"]["message"])
            self.assertIn(str(n), body["error"]["message"])
            self.assertEqual((body["error"]["n_prompt_tokens"], body["error"]["n_ctx"]), (n, 640))

    def test_budget_refuses_dense_and_admits_pressed(self):
        """600 dense tokens are 13.8 MB and can never fit 8 MiB; a tenth of them does."""
        ids = [100 + i % 400 for i in range(600)]
        status, _, body = self.post({"prompt": ids, "max_tokens": 4})
        self.assertEqual((status, body["error"]["code"]), (400, "kv_budget_exceeded"), body)
        self.assertIn(str(8 << 20), body["error"]["message"])
        status, _, body = self.post({"prompt": ids, "max_tokens": 4, "compression": "knorm@0.9"})
        self.assertEqual(status, 200, body)
        self.assertLess(body["usage"]["kv_cache_bytes_peak"], 8 << 20)


if __name__ == "__main__":
    unittest.main()
