# SPDX-License-Identifier: Apache-2.0
"""Presses that work while tokens are generated: memory stays at the bound, both spellings, every kind."""

import unittest

import bound
import common

C = "/v1/completions"
SHAPE = common.SHAPES["smollm2"]


class Bound(unittest.TestCase):
    """A long answer whose memory, in the pool and in the process, does not grow with it (long.sh: 4,000 tokens)."""

    TARGET, INTERVAL, TOKENS = 128, 64, 1000

    def test_pool_and_rss_stay_at_the_bound(self):
        s = common.server()
        press = f"decoding:compression_interval={self.INTERVAL},target_size={self.TARGET}(knorm)"
        bound.check(self, s, SHAPE, common.ids(s, 100), self.TOKENS, press, lambda n: SHAPE.paged(self.TARGET + self.INTERVAL),
                    least=SHAPE.paged(self.TARGET))


class Kinds(unittest.TestCase):
    def setUp(self):
        self.s = common.server()

    def run_one(self, compression, n=120, tokens=160, **extra):
        return common.complete(self.s, common.ids(self.s, n), tokens, compression=compression, **extra)

    def test_two_spellings(self):
        want = self.run_one({"decode": {"press": "expected_attention", "interval": 16, "target_tokens": 96}}, tokens=50)
        text = "decoding:compression_interval=16,target_size=96(expected_attention)"
        self.assertEqual(want["kv_cache"]["press"], text)
        tree = {"name": "decoding", "params": {"compression_interval": 16, "target_size": 96}, "press": "expected_attention"}
        for other in (text, {"press": text}, {"press": tree}, {"press": {"name": "prefill_decoding", "decoding_press": tree}},
                      {"decode": {"press": text}}):
            got = self.run_one(other, tokens=50)
            self.assertEqual(got["choices"], want["choices"], other)
            self.assertEqual(got["kv_cache"]["press"], text)
            self.assertEqual(got["usage"]["kv_cache_bytes"], want["usage"]["kv_cache_bytes"])
        got = common.complete(self.s, common.ids(self.s, 120), 50, model=f"smollm2@{text}")
        self.assertEqual(got["choices"], want["choices"])

    def test_prompt_and_answer(self):
        r = self.run_one("prefill_decoding(snapkv,decoding:compression_interval=32,target_size=80(adakv(expected_attention)))@0.5",
                         verbose=True, n=256)
        self.assertEqual(r["kv_cache"]["bytes_after_prefill"], SHAPE.paged(128))
        self.assertEqual(r["kv_cache"]["ratio"], 0.5)
        self.assertLessEqual(r["kv_cache"]["tokens_kept"], 80 + 32)
        self.assertGreater(r["kv_cache"]["tokens_kept"], 79)

    def test_ratio_of_all_tokens_seen(self):
        r = self.run_one("compression_ratio_decoding:target_compression_ratio=0.75,compression_interval=20(keydiff)", n=100, tokens=201)
        self.assertEqual(r["kv_cache"]["tokens_kept"], 75)  # of 300, pruned at the last step
        self.assertEqual(r["usage"]["kv_cache_bytes"], SHAPE.paged(75))

    def test_cam_repeats_with_its_seed(self):
        press = "cam:compression_interval=16,target_size=64(knorm)"
        a, b, c = (self.run_one({"press": press, "seed": seed}, logprobs=1)["choices"] for seed in (5, 5, 6))
        self.assertEqual(a, b)
        self.assertNotEqual(a, c)

    def test_dms_frees_what_leaves_the_window(self):
        """Thresholds are on the scale of the press inside; the tokens that go are really gone."""
        kept = [self.run_one(f"dms:threshold={t},sliding_window_size=32,decoding=true(knorm)")["kv_cache"]["tokens_kept"]
                for t in (-1000, -20, 0)]
        self.assertEqual(kept[0], 279)
        self.assertLess(kept[1], kept[0])
        self.assertEqual(kept[2], 32)
        r = self.run_one("dms:threshold=0,sliding_window_size=32(knorm)")
        self.assertEqual(r["kv_cache"]["bytes_after_prefill"], SHAPE.paged(32))
        self.assertEqual(r["kv_cache"]["tokens_kept"], 32 + 159)
        common.say("dms keeps", kept, "of 279")

    def test_listed(self):
        presses = {p["name"]: p for p in self.s.get("/v1/presses")[2]["data"]}
        for name in ("decoding", "compression_ratio_decoding", "prefill_decoding", "cam", "dms"):
            self.assertIn("decode", presses[name]["can"], name)
        self.assertEqual(presses["decoding"]["accepts"]["must"], ["prune_step"])
        self.assertIn("decode_only", presses["cam"]["can"])
        self.assertNotIn("decode_only", presses["dms"]["can"])

    def test_metrics_name_the_press(self):
        before = common.pressd.total(self.s.metrics(), "pressd_press_requests_total", press="cam")
        self.run_one("cam:compression_interval=16,target_size=64(knorm)", tokens=4)
        self.assertTrue(common.wait_until(
            lambda: common.pressd.total(self.s.metrics(), "pressd_press_requests_total", press="cam") == before + 1, 2))

    def test_contradictions(self):
        for compression, param in (
                ({"press": "decoding(knorm)", "decode": {"press": "knorm", "target_tokens": 9}}, "compression.decode.press"),
                ({"press": "decoding(knorm)", "ratio": 0.5}, "compression.ratio"),
                ({"press": "dms(knorm)"}, "compression.press"),
                ({"press": "dms:threshold=1,decoding=true(snapkv)"}, "compression.press"),
                ({"press": "prefill_decoding(knorm,decoding(knorm))"}, "compression.ratio"),
                ({"press": "decoding(key_rerotation(knorm))"}, "compression.press")):
            status, _, reply = self.s.post(C, {"prompt": "x", "compression": compression})
            self.assertEqual((status, reply["error"]["param"]), (400, param), compression)


if __name__ == "__main__":
    unittest.main()
