# SPDX-License-Identifier: Apache-2.0
"""Wire shapes: what clients of the OpenAI API send and expect."""
import json
import re
import shutil
import subprocess
import unittest

from harness import ServerTest, events, until

try:
    import openai
except ImportError:
    openai = None


class Replies(ServerTest):
    args = ("--alias", "test-model")

    def test_completion(self):
        r = self.s.complete("abcdef", max_tokens=3)
        self.assertEqual(r.status, 200)
        j = r.json
        self.assertEqual(j["object"], "text_completion")
        self.assertTrue(j["id"].startswith("cmpl-"))
        self.assertEqual(j["model"], "test-model")
        self.assertEqual(j["choices"], [{"index": 0, "text": "aab", "logprobs": None, "finish_reason": "length"}])
        self.assertEqual(j["usage"]["prompt_tokens"], 7)
        self.assertEqual(j["usage"]["completion_tokens"], 3)
        self.assertEqual(j["usage"]["total_tokens"], 10)
        self.assertEqual(j["kv_cache"]["press"], "none")
        self.assertEqual(set(j["timings"]) >= {"prompt_n", "prompt_ms", "prompt_per_second", "predicted_n",
                                               "predicted_ms", "predicted_per_second"}, True)

    def test_completion_defaults_to_16_tokens(self):
        j = self.s.post("/v1/completions", {"prompt": "x" * 40}).json
        self.assertEqual(j["usage"]["completion_tokens"], 16)

    def test_prompt_only(self):
        j = self.s.complete(max_tokens=0).json
        self.assertEqual((j["choices"][0]["text"], j["usage"]["completion_tokens"]), ("", 0))

    def test_chat(self):
        j = self.s.chat("@@say=686921 @@eos=3", max_tokens=9).json
        self.assertEqual(j["object"], "chat.completion")
        self.assertTrue(j["id"].startswith("chatcmpl-"))
        c = j["choices"][0]
        self.assertEqual(c["message"], {"role": "assistant", "content": "hi!", "refusal": None})
        self.assertEqual(c["finish_reason"], "stop")

    def test_content_parts(self):
        a = self.s.chat([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]).json
        b = self.s.chat("one\ntwo").json
        self.assertEqual(a["usage"]["prompt_tokens"], b["usage"]["prompt_tokens"])

    def test_token_prompts(self):
        for prompt in ([104, 105], [[104, 105]], ["hi"]):
            j = self.s.complete(prompt).json
            self.assertEqual(j["choices"][0]["text"][0], "h", prompt)

    def test_stop_string(self):
        j = self.s.complete("@@say=6162634445", max_tokens=20, stop=["zz", "cD"]).json
        self.assertEqual((j["choices"][0]["text"], j["choices"][0]["finish_reason"]), ("ab", "stop"))

    def test_several_prompts(self):
        j = self.s.complete(["abc", [104, 105], "z"], max_tokens=3).json
        self.assertEqual([(c["index"], c["text"]) for c in j["choices"]], [(0, "aab"), (1, "hih"), (2, "zzz")])
        self.assertEqual((j["usage"]["prompt_tokens"], j["usage"]["completion_tokens"]), (4 + 2 + 2, 9))
        self.assertEqual(j["timings"]["prompt_n"], 8)
        alone = [self.s.complete(p, max_tokens=3).json for p in ("abc", [104, 105], "z")]
        for field in ("bytes", "bytes_dense", "bytes_peak", "pages", "tokens_seen"):
            self.assertEqual([x[field] for x in j["kv_cache"]["sequences"]], [x["kv_cache"][field] for x in alone], field)
            self.assertEqual(j["kv_cache"][field], sum(x["kv_cache"][field] for x in alone), field)
        self.assertNotIn("sequences", alone[0]["kv_cache"])

    def test_prompts_are_pressed_each(self):
        j = self.s.complete(["a" * 100, "b" * 200], compression="knorm@0.5", verbose=True).json
        self.assertEqual([x["press"] for x in j["kv_cache"]["sequences"]], ["knorm"] * 2)
        self.assertEqual([len(x["layers"]) for x in j["kv_cache"]["sequences"]], [2, 2])
        self.assertNotIn("layers", j["kv_cache"])
        self.assertAlmostEqual(j["kv_cache"]["ratio"], 0.5, 1)

    def test_choices(self):
        r = self.s.complete("abcd", max_tokens=3, n=3, logprobs=1)
        j = r.json
        self.assertEqual([(c["index"], c["text"]) for c in j["choices"]], [(0, "aab"), (1, "abc"), (2, "bcd")])
        for i, c in enumerate(j["choices"]):
            self.assertAlmostEqual(c["logprobs"]["token_logprobs"][0], -0.25 / (1 + i), 6)
        self.assertEqual((j["usage"]["prompt_tokens"], j["usage"]["completion_tokens"]), (5, 9))
        self.assertEqual(int(r.headers["X-KV-Cache-Bytes"]), j["usage"]["kv_cache_bytes"])
        j = self.s.complete(["ab", "cd"], max_tokens=1, n=2).json
        self.assertEqual([(c["index"], c["text"]) for c in j["choices"]], [(0, "a"), (1, "a"), (2, "c"), (3, "c")])
        j = self.s.chat("@@say=6162 @@eos=2 @@longer=0", n=2).json
        self.assertEqual([(c["index"], c["message"]["content"], c["finish_reason"]) for c in j["choices"]],
                         [(0, "ab", "stop"), (1, "ba", "stop")])

    def test_most_choices(self):
        j = self.s.complete("abc", max_tokens=2, n=128).json
        self.assertEqual([c["index"] for c in j["choices"]], list(range(128)))
        self.assertEqual(j["usage"]["completion_tokens"], 256)

    def test_best_of(self):
        """The fake engine's later answers are the likelier ones; the sums count all that was made."""
        j = self.s.complete("abcd", max_tokens=2, n=2, best_of=4).json
        self.assertEqual([(c["index"], c["text"], c["logprobs"]) for c in j["choices"]], [(0, "cd", None), (1, "bc", None)])
        self.assertEqual(j["usage"]["completion_tokens"], 8)
        self.assertEqual(len(j["kv_cache"]["sequences"]), 4)

    def test_streamed_choices(self):
        """Chunks of all answers come mixed; each answer is whole, in order, with one end; one usage at the last."""
        r = self.s.post("/v1/completions", {"prompt": ["abcd@@step=2@@longer=3", "xy@@step=2"], "n": 2, "max_tokens": 6,
                                            "stream": True, "stream_options": {"include_usage": True}})
        got = events(r.body)
        self.assertEqual(got.pop(), "[DONE]")
        chunks = [json.loads(x) for x in got]
        usage = chunks.pop()
        self.assertEqual(usage["choices"], [])
        self.assertEqual(usage["usage"]["completion_tokens"], 6 + 9 + 6 + 6)
        self.assertEqual(len(usage["kv_cache"]["sequences"]), 4)
        self.assertEqual([("kv_cache" in c) for c in chunks], [False] * (len(chunks) - 1) + [True])
        order = [c["choices"][0]["index"] for c in chunks]
        self.assertEqual(set(order), {0, 1, 2, 3})
        self.assertNotEqual(order, sorted(order))
        whole = self.s.complete(["abcd@@step=2@@longer=3", "xy@@step=2"], n=2, max_tokens=6).json
        for c in whole["choices"]:
            mine = [x["choices"][0] for x in chunks if x["choices"][0]["index"] == c["index"]]
            self.assertEqual("".join(x["text"] for x in mine), c["text"])
            self.assertEqual([x["finish_reason"] for x in mine], [None] * (len(mine) - 1) + ["length"])

    def test_streamed_chat_choices(self):
        r = self.s.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "@@say=6162"}], "n": 2,
                                                 "max_tokens": 3, "stream": True})
        chunks = [json.loads(x) for x in events(r.body)[:-1]]
        for i, text in ((0, "aba"), (1, "bab")):
            mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == i]
            self.assertEqual(mine[0]["delta"], {"role": "assistant", "content": ""})
            self.assertEqual("".join(c["delta"].get("content", "") for c in mine), text)
            self.assertEqual(mine[-1]["delta"], {})

    def test_one_of_several_fails(self):
        r = self.s.complete(["abc", "x@@error=2"], max_tokens=5)
        self.check_error(r, 500, "server_error")
        r = self.s.post("/v1/completions", {"prompt": ["abc@@step=300", "x@@error=2@@step=1"], "max_tokens": 5, "stream": True})
        got = events(r.body)
        self.assertEqual(got[-1], "[DONE]")
        self.assertEqual(json.loads(got[-2])["error"]["type"], "server_error")
        self.check_error(self.s.complete(["abc", "y@@busy"]), 429, "rate_limit_error")
        until(lambda: self.s.metric("pressd_requests_running") == 0, 5, "all jobs of a failed request are gone")

    def test_echo(self):
        """The prompt as it was given; its numbers before those of the answer, the first of them null."""
        j = self.s.complete("abc", max_tokens=2, echo=True).json
        self.assertEqual((j["choices"][0]["text"], j["choices"][0]["logprobs"]), ("abcaa", None))
        for n in (2, 0):
            c = self.s.complete("abc", max_tokens=n, echo=True, logprobs=1).json["choices"][0]
            self.assertEqual(c["text"], "abcaa"[:3 + n])
            lp = c["logprobs"]
            self.assertEqual(lp["tokens"], ["<bos>", "a", "b", "c", "a", "a"][:4 + n])
            self.assertEqual(lp["token_logprobs"], [None, -0.125, -0.25, -0.375, -0.25, -0.25][:4 + n])
            self.assertEqual(lp["text_offset"], [0, 0, 1, 2, 3, 4][:4 + n])
            self.assertEqual(lp["top_logprobs"][:2], [None, {"b": -0.0625, "a": -0.125}])
            self.assertEqual(len(lp["top_logprobs"]), 4 + n)

    def test_echo_of_several(self):
        j = self.s.complete([[104, 105], "é"], max_tokens=1, n=2, echo=True, logprobs=0).json
        self.assertEqual([c["text"] for c in j["choices"]], ["hih", "hii", "é\ufffd", "é\ufffd"])
        self.assertEqual([len(c["logprobs"]["tokens"]) for c in j["choices"]], [3, 3, 4, 4])
        self.assertEqual(j["choices"][0]["logprobs"]["top_logprobs"], [None, {"i": -0.125}, {"h": -0.25}])
        self.assertEqual(j["choices"][2]["logprobs"]["text_offset"][-1], 1)

    def test_streamed_echo(self):
        """In pieces, before the answer; together what the whole reply says."""
        prompt = "".join(chr(97 + i % 26) for i in range(150)) + "é"
        body = {"prompt": [prompt, prompt + "@@prefill=100"], "echo": True, "logprobs": 2, "max_tokens": 3}
        whole = self.s.post("/v1/completions", body).json["choices"]
        chunks = [json.loads(x) for x in events(self.s.post("/v1/completions", {**body, "stream": True}).body)[:-1]]
        for c in whole:
            mine = [x["choices"][0] for x in chunks if x["choices"][0]["index"] == c["index"]]
            self.assertEqual("".join(x["text"] for x in mine), c["text"])
            for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                self.assertEqual(sum((x["logprobs"][field] for x in mine if x["logprobs"]), []), c["logprobs"][field], field)
            self.assertGreater(len(mine), 6)

    def test_prompt_logprobs(self):
        c = self.s.complete("ab", max_tokens=0, prompt_logprobs=2).json["choices"][0]
        self.assertEqual(c["prompt_logprobs"],
                         [None,
                          {"97": {"logprob": -0.125, "rank": 2, "decoded_token": "a"},
                           "98": {"logprob": -0.0625, "rank": 1, "decoded_token": "b"},
                           "99": {"logprob": -0.125, "rank": 2, "decoded_token": "c"}},
                          {"98": {"logprob": -0.25, "rank": 3, "decoded_token": "b"},
                           "99": {"logprob": -0.125, "rank": 1, "decoded_token": "c"},
                           "100": {"logprob": -0.1875, "rank": 2, "decoded_token": "d"}}])
        self.assertNotIn("prompt_logprobs", self.s.complete("ab").json["choices"][0])
        j = self.s.chat("a", prompt_logprobs=0, n=2).json
        self.assertEqual(len(j["prompt_logprobs"]), j["usage"]["prompt_tokens"])
        self.assertEqual([list(x) for x in j["prompt_logprobs"][5:8]], [["10"], ["97"], ["259"]])
        self.assertNotIn("prompt_logprobs", j["choices"][0])

    def test_many_scores_are_written_off_the_loop(self):
        r = self.s.complete(["x" * 3000] * 2, max_tokens=1, echo=True, logprobs=20)
        self.assertEqual([len(c["logprobs"]["tokens"]) for c in r.json["choices"]], [3002, 3002])
        self.assertEqual(int(r.headers["X-KV-Cache-Bytes"]), r.json["usage"]["kv_cache_bytes"])

    def test_a_failed_prompt_has_no_echo(self):
        self.check_error(self.s.complete("x@@error=0", echo=True, logprobs=1), 500)
        self.check_error(self.s.post("/v1/completions", {"prompt": "x@@error=0", "echo": True, "stream": True}), 500)

    def test_stop_tokens_and_min_tokens(self):
        j = self.s.complete("@@say=6162634445", max_tokens=20, stop_token_ids=[0x63]).json
        self.assertEqual((j["choices"][0]["text"], j["choices"][0]["finish_reason"]), ("ab", "stop"))
        j = self.s.complete("@@say=6162634445", max_tokens=20, stop_token_ids=[0x63], min_tokens=4).json
        self.assertEqual(j["choices"][0]["text"], "abcDEab")
        j = self.s.complete("@@say=61 @@eos=2", max_tokens=20, min_tokens=7).json
        self.assertEqual((j["choices"][0]["text"], j["choices"][0]["finish_reason"]), ("aaaaaaa", "stop"))

    def test_sampling_fields_are_judged(self):
        good = {"logit_bias": {"7": -100}, "presence_penalty": 2, "frequency_penalty": -2, "repetition_penalty": 1.1,
                "min_tokens": 1, "stop_token_ids": []}
        self.assertEqual(self.s.complete(**good).status, 200)
        self.assertEqual(self.s.chat(**good).status, 200)
        for field, value, word in (("logit_bias", {"1000": 1}, "1000"), ("presence_penalty", 3, "-2 to 2"),
                                   ("frequency_penalty", "a", "a number"), ("repetition_penalty", 0, "(0, 2]"),
                                   ("min_tokens", 5, "max_tokens"), ("stop_token_ids", "x", "a string")):
            for r in (self.s.complete(**{field: value}), self.s.chat(max_tokens=4, **{field: value})):
                self.check_error(r, 400, "invalid_request_error", field, word)
        self.check_error(self.s.complete(logit_bias={"7": 101}), 400, param="logit_bias.7", word="-100 to 100")

    def test_nulls_are_absent(self):
        fields = ("stop seed logit_bias logprobs suffix user n response_format tools temperature top_p stream "
                  "stream_options max_completion_tokens compression echo best_of presence_penalty").split()
        self.assertEqual(self.s.complete(**{f: None for f in fields}).status, 200)
        self.assertEqual(self.s.chat(**{f: None for f in fields}).status, 200)

    def test_harmless_fields(self):
        self.assertEqual(self.s.chat(user="u", metadata={"a": "b"}, store=False, parallel_tool_calls=True,
                                     service_tier="auto", what_is_this=[1], n=1, tools=[],
                                     response_format={"type": "text"}, logit_bias={}).status, 200)

    def test_model_suffix(self):
        j = self.s.complete("a" * 100, model="test-model@knorm:0.5").json
        self.assertEqual((j["kv_cache"]["press"], j["kv_cache"]["ratio_requested"]), ("knorm", 0.5))

    def test_compression_reported_three_ways(self):
        r = self.s.complete("a" * 200, compression={"press": "knorm", "ratio": 0.5}, verbose=True)
        j, kv = r.json, r.json["kv_cache"]
        for field in ("press", "ratio_requested", "ratio", "tokens_seen", "tokens_kept", "bytes_after_prefill", "bytes",
                      "bytes_dense", "bytes_peak", "page_tokens", "pages", "kv_type", "bits_per_value", "press_ms",
                      "layers"):
            self.assertIn(field, kv)
        self.assertNotIn("skipped", kv)
        for usage, header, member in (("kv_cache_bytes", "X-KV-Cache-Bytes", "bytes"),
                                      ("kv_cache_bytes_dense", "X-KV-Cache-Bytes-Dense", "bytes_dense"),
                                      ("kv_cache_bytes_peak", "X-KV-Cache-Bytes-Peak", "bytes_peak")):
            self.assertIsInstance(j["usage"][usage], int)
            self.assertEqual(j["usage"][usage], kv[member])
            self.assertEqual(int(r.headers[header]), kv[member])
        self.assertEqual(r.headers["X-KV-Press"], "knorm")
        self.assertLess(kv["bytes"], kv["bytes_dense"])
        self.assertEqual(len(kv["layers"]), 2)

    def test_reading(self):
        kv = self.s.complete("a" * 200, compression="quest:token_budget=64").json["kv_cache"]
        self.assertEqual((kv["press"], kv["ratio"]), ("quest:token_budget=64", 0))
        self.assertEqual(kv["read"], {"rows": 64, "key_rows": 32, "value_rows": 16, "key_share": 0.5, "value_share": 0.25,
                                      "bounds_bytes": 4096})
        kv = self.s.complete("a" * 200, compression={"press": {"name": "hcattention", "params": {"tau": 0.5}, "press": "knorm"},
                                                     "ratio": 0.5, "kv_type": "q8_0"}).json["kv_cache"]
        self.assertEqual((kv["press"], kv["ratio_requested"], kv["kv_type"]), ("hcattention:tau=0.5(knorm)", 0.5, "q8_0"))
        self.assertNotIn("read", self.s.complete("a" * 200).json["kv_cache"])
        self.assertEqual(self.s.metric("pressd_press_rows_total", '{press="quest"}'), 64)
        self.assertEqual(self.s.metric("pressd_press_key_rows_read_total", '{press="quest"}'), 32)
        self.assertEqual(self.s.metric("pressd_press_value_rows_read_total", '{press="quest"}'), 16)
        for wish, param, said in (
                ({"press": "hcattention", "params": {"tau": 0}}, "compression.params.tau", "a number in (0, 1], not 0"),
                ({"press": "hcattention", "params": {"tau": 1.5}}, "compression.params.tau", "not 1.5"),
                ({"press": "hcattention", "params": {"renormalize": 1}}, "compression.params.renormalize", "not 1"),
                ({"press": "quest", "params": {"token_budget": 63}}, "compression.params.token_budget", "not 63"),
                ({"press": "quest", "params": {"page_order": "best"}}, "compression.params.page_order", 'not "best"'),
                ({"press": "quest", "ratio": 0.5}, "compression.ratio", "'quest' takes neither ratio nor budget"),
                ({"press": "quest(quest)"}, "compression.press", "'quest' is given twice"),
                ({"press": "quest(knorm)"}, "compression.ratio", "needs one of ratio"),
                ({"press": "adakv(quest)", "ratio": 0.5}, "compression.press", "'quest' does not")):
            e = self.s.complete("a", compression=wish)
            self.assertEqual((e.status, e.json["error"]["param"]), (400, param), e.json)
            self.assertIn(said, e.json["error"]["message"])

    def test_kv_type(self):
        dense = self.s.complete("a" * 200).json["kv_cache"]
        self.assertEqual((dense["kv_type"], dense["bits_per_value"]), ("f16", 16))
        for wish, bits in (("q8_0", 8.5), ("q4", 5), ("f16", 16), ({"key": "q8_0", "value": "q4"}, 6.5)):
            kv = self.s.complete("a" * 200, compression={"kv_type": wish}).json["kv_cache"]
            self.assertEqual((kv["press"], kv["kv_type"], kv["bits_per_value"]), ("none", wish, bits))
            self.assertEqual(kv["bytes"], dense["bytes"] * bits / 16)
        kv = self.s.complete("a" * 200, compression={"press": "knorm", "ratio": 0.5, "kv_type": {"key": "q4"}}).json["kv_cache"]
        self.assertEqual((kv["press"], kv["kv_type"]), ("knorm", {"key": "q4", "value": "f16"}))
        e = self.s.complete("a", compression={"kv_type": {"value": "q3"}})
        self.assertEqual((e.status, e.json["error"]["param"]), (400, "compression.kv_type.value"))
        self.assertIn('"f16", "q8_0", "q4"', e.json["error"]["message"])

    def test_kv_type_verbose_and_explained(self):
        wish = {"press": "knorm", "ratio": 0.5, "kv_type": "q4"}
        kv = self.s.complete("a" * 200, compression=wish, verbose=True).json["kv_cache"]
        self.assertEqual(kv["layers"][0]["bytes"] % 320, 0)
        e = self.s.post("/v1/compression/explain", {"prompt": "a" * 200, "compression": wish, "ratios": [0.5]})
        self.assertEqual(e.json["forecast"][0]["bytes"], e.json["bytes"])
        self.assertEqual((e.json["kv_type"], e.json["bits_per_value"]), ("q4", 5))

    def test_skipped(self):
        j = self.s.complete("short", compression={"press": "knorm", "ratio": 0.5, "min_tokens": 100}).json
        self.assertIn("min_tokens", j["kv_cache"]["skipped"])

    def test_completion_logprobs(self):
        lp = self.s.complete("abc", max_tokens=3, logprobs=2).json["choices"][0]["logprobs"]
        self.assertEqual({len(lp[k]) for k in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}, {3})
        self.assertEqual(lp["text_offset"], [0, 1, 2])
        self.assertEqual(len(lp["top_logprobs"][0]), 2)

    def test_logprobs_of_broken_utf8(self):
        lp = self.s.complete("@@say=c3a9", max_tokens=2, logprobs=1).json["choices"][0]
        self.assertEqual(lp["text"], "é")
        self.assertEqual(lp["logprobs"]["tokens"], ["bytes:\\xc3", "bytes:\\xa9"])

    def test_chat_logprobs(self):
        lp = self.s.chat("abc", logprobs=True, top_logprobs=100).json["choices"][0]["logprobs"]["content"]
        self.assertEqual(len(lp), 4)
        self.assertEqual(set(lp[0]), {"token", "logprob", "bytes", "top_logprobs"})
        self.assertEqual(len(lp[0]["top_logprobs"]), 100)

    def test_models(self):
        j = self.s.get("/v1/models").json
        self.assertEqual(j["object"], "list")
        m = j["data"][0]
        self.assertEqual((m["id"], m["object"], m["root"], m["parent"]), ("test-model", "model", "test-model", None))
        self.assertEqual(m["max_model_len"], 8192)
        self.assertEqual(self.s.get("/v1/models/test-model").json["id"], "test-model")
        self.assertEqual(self.s.get("/v1/models/test%2Dmodel").json["id"], "test-model")
        self.check_error(self.s.get("/v1/models/other"), 404, "not_found_error", "model")

    def test_a_form_is_prepared_before_it_is_submitted(self):
        """What a grammar needs of the vocabulary is made where the body is parsed, not on the loop (the engine says so)."""
        for form in ({"grammar": 'root ::= "a"'}, {"guided_choice": ["a", "b"]}, {"response_format": {"type": "json_object"}}):
            self.assertEqual(self.s.complete("x", **form).status, 200, form)

    def test_presses(self):
        data = {p["name"]: p for p in self.s.get("/v1/presses").json["data"]}
        self.assertIn("knorm", data)
        for p in data.values():
            self.assertEqual({"name", "reference_class", "kind", "source", "params", "ratio", "runnable"} - set(p), set())
        ratios = data["per_layer"]["params"][0]
        self.assertEqual((ratios["type"], ratios["default"], ratios["required"], ratios["min"], ratios["max"]),
                         ("number per layer", None, True, 0, 1))
        self.assertEqual({p for p in data if not data[p]["takes_ratio"]},  # a threshold, ratios or a target of their own
                         {"simlayerkv", "think", "eigen_attention", "duo_attention", "per_layer", "decoding", "compression_ratio_decoding", "cam", "dms",
                          "hcattention", "quest", "sals"})
        self.assertEqual([p for p in data if data[p]["accepts"] and data[p]["accepts"]["ratios"]],
                         ["composed", "prefill_decoding", "hcattention", "quest"])
        self.assertIn("score_part", data["block"]["accepts"]["must"])
        self.assertIn("score_part", data["knorm"]["can"])
        self.assertNotIn("score_part", data["snapkv"]["can"])
        self.assertNotIn("compose", data["adakv"]["can"])

    def test_explain(self):
        r = self.s.post("/v1/compression/explain", {
            "prompt": "a" * 99, "compression": {"press": "knorm", "ratio": 0.5}, "scores": True, "ratios": [0, 0.5]})
        j = r.json
        self.assertEqual(j["object"], "compression.explain")
        head = j["layers"][0]["heads"][0]
        self.assertEqual(head["kept"], sorted(head["kept"]))
        self.assertEqual(len(head["kept"]), 50)
        self.assertEqual(len(head["scores"]), j["scope_tokens"])
        self.assertEqual([f["ratio"] for f in j["forecast"]], [0, 0.5])
        self.assertGreater(j["forecast"][0]["bytes"], j["forecast"][1]["bytes"])
        chat = self.s.post("/v1/compression/explain", {"messages": [{"role": "user", "content": "x"}]}).json
        self.assertEqual(chat["press"], "none")

    def test_tokenize(self):
        j = self.s.post("/tokenize", {"prompt": "hi", "return_token_strs": True}).json
        self.assertEqual(j, {"count": 3, "max_model_len": 8192, "tokens": [256, 104, 105],
                             "token_strs": ["<bos>", "h", "i"]})
        self.assertEqual(self.s.post("/tokenize", {"prompt": "hi", "add_special_tokens": False}).json["tokens"], [104, 105])
        self.assertEqual(self.s.post("/detokenize", {"tokens": [104, 105]}).json, {"prompt": "hi"})
        chat = self.s.post("/tokenize", {"messages": [{"role": "user", "content": "x"}]}).json
        self.assertEqual(chat["tokens"][0], 258)
        self.check_error(self.s.post("/detokenize", {"tokens": [9999]}), 400, param="tokens")

    def test_special_text_in_messages_stays_text(self):
        t = self.s.post("/tokenize", {"messages": [{"role": "user", "content": "<|im_end|>"}]}).json["tokens"]
        self.assertEqual(t.count(259), 1)

    def test_large_body_off_the_loop(self):
        """Above 64 KB the body is decoded on a pool thread; the answer is the same."""
        for n in (70000, 200000):
            j = self.s.post("/tokenize", {"prompt": "z" * n}).json
            self.assertEqual(j["count"], n + 1)
        self.check_error(self.s.post("/v1/completions", '{"prompt": "%s", "n": 0}' % ("z" * 70000),
                                     headers={"Content-Type": "application/json"}), 400, param="n")

    def test_request_id(self):
        self.assertEqual(self.s.get("/health", headers={"X-Request-Id": "a-b_c.1"}).headers["X-Request-Id"], "a-b_c.1")
        minted = self.s.get("/health", headers={"X-Request-Id": "no good"}).headers["X-Request-Id"]
        self.assertTrue(minted.startswith("req-"))

    def test_probes(self):
        for path in ("/health", "/livez", "/readyz", "/version"):
            self.assertEqual(self.s.get(path).status, 200)


class Streams(ServerTest):
    def stream(self, path, body):
        r = self.s.post(path, {**body, "stream": True})
        self.assertEqual(r.status, 200, r.body)
        self.assertEqual(r.headers["Content-Type"], "text/event-stream")
        self.assertEqual(r.headers["Cache-Control"], "no-cache")
        lines = events(r.body)
        self.assertEqual(lines[-1], "[DONE]")
        return [json.loads(x) for x in lines[:-1]]

    def chat(self, content, **fields):
        return self.stream("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], **fields})

    def test_chat(self):
        c = self.chat("hello", max_tokens=5)
        self.assertEqual(c[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
        self.assertEqual(len({x["id"] for x in c}), 1)
        self.assertEqual({x["object"] for x in c}, {"chat.completion.chunk"})
        self.assertEqual([x["choices"][0]["finish_reason"] for x in c], [None] * 6 + ["length"])
        self.assertEqual(c[-1]["choices"][0]["delta"], {})
        self.assertEqual(c[-1]["kv_cache"]["press"], "none")
        self.assertIn("predicted_n", c[-1]["timings"])
        self.assertTrue(all("usage" not in x for x in c))

    def test_one_event_per_token(self):
        c = self.stream("/v1/completions", {"prompt": "hello", "max_tokens": 50})
        self.assertEqual(len(c), 51)
        self.assertEqual(len(set(x["id"] for x in c)), 1)

    def test_usage_chunk(self):
        c = self.chat("hello", max_tokens=5, stream_options={"include_usage": True})
        self.assertEqual(c[-1]["choices"], [])
        self.assertEqual(c[-1]["usage"]["completion_tokens"], 5)
        self.assertIsInstance(c[-1]["usage"]["kv_cache_bytes"], int)
        self.assertIn("kv_cache", c[-1])
        self.assertEqual(c[-2]["choices"][0]["finish_reason"], "length")

    def test_continuous_usage(self):
        c = self.chat("hello", max_tokens=5, stream_options={"include_usage": True, "continuous_usage_stats": True})
        self.assertEqual([x["usage"]["completion_tokens"] for x in c], [0, 1, 2, 3, 4, 5, 5, 5])

    def test_stream_equals_whole(self):
        prompt = "@@say=%s" % "żółw \U0001F422 \u2028 \r\n\n data: x".encode().hex()
        whole = self.s.complete(prompt, max_tokens=200).json["choices"][0]["text"]
        c = self.stream("/v1/completions", {"prompt": prompt, "max_tokens": 200})
        self.assertEqual("".join(x["choices"][0]["text"] for x in c), whole)
        self.assertIn("\U0001F422", whole)
        self.assertEqual(len(c), 201)

    def test_broken_utf8_is_mended(self):
        for say in ("ff41", "e28041", "f09f"):
            c = self.stream("/v1/completions", {"prompt": "@@say=" + say, "max_tokens": 6})
            self.assertIn("\ufffd", "".join(x["choices"][0]["text"] for x in c))

    def test_stop_string_is_held_back(self):
        c = self.stream("/v1/completions", {"prompt": "@@say=6162634445", "max_tokens": 20, "stop": "cDE"})
        self.assertEqual("".join(x["choices"][0]["text"] for x in c), "ab")
        self.assertEqual(c[-1]["choices"][0]["finish_reason"], "stop")

    def test_logprobs(self):
        c = self.chat("abc", max_tokens=3, logprobs=True, top_logprobs=2)
        self.assertEqual([len(x["choices"][0]["logprobs"]["content"]) for x in c[1:-1]], [1, 1, 1])
        c = self.stream("/v1/completions", {"prompt": "abc", "max_tokens": 3, "logprobs": 1})
        self.assertEqual([x["choices"][0]["logprobs"]["text_offset"] for x in c[:-1]], [[0], [1], [2]])

    def test_failure_before_the_first_token(self):
        r = self.s.complete("@@error=0", stream=True)
        self.check_error(r, 500, "server_error")
        self.check_error(self.s.complete("@@error=0"), 500, "server_error")

    def test_failure_mid_stream(self):
        r = self.s.complete("@@error=3", stream=True, max_tokens=9)
        lines = events(r.body)
        self.assertEqual(lines[-1], "[DONE]")
        self.assertEqual(json.loads(lines[-2])["error"]["type"], "server_error")
        self.assertEqual(len(lines), 5)
        self.check_error(self.s.complete("@@error=3", max_tokens=9), 500)

    def test_http_1_0(self):
        body = b'{"prompt":"abc","max_tokens":3,"stream":true}'
        out = self.s.raw(b"POST /v1/completions HTTP/1.0\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head, rest = out.split(b"\r\n\r\n", 1)
        self.assertNotIn(b"chunked", head)
        self.assertEqual(events(rest)[-1], "[DONE]")


class Errors(ServerTest):
    args = ("--ctx-size", "256", "--max-body-bytes", "128K", "--kv-cache-bytes", "64K")

    def test_fields(self):
        table = [
            ({"prompt": None}, "prompt"), ({"prompt": 5}, "prompt"), ({"prompt": []}, "prompt"),
            ({"prompt": ["a", 5]}, "prompt[1]"), ({"prompt": [1, "a"]}, "prompt[1]"), ({"prompt": [-1]}, "prompt[0]"),
            ({"prompt": [260]}, "prompt[0]"), ({"prompt": [1.5]}, "prompt[0]"), ({"prompt": [[1], []]}, "prompt[1]"),
            ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": "4"}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"),
            ({"max_tokens": 2**31}, "max_tokens"), ({"temperature": 2.1}, "temperature"),
            ({"temperature": "hot"}, "temperature"), ({"temperature": True}, "temperature"), ({"top_p": 0}, "top_p"),
            ({"top_p": 1.01}, "top_p"), ({"min_p": -0.1}, "min_p"), ({"top_k": -2}, "top_k"), ({"seed": "x"}, "seed"),
            ({"stop": [""]}, "stop[0]"), ({"stop": ["a"] * 5}, "stop"), ({"stop": "a" * 257}, "stop"),
            ({"stop": 3}, "stop"), ({"logprobs": 101}, "logprobs"), ({"logprobs": True}, "logprobs"),
            ({"stream": 1}, "stream"), ({"stream_options": {"include_usage": True}}, "stream_options"),
            ({"n": 129}, "n"), ({"best_of": 21}, "best_of"), ({"n": 3, "best_of": 2}, "best_of"),
            ({"best_of": 2, "stream": True}, "best_of"), ({"echo": 1}, "echo"), ({"prompt_logprobs": 101}, "prompt_logprobs"),
            ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"), ({"suffix": "x"}, "suffix"),
            ({"logit_bias": {"5": 101}}, "logit_bias.5"), ({"presence_penalty": 2.5}, "presence_penalty"),
            ({"frequency_penalty": -3}, "frequency_penalty"), ({"tools": [{}]}, "tools"),
            ({"response_format": {"type": "xml"}}, "response_format"), ({"model": 5}, "model"),
            ({"model": "x@nope:0.5"}, "model"), ({"model": "x@knorm"}, "model"), ({"model": "x@knorm:1"}, "model"),
            ({"compression": 5}, "compression"), ({"compression": {}}, "compression.press"),
            ({"compression": {"press": "nope", "ratio": 0.5}}, "compression.press"),
            ({"compression": {"press": "knorm"}}, "compression.ratio"),
            ({"compression": {"press": "knorm", "ratio": 1.0}}, "compression.ratio"),
            ({"compression": {"press": "knorm", "ratio": -0.1}}, "compression.ratio"),
            ({"compression": {"press": "knorm", "ratio": 0.5, "budget_tokens": 9}}, "compression.ratio"),
            ({"compression": {"press": "knorm", "ratio": 0.5, "x": 1}}, "compression.x"),
            ({"compression": {"press": "knorm", "ratio": 0.5, "scope": "context"}}, "compression.scope"),
            ({"compression": {"press": "knorm", "ratio": 0.5, "scope": {"tokens": 1}}}, "compression.scope.tokens"),
            ({"compression": {"press": "knorm", "ratio": 0.5, "decode": {"press": "knorm"}}}, "compression.decode"),
            ({"compression": "knorm"}, "compression"), ({"compression": "knorm@2"}, "compression"),
        ]
        for fields, param in table:
            with self.subTest(fields=fields):
                self.check_error(self.s.complete(**fields), 400, "invalid_request_error", param)
        self.assertEqual(self.s.complete().status, 200)

    def test_chat_fields(self):
        table = [
            ({"messages": None}, "messages"), ({"messages": []}, "messages"), ({"messages": "x"}, "messages"),
            ({"messages": [5]}, "messages[0]"), ({"messages": [{"content": "x"}]}, "messages[0].role"),
            ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
            ({"top_logprobs": 3}, "top_logprobs"), ({"logprobs": 3}, "logprobs"),
            ({"logprobs": True, "top_logprobs": 101}, "top_logprobs"), ({"max_tokens": 0}, "max_tokens"),
        ]
        for fields, param in table:
            with self.subTest(fields=fields):
                self.check_error(self.s.chat(**fields), 400, "invalid_request_error", param)

    def test_json(self):
        for body in (b"", b"{", b"[1]", b'"x"', b'{"a":1,"a":2}', b'{"prompt":"\xff"}', b'{"prompt":"\\ud800"}',
                     b'{"a":NaN}', b'{"a":1e999}', b"{} x", b"\xef\xbb\xbf{}", b'{"a":' + b"[" * 40 + b"]" * 40 + b"}",
                     b'{"a":"\\u0000"}', b'{"a":%s}' % (b"9" * 400), b'{"prompt":[' + b"," * 50000 + b"]}"):
            with self.subTest(body=body[:40]):
                r = self.s.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
                self.check_error(r, 400, "invalid_request_error")
        r = self.s.request("POST", "/v1/completions", b'{"a":\n  tru}', {"Content-Type": "application/json"})
        self.assertIn("line 2 column", r.error["message"])

    def test_content_type(self):
        for type_, status in (("application/json; charset=utf-8", 200), ("Application/JSON", 200), ("text/plain", 415),
                              ("application/x-www-form-urlencoded", 415), ("", 200)):
            r = self.s.request("POST", "/v1/completions", '{"prompt":"x","max_tokens":1}', {"Content-Type": type_})
            self.assertEqual(r.status, status, type_)

    def test_context(self):
        e = self.check_error(self.s.complete("x" * 200, max_tokens=100), 400, "invalid_request_error")
        self.assertEqual(e["code"], "context_length_exceeded")
        self.assertIn("201", e["message"])
        self.assertIn("256", e["message"])

    def test_budget(self):
        e = self.check_error(self.s.complete("x" * 200), 400)
        self.assertEqual(e["code"], "kv_budget_exceeded")

    def test_busy(self):
        r = self.s.complete("@@busy")
        self.check_error(r, 429, "rate_limit_error")
        self.assertEqual(r.headers["Retry-After"], "1")
        self.assertEqual(r.headers["retry-after-ms"], "1000")

    def test_routes(self):
        self.check_error(self.s.get("/nope"), 404, "not_found_error")
        for path in ("/v1/%2e%2e/metrics", "/metrics%00", "/v1/models/", "//metrics", "/METRICS"):
            self.assertEqual(self.s.get(path).status, 404, path)
        r = self.s.get("/v1/completions")
        self.check_error(r, 405)
        self.assertEqual(r.headers["Allow"], "POST, OPTIONS")
        r = self.s.request("DELETE", "/metrics")
        self.assertEqual((r.status, r.headers["Allow"]), (405, "GET, HEAD, OPTIONS"))
        r = self.s.request("OPTIONS", "/v1/completions")
        self.assertEqual((r.status, r.headers["Allow"]), (204, "POST, OPTIONS"))
        self.assertEqual(self.s.get("/health?x=1").status, 200)
        self.assertEqual(self.s.get("http://other.example/health").status, 200)

    def test_too_large(self):
        r = self.s.request("POST", "/v1/completions", b'{"prompt":"' + b"x" * 140000 + b'"}',
                           {"Content-Type": "application/json"})
        self.check_error(r, 413, "invalid_request_error", word="131072")

    def test_no_addresses_or_paths_in_errors(self):
        for r in (self.s.get("/nope"), self.s.complete(prompt=5), self.s.complete("@@error=0")):
            self.assertIsNone(re.search(r"0x[0-9a-f]{6,}|/home/|/usr/|\.c:\d", r.body.decode()))


class Auth(ServerTest):
    args = ("--api-key", "secret-one,secret-two")

    def test_keys(self):
        for path in ("/health", "/livez", "/readyz"):
            self.assertEqual(self.s.get(path).status, 200)
        for path in ("/v1/models", "/metrics", "/version", "/v1/presses"):
            r = self.s.get(path)
            self.check_error(r, 401, "authentication_error")
            self.assertEqual(r.headers["WWW-Authenticate"], "Bearer")
            for h in ({"Authorization": "Bearer secret-one"}, {"Authorization": "bearer secret-two"}, {"X-Api-Key": "secret-two"}):
                self.assertEqual(self.s.get(path, headers=h).status, 200)
            for h in ({"Authorization": "Bearer secret-on"}, {"Authorization": "Bearer secret-one1"}, {"Authorization": "Bearer "},
                      {"Authorization": "secret-one"}, {"X-Api-Key": "secret-one,secret-two"}, {"X-Api-Key": "x" * 2000}):
                self.assertEqual(self.s.get(path, headers=h).status, 401, h)
        self.assertEqual(self.s.complete().status, 401)
        self.assertEqual(self.s.get("/nope").status, 404)
        for target in ("/health/../metrics", "/health%2f..%2fmetrics", "/./metrics", "/metrics/", "/health/metrics"):
            self.assertEqual(self.s.get(target).status, 404, target)

    def test_host_does_not_matter(self):
        out = self.s.raw(b"GET http://x/health/../metrics HTTP/1.1\r\nHost: x/health\r\nConnection: close\r\n\r\n")
        self.assertNotIn(b" 200 ", out.split(b"\r\n")[0])


class Defaults(ServerTest):
    args = ("--compression", '{"press":"knorm","ratio":0.5,"scope":"context"}')

    def test_default(self):
        self.assertEqual(self.s.complete("x" * 64).json["kv_cache"]["press"], "knorm")
        self.assertEqual(self.s.complete("x" * 64, compression=None).json["kv_cache"]["press"], "knorm")
        self.assertEqual(self.s.complete("x" * 64, compression={"press": "none"}).json["kv_cache"]["press"], "none")
        self.assertEqual(self.s.complete("x" * 64, compression="none").json["kv_cache"]["press"], "none")


class Metrics(ServerTest):
    def test_counts(self):
        for _ in range(3):
            self.s.complete("abc", max_tokens=5, compression="knorm@0.25")
        self.s.complete(n=0)
        self.assertEqual(self.s.metric("pressd_generated_tokens_total"), 15)
        self.assertEqual(self.s.metric("pressd_press_requests_total", '{press="knorm"}'), 3)
        self.assertEqual(self.s.metric("pressd_time_to_first_token_seconds_count"), 3)
        self.assertEqual(self.s.metric("pressd_inter_token_seconds_count"), 12)
        self.assertEqual(self.s.metric("pressd_requests_rejected_total", '{reason="einval"}'), 1)
        self.assertEqual(self.s.metric("pressd_http_requests_total", '{route="/v1/completions",code="200"}'), 3)
        self.assertEqual(self.s.metric("pressd_http_requests_total", '{route="/v1/completions",code="400"}'), 1)
        pages = [self.s.metric("pressd_kv_cache_pages", '{state="%s"}' % x) for x in ("free", "sequences", "store")]
        self.assertEqual(sum(pages) * 4096, self.s.metric("pressd_kv_cache_limit_bytes"))
        for name in ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc",
                     "vllm:cache_config_info", "vllm:lora_requests_info", "process_resident_memory_bytes",
                     "process_open_fds", "pressd_build_info"):
            self.assertIsNotNone(self.s.metric(name), name)

    @unittest.skipUnless(shutil.which("promtool"), "promtool is not installed")
    def test_promtool(self):
        self.s.complete("abc", compression="knorm@0.25")
        page = self.s.get("/metrics").body
        r = subprocess.run(["promtool", "check", "metrics"], input=page, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        # vLLM's names hold a colon, which the linter dislikes and the endpoint pickers need.
        bad = [x for x in r.stdout.decode().splitlines() if "should not contain ':'" not in x]
        self.assertEqual(bad, [])

    def test_pages_return(self):
        self.s.complete("x" * 500, max_tokens=50)
        until(lambda: self.s.metric("pressd_kv_cache_pages", '{state="sequences"}') == 0, 2, "pages free")


class Off(ServerTest):
    args = ("--no-metrics",)

    def test_absent(self):
        self.assertEqual(self.s.get("/metrics").status, 404)


@unittest.skipUnless(openai, "the openai package is not installed")
class OfficialClient(ServerTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.c = openai.OpenAI(base_url=f"http://127.0.0.1:{cls.s.port}/v1", api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.c.close()
        super().tearDownClass()

    def test_chat(self):
        r = self.c.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}], max_tokens=6,
                                           logprobs=True, top_logprobs=3,
                                           extra_body={"compression": {"press": "knorm", "ratio": 0.5}})
        self.assertEqual(r.usage.completion_tokens, 6)
        self.assertEqual(r.kv_cache["press"], "knorm")
        self.assertIsInstance(r.usage.kv_cache_bytes, int)
        self.assertEqual(len(r.choices[0].logprobs.content[0].top_logprobs), 3)

    def test_chat_stream(self):
        text, usage, n = "", None, 0
        for c in self.c.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}],
                                                max_tokens=20, stream=True, stream_options={"include_usage": True}):
            if c.choices:
                text += c.choices[0].delta.content or ""
                n += 1
            usage = c.usage or usage
        self.assertEqual((len(text), n, usage.completion_tokens), (20, 22, 20))
        self.assertIsInstance(usage.kv_cache_bytes_peak, int)

    def test_completion_stream(self):
        c = list(self.c.completions.create(model="m", prompt="hello", max_tokens=7, stream=True))
        self.assertEqual(len(c), 8)
        self.assertEqual(c[-1].choices[0].finish_reason, "length")

    def test_models(self):
        self.assertEqual([m.id for m in self.c.models.list()], ["fake"])
        self.assertEqual(self.c.models.retrieve("fake").id, "fake")

    def test_errors(self):
        with self.assertRaises(openai.BadRequestError) as e:
            self.c.completions.create(model="m", prompt="x", temperature=9)
        self.assertEqual(e.exception.param, "temperature")
        with self.assertRaises(openai.RateLimitError):
            self.c.completions.create(model="m", prompt="@@busy")
        with self.assertRaises(openai.NotFoundError):
            self.c.models.retrieve("other")
        with self.assertRaises(openai.APIError):
            list(self.c.completions.create(model="m", prompt="@@error=2", stream=True))

    def test_closing_a_stream_cancels(self):
        stream = self.c.chat.completions.create(model="m", stream=True, max_tokens=5000,
                                                messages=[{"role": "user", "content": "@@step=10"}])
        next(iter(stream))
        stream.close()
        until(lambda: self.s.metric("pressd_requests_running") == 0, 1, "job cancelled")
