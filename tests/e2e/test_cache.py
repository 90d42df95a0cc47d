# SPDX-License-Identifier: Apache-2.0
"""Pressing really frees memory, the reply's numbers are true, and explain shows what was kept."""

import os
import subprocess
import tempfile
import unittest

import common
import pressd
import text

C, CHAT, EXPLAIN = "/v1/completions", "/v1/chat/completions", "/v1/compression/explain"
N = 1024


def kept(n, ratio):
    return max(1, int(n * (1 - ratio)))


class Bytes(unittest.TestCase):
    SHAPE = common.SHAPES["smollm2"]

    def setUp(self):
        self.s = common.server()

    def run_one(self, n=N, tokens=4, **compression):
        extra = {"compression": compression} if compression else {}
        return common.complete(self.s, common.ids(self.s, n), tokens, **extra)

    def between(self, value, low, high):
        self.assertGreaterEqual(value, low)
        self.assertLessEqual(value, high)

    def test_dense(self):
        r = self.run_one()
        u, kv = r["usage"], r["kv_cache"]
        # the last token of an answer need not be fed back, so it may hold no slot
        self.assertIn(u["kv_cache_bytes_dense"], (self.SHAPE.dense(N + 3), self.SHAPE.dense(N + 4)))
        self.between(u["kv_cache_bytes"], self.SHAPE.paged(N + 3), self.SHAPE.paged(N + 4))
        self.assertEqual((kv["press"], kv["bytes"]), ("none", u["kv_cache_bytes"]))
        self.assertEqual(kv["bytes"], kv["pages"] * self.SHAPE.page_bytes)
        self.assertNotIn("skipped", {k for k, v in kv.items() if v is not None})

    def test_bytes_fall_as_the_ratio_says(self):
        dense = self.run_one()["usage"]["kv_cache_bytes"]
        for name in ("knorm", "streaming_llm", "snapkv", "expected_attention", "tova", "keydiff", "random"):
            for ratio in (0.25, 0.5, 0.9):
                with self.subTest(press=name, ratio=ratio):
                    r = self.run_one(press=name, ratio=ratio)
                    u, kv = r["usage"], r["kv_cache"]
                    left = kept(N, ratio)
                    self.assertEqual(kv["bytes_after_prefill"], self.SHAPE.paged(left))
                    self.between(u["kv_cache_bytes"], self.SHAPE.paged(left + 3), self.SHAPE.paged(left + 4))
                    self.between(u["kv_cache_bytes"] / dense, 1 - ratio - 0.01, 1 - ratio + 0.03)
                    self.assertAlmostEqual(kv["ratio"], 1 - left / N, places=3)
                    self.assertEqual(kv["ratio_requested"], ratio)
                    # one dense layer beside the pressed rest, not a dense cache
                    self.assertLess(u["kv_cache_bytes_peak"], u["kv_cache_bytes"] + dense * 0.15)

    def test_ratio_zero_and_none_are_dense(self):
        want = self.run_one(n=200, tokens=24)
        for c in ({"press": "snapkv", "ratio": 0}, {"press": "none"}, {"press": "adakv(expected_attention)", "ratio": 0.0}):
            got = self.run_one(n=200, tokens=24, **c)
            self.assertEqual(got["choices"], want["choices"], c)
            self.assertEqual(got["usage"]["kv_cache_bytes"], want["usage"]["kv_cache_bytes"], c)

    def test_budgets(self):
        r = self.run_one(press="knorm", budget_tokens=96)
        self.assertEqual(r["kv_cache"]["bytes_after_prefill"], self.SHAPE.paged(96))
        r = self.run_one(press="knorm", budget_bytes=4_000_000)
        self.between(r["kv_cache"]["bytes_after_prefill"], 3_000_000, 4_000_000)

    def test_spellings_agree(self):
        body = {"prompt": common.ids(self.s, 300), "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        want = self.s.ask(C, {**body, "compression": {"press": {"name": "snapkv", "params": {"window_size": 32}}, "ratio": 0.5}})
        self.assertEqual(want["kv_cache"]["press"], "snapkv:window_size=32")
        for other in ({"compression": {"press": "snapkv", "params": {"window_size": 32}, "ratio": 0.5}},
                      {"compression": {"press": "snapkv:window_size=32", "ratio": 0.5}},
                      {"compression": "snapkv:window_size=32@0.5"},
                      {"model": "anything@snapkv:window_size=32@0.5"}):
            got = self.s.ask(C, {**body, **other})
            self.assertEqual(got["choices"], want["choices"], other)
            self.assertEqual(got["kv_cache"]["press"], want["kv_cache"]["press"], other)
        status, headers, got = self.s.post(C, {**body, "model": "smollm2@snapkv:0.5"})
        self.assertEqual((status, headers["x-kv-press"], got["kv_cache"]["ratio_requested"]), (200, "snapkv", 0.5))

    def test_skipped_below_min_tokens(self):
        r = self.run_one(n=100, press="knorm", ratio=0.5, min_tokens=101)
        self.assertTrue(r["kv_cache"]["skipped"])
        self.between(r["usage"]["kv_cache_bytes"], self.SHAPE.paged(103), self.SHAPE.paged(104))
        self.assertFalse(self.run_one(n=101, press="knorm", ratio=0.5, min_tokens=101)["kv_cache"].get("skipped"))

    def test_decode_press_bounds_a_long_answer(self):
        interval, target, n, tokens = 64, 128, 100, 600
        r = common.complete(self.s, common.ids(self.s, n), tokens,
                            compression={"decode": {"press": "streaming_llm", "interval": interval, "target_tokens": target}})
        self.assertEqual(r["usage"]["completion_tokens"], tokens)
        bound = self.SHAPE.paged(target + interval)
        self.between(r["usage"]["kv_cache_bytes"], self.SHAPE.paged(target), bound)
        # a page a head may be held while a pruned copy is written
        self.assertLessEqual(r["usage"]["kv_cache_bytes_peak"], bound + self.SHAPE.paged(2 * common.PAGE))
        self.assertIn(r["usage"]["kv_cache_bytes_dense"], (self.SHAPE.dense(n + tokens - 1), self.SHAPE.dense(n + tokens)))

    def test_expected_attention_holds_a_1500_token_answer(self):
        """By count and by ratio of what was seen."""
        ids = common.ids(self.s, 40)
        for bound, c in ((256 + 128, {"target_tokens": 256}), (int(1540 * 0.25) + 128, {"ratio": 0.75})):
            r = common.complete(self.s, ids, 1500, compression={"decode": {"press": "expected_attention", "interval": 128, **c}})
            kv = r["kv_cache"]
            self.assertEqual((r["usage"]["completion_tokens"], kv["tokens_seen"]), (1500, 1539))
            self.assertLessEqual(kv["tokens_kept"], bound)
            self.assertLessEqual(kv["bytes_peak"], self.SHAPE.paged(bound + 2 * common.PAGE))
            self.assertGreater(kv["press_ms"], 0)

    def test_prompt_and_decode_presses_together(self):
        r = common.complete(self.s, common.ids(self.s, 512), 200,
                            compression={"press": "snapkv", "ratio": 0.5,
                                         "decode": {"press": "knorm", "interval": 32, "target_tokens": 200}})
        self.assertEqual(r["kv_cache"]["bytes_after_prefill"], self.SHAPE.paged(256))
        self.between(r["usage"]["kv_cache_bytes"], self.SHAPE.paged(200), self.SHAPE.paged(200 + 32))

    def test_adakv_frees_pages_per_head(self):
        r = self.run_one(press="adakv(expected_attention:epsilon=0.01)", ratio=0.5, verbose=True)
        heads = [[h["kept"] for h in layer["heads"]] for layer in r["kv_cache"]["layers"]]
        self.assertEqual((len(heads), {len(h) for h in heads}), (30, {3}))
        uneven = sum(max(h) - min(h) > 32 for h in heads)
        self.assertGreater(uneven, 15, "most layers give their heads unequal shares")
        for h in heads:  # the layer's total is what the ratio says
            self.between(sum(h), 3 * kept(N, 0.5), 3 * (kept(N, 0.5) + 4))
        pages = sum(-(-k // common.PAGE) for h in heads for k in h)
        self.assertEqual(r["kv_cache"]["bytes"], pages * self.SHAPE.page_bytes)
        self.assertLess(r["kv_cache"]["bytes"] / r["kv_cache"]["bytes_dense"], 0.53)
        common.say("adakv heads of layer 0, 10, 20:", heads[0], heads[10], heads[20])

    def test_needle_survives_where_the_reference_keeps_it(self):
        """Question outside the scope: the press does not see it.  Dense must find the number."""
        messages = [{"role": "user", "content": text.haystack(40)}, {"role": "assistant", "content": "I have read it."},
                    {"role": "user", "content": text.QUESTION}]
        body = {"messages": messages, "max_tokens": 24, "temperature": 0}
        dense = self.s.ask(CHAT, body)
        self.assertIn(text.ANSWER, dense["choices"][0]["message"]["content"])
        pressed = self.s.ask(CHAT, {**body, "compression": {"press": "keydiff", "ratio": 0.1, "scope": "context"}})
        self.assertIn(text.ANSWER, pressed["choices"][0]["message"]["content"])
        self.assertLess(pressed["usage"]["kv_cache_bytes"], dense["usage"]["kv_cache_bytes"])


class Resident(unittest.TestCase):
    """The process's memory, read from outside, follows what the replies say."""

    TOKENS = 2048

    def setUp(self):
        self.s = common.server()

    def while_running(self, ids, **extra):
        """(RSS, /metrics' resident bytes) between two tokens of a running answer; it is then left."""
        body = {"prompt": ids, "max_tokens": 400, "temperature": 0, "ignore_eos": True, **extra}
        stream = self.s.stream(C, body)
        for _ in range(3):
            next(stream)
        seen = self.s.memory()["VmRSS"], common.pressd.total(self.s.metrics(), "pressd_kv_cache_resident_bytes")
        stream.close()
        self.assertTrue(common.wait_until(lambda: common.idle(self.s), 2))
        return seen

    def test_rss_falls_with_the_cache(self):
        ids = common.ids(self.s, self.TOKENS)
        self.while_running(ids)  # scratch of this length is held from now on: not what is measured
        base = self.s.memory()["VmRSS"]
        dense, dense_kv = self.while_running(ids)
        pressed, pressed_kv = self.while_running(ids, compression="knorm@0.75")
        few, few_kv = self.while_running(ids, compression={"kv_type": "q4"})
        after = self.s.memory()["VmRSS"]
        mb = lambda n: f"{n / 1e6:.1f} MB"
        common.say("RSS idle", mb(base), "dense", mb(dense), "pressed 0.75", mb(pressed), "q4", mb(few), "after",
                   mb(after), "KV", mb(dense_kv), mb(pressed_kv), mb(few_kv))
        full = common.SHAPES["smollm2"].dense(self.TOKENS)
        self.assertGreaterEqual(dense_kv, full)
        self.assertLess(pressed_kv, 0.30 * full)
        self.assertGreaterEqual(dense - pressed, 0.90 * (dense_kv - pressed_kv), "pressing gives memory back to the system while it runs")
        self.assertLess(few_kv, 0.35 * full)
        self.assertGreaterEqual(dense - few, 0.90 * (dense_kv - few_kv), "fewer bits take less of the system's memory")
        self.assertGreaterEqual(few - after, 0.90 * few_kv, "and give it back")
        self.assertGreaterEqual(pressed - after, 0.90 * pressed_kv, "an answer that ended gives back what it held")
        self.assertLess(after - base, 0.20 * full, "an answer that ended leaves nothing behind")


class Types(unittest.TestCase):
    """Fewer bits per number, chosen per request: bytes, memory, and what they go together with."""

    SHAPE = common.SHAPES["smollm2"]
    KEY_BITS = {"f16": 16, "q8_0": 8.5, "q4": 5.5}
    VALUE_BITS = {"f16": 16, "q8_0": 8.5, "q4": 4.5}

    def bits(self, key, value):
        return (self.KEY_BITS[key] + self.VALUE_BITS[value]) / 2

    def recent(self, key, value):
        """Bytes of the two pages of every head that are held once more, q4 as q8_0."""
        again = lambda t: "q8_0" if t == "q4" else t
        return 0 if "q4" not in (key, value) else 90 * 2 * self.SHAPE.page_bytes * self.bits(again(key), again(value)) / 16

    def setUp(self):
        self.s = common.server()

    def run_one(self, n=N, tokens=4, **compression):
        return common.complete(self.s, common.ids(self.s, n), tokens, compression=compression)

    def test_bytes_are_the_bits_with_and_without_a_press(self):
        presses = ({}, {"press": "knorm", "ratio": 0.5}, {"press": "adakv(snapkv)", "ratio": 0.5},
                   {"press": "key_rerotation(knorm)", "ratio": 0.75}, {"press": "merging(keydiff)", "ratio": 0.5})
        for wish in presses:
            dense = self.run_one(n=256, **(wish or {"press": "none"}))["kv_cache"]
            for key in self.KEY_BITS:
                for value in self.VALUE_BITS:
                    with self.subTest(press=dense["press"], key=key, value=value):
                        kv = self.run_one(n=256, kv_type={"key": key, "value": value}, **wish)["kv_cache"]
                        bits, recent = self.bits(key, value), self.recent(key, value)
                        self.assertEqual(kv["kv_type"], key if key == value else {"key": key, "value": value})
                        self.assertEqual((kv["press"], kv["bits_per_value"], kv["pages"]),
                                         (dense["press"], bits, dense["pages"]))
                        self.assertEqual(kv.get("bytes_recent", 0), recent)
                        self.assertEqual(kv["bytes"], dense["bytes"] * bits / 16 + recent)
                        self.assertEqual(kv["bytes"], kv["pages"] * self.SHAPE.page_bytes * bits / 16 + recent)
                        self.assertEqual(kv["bytes_dense"], dense["bytes_dense"])

    def test_f16_is_what_is_served_anyhow(self):
        want = common.complete(self.s, common.ids(self.s, 200), 24)
        got = self.run_one(n=200, tokens=24, kv_type="f16")
        self.assertEqual(got["choices"][0]["text"], want["choices"][0]["text"])

    def test_a_decode_press_and_several_answers(self):
        for kv_type in ("q8_0", "q4"):
            r = common.complete(self.s, common.ids(self.s, 300), 96, n=2, compression={
                "kv_type": kv_type, "decode": {"press": "expected_attention", "interval": 16, "target_tokens": 64}})
            self.assertEqual(r["choices"][0]["text"], r["choices"][1]["text"])
            for kv in r["kv_cache"]["sequences"]:
                self.assertLess(kv["tokens_kept"], 64 + 17)
                self.assertEqual(kv["bytes"], kv["pages"] * self.SHAPE.page_bytes * self.bits(kv_type, kv_type) / 16 +
                                 self.recent(kv_type, kv_type))

    def test_answers_do_not_depend_on_who_else_runs(self):
        ids = common.ids(self.s, 200)
        wishes = [{"kv_type": t} for t in ("q8_0", "q4", "f16", {"key": "q8_0", "value": "q4"}, {"key": "q4"})]
        job = lambda w: common.complete(self.s, ids, 40, compression=w)["choices"][0]["text"]
        alone = [job(w) for w in wishes]
        self.assertEqual(common.parallel([lambda w=w: job(w) for w in wishes]), alone)

    def test_a_byte_budget_buys_more_tokens(self):
        kept = {}
        for t in self.KEY_BITS:
            kv = self.run_one(press="knorm", budget_bytes=4 << 20, kv_type=t)["kv_cache"]
            self.assertLessEqual(kv["bytes_after_prefill"], 4 << 20)
            kept[t] = kv["tokens_kept"]
        self.assertGreater(kept["q8_0"], 1.7 * kept["f16"])
        self.assertGreater(kept["q4"], 1.5 * kept["q8_0"])

    def test_counters_say_what_runs(self):
        body = {"prompt": common.ids(self.s, 400), "max_tokens": 4000, "temperature": 0, "ignore_eos": True,
                "stream": True, "compression": {"kv_type": {"key": "q8_0", "value": "q4"}}}
        stream = self.s.stream(C, body)
        for _ in range(3):
            next(stream)
        m = self.s.metrics()
        total = lambda **labels: common.pressd.total(m, "pressd_kv_cache_type_bytes", **labels)
        keys, values, again = total(part="keys", kv_type="q8_0"), total(part="values", kv_type="q4"), total(part="values", kv_type="q8_0")
        self.assertEqual(again, self.recent("q8_0", "q4") / 2)
        self.assertEqual(values / (keys - again), 4.5 / 8.5)
        self.assertEqual(total(), common.pressd.total(m, "pressd_kv_cache_resident_bytes"))
        pages = sum(common.pressd.total(m, "pressd_kv_cache_pages", state=x) for x in ("free", "sequences", "store"))
        self.assertEqual(pages * self.SHAPE.page_bytes, common.pressd.total(m, "pressd_kv_cache_limit_bytes"))
        stream.close()
        self.assertTrue(common.wait_until(lambda: common.idle(self.s), 2))
        m = self.s.metrics()
        self.assertEqual(total(), 0)

    def test_more_of_them_fit(self):
        """A pool with room for one f16 request of this length takes three in q4 at once."""
        n, tokens = 600, 400
        room = self.SHAPE.paged(n + tokens) + self.SHAPE.dense(n + 64) // 30 + (1 << 20)
        s = common.start("smollm2", "--kv-cache-bytes", str(room))
        try:
            ids = common.ids(s, n)
            job = lambda: common.complete(s, ids, tokens, compression={"kv_type": "q4"})
            most = 0

            def look():
                nonlocal most
                m = s.metrics()
                most = max(most, common.pressd.total(m, "pressd_requests_running"))
                return common.pressd.total(m, "pressd_kv_cache_resident_bytes") <= room

            replies = common.parallel([job, job, job, lambda: common.wait_until(lambda: not look() or most == 3, 20)])
            self.assertEqual(len({r["choices"][0]["text"] for r in replies[:3]}), 1)
            self.assertEqual(most, 3)
        finally:
            s.stop()


class Latents(unittest.TestCase):
    """eigen_attention with bases of a short text: what is stored is counted, whatever the bases are good for."""

    SHAPE = common.SHAPES["smollm2"]

    @classmethod
    def setUpClass(cls):
        model = pressd.model_path()
        if model is None:
            raise unittest.SkipTest("no smollm2 model given")
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        words, data = (os.path.join(cls.folder.name, x) for x in ("text", "data"))
        with open(words, "w") as f:
            f.write(text.prose(120))
        said = subprocess.run([pressd.binary(), "calibrate", "-m", model, "--text", words, "-o", data, "--only", "eigen",
                               "--tokens", "1024"], check=True, capture_output=True, text=True).stdout
        cls.table = [line for line in said.splitlines() if line.startswith(("keys", "values"))]
        cls.s = common.start("smollm2", "--press-data", data)
        cls.addClassCleanup(cls.s.stop)

    def test_calibrate_tells_what_is_kept(self):
        self.assertEqual([line[:31].rstrip() for line in self.table],
                         ["keys before RoPE, shared", "keys before RoPE, per_head", "keys as queries see them, score",
                          "keys after RoPE, rotated", "values"])
        kept = {line[:31].rstrip(): [float(x) for x in line[31:].split()] for line in self.table}
        for numbers in kept.values():
            self.assertEqual(numbers[:3], sorted(numbers[:3]))
            self.assertEqual(numbers[3:], sorted(numbers[3:], reverse=True))
        self.assertGreater(kept["keys before RoPE, per_head"][0], kept["keys after RoPE, rotated"][0])
        self.assertGreater(kept["keys after RoPE, rotated"][0], kept["values"][0])

    def test_bytes_are_the_ranks(self):
        n, shape = 400, self.SHAPE
        ids = common.ids(self.s, n)
        for k, v in ((32, 64), (48, 48), (64, 20), (4, 4)):
            with self.subTest(rank_k=k, rank_v=v):
                press = f"eigen_attention:rank_k={k},rank_v={v},window=32"
                packed = (n - 32) // common.PAGE
                want = shape.paged(n) - 90 * packed * shape.page_bytes * (128 - k - v) // 128
                r = self.s.ask(EXPLAIN, {"prompt": ids, "compression": press, "ratios": [0]})
                self.assertEqual((r["bytes"], r["forecast"]), (want, [{"ratio": 0, "bytes": want}]))
                reply = common.complete(self.s, ids, 4, compression=press)
                self.assertEqual(reply["kv_cache"]["bytes_after_prefill"], want)
                self.assertTrue(common.wait_until(lambda: common.idle(self.s), 5))

    def test_values_in_few_bits_take_whole_groups(self):
        ids = common.ids(self.s, 200)
        few = {"press": "eigen_attention", "params": {"rank_v": 32}, "kv_type": {"value": "q4"}}
        self.assertEqual(common.complete(self.s, ids, 2, compression=few)["kv_cache"]["kv_type"], {"key": "f16", "value": "q4"})
        few["params"]["rank_v"] = 48
        status, _, body = self.s.post(C, {"prompt": ids, "max_tokens": 2, "compression": few})
        self.assertEqual(status, 400)
        self.assertIn("in groups of 32 numbers", body["error"]["message"])


class Explain(unittest.TestCase):
    def setUp(self):
        self.s = common.server()

    def explain(self, n=300, **compression):
        ids = common.ids(self.s, n)
        return self.s.ask(EXPLAIN, {"prompt": ids, "compression": compression, "scores": True, "ratios": [0.25, 0.5, 0.75]})

    def test_kept_sets(self):
        for name in ("knorm", "snapkv", "expected_attention", "keydiff"):
            with self.subTest(press=name):
                r = self.explain(press=name, ratio=0.5)
                self.assertEqual((r["object"], r["prompt_tokens"], r["scope_tokens"], r["press"], r["ratio"]),
                                 ("compression.explain", 300, 300, name, 0.5))
                self.assertEqual([x["layer"] for x in r["layers"]], list(range(30)))
                self.assertEqual(sum(x["bytes"] for x in r["layers"]), r["bytes"])
                for layer in r["layers"]:
                    self.assertEqual(len(layer["heads"]), 3)
                    for head in layer["heads"]:
                        k, scores = head["kept"], head["scores"]
                        self.assertEqual(k, sorted(set(k)))
                        self.assertEqual((len(k), len(scores)), (150, 300))
                        self.assertTrue(0 <= k[0] and k[-1] < 300)
                        # what is kept scores at least as much as what is not; null is "must stay"
                        inf = float("inf")
                        value = [inf if x is None else x for x in scores]
                        rest = [v for i, v in enumerate(value) if i not in set(k)]
                        self.assertGreaterEqual(min(value[i] for i in k), max(rest))

    def test_several_presses_at_once(self):
        ids, names = common.ids(self.s, 300), ("knorm", "adakv(expected_attention)", "snapkv")
        r = self.s.ask(EXPLAIN, {"prompt": ids, "compare": [f"{x}@0.5" for x in names]})
        self.assertEqual((r["press"], r["layers"], [c["press"] for c in r["compare"]]), ("none", [], list(names)))
        for name, c in zip(names, r["compare"]):
            alone = self.s.ask(EXPLAIN, {"prompt": ids, "compression": f"{name}@0.5"})
            kept = lambda layers: [h["kept"] for x in layers for h in x["heads"]]
            self.assertEqual(kept(c["layers"]), kept(alone["layers"]))
            self.assertEqual(c["ratio"], alone["ratio"])

    def test_streaming_llm_is_exact(self):
        r = self.explain(press="streaming_llm", ratio=0.5)
        want = list(range(4)) + list(range(300 - 146, 300))
        self.assertTrue(all(h["kept"] == want for x in r["layers"] for h in x["heads"]))

    def test_forecast_is_what_happens(self):
        r = self.explain(press="knorm", ratio=0.75)
        shape = common.SHAPES["smollm2"]
        self.assertEqual(r["forecast"], [{"ratio": x, "bytes": shape.paged(kept(300, x))} for x in (0.25, 0.5, 0.75)])
        self.assertEqual(r["bytes"], r["forecast"][2]["bytes"])
        self.assertEqual(r["bytes_dense"], shape.dense(300))

    def test_forecast_in_narrow_pages(self):
        ids, shape = common.ids(self.s, 300), common.SHAPES["smollm2"]
        think = "think:key_channel_compression_ratio=0.5"
        r = self.s.ask(EXPLAIN, {"prompt": ids, "compression": think, "ratios": [0, 0.5]})
        self.assertEqual([f["bytes"] for f in r["forecast"]], [shape.paged(x) * 3 // 4 for x in (300, 150)])
        self.assertEqual(r["bytes"], r["forecast"][0]["bytes"])
        both = self.s.ask(EXPLAIN, {"prompt": ids, "compression": f"composed(knorm@0.5,{think})"})
        self.assertEqual(both["bytes"], r["forecast"][1]["bytes"])

    def test_scope(self):
        r = self.explain(press="knorm", ratio=0.5, scope={"context_tokens": 100})
        self.assertEqual((r["prompt_tokens"], r["scope_tokens"]), (300, 100))
        for layer in r["layers"]:
            for h in layer["heads"]:
                inside = [p for p in h["kept"] if p < 100]
                self.assertEqual(len(inside), 50)
                self.assertIn([p for p in h["kept"] if p >= 100], ([], list(range(100, 300))))

    def test_protect_system(self):
        messages = [{"role": "system", "content": "You answer in rhyme and never mention boats, rivers or the weather."},
                    {"role": "user", "content": text.prose(12)}]
        kept_by = {}
        for protect in (False, True):
            r = self.s.ask(EXPLAIN, {"messages": messages, "compression": {"press": "keydiff", "ratio": 0.8, "protect_system": protect}})
            kept_by[protect] = [set(h["kept"]) for x in r["layers"] for h in x["heads"]]
        system = set(range(3, 16))  # well inside the message, whatever the template puts around it
        self.assertTrue(all(system <= k for k in kept_by[True]))
        self.assertFalse(all(system <= k for k in kept_by[False]))

    def test_the_answer_keeps_what_explain_shows(self):
        ids = common.ids(self.s, 300)
        a = self.s.ask(EXPLAIN, {"prompt": ids, "compression": {"press": "snapkv", "ratio": 0.6}})
        b = common.complete(self.s, ids, 1, compression={"press": "snapkv", "ratio": 0.6})
        self.assertEqual(a["bytes"], b["kv_cache"]["bytes_after_prefill"])


class Gemma(unittest.TestCase):
    """A second architecture: sliding layers hold their window and are not pressed."""

    def setUp(self):
        self.s = common.server("gemma3")
        self.shape = common.SHAPES["gemma3"]

    def test_answers(self):
        for prompt, answer in (("Paris is the capital of", "France"), ("The opposite of hot is", "cold"),
                               ("The first president of the United States was George", "Washington")):
            self.assertIn(answer, common.complete(self.s, prompt, 6)["choices"][0]["text"])

    def heads(self, n, **compression):
        r = common.complete(self.s, common.ids(self.s, n), 4, compression={**compression, "verbose": True})
        return r, {x["layer"]: x["heads"][0]["kept"] for x in r["kv_cache"]["layers"]}

    def test_sliding_layers_hold_their_window(self):
        n = 1200
        r, held = self.heads(n, press="none")
        for layer in range(18):
            if layer in self.shape.full:
                self.assertIn(held[layer], (n + 3, n + 4))
            else:  # whole pages leave the window, so up to a page more than it
                self.assertGreaterEqual(held[layer], 512 - 1)
                self.assertLess(held[layer], 512 + 2 * common.PAGE)
        dense = r["usage"]["kv_cache_bytes_dense"]
        self.assertIn(dense, (self.shape.dense(n + 3), self.shape.dense(n + 4)))
        self.assertLess(abs(r["usage"]["kv_cache_bytes"] / dense - 1), 0.06)

    def test_presses_touch_full_layers_only(self):
        n = 1200
        _, plain = self.heads(n, press="none")
        r, held = self.heads(n, press="snapkv", ratio=0.5)
        for layer in range(18):
            if layer in self.shape.full:
                self.assertIn(held[layer], (600 + 3, 600 + 4))
            else:
                self.assertEqual(held[layer], plain[layer])
        self.assertAlmostEqual(r["kv_cache"]["ratio"], 0.5, places=3)  # of the layers that are pressed


if __name__ == "__main__":
    unittest.main()
