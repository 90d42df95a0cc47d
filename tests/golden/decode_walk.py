#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write data/decode_walk.bin: what the decode presses of kvpress 0.5.5 keep of one stream of tokens, for
tests/unit/test_decode_press.c.

    decode_walk.py [--out DIR]

One attention layer sees a prompt and then token after token; keys, values and queries are drawn as in
presses_unit.py, and the press's own hook is called after each token, as the reference does.  After each
step that changed something the positions it still holds are stored.  Only what the reference computes
from true positions is here: children that ask for a window or for moments of queries see other rows than
ours (compression/decoding.c says which), and decoding there leaves slots in the order of their scores, so
that streaming_llm takes other tokens for the oldest the second time (cam sorts them by time).

cam's draws come from the generator that pressd uses (seeded by seed, layer and tokens seen), in place of
torch's, so that merged values can be compared too.  File, little-endian, per case:

  one text line  "walk <seed> <tokens> <head_dim> <query heads> <kv heads> <prompt> <press>\\n"
  records        u32 tokens seen; bits [H][ceil(tokens / 8)], 1 = held, position 0 = highest bit
  u32 0          end of the records
  cam            u32 n; f32 values [H][n][D] of what is held at the end

Needs torch and kvpress; takes seconds.
"""

import argparse
import os
import struct

import numpy as np
import torch
from kvpress import (CAMPress, CompressionRatioDecodingPress, DecodingPress, DMSPress, KeyDiffPress, KnormPress,
                     StreamingLLMPress, TOVAPress)
from transformers import DynamicCache

from presses_unit import inputs

SEED, LAYER = 99, 3  # of tests/unit/press_view.h
SHAPE = (16, 6, 2)   # head_dim, query heads, kv heads


def u64(state):
    """One step of splitmix64: (state, value)."""
    with np.errstate(over="ignore"):
        state = np.uint64(state) + np.uint64(0x9E3779B97F4A7C15)
        z = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return state, z ^ z >> np.uint64(31)


class Draws:
    """torch.bernoulli for the pruning when `seen` tokens were seen."""

    seen = 0

    def __call__(self, p):
        state = u64(SEED ^ LAYER << 40 ^ self.seen)[1]
        out = torch.empty(p.numel())
        for i, q in enumerate(p.flatten().tolist()):
            state, z = u64(state)
            out[i] = float(float(int(z) >> 11) * 2.0**-53 < q)
        return out.reshape(p.shape)


PRESSES = {
    "decoding:compression_interval=7,target_size=33(knorm)":
        lambda: DecodingPress(KnormPress(), compression_interval=7, target_size=33),
    "decoding:compression_interval=16,target_size=20(keydiff)":
        lambda: DecodingPress(KeyDiffPress(), compression_interval=16, target_size=20),
    "decoding:compression_interval=9,target_size=30(tova)":
        lambda: DecodingPress(TOVAPress(), compression_interval=9, target_size=30),
    "compression_ratio_decoding:target_compression_ratio=0.6,compression_interval=11(knorm)":
        lambda: CompressionRatioDecodingPress(KnormPress(), target_compression_ratio=0.6, compression_interval=11),
    "cam:compression_interval=8,target_size=36,merge_budget=5(knorm)":
        lambda: CAMPress(KnormPress(), compression_interval=8, target_size=36, merge_budget=5),
    "cam:compression_interval=13,target_size=61,merge_budget=40(keydiff)":
        lambda: CAMPress(KeyDiffPress(), compression_interval=13, target_size=61, merge_budget=40),
    "cam:compression_interval=1,target_size=25,merge_budget=3(tova)":
        lambda: CAMPress(TOVAPress(), compression_interval=1, target_size=25, merge_budget=3),
    "cam:compression_interval=5,target_size=24,merge_budget=7(streaming_llm)":
        lambda: CAMPress(StreamingLLMPress(), compression_interval=5, target_size=24, merge_budget=7),
    "dms:threshold=-4.7,sliding_window_size=12(knorm)":
        lambda: DMSPress(KnormPress(), threshold=-4.7, sliding_window_size=12),
    "dms:threshold=-4.6,sliding_window_size=12,decoding=true(knorm)":
        lambda: DMSPress(KnormPress(), threshold=-4.6, sliding_window_size=12, decoding=True),
    "dms:threshold=-4.4,sliding_window_size=60,decoding=true(knorm)":
        lambda: DMSPress(KnormPress(), threshold=-4.4, sliding_window_size=60, decoding=True),
}


def held(module, cache, keys):
    """bool [H][tokens]: the tokens whose keys the layer still holds unmasked."""
    now = cache.layers[0].keys[0]
    out = torch.zeros(keys.shape[1:3], dtype=torch.bool)
    for h in range(keys.shape[1]):
        same = (now[h][:, None] == keys[0, h][None]).all(-1)  # [slots][tokens]
        assert (same.sum(-1) == 1).all()
        slot_to_token = same.int().argmax(-1)
        masked = torch.zeros(now.shape[1], dtype=torch.bool)
        if module.masked_key_indices is not None:
            _, heads, slots = module.masked_key_indices
            masked[slots[heads == h]] = True
        out[h, slot_to_token[~masked]] = True
    return out


def walk(f, name, press, seed, n, prompt, draws):
    d, hq, h = SHAPE
    module, queries, keys, values, _, _ = inputs(seed, n, d, hq, h)
    module.layer_idx = 0
    module.masked_key_indices = None
    cache = DynamicCache()
    f.write(f"walk {seed} {n} {d} {hq} {h} {prompt} {name}\n".encode())
    before = None
    for begin, end in [(0, prompt)] + [(t, t + 1) for t in range(prompt, n)]:
        # values are merged in place: a copy goes into the cache
        cache.update(keys[:, :, begin:end].clone(), values[:, :, begin:end].clone(), 0)
        draws.seen = end
        slots = cache.layers[0].keys.shape[2]
        positions = torch.arange(begin, end)[None]
        kwargs = {"hidden_states": queries[:, begin:end], "past_key_values": cache, "position_ids": positions,
                  "cache_position": torch.arange(slots - (end - begin), slots),
                  "position_embeddings": module.rotary_emb(keys, positions)}
        press.forward_hook(module, [], kwargs, [None, None])
        now = held(module, cache, keys)
        grown = torch.zeros_like(now) if before is None else before.clone()
        grown[:, begin:end] = True
        if not torch.equal(now, grown):
            f.write(struct.pack("<I", end) + np.packbits(now.numpy(), axis=-1).tobytes())
        before = now
    f.write(struct.pack("<I", 0))
    if name.startswith("cam"):
        v = cache.layers[0].values[0]
        f.write(struct.pack("<I", v.shape[1]) + v.numpy().astype("<f4").tobytes())


@torch.inference_mode()
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "data"))
    a = p.parse_args()
    torch.set_num_threads(1)
    torch.bernoulli = draws = Draws()
    path = os.path.join(a.out, "decode_walk.bin")
    with open(path, "wb") as f:
        for seed, n, prompt in ((2001, 150, 40), (2002, 97, 10)):
            for name, make in PRESSES.items():
                walk(f, name, make(), seed, n, prompt, draws)
    print(f"{path}: {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    main()
