# SPDX-License-Identifier: Apache-2.0
"""4,000 generated tokens under each press that works meanwhile: the cache holds its bound, and so does the process.

Run by long.sh; ends as run.py does.  $PRESSD_TEST_TOKENS says another number.
"""

import os
import sys
import unittest

import bound
import common
import run

TOKENS = int(os.environ.get("PRESSD_TEST_TOKENS", "4000"))
PROMPT, TARGET, INTERVAL, RATIO = 200, 256, 32, 0.75
SHAPE = common.SHAPES["smollm2"]
EVERY = f"compression_interval={INTERVAL},target_size={TARGET}"


def fixed(_):
    """A head holds the larger of prompt and target, and an interval."""
    return SHAPE.paged(max(PROMPT, TARGET) + INTERVAL)


def uneven(_):
    """As fixed, where each head's last page may be another."""
    return SHAPE.paged(max(PROMPT, TARGET) + INTERVAL + common.PAGE)


def share(n):
    """What a pruning leaves of all tokens seen, the prompt before the first one, and an interval."""
    return SHAPE.paged(max(PROMPT, int((PROMPT + n) * (1 - RATIO)) + 1) + INTERVAL)


PRESSES = {
    f"decoding:{EVERY}(knorm)": fixed,
    f"decoding:{EVERY}(expected_attention)": fixed,
    f"decoding:{EVERY}(snapkv:window_size=16)": fixed,
    f"decoding:{EVERY}(critical(tova))": fixed,
    f"decoding:{EVERY}(merging(keydiff))": fixed,
    f"decoding:{EVERY}(adakv(expected_attention))": uneven,
    f"cam:{EVERY}(knorm)": fixed,
    f"prefill_decoding(snapkv,decoding:{EVERY}(streaming_llm))@0.5": fixed,
    f"compression_ratio_decoding:compression_interval={INTERVAL},target_compression_ratio={RATIO}(tova)": share,
    f"hcattention(quest:token_budget=128(decoding:{EVERY}(lagkv:lag_size=16)))": fixed,
    # nothing scores above 0: what leaves the window goes
    f"dms:threshold=0,sliding_window_size={TARGET},decoding=true(knorm)": fixed,
}


class Bounds(unittest.TestCase):
    def test_every_decode_press_is_here(self):
        listed = {p["name"] for p in common.server().get("/v1/presses")[2]["data"] if "decode" in p["can"]}
        self.assertEqual({n for n in listed if not any(p.startswith(n) for p in PRESSES)}, set())


def one(press, of):
    def test(self):
        s = common.server()
        bound.check(self, s, SHAPE, common.ids(s, PROMPT), TOKENS, press, of)
    return test


for i, (press, of) in enumerate(PRESSES.items()):
    setattr(Bounds, f"test_{i:02}_{press.split(':')[0].split('(')[0]}", one(press, of))

if __name__ == "__main__":
    sys.exit(run.end(unittest.defaultTestLoader.loadTestsFromTestCase(Bounds)))
