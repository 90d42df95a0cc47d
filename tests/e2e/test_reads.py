# SPDX-License-Identifier: Apache-2.0
"""Presses that drop nothing and read less in each decode step: what they report, and that they go with all others."""

import unittest

import common

C = "/v1/completions"
SHAPE = common.SHAPES["smollm2"]


class Reads(unittest.TestCase):
    def setUp(self):
        self.s = common.server()

    def run_one(self, compression=None, n=1000, tokens=24, **extra):
        if compression is not None:
            extra["compression"] = compression
        return common.complete(self.s, common.ids(self.s, n), tokens, **extra)

    def test_everything_is_the_dense_answer(self):
        want = self.run_one(logprobs=5)
        for press in ("hcattention:tau=1", "quest:token_budget=1024", "hcattention:tau=1(quest:token_budget=4096)"):
            got = self.run_one(press, logprobs=5)
            self.assertEqual(got["choices"], want["choices"], press)
            self.assertEqual(got["kv_cache"]["bytes"], want["kv_cache"]["bytes"])

    def test_shares_are_told_and_nothing_is_dropped(self):
        dense = self.run_one()["kv_cache"]
        for press, most_keys, most_values in (("hcattention", 1, 0.5), ("hcattention:tau=0.9", 1, 0.3),
                                              ("quest:token_budget=256", 0.35, 0.35),
                                              ("hcattention(quest:token_budget=256,skip_layers=0)", 0.27, 0.15)):
            with self.subTest(press=press):
                kv = self.run_one({"press": press, "verbose": True})["kv_cache"]
                read = kv["read"]
                steps = 23  # the first token is the prompt's
                self.assertEqual(read["rows"], 30 * 3 * sum(1000 + 1 + i for i in range(steps)))
                self.assertEqual(read["key_share"], read["key_rows"] / read["rows"])
                self.assertEqual(read["value_share"], read["value_rows"] / read["rows"])
                self.assertLessEqual(read["key_share"], most_keys)
                self.assertLessEqual(read["value_share"], most_values)
                self.assertEqual((kv["bytes"], kv["ratio"], kv["tokens_kept"]), (dense["bytes"], 0, dense["tokens_kept"]))
                self.assertEqual(read["bounds_bytes"] > 0, "quest" in press)
                self.assertLess(read["bounds_bytes"], 0.08 * kv["bytes"])
                layers = kv["layers"]
                self.assertAlmostEqual(sum(x["value_share"] for x in layers) / 30, read["value_share"], 9)
                if press.startswith("quest"):
                    self.assertEqual([x["key_share"] for x in layers[:2]], [1, 1])
                common.say(f"{press}: {read['key_share']:.3f} of the keys, {read['value_share']:.3f} of the values")

    def test_around_all_kinds(self):
        for press, kv_type, left in (("hcattention(snapkv)@0.5", "f16", 300), ("quest:token_budget=128(expected_attention)@0.5", "q4", 300),
                                     ("quest:token_budget=64(decoding:compression_interval=8,target_size=200(knorm))", "q8_0", 208),
                                     ("hcattention(quest:token_budget=128(prefill_decoding(adakv(snapkv)@0.5,"
                                      "decoding:compression_interval=8,target_size=200(tova))))", "q8_0", 308)):
            with self.subTest(press=press, kv_type=kv_type):
                kv = self.run_one({"press": press, "kv_type": kv_type}, n=600)["kv_cache"]
                self.assertEqual((kv["press"], kv["kv_type"]), (press.replace("@0.5", ""), kv_type))
                self.assertLessEqual(kv["tokens_kept"], left + 24)
                self.assertLess(kv["read"]["value_share"], 0.75)

    def test_answers_do_not_depend_on_who_else_runs(self):
        wishes = ["none", "hcattention", "quest:token_budget=128", "hcattention:tau=0.8(quest:token_budget=256(knorm))@0.3"]
        job = lambda w: self.run_one(w, n=700, tokens=40)["choices"][0]["text"]
        alone = [job(w) for w in wishes]
        self.assertEqual(common.parallel([lambda w=w: job(w) for w in wishes]), alone)

    def test_several_answers(self):
        r = common.complete(self.s, common.ids(self.s, 500), 40, n=2, compression="quest:token_budget=128")
        self.assertEqual(r["choices"][0]["text"], r["choices"][1]["text"])
        kv = r["kv_cache"]
        self.assertEqual(kv["read"]["rows"], sum(x["read"]["rows"] for x in kv["sequences"]))

    def test_metrics_count_rows(self):
        total = lambda name: common.pressd.total(self.s.metrics(), f"pressd_press_{name}_total", press="hcattention")
        before = [total(x) for x in ("rows", "value_rows_read")]
        read = self.run_one("hcattention", tokens=8)["kv_cache"]["read"]
        self.assertTrue(common.wait_until(lambda: total("rows") == before[0] + read["rows"], 2))
        self.assertEqual(total("value_rows_read"), before[1] + read["value_rows"])

    def test_explained_with_its_name(self):
        r = self.s.ask("/v1/compression/explain", {"prompt": common.ids(self.s, 300), "compression": {"press": "quest(knorm)", "ratio": 0.5}})
        self.assertEqual((r["press"], r["ratio"]), ("quest(knorm)", 0.5))

    def test_listed_and_refused(self):
        presses = {p["name"]: p for p in self.s.get("/v1/presses")[2]["data"]}
        for name in ("hcattention", "quest"):
            self.assertEqual((presses[name]["kind"], presses[name]["can"], presses[name]["takes_ratio"]), ("reading", ["read"], False))
        for compression, param in (({"press": "hcattention", "params": {"tau": 0}}, "compression.params.tau"),
                                   ({"press": "quest:token_budget=10"}, "compression.press"),
                                   ({"press": "knorm(quest)", "ratio": 0.5}, "compression.press"),
                                   ({"press": "hcattention(hcattention)"}, "compression.press")):
            status, _, reply = self.s.post(C, {"prompt": "x", "compression": compression})
            self.assertEqual((status, reply["error"]["param"]), (400, param), compression)


if __name__ == "__main__":
    unittest.main()
