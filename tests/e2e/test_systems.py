# SPDX-License-Identifier: Apache-2.0
"""KV-Compress, Eigen Attention, SALS and HCAttention over HTTP, on both models: bytes equal the pool's counters and the
process's memory, what is saved lets others in, and replies, metrics and explain say the same."""

import os
import subprocess
import tempfile
import threading
import unittest

import common
import pressd
import text

C, EXPLAIN = "/v1/completions", "/v1/compression/explain"
MIB = 1 << 20
STORES = ("kv_compress", "eigen_attention", "sals", "codes")  # hold less than a dense cache
READS = ("sals", "hcattention", "codes", "quest")
COUNTED = ("requests", "kv_bytes", "kv_dense_bytes", "tokens_seen", "tokens_kept", "rows", "key_rows_read", "value_rows_read")


def systems(shape):
    return {"kv_compress": "kv_compress@0.75", "eigen_attention": f"eigen_attention:rank_k={shape.head_dim // 4}",
            "sals": {"press": "sals", "kv_type": {"value": "q4"}}, "hcattention": "hcattention", "codes": "hcattention:sub_vector=2",
            "quest": "quest:token_budget=256"}


class OfModel:
    """The cases of one model: `kind`, and `n` tokens of a prompt, one more than whole pages: the answers stay in those."""

    TOKENS = 14

    @classmethod
    def setUpClass(cls):
        model = pressd.model_path(cls.kind)
        if model is None:
            raise unittest.SkipTest(f"no {cls.kind} model given")
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        words, cls.data = (os.path.join(folder.name, x) for x in ("text", "data"))
        with open(words, "w") as f:
            f.write(text.prose(80))
        for what, tokens in (("eigen,joint", 1024), ("codes", 272)):  # enough for what is stored and counted; the second is slow
            subprocess.run([pressd.binary(), "calibrate", "-m", model, "--text", words, "-o", cls.data, "--only", what,
                            "--tokens", str(tokens)], check=True, capture_output=True)
        cls.s = common.start(cls.kind, "--press-data", cls.data)
        cls.addClassCleanup(cls.s.stop)
        cls.ids = common.ids(cls.s, cls.n)
        cls.systems = systems(cls.shape)
        cls.dense = common.complete(cls.s, cls.ids, cls.TOKENS)
        cls.reply, cls.grown = {}, {}
        for name, compression in cls.systems.items():
            before = cls.counters(name)
            cls.reply[name] = common.complete(cls.s, cls.ids, cls.TOKENS, compression=compression)
            common.wait_until(lambda: common.idle(cls.s) and cls.counters(name)["requests"] > before["requests"], 5)
            cls.grown[name] = {k: v - before[k] for k, v in cls.counters(name).items()}

    @classmethod
    def counters(cls, name):
        m, press = cls.s.metrics(), "hcattention" if name == "codes" else name
        value = lambda x: m.get((f"pressd_press_{x}_total", (("press", press),)), 0)
        return {x: value(x) for x in COUNTED}

    def while_running(self, compression):
        """(RSS, metrics, kv_cache at the end) of an answer, the first two between its first token and its last."""
        body = {"prompt": self.ids, "max_tokens": self.TOKENS, "temperature": 0, "ignore_eos": True, "compression": compression,
                "stream_options": {"include_usage": True}}
        for _ in range(20):  # the looks come too late where others use the machine
            stream = self.s.stream(C, body)
            next(stream)
            rss, m = self.s.memory()["VmRSS"], self.s.metrics()
            last = [e for _, e in stream][-2]["kv_cache"]
            if pressd.total(m, "pressd_kv_cache_pages", state="sequences") > 0:
                return rss, m, last
        raise AssertionError("twenty answers ended before they could be looked at")

    def test_bytes_are_the_pools_and_the_process(self):
        """T2: what a reply says is what the pool counts and, to 5 %, what the process holds more than without it."""
        for name, compression in {"none": "none", **self.systems}.items():
            with self.subTest(system=name):
                self.while_running(compression)  # scratch of this length is held from now on
                self.assertTrue(common.wait_until(lambda: common.idle(self.s), 5))
                base = self.s.memory()["VmRSS"]
                rss, m, kv = self.while_running(compression)
                pool = pressd.total(m, "pressd_kv_cache_resident_bytes")
                self.assertTrue(kv["bytes_after_prefill"] <= pool <= kv["bytes"], "windows move on in pages of their own")
                self.assertEqual(pressd.total(m, "pressd_kv_cache_type_bytes"), pool)
                beside, held = kv.get("read", {}).get("bounds_bytes", 0), rss - base
                common.say(f"{self.kind}, {name}: {pool / 1e6:.2f} MB, {beside / 1e6:.2f} beside it, RSS {held / 1e6:.2f} MB")
                off = 0.05 * pool + MIB  # the pool keeps up to a MiB
                self.assertTrue(pool - off < held < pool + beside + off, "what lies beside the pages may have stayed")

    def test_they_hold_less(self):
        dense = self.dense["kv_cache"]["bytes"]
        for name, reply in self.reply.items():
            share = reply["kv_cache"]["bytes"] / dense
            common.say(f"{self.kind}, {name}: {share:.3f} of the dense cache")
            if name in STORES:
                self.assertLess(share, self.most[name], name)
                self.assertEqual(reply["usage"]["kv_cache_bytes"], reply["kv_cache"]["bytes"])
            else:
                self.assertEqual(share, 1, name)

    def test_few_rows_are_read(self):
        for name in READS:
            read = self.reply[name]["kv_cache"]["read"]
            common.say(f"{self.kind}, {name}: {read['key_share']:.3f} of the keys, {read['value_share']:.3f} of the values")
            self.assertLess(read["value_share"], 0.75, name)
            self.assertLess(read["key_share"], 0.75 if name in ("sals", "quest") else 1.01, name)

    def test_metrics_by_press_and_type(self):
        for name, reply in self.reply.items():
            with self.subTest(system=name):
                kv = reply["kv_cache"]
                read = kv.get("read", {"rows": 0, "key_rows": 0, "value_rows": 0})
                self.assertEqual(self.grown[name], {
                    "requests": 1, "kv_bytes": kv["bytes"], "kv_dense_bytes": kv["bytes_dense"], "tokens_seen": kv["tokens_seen"],
                    "tokens_kept": round(kv["tokens_kept"]), "rows": read["rows"], "key_rows_read": read["key_rows"],
                    "value_rows_read": read["value_rows"]})
        self.assertGreater(pressd.total(self.while_running(self.systems["sals"])[1], "pressd_kv_cache_type_bytes", part="values", kv_type="q4"), 0)

    def test_explain_says_what_happens(self):
        for name in STORES:
            with self.subTest(system=name):
                told, kv = self.s.ask(EXPLAIN, {"prompt": self.ids, "compression": self.systems[name]}), self.reply[name]["kv_cache"]
                self.assertEqual((told["press"], told["bytes"]), (kv["press"], kv["bytes_after_prefill"]))
                self.assertEqual(sum(x["bytes"] for x in told["layers"]), told["bytes"])

    def test_nothing_lost_is_the_dense_answer(self):
        """T0, as far as a request can ask for it."""
        for compression in ("kv_compress@0", "hcattention:tau=1", "quest:token_budget=8192", "sals:dense_below=8192"):
            got = common.complete(self.s, self.ids, self.TOKENS, compression=compression)
            self.assertEqual(got["choices"][0]["text"], self.dense["choices"][0]["text"], compression)
            self.assertEqual(got["kv_cache"]["tokens_kept"], self.dense["kv_cache"]["tokens_kept"], compression)

    def test_what_is_freed_lets_others_in(self):
        """T3: in a pool of four dense requests as many run at once as their bytes say, nine in ten."""
        room, asked, tokens, ids = 4, 8, 250, self.ids[:320]  # read fast, answered long
        systems = {**self.systems, "sals": {"press": "sals:dense_below=128", "kv_type": {"value": "q4"}}}
        dense = common.complete(self.s, ids, tokens)["kv_cache"]["bytes"]
        pool = room * dense + len(ids) * self.shape.heads_kv * self.shape.head_dim * 2 * 4  # and a layer that is being read
        for name in STORES:
            with self.subTest(system=name):
                job = lambda s: common.complete(s, ids, tokens, compression=systems[name])
                alone = job(self.s)
                share = alone["kv_cache"]["bytes"] / dense
                want = min(int(0.9 * room / share), asked)
                self.assertGreater(want, room, "as many dense ones fit: nothing is tested")
                with common.start(self.kind, "--press-data", self.data, "--kv-cache-bytes", str(pool), "--parallel", str(asked),
                                  "--ctx-size", str(len(ids) + tokens + common.PAGE)) as s:
                    most, ended = {"running": 0, "bytes": 0}, threading.Event()

                    def look():
                        while not ended.wait(0.01):
                            m = s.metrics()
                            most["running"] = max(most["running"], pressd.total(m, "pressd_requests_running"))
                            most["bytes"] = max(most["bytes"], pressd.total(m, "pressd_kv_cache_resident_bytes") +
                                                pressd.total(m, "pressd_kv_cache_staging_bytes"))

                    watcher = threading.Thread(target=look)
                    watcher.start()
                    try:
                        replies = common.parallel([lambda: job(s)] * asked)
                    finally:
                        ended.set()
                        watcher.join()
                self.assertEqual({r["choices"][0]["text"] for r in replies}, {alone["choices"][0]["text"]})
                common.say(f"{self.kind}, {name}: {share:.2f} of the bytes, {most['running']:.0f} at once where {room} dense ones fit")
                self.assertGreaterEqual(most["running"], want)
                self.assertLessEqual(most["bytes"], pool)


class SmolLM2(OfModel, unittest.TestCase):
    kind, n, shape = "smollm2", 1201, common.SHAPES["smollm2"]
    most = {"kv_compress": 0.28, "eigen_attention": 0.67, "sals": 0.5, "codes": 0.68}


class Gemma3(OfModel, unittest.TestCase):
    """Presses change 3 of 18 layers, which hold a third of the bytes at 1,201 tokens."""

    kind, n, shape = "gemma3", 1201, common.SHAPES["gemma3"]
    most = {"kv_compress": 0.78, "eigen_attention": 0.91, "sals": 0.7, "codes": 0.91}
    test_what_is_freed_lets_others_in = None  # of such short prompts the windows hold nearly everything


if __name__ == "__main__":
    unittest.main()
