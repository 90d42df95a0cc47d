# SPDX-License-Identifier: Apache-2.0
"""Every press on the small models of arch_models.py, by kvpress: what arch.py stores for check_presses.py.

The machinery is presses_model.py's.  Its presses run with windows that suit prompts of SHORT and LONG tokens,
those that need trained tensors with arch_models.press_data(), and those that prune while decoding as walks.
"""

import types

import torch
from kvpress import (AdaKVPress, ChunkKVPress, ChunkPress, ComposedPress, CompressionRatioDecodingPress,
                     CriticalKVPress, DecodingPress, DMSPress, DuoAttentionPress, ExpectedAttentionPress, ExpectedAttentionStatsPress, KeyDiffPress, KeyRerotationPress,
                     KnormPress, KVzapPress, LagKVPress, LUKVPress, PerLayerCompressionPress, PrefillDecodingPress, QFilterPress,
                     SnapKVPress, TOVAPress)
from kvpress.attention_patch import attention_patch
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma2 import modeling_gemma2

import arch_models
import presses_model
from presses_model import Ref, at

SHORT, LONG = 70, 300
RATIOS = (0.5, 0.9)
WALK = 8

# Gemma 2's attention under a name of its own: the presses that hide pairs refuse "eager", and the others cannot cap.
def capped(module, query, key, value, attention_mask, *args, **kw):
    if attention_mask is not None:  # of the layers that are not pressed; pairs that are left are all older
        attention_mask = attention_mask[..., -key.shape[-2]:]
    # weights are not handed out, as by any other implementation but "eager": tova and snapkv would take them, capped
    return modeling_gemma2.eager_attention_forward(module, query, key, value, attention_mask, *args, **kw)[0], None


ALL_ATTENTION_FUNCTIONS.register("capped", attention_patch(capped))
ALL_MASK_ATTENTION_FUNCTIONS.register("capped", ALL_MASK_ATTENTION_FUNCTIONS["eager"])

# of presses_model.PRESSES; the others need windows of 64 tokens or ratios for 30 layers, and follow below
PLAIN = ("random:seed=42", "knorm", "keydiff", "streaming_llm", "tova", "expected_attention",
         "expected_attention:use_covariance=false", "pyramidkv:window_size=8", "cur", "non_causal_attention", "cap", "leverage",
         "compactor", "observed_attention", "critical(expected_attention)", "adakv(expected_attention)", "key_rerotation(knorm)",
         "critical_adakv(expected_attention)", "entropy_gated_chunkkv(expected_attention)", "block(keydiff)",
         "merging(expected_attention)", "simlayerkv:lazy_threshold=0.8,n_recent=32",
         "think:key_channel_compression_ratio=0.5", "finch:window_size=16")
HIDING = (AdaKVPress, DuoAttentionPress, DMSPress, LUKVPress)  # and what wraps them: pairs stay in the cache, hidden

NO_CAM = "not judged: it merges by draws from torch's generator; with our draws it is judged by decode_walk.py"
NO_HIDING = "no walk: kvpress hides a pair by a key of very low score, which the soft cap lifts again"


def linear(w, b):
    layer = torch.nn.Linear(w.shape[1], w.shape[0])
    layer.weight, layer.bias = (torch.nn.Parameter(x.clone(), requires_grad=False) for x in (w, b))
    return layer


class Data:
    """arch_models.press_data() as the reference's presses take it."""

    def __init__(self, name):
        self.t = {k: torch.tensor(t.data.tolist(), dtype=torch.float32).reshape(t.shape)
                  for k, t in arch_models.press_data(name).items()}

    def stats(self):
        press = ExpectedAttentionStatsPress()
        press.mu, press.cov = self.t["expected_attention.query_mean"], self.t["expected_attention.query_cov"]
        return press

    def qfilter(self):
        press = QFilterPress()
        press.q_filters = self.t["qfilter.filters"]
        return press

    def kvzap(self, kind):
        w, b = (self.t[f"kvzap.{'linear' if kind == 'linear' else 'mlp.2'}.{x}"] for x in ("weight", "bias"))
        layers = [linear(*x) for x in zip(w, b)]
        if kind == "mlp":
            first = [linear(*x) for x in zip(self.t["kvzap.mlp.0.weight"], self.t["kvzap.mlp.0.bias"])]
            layers = [torch.nn.Sequential(one, torch.nn.GELU(), two) for one, two in zip(first, layers)]
        press = KVzapPress(model_type=kind)
        press.kvzap_model = types.SimpleNamespace(layers=layers)
        return press

    def duo(self, ratio):
        press = DuoAttentionPress(head_compression_ratio=ratio)
        press.load_attention_pattern = lambda model: (arch_models.DUO["sink_size"], arch_models.DUO["recent_size"],
                                                      self.t["duo_attention.pattern"].numpy())
        press.post_init_from_model(types.SimpleNamespace(device="cpu"))
        return press

    def lukv(self):
        press = LUKVPress(KnormPress())
        press._budget_curves = self.t["lukv.curves"].numpy()
        return press


def snapkv():
    return SnapKVPress(window_size=16)


def presses(name, layers):
    """wire text -> Ref, of what presses a prompt."""
    data, n = Data(name), arch_models.SPECS[name].layers
    out = {k: presses_model.PRESSES[k] for k in PLAIN}
    shares = [round(0.1 + 0.8 * i / (n - 1), 2) for i in range(n)]
    out.update({
        "snapkv:window_size=16": Ref(snapkv, window=16),
        "lagkv:lag_size=16": Ref(lambda: LagKVPress(lag_size=16)),
        "critical(snapkv:window_size=16)": Ref(lambda: CriticalKVPress(snapkv()), window=16),
        "adakv(snapkv:window_size=16)": Ref(lambda: AdaKVPress(snapkv()), window=16),
        "chunkkv(snapkv:window_size=16)": Ref(lambda: ChunkKVPress(snapkv()), window=16),
        "chunk:chunk_length=32(keydiff)": Ref(lambda: ChunkPress(KeyDiffPress(), 32)),
        "key_rerotation(expected_attention)": Ref(lambda: KeyRerotationPress(ExpectedAttentionPress())),
        f"per_layer:compression_ratios={';'.join(map(str, shares))}(tova)": Ref(
            lambda: PerLayerCompressionPress(TOVAPress(), shares), (None,)),
        "expected_attention_stats": Ref(data.stats),
        "qfilter": Ref(data.qfilter),
        "kvzap": Ref(lambda: data.kvzap("mlp")),
        "kvzap:model_type=linear": Ref(lambda: data.kvzap("linear")),
        "duo_attention:head_compression_ratio=0.5": Ref(lambda: data.duo(0.5), (None,)),
        "lukv(knorm)": Ref(data.lukv),
        "composed(keydiff@0.3,qfilter@0.4)": Ref(lambda: ComposedPress([at(0.3, KeyDiffPress()), at(0.4, data.qfilter())]), (None,)),
    })
    if layers.n < LONG:  # a threshold half the keys are below; one per model, found in the short prompt
        scores = torch.cat([s.flatten() for s in layers.scores(Ref(KnormPress), 0.0)])
        presses.threshold = round(float(scores.median()), 3)
    out[f"dms:threshold={presses.threshold},sliding_window_size=16(knorm)"] = Ref(
        lambda: DMSPress(KnormPress(), threshold=presses.threshold, sliding_window_size=16), (None,))
    for ref in out.values():
        if ref.ratios != (None,):
            ref.ratios = RATIOS
    return out


def decoding(threshold):
    """wire text -> how to make what prunes while decoding, for walks of the short prompt.

    Children without a window: another's queries are those since the last pruning in kvpress, and the most recent
    ones here (compression/decoding.c).  And none that sees equal tokens as equal (knorm in layer 0): which of them
    goes is the reference's noise, and a walk would show it.
    """
    every = dict(compression_interval=6)
    return {
        "decoding:compression_interval=6,target_size=40(keydiff)": lambda: DecodingPress(KeyDiffPress(), target_size=40, **every),
        "decoding:compression_interval=6,target_size=40(tova)": lambda: DecodingPress(TOVAPress(), target_size=40, **every),
        "compression_ratio_decoding:target_compression_ratio=0.5,compression_interval=6(keydiff)":
            lambda: CompressionRatioDecodingPress(KeyDiffPress(), target_compression_ratio=0.5, **every),
        "prefill_decoding(tova@0.5,decoding:compression_interval=6,target_size=30(keydiff))":
            lambda: PrefillDecodingPress(at(0.5, TOVAPress()), DecodingPress(KeyDiffPress(), target_size=30, **every)),
        f"dms:threshold={threshold},sliding_window_size=16,decoding=true(knorm)":
            lambda: DMSPress(KnormPress(), threshold=threshold, sliding_window_size=16, decoding=True),
    }


class Layers(presses_model.Layers):
    """With Gemma 2's cap in the weights, no layer to press where all have a window, and LongRoPE's long factors for
    every token to come: after a re-rotation positions are below the border again, the cached keys are not."""

    def __init__(self, model, ids):
        super().__init__(model, ids)
        rope = model.model.rotary_emb
        if getattr(rope, "rope_type", None) == "longrope":
            assert len(ids) > arch_models.ORIG_CTX
            rope.rope_type = "default"
        config = model.config
        if not getattr(config, "layer_types", None) and getattr(config, "sliding_window", None):
            self.pressed = []
        self.cap = getattr(config, "attn_logit_softcapping", None)

    def weights(self, i):
        if self.cap is None:
            return super().weights(i)
        module, kw, _ = self.calls[i]
        q = modeling_gemma2.apply_rotary_pos_emb(
            presses_model.get_prerope_query_states(module, kw["hidden_states"]), self.kv[i][0], *kw["position_embeddings"])[0]
        k = self.kv[i][0].repeat_interleave(module.num_key_value_groups, dim=1)
        x = self.cap * torch.tanh(q @ k.transpose(2, 3) * module.scaling / self.cap)
        return x.masked_fill(torch.ones(self.n, self.n, dtype=torch.bool).triu(1), float("-inf")).softmax(dim=-1)


def wire_text(peer, ids):
    """As the server writes tokens out: control tokens give nothing."""
    return presses_model.detokenize(peer, [t for t in ids if not peer.L.llama_vocab_is_control(peer.vocab, t)])


def hides(press):
    inner = [getattr(press, k, None) for k in ("press", "base_press", "prefilling_press", "decoding_press")]
    return isinstance(press, HIDING) or any(x is not None and hides(x) for x in inner) or type(press).__name__ == "CriticalAdaKVPress"


@torch.inference_mode()
def walk(model, peer, ids, pressed, press, n):
    """n greedy tokens with the press' hooks on the layers that are pressed."""
    hooks = [model.model.layers[i].self_attn.register_forward_hook(press.forward_hook, with_kwargs=True) for i in pressed]
    cache, feed, pos, out, top = DynamicCache(), ids, torch.arange(len(ids)), [], []
    for layer in model.model.layers:
        layer.self_attn.masked_key_indices = None
    try:
        while len(out) < n:
            logits = model(torch.tensor([feed]), past_key_values=cache, position_ids=pos[None], cache_position=pos,
                           use_cache=True, logits_to_keep=1).logits[0, -1]
            p, t = torch.log_softmax(logits.double(), -1).topk(presses_model.TOP)
            out.append(int(t[0]))
            top.append([round(float(x), 5) for x in p])
            feed, pos = out[-1:], pos[-1:] + 1
    finally:
        for h in hooks:
            h.remove()
        for layer in model.model.layers:
            layer.self_attn.masked_key_indices = None
    return {"ids": out, "text": wire_text(peer, out), "top": top}


@torch.inference_mode()
def presses_doc(name, model, peer, text):
    """What is stored, or None where there is no layer to press."""
    presses_model.LONG, presses_model.WALK_LONG, presses_model.STRIDE = 0, WALK, 7
    doc = {"format": 2, "model": name, "reference": "kvpress 0.5.5, f32", "stride": 7, "walk_ratio": presses_model.WALK_RATIO,
           "prompts": []}
    why = {"cam": NO_CAM}
    for title, n in (("short", SHORT), ("long", LONG)):
        ids = peer.tokenize(text)[:n]
        assert len(ids) == n, (name, len(ids))
        layers = Layers(model, ids)
        if not layers.pressed:
            return None
        entry = {"name": title, "ids": ids, "pressed": layers.pressed, "presses": {}}
        for wire, ref in presses(name, layers).items():
            with torch.inference_mode(), presses_model.lower_slot_wins():
                e = presses_model.one_press(model, peer, layers, ref)
            if title == "long":
                e.pop("walk", None)
            elif "walk" in e:
                e["walk"]["text"] = wire_text(peer, e["walk"]["ids"])
            if layers.cap is not None and hides(ref.make()):
                e.pop("walk", None)
                why[wire] = NO_HIDING
            entry["presses"][wire] = e
        if title == "short":
            for wire, make in decoding(presses.threshold).items():
                press = make()
                if layers.cap is not None and hides(press):
                    why[wire] = NO_HIDING
                    continue
                with presses_model.lower_slot_wins():
                    entry["presses"][wire] = {"kept": {}, "walk": walk(model, peer, ids, layers.pressed, press, 24)}
        doc["prompts"].append(entry)
    doc["not_judged"] = why
    return doc
