#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write data/presses_unit.bin: scores and kept sets of kvpress 0.5.5 on small seeded inputs, for
tests/unit/test_press_golden.c.

    presses_unit.py [--out DIR]

The inputs are drawn by splitmix64 exactly as tests/unit/press_view.h draws them (order: offset, queries,
keys, values; the output projection from a seed of its own), so only the answers are stored.  A stand-in for the attention layer hands queries and
keys through: its hidden states are both, before RoPE.  Random sketches, which the reference draws unseeded, are those that
compression/sketch.c draws for the view's seed and layer: torch.randn is replaced while a press runs.  File, little-endian, per case:

  one text line  "case <seed> <tokens> <head_dim> <query heads> <kv heads> <ratio> <holds> <press>\\n"
  f32 scores [H][L]        if holds & 1
  bits [H][ceil(L / 8)]    1 = kept, first slot = highest bit
  f32 values [kept][D]     if holds & 2: of every head's kept slots, in their order
  bits [H][ceil(D / 8)]    if holds & 4: 1 = a key channel that is not set to 0

Needs torch and kvpress; takes seconds.
"""

import argparse
import os
import types

import numpy as np
import torch
import kvpress
from kvpress import (BlockPress, ChunkKVPress, ChunkPress, CriticalAdaKVPress, EntropyGatedChunkKVPress, FinchPress,
                     MergingPress, PerLayerCompressionPress, SimLayerKVPress)
from kvpress import (CapPress, CompactorPress, CriticalKVPress, CURPress, LagKVPress, LeverageScorePress,
                     NonCausalAttnPress, ObservedAttentionPress, PyramidKVPress, ThinKPress)
from kvpress import (AdaKVPress, ExpectedAttentionPress, KeyDiffPress, KeyRerotationPress, KnormPress, RandomPress,
                     ScorerPress, SnapKVPress, StreamingLLMPress, TOVAPress)
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, rotate_half

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
    "observed_attention": ObservedAttentionPress,
    "lagkv": LagKVPress,  # too short for two partitions: the most recent
    "lagkv:n_sink=0,lag_size=16": lambda: LagKVPress(n_sink=0, lag_size=16),
    "lagkv:n_sink=7,lag_size=31": lambda: LagKVPress(n_sink=7, lag_size=31),
    "lagkv:lag_size=18,cross_scoring=true": lambda: LagKVPress(lag_size=18, cross_scoring=True),
    "cur": CURPress,
    "cur:num_sinks=0,leverage_type=key,local_window_size=7": lambda: CURPress(
        num_sinks=0, leverage_type="key", local_window_size=7),
    "cur:leverage_type=value,use_local_approximation=false": lambda: CURPress(
        leverage_type="value", use_local_approximation=False),
    "cur:leverage_type=kv_avg,local_window_size=64": lambda: CURPress(leverage_type="kv_avg", local_window_size=64),
    "cur:use_random_leverage=true": lambda: CURPress(use_random_leverage=True),
    "non_causal_attention": NonCausalAttnPress,  # longer than the text: mostly padding
    "non_causal_attention:chunk_size=32": lambda: NonCausalAttnPress(chunk_size=32),
    "non_causal_attention:chunk_size=20": lambda: NonCausalAttnPress(chunk_size=20),
    "non_causal_attention:chunk_size=131": lambda: NonCausalAttnPress(chunk_size=131),
    "leverage": LeverageScorePress,  # more columns than the head has: the jitter carries it
    "leverage:sketch_dimension=9": lambda: LeverageScorePress(sketch_dimension=9),
    "compactor": CompactorPress,
    "compactor:sink_size_start=0,sink_size_end=0,chunk_size=24,blending=0.9": lambda: CompactorPress(
        sink_size_start=0, sink_size_end=0, chunk_size=24, blending=0.9),
    "compactor:sink_size_start=1,sink_size_end=5,chunk_size=64,sketch_dimension=12": lambda: CompactorPress(
        sink_size_start=1, sink_size_end=5, chunk_size=64, sketch_dimension=12),
    "cap": CapPress,
    "cap:tau=1.5,n_future_positions=100,n_sink=0,epsilon=0.01": lambda: CapPress(
        tau=1.5, n_future_positions=100, n_sink=0, epsilon=0.01),
    "critical(expected_attention:use_vnorm=false)": lambda: CriticalKVPress(ExpectedAttentionPress(use_vnorm=False)),
    "critical:epsilon=0.01,first_stage_ratio=0.3(snapkv:window_size=4)": lambda: CriticalKVPress(
        SnapKVPress(window_size=4), 0.01, 0.3),
    "critical:first_stage_ratio=0(knorm)": lambda: CriticalKVPress(KnormPress(), first_stage_ratio=0.0),
    "critical:first_stage_ratio=1(keydiff)": lambda: CriticalKVPress(KeyDiffPress(), first_stage_ratio=1.0),
    "critical:first_stage_ratio=0.001(tova)": lambda: CriticalKVPress(TOVAPress(), first_stage_ratio=0.001),
    "adakv(critical(expected_attention:use_vnorm=false))": lambda: AdaKVPress(
        CriticalKVPress(ExpectedAttentionPress(use_vnorm=False))),
    "adakv(compactor:chunk_size=50)": lambda: AdaKVPress(CompactorPress(chunk_size=50)),
    "adakv(expected_attention)": lambda: AdaKVPress(ExpectedAttentionPress()),
    "adakv:alpha_safeguard=0.7(knorm)": lambda: AdaKVPress(KnormPress(), alpha_safeguard=0.7),
    "adakv(snapkv:window_size=8)": lambda: AdaKVPress(SnapKVPress(window_size=8)),
    "key_rerotation(knorm)": lambda: KeyRerotationPress(KnormPress()),
}


# ---- presses that are more than a score: what their compress() leaves ----

LAYER, LAYERS = 3, 30  # where press_view.h's view stands in test_press_golden.c's model
VIEW_LAYERS, VIEW_SEED = 8, 99  # and what the view itself says


class Chunked:
    """ChunkPress by our definition: each chunk at its true positions, a last chunk below `least` in the one
    before it.  The child is the reference's own."""

    def __init__(self, press, chunk_length, least):
        self.press, self.chunk_length, self.least = press, chunk_length, least

    def compress(self, module, x, keys, values, attentions, kwargs):
        n, step = keys.shape[2], self.chunk_length
        begins = list(range(0, n, step))
        if len(begins) > 1 and n - begins[-1] < self.least:
            begins.pop()
        cos, sin = kwargs["position_embeddings"]
        slots = []
        for b, e in zip(begins, begins[1:] + [n]):
            self.press.begin, self.press.end = b, e
            s = self.press.score(module, x[:, b:e], keys[:, :, b:e], values[:, :, b:e], None,
                                 {"position_embeddings": (cos[:, b:e], sin[:, b:e])})
            slots.append(b + s.topk(max(1, int((e - b) * (1 - self.press.compression_ratio))), dim=-1).indices)
        at = torch.cat(slots, dim=-1)[..., None].expand(-1, -1, -1, keys.shape[-1])
        return keys.gather(2, at), values.gather(2, at)


class ExpectedAttentionAt(ExpectedAttentionPress):
    """Of a chunk [begin, end): sinks are the text's, the future begins at end."""

    def score(self, *args):
        own, self.n_sink = self.n_sink, max(0, self.n_sink - self.begin)
        scores = super().score(*args)
        self.n_sink = own
        return scores

    def apply_avg_rope(self, module, mu, cov, q_len):
        return super().apply_avg_rope(module, mu, cov, self.end)


class Merging(MergingPress):
    """The quantile over the pairs that pass the threshold."""

    def merge(self, keys, values, indices):
        merged = values.clone()
        unit = torch.nn.functional.normalize(keys[0].float(), dim=-1)
        for h in range(keys.shape[1]):
            out = torch.ones(keys.shape[2], dtype=torch.bool)
            out[indices[0, h]] = False
            sim = (unit[h, out] @ unit[h, indices[0, h]].T).max(dim=-1).values
            passing = sim[sim >= self.similarity_threshold]
            one = MergingPress(self.press, similarity_threshold=self.similarity_threshold)
            if self.merge_fraction < 1.0 and len(passing):
                one.similarity_threshold = passing.quantile(1.0 - self.merge_fraction).item()
            merged[:, h:h + 1] = one.merge(keys[:, h:h + 1], values[:, h:h + 1], indices[:, h:h + 1])[1]
        return keys, merged


class PerLayer(PerLayerCompressionPress):
    def compress(self, module, *args):
        self.press.compression_ratio = self.compression_ratios[LAYER]
        return self.press.compress(module, *args)


class Composed:
    def __init__(self, *presses):
        self.presses = presses

    def compress(self, module, x, keys, values, attentions, kwargs):
        for press in self.presses:
            keys, values = press.compress(module, x, keys, values, attentions, kwargs)
        return keys, values


def finch(window, **options):
    press = FinchPress(**options)
    press.window_size = window
    return press


def ratios(at_layer):
    return [0.1] * LAYER + [at_layer] + [0.5] * (LAYERS - LAYER - 1)


# text -> (ratio or None if the press has its own, what holds besides the kept set, the reference)
LAZY = dict(n_recent=20, n_initial=4, n_last=3)
COMPRESSED = {
    "chunk:chunk_length=32(knorm)": (0.5, 0, lambda: ChunkPress(KnormPress(), 32)),
    "chunk:chunk_length=13(keydiff)": (0.7, 0, lambda: ChunkPress(KeyDiffPress(), 13)),
    "chunk:chunk_length=32(snapkv:window_size=8)": (0.5, 0, lambda: Chunked(SnapKVPress(window_size=8), 32, 9)),
    "chunk:chunk_length=40(expected_attention)": (0.4, 0, lambda: Chunked(ExpectedAttentionAt(), 40, 5)),
    "chunkkv(knorm)": (0.5, 0, lambda: ChunkKVPress(KnormPress())),
    "chunkkv:chunk_length=7(expected_attention)": (0.6, 0, lambda: ChunkKVPress(ExpectedAttentionPress(), 7)),
    "chunkkv:chunk_length=50(keydiff)": (0.3, 0, lambda: ChunkKVPress(KeyDiffPress(), 50)),
    "entropy_gated_chunkkv(keydiff)": (0.5, 0, lambda: EntropyGatedChunkKVPress(KeyDiffPress())),
    "entropy_gated_chunkkv(tova)": (0.7, 0, lambda: EntropyGatedChunkKVPress(TOVAPress())),
    "entropy_gated_chunkkv:chunk_length=12,low_entropy_chunk_length=3(expected_attention:n_sink=0)": (
        0.4, 0, lambda: EntropyGatedChunkKVPress(ExpectedAttentionPress(n_sink=0), 12, 3)),
    "block(knorm)": (0.5, 0, lambda: BlockPress(KnormPress())),
    "block:block_size=16(keydiff)": (0.6, 0, lambda: BlockPress(KeyDiffPress(), 16)),
    "merging(knorm)": (0.5, 2, lambda: MergingPress(KnormPress())),
    "merging:similarity_threshold=0.6(keydiff)": (
        0.7, 2, lambda: MergingPress(KeyDiffPress(), similarity_threshold=0.6)),
    "merging:merge_fraction=0.6(knorm)": (0.5, 2, lambda: MergingPress(KnormPress(), merge_fraction=0.6)),
    "merging:similarity_threshold=0.6,merge_fraction=0.7(knorm)": (
        0.6, 2, lambda: Merging(KnormPress(), similarity_threshold=0.6, merge_fraction=0.7)),
    "per_layer:compression_ratios=0.1*3;0.7;0.5*26(knorm)": (None, 0, lambda: PerLayer(KnormPress(), ratios(0.7))),
    "per_layer:compression_ratios=0.1*3;0.4;0.5*26(snapkv:window_size=8)": (
        None, 0, lambda: PerLayer(SnapKVPress(window_size=8), ratios(0.4))),
    "composed(knorm,keydiff)": (0.75, 0, lambda: Composed(KnormPress(0.5), KeyDiffPress(0.5))),
    "composed(snapkv:window_size=8@0.3,knorm@0.2)": (
        None, 0, lambda: Composed(SnapKVPress(0.3, window_size=8), KnormPress(0.2))),
    "composed(keydiff@0.4,merging(knorm)@0.3,knorm@0.1)": (
        None, 2, lambda: Composed(KeyDiffPress(0.4), MergingPress(KnormPress(0.3)), KnormPress(0.1))),
    "pyramidkv": (0.5, 0, PyramidKVPress),  # shorter than its pyramid
    "pyramidkv:window_size=13,kernel_size=3": (0.5, 1, lambda: PyramidKVPress(window_size=13, kernel_size=3)),
    "pyramidkv:window_size=4,beta=3": (0.6, 0, lambda: PyramidKVPress(window_size=4, beta=3)),
    "pyramidkv:window_size=2,beta=5": (0.3, 0, lambda: PyramidKVPress(window_size=2, beta=5)),
    "pyramidkv:window_size=2,beta=20": (0.7, 0, lambda: PyramidKVPress(window_size=2, beta=20)),
    "pyramidkv:window_size=2,beta=1": (0.45, 0, lambda: PyramidKVPress(window_size=2, beta=1)),
    "chunk:chunk_length=32(non_causal_attention:chunk_size=10)": (
        0.5, 0, lambda: Chunked(NonCausalAttnPress(chunk_size=10), 32, 1)),
    "chunk:chunk_length=40(critical(knorm))": (0.6, 0, lambda: Chunked(CriticalKVPress(KnormPress()), 40, 1)),
    "chunkkv:chunk_length=9(cap)": (0.5, 0, lambda: ChunkKVPress(CapPress(), 9)),
    "merging(critical(knorm))": (0.5, 2, lambda: MergingPress(CriticalKVPress(KnormPress()))),
    "critical_adakv(expected_attention:use_vnorm=false)": (
        0.5, 0, lambda: CriticalAdaKVPress(ExpectedAttentionPress(use_vnorm=False))),
    "critical_adakv:alpha_safeguard=0.6,epsilon=0.01,first_stage_ratio=0.3(snapkv:window_size=8)": (
        0.6, 0, lambda: CriticalAdaKVPress(SnapKVPress(window_size=8), 0.6, 0.01, 0.3)),
    "critical_adakv:first_stage_ratio=0(knorm)": (
        0.5, 0, lambda: CriticalAdaKVPress(KnormPress(), first_stage_ratio=0.0)),
    "simlayerkv:lazy_threshold=0.1,n_last=3,n_recent=20": (None, 0, lambda: SimLayerKVPress(0.1, **LAZY)),
    "simlayerkv:lazy_threshold=0.3,n_last=3,n_recent=20": (None, 0, lambda: SimLayerKVPress(0.3, **LAZY)),
    "simlayerkv:n_last=3,n_recent=20": (None, 0, lambda: SimLayerKVPress(1.0, **LAZY)),
    "think:key_channel_compression_ratio=0.5": (None, 4, lambda: ThinKPress(0.5)),
    "think:key_channel_compression_ratio=0.3,window_size=7": (None, 4, lambda: ThinKPress(0.3, 7)),
    "think:key_channel_compression_ratio=0.95,window_size=1": (None, 4, lambda: ThinKPress(0.95, 1)),
    "composed(knorm@0.5,think:key_channel_compression_ratio=0.4)": (
        None, 4, lambda: Composed(KnormPress(0.5), ThinKPress(0.4))),
    "composed(think:key_channel_compression_ratio=0.6,knorm@0.5)": (
        None, 4, lambda: Composed(ThinKPress(0.6), KnormPress(0.5))),
    "finch:window_size=9": (0.5, 1, lambda: finch(9)),
    "finch:window_size=9,normalize_scores=false": (0.6, 1, lambda: finch(9, normalize_scores=False)),
    "finch:window_size=5,chunk_length=20,rerotate_keys=false": (
        0.5, 0, lambda: finch(5, chunk_length=20, rerotate_keys=False)),
}
VALUES_SHAPES = 2  # of SHAPES: those whose new values are stored too


class Draw:
    """splitmix64 (engine/base/rng.h); called, uniform in [-1, 1) as f32."""

    def __init__(self, seed):
        self.state = np.uint64(seed)

    def bits(self, n):
        with np.errstate(over="ignore"):
            z = self.state + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            self.state = z[-1]
            z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
            return z ^ z >> np.uint64(31)

    def unit(self, n):
        return (self.bits(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def __call__(self, *shape):
        u = self.unit(int(np.prod(shape)))
        return torch.from_numpy((u * 2.0 - 1.0).astype(np.float32).reshape(shape))


class Normals:
    """torch.randn for one call: the standard normals of compression/sketch.c."""

    def __init__(self, seed=VIEW_SEED, layer=LAYER):
        self.seed, self.layer = seed, layer

    def __enter__(self):
        self.randn = torch.randn
        torch.randn = self.draw
        return self

    def __exit__(self, *_):
        torch.randn = self.randn

    def draw(self, *shape, **_):
        n = int(np.prod(shape))
        of_layer = Draw(Draw(self.seed).bits(1)[0] ^ np.uint64(self.layer))
        u = Draw(of_layer.bits(1)[0]).unit(n + n % 2)
        r, angle = np.sqrt(-2.0 * np.log(1.0 - u[0::2])), 2.0 * np.pi * u[1::2]
        z = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=-1).reshape(-1)[:n]
        return torch.from_numpy(z.astype(np.float32).reshape(shape))


def inputs(seed, n, d, hq, h):
    draw = Draw(seed)
    offset = draw(hq * d)
    queries = 1.5 * draw(n, hq * d) + offset
    keys, values = 2.0 * draw(1, h, n, d), draw(1, h, n, d)
    config = LlamaConfig(num_attention_heads=hq, num_key_value_heads=h, head_dim=d, hidden_size=hq * d,
                         num_hidden_layers=VIEW_LAYERS,
                         rope_parameters={"rope_type": "default", "rope_theta": THETA})
    config._attn_implementation = "sdpa"
    rotary = LlamaRotaryEmbedding(config=config)
    o_proj = types.SimpleNamespace(weight=Draw(seed + 500000)(hq * d, hq * d))
    module = types.SimpleNamespace(config=config, o_proj=o_proj, head_dim=d, rotary_emb=rotary,
                                   q_proj=lambda x: x[..., :hq * d], k_proj=lambda x: x[..., hq * d:],
                                   num_key_value_groups=hq // h, layer_idx=LAYER)
    cos_sin = rotary(keys, torch.arange(n)[None])
    cos, sin = (x[:, None].double() for x in cos_sin)
    raw_keys = (keys * cos - rotate_half(keys) * sin).float()  # the cache's turned back
    hidden = torch.cat([queries, raw_keys[0].transpose(0, 1).reshape(n, h * d)], dim=-1)
    return module, hidden[None], keys, values, None, {"position_embeddings": cos_sin, "hidden_states": hidden[None]}


def causal_attention(args):
    """[1][Hq][L][L] weights, as the materialised attention hands them to a press."""
    module, hidden, keys = args[:3]
    n, d = keys.shape[2:]
    cos, sin = (x[:, None] for x in args[5]["position_embeddings"])
    q = module.q_proj(hidden).view(1, n, -1, d).transpose(1, 2)
    q = q * cos + rotate_half(q) * sin
    logits = q @ keys.repeat_interleave(module.num_key_value_groups, dim=1).transpose(2, 3) / d**0.5
    return logits.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf")).softmax(dim=-1)


def scorer_of(press):
    return press if isinstance(press, ScorerPress) else press.press


def answers(press, args):
    module, _, keys = args[:3]
    h, n = keys.shape[1:3]
    scorer = scorer_of(press)
    press.compression_ratio = RATIO
    if isinstance(scorer, ObservedAttentionPress):
        args = *args[:4], causal_attention(args), args[5]
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


def compressed(press, ratio, args):
    """[H][L] kept, [kept][D] their values and [H][D] the key channels that are not 0: slots are known by their keys, or by their values when the
    press moves the keys."""
    module, _, keys, values = args[:4]
    leaf = press
    while ratio is not None and hasattr(leaf, "press"):
        leaf = leaf.press
    for p in leaf.presses if hasattr(leaf, "presses") else [leaf]:
        if ratio is not None and not isinstance(press, Composed):
            p.compression_ratio = ratio
    module.masked_key_indices = None
    k, v = press.compress(module, args[1], keys.clone(), values.clone(), *args[4:])
    if module.masked_key_indices is not None:
        kept = torch.ones(keys.shape[1:3], dtype=torch.bool)
        kept[module.masked_key_indices[1], module.masked_key_indices[2]] = False
        return kept, values[0][kept], None
    same = (k[0][:, None] == keys[0][:, :, None]).all(-1)  # [H][L][n_kept]
    if same.sum() < k.shape[1] * k.shape[2]:
        same = (v[0][:, None] == values[0][:, :, None]).all(-1)
    kept = same.any(-1)
    assert (same.sum(-1) <= 1).all() and kept.sum() == k.shape[1] * k.shape[2]
    return kept, v[0][torch.nonzero(same)[:, 0], torch.nonzero(same)[:, 2]], (k[0] != 0).any(1)


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
                with Normals():
                    scores, kept = answers(press, args)
                # a wrapper's scores are its child's; streaming_llm's depend on the ratio there
                with_scores = press is scorer_of(press) and not isinstance(press, StreamingLLMPress)
                f.write(f"case {seed} {n} {d} {hq} {h} {RATIO} {int(with_scores)} {name}\n".encode())
                if with_scores:
                    f.write(scores.numpy().astype("<f4").tobytes())
                f.write(np.packbits(kept.numpy(), axis=-1).tobytes())
            for name, (ratio, holds, make) in COMPRESSED.items():
                if name in ("pyramidkv",) and n <= 128:
                    continue  # the window alone, all of one score, is more than the budget
                press = make()
                kept, values, channels = compressed(press, ratio, args)
                if SHAPES.index((seed, n, d, hq, h)) >= VALUES_SHAPES:
                    holds &= ~2
                f.write(f"case {seed} {n} {d} {hq} {h} {ratio or 0.0} {holds} {name}\n".encode())
                if holds & 1:
                    f.write(press.score(*args)[0].numpy().astype("<f4").tobytes())
                f.write(np.packbits(kept.numpy(), axis=-1).tobytes())
                if holds & 2:
                    f.write(values.numpy().astype("<f4").tobytes())
                if holds & 4:
                    f.write(np.packbits(channels.numpy(), axis=-1).tobytes())
    print(f"{path}: {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    main()
