#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write data/presses_unit.bin: scores and kept sets of kvpress 0.5.5 on small seeded inputs, for
tests/unit/test_press_golden.c.

    presses_unit.py [--out DIR]

The inputs are drawn by splitmix64 exactly as tests/unit/press_view.h draws them (order: offset, queries,
keys, values; the output projection from a seed of its own), so only the answers are stored.  A stand-in for the attention layer hands the queries
through: its projection is the identity.  File, little-endian, per case:

  one text line  "case <seed> <tokens> <head_dim> <query heads> <kv heads> <ratio> <scores 0|1> <press>\\n"
  f32 scores [H][L]        if scores = 1
  bits [H][ceil(L / 8)]    1 = kept, first slot = highest bit

Needs torch and kvpress; takes seconds.
"""

import argparse
import os
import types

import numpy as np
import torch
import kvpress
from kvpress import (AdaKVPress, ExpectedAttentionPress, KeyDiffPress, KeyRerotationPress, KnormPress, RandomPress,
                     SnapKVPress, StreamingLLMPress, TOVAPress)
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

THETA = 10000.0
SHAPES = ((1001, 40, 16, 6, 2), (1002, 97, 16, 6, 2), (1003, 200, 16, 6, 2), (1004, 131, 32, 4, 4))
RATIO = 0.5

PRESSES = {
    "random:seed=7": lambda: RandomPress(seed=7),
    "knorm": KnormPress,
    "keydiff": KeyDiffPress,
    "streaming_llm": StreamingLLMPress,
    "streaming_llm:n_sink=11": lambda: StreamingLLMPress(n_sink=11),
    "snapkv": SnapKVPress,
    "snapkv:window_size=13,kernel_size=3": lambda: SnapKVPress(window_size=13, kernel_size=3),
    "tova": TOVAPress,
    "expected_attention": ExpectedAttentionPress,
    "expected_attention:use_covariance=false": lambda: ExpectedAttentionPress(use_covariance=False),
    "expected_attention:use_vnorm=false": lambda: ExpectedAttentionPress(use_vnorm=False),
    "expected_attention:epsilon=0.01": lambda: ExpectedAttentionPress(epsilon=0.01),
    "expected_attention:n_future_positions=128,n_sink=0": lambda: ExpectedAttentionPress(n_future_positions=128, n_sink=0),
    "adakv(expected_attention)": lambda: AdaKVPress(ExpectedAttentionPress()),
    "adakv:alpha_safeguard=0.7(knorm)": lambda: AdaKVPress(KnormPress(), alpha_safeguard=0.7),
    "adakv(snapkv:window_size=8)": lambda: AdaKVPress(SnapKVPress(window_size=8)),
    "key_rerotation(knorm)": lambda: KeyRerotationPress(KnormPress()),
}


class Draw:
    """splitmix64, uniform in [-1, 1) as f32 (engine/base/rng.h)."""

    def __init__(self, seed):
        self.state = np.uint64(seed)

    def __call__(self, *shape):
        n = int(np.prod(shape))
        with np.errstate(over="ignore"):
            z = self.state + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            self.state = z[-1]
            z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
            z = z ^ z >> np.uint64(31)
        u = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return torch.from_numpy((u * 2.0 - 1.0).astype(np.float32).reshape(shape))


def inputs(seed, n, d, hq, h):
    draw = Draw(seed)
    offset = draw(hq * d)
    queries = 1.5 * draw(n, hq * d) + offset
    keys, values = 2.0 * draw(1, h, n, d), draw(1, h, n, d)
    config = LlamaConfig(num_attention_heads=hq, num_key_value_heads=h, head_dim=d, hidden_size=hq * d,
                         rope_parameters={"rope_type": "default", "rope_theta": THETA})
    config._attn_implementation = "sdpa"
    rotary = LlamaRotaryEmbedding(config=config)
    o_proj = types.SimpleNamespace(weight=Draw(seed + 500000)(hq * d, hq * d))
    module = types.SimpleNamespace(config=config, o_proj=o_proj, head_dim=d, rotary_emb=rotary, q_proj=lambda x: x,
                                   num_key_value_groups=hq // h, layer_idx=0)
    cos_sin = rotary(keys, torch.arange(n)[None])
    return module, queries[None], keys, values, None, {"position_embeddings": cos_sin}


def answers(press, args):
    module, _, keys = args[:3]
    h, n = keys.shape[1:3]
    scorer = getattr(press, "press", press)
    press.compression_ratio = RATIO
    scores = scorer.score(*args)[0]
    kept = torch.zeros(h, n, dtype=torch.bool)
    if isinstance(press, AdaKVPress):
        press.compress(*args)
        _, heads, slots = module.masked_key_indices
        kept[:] = True
        kept[heads, slots] = False
    else:
        n_kept = kvpress.utils.compute_n_kept(n, RATIO)
        # stable: of equal scores the lower slot, which is our rule and one of the reference's outcomes
        kept.scatter_(1, scores.argsort(dim=-1, descending=True, stable=True)[:, :n_kept], True)
    return scores, kept


@torch.inference_mode()
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "data"))
    a = p.parse_args()
    torch.set_num_threads(1)
    path = os.path.join(a.out, "presses_unit.bin")
    with open(path, "wb") as f:
        for seed, n, d, hq, h in SHAPES:
            args = inputs(seed, n, d, hq, h)
            for name, make in PRESSES.items():
                if name in ("snapkv",) and n <= 64:
                    continue  # shorter than its window
                press = make()
                scores, kept = answers(press, args)
                # a wrapper's scores are its child's; streaming_llm's depend on the ratio there
                with_scores = press is getattr(press, "press", press) and not isinstance(press, StreamingLLMPress)
                f.write(f"case {seed} {n} {d} {hq} {h} {RATIO} {int(with_scores)} {name}\n".encode())
                if with_scores:
                    f.write(scores.numpy().astype("<f4").tobytes())
                f.write(np.packbits(kept.numpy(), axis=-1).tobytes())
    print(f"{path}: {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    main()
