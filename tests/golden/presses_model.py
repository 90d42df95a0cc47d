#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write data/presses_<name>.json.gz: what kvpress 0.5.5 keeps of a real model's cache, for check_presses.py.

    presses_model.py MODEL.gguf NAME [--out DIR] [--press TEXT ...]

One dense f32 prefill per prompt; every press' own forward hook then runs on the saved inputs of every layer that
is pressed, which gives the same kept sets as pressing during prefill (a press runs after its layer's attention, so
it never changes what later layers see).  Layers with a sliding window are left out, as the server leaves them.
Stored per prompt and press, for each ratio (or "" for a press that has none):

  n       kept slots, per pressed layer and head (one number if all agree)
  crc     CRC-32 of each head's bits (one per slot, 1 = kept, highest bit first)
  bits    the bits themselves; of prompts above LONG tokens only where no scores tell the set
  cut     least kept and best dropped score of each head, for presses that rank every token of a head by a score
  scores  f32, every STRIDE-th token, for those whose score does not depend on the ratio
  walk    WALK greedy tokens after the press at WALK_RATIO: their text and the top 5 log-probabilities

Of equal scores the lower slot is kept: our rule, and one of the reference's outcomes (its top-k breaks ties by
no rule).  A press whose budget cuts into its own window, all of one score, is left out at that ratio, and one of
whose scores any is NaN (lagkv on Gemma 3, which has key channels that are always 0) is left out at all.
Needs torch and the packages of ref_model.py and kvpress; about ten minutes on one core.
"""

import argparse
import base64
import contextlib
import ctypes
import gzip
import json
import os
import sys
import zlib

import numpy as np
import torch
from kvpress import (AdaKVPress, BlockPress, CapPress, ChunkKVPress, ChunkPress, CompactorPress, ComposedPress, CriticalAdaKVPress,
                     CriticalKVPress, CURPress, EntropyGatedChunkKVPress, ExpectedAttentionPress, FinchPress,
                     KeyDiffPress, KeyRerotationPress, KnormPress, LagKVPress, LeverageScorePress, MergingPress, NonCausalAttnPress,
                     ObservedAttentionPress,
                     PerLayerCompressionPress, PyramidKVPress, RandomPress, SimLayerKVPress, SnapKVPress,
                     StreamingLLMPress, ThinKPress, TOVAPress)
from kvpress.presses.scorer_press import ScorerPress
from kvpress.utils import compute_n_kept, get_prerope_query_states
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import rotate_half

import recorded
import ref_model
from presses_unit import Normals

RATIOS = (0.25, 0.5, 0.75, 0.9)
LONG, WALK_MAX = 700, 1500
FEW_RATIOS = (0.5, 0.9)  # of prompts above WALK_MAX, to keep the file small
WALK_RATIO = 0.5
WALK, WALK_LONG = 32, 8  # tokens; the second for prompts above LONG, none above WALK_MAX
TOP = 5
STRIDE = 37


class Ref:
    """How the reference's press is made and what of it is compared."""

    def __init__(self, make, ratios=RATIOS, window=0, layers=None, weights=False):
        self.make, self.ratios = make, ratios
        self.weights = weights  # it is given the attention weights
        self.window = window  # tokens that always stay, all of one score
        self.layers = layers  # only for a model of so many layers


def finch(window, **options):
    press = FinchPress(**options)
    press.window_size = window  # the reference finds it by its delimiter token
    return press


def at(ratio, press):
    press.compression_ratio = ratio
    return press


# wire text -> the reference's press
PRESSES = {
    "random:seed=42": Ref(lambda: RandomPress(seed=42)),
    "knorm": Ref(KnormPress),
    "keydiff": Ref(KeyDiffPress),
    "streaming_llm": Ref(StreamingLLMPress, window=4),
    "snapkv": Ref(SnapKVPress, window=64),
    "tova": Ref(TOVAPress),
    "expected_attention": Ref(ExpectedAttentionPress),
    "expected_attention:use_covariance=false": Ref(lambda: ExpectedAttentionPress(use_covariance=False)),
    "expected_attention:epsilon=0.01": Ref(lambda: ExpectedAttentionPress(epsilon=0.01)),
    "expected_attention:n_future_positions=128": Ref(lambda: ExpectedAttentionPress(n_future_positions=128)),
    "pyramidkv:window_size=8": Ref(lambda: PyramidKVPress(window_size=8), window=8),
    "lagkv:lag_size=32": Ref(lambda: LagKVPress(lag_size=32)),
    "cur": Ref(CURPress),
    "non_causal_attention": Ref(NonCausalAttnPress),
    "cap": Ref(CapPress),
    "leverage": Ref(LeverageScorePress),
    "compactor": Ref(CompactorPress),
    "observed_attention": Ref(ObservedAttentionPress, weights=True),
    "critical(expected_attention)": Ref(lambda: CriticalKVPress(ExpectedAttentionPress())),
    "critical(snapkv)": Ref(lambda: CriticalKVPress(SnapKVPress()), window=64),
    "adakv(expected_attention)": Ref(lambda: AdaKVPress(ExpectedAttentionPress())),
    "adakv(snapkv)": Ref(lambda: AdaKVPress(SnapKVPress()), window=64),
    "key_rerotation(knorm)": Ref(lambda: KeyRerotationPress(KnormPress())),
    # wrappers and presses with a rule of their own
    "critical_adakv(expected_attention)": Ref(lambda: CriticalAdaKVPress(ExpectedAttentionPress())),
    "chunk:chunk_length=100(keydiff)": Ref(lambda: ChunkPress(KeyDiffPress(), 100)),
    "chunkkv(snapkv)": Ref(lambda: ChunkKVPress(SnapKVPress()), window=64),
    "entropy_gated_chunkkv(expected_attention)": Ref(lambda: EntropyGatedChunkKVPress(ExpectedAttentionPress())),
    "block(keydiff)": Ref(lambda: BlockPress(KeyDiffPress())),
    "merging(expected_attention)": Ref(lambda: MergingPress(ExpectedAttentionPress())),
    "merging:similarity_threshold=0.5(keydiff)": Ref(lambda: MergingPress(KeyDiffPress(), similarity_threshold=0.5)),
    "composed(keydiff@0.3,knorm@0.4)": Ref(lambda: ComposedPress([at(0.3, KeyDiffPress()), at(0.4, KnormPress())]), (None,)),
    "per_layer:compression_ratios=0.1;0.5*28;0.9(tova)": Ref(
        lambda: PerLayerCompressionPress(TOVAPress(), [0.1] + 28 * [0.5] + [0.9]), (None,), layers=30),
    "simlayerkv:lazy_threshold=0.8,n_recent=32": Ref(lambda: SimLayerKVPress(lazy_threshold=0.8, n_recent=32), (None,)),
    "think:key_channel_compression_ratio=0.5": Ref(lambda: ThinKPress(0.5), (None,)),
    "composed(snapkv@0.5,think:key_channel_compression_ratio=0.4)": Ref(
        lambda: ComposedPress([at(0.5, SnapKVPress()), ThinKPress(0.4)]), (None,)),
    "finch:window_size=16": Ref(lambda: finch(16), window=16),
    "finch:window_size=16,normalize_scores=false,rerotate_keys=false": Ref(
        lambda: finch(16, normalize_scores=False, rerotate_keys=False), window=16),
}

LETTER = """\
Dear Ines, the mill is quiet again. On Monday the last of the grain went down the river, and since then I have done
nothing but oil the gears and listen to the water. You asked what became of the blue lantern. It hangs above the
sluice, exactly where your father left it, and the key to the store room is still inside. If you come in spring,
bring the two ledgers from 1961 and a pair of good boots: the path behind the chapel has slid into
"""

FIGURES = """\
Station {n} reported {a} at dawn and {b} by noon. Observer {o} wrote that the {t} had {v} during the night, that
{c} of the {d} instruments were still working, and that supplies would last {e} more days. She asked for {i}, a
new {t}, and an answer to her letter of the {f}th. Nobody at the main office could remember the letter. """

CODE = """\
def settle(ledger, rate, *, floor=0):
    \"\"\"Close every account below the floor and spread what is left over the others.\"\"\"
    open_accounts = {name: amount for name, amount in ledger.items() if amount > floor}
    rest = sum(amount for name, amount in ledger.items() if name not in open_accounts)
    if not open_accounts:
        raise ValueError("nothing left to settle")
    share = rest / len(open_accounts)
    return {name: round((amount + share) * (1 + rate), 2) for name, amount in open_accounts.items()}

"""


def figures(count):
    weather = ("fog", "light rain", "frost", "a red sky", "hail", "clear air", "wind from the north", "thunder")
    people = ("Okafor", "Lindqvist", "Marsh", "Tanaka", "Reyes", "Dubois")
    things = ("barometer", "antenna", "mast", "roof", "generator", "well")
    verbs = ("failed", "frozen", "cracked", "recovered", "shifted", "gone silent")
    items = ("diesel", "paper", "copper wire", "tea", "lamp glass")
    out = []
    for n in range(count):
        out.append(FIGURES.format(n=100 + 17 * n % 90, a=weather[n % 8], b=weather[(3 * n + 1) % 8], o=people[n % 6],
                                  t=things[(5 * n) % 6], v=verbs[(n * n) % 6], c=1 + n % 5, d=6 + n % 4,
                                  e=3 + 7 * n % 29, i=items[n % 5], f=5 + n % 14).replace("\n", " "))
    return "".join(out)


def prompts():
    """title -> (text, tokens it is cut to)"""
    letter = LETTER.replace("\n", " ").strip()
    return {
        "letter": (letter, 70),
        "mixed": (figures(1) + "\n\n" + CODE + letter, 300),
        "long": (CODE + figures(8) + "\n\n" + letter + "\n\n" + CODE.replace("settle", "close_out"), 1000),
        "book": ("\n\n".join(CODE.replace("settle", f"settle_{i}") + figures(7 + i) + letter for i in range(4)), 3000),
    }


def b64(a):
    return base64.b64encode(np.ascontiguousarray(a).tobytes()).decode()


def detokenize(peer, ids):
    buf, out = ctypes.create_string_buffer(512), b""
    for t in ids:
        n = peer.L.llama_token_to_piece(peer.vocab, t, buf, len(buf), 0, True)
        out += buf.raw[:n]
    return out.decode(errors="replace")


# ---- ties: the lower slot is kept ----

def stable_topk(x, k, dim=-1, largest=True, sorted=True):
    assert dim in (-1, x.dim() - 1)
    if largest:
        order = torch.sort(x, dim=-1, descending=True, stable=True).indices
    else:  # of equal ones the last goes first
        order = x.shape[-1] - 1 - torch.sort(x.flip(-1), dim=-1, stable=True).indices
    order = order[..., :k]
    return torch.return_types.topk((x.gather(-1, order), order))


@contextlib.contextmanager
def lower_slot_wins():
    saved = torch.Tensor.topk, torch.topk
    torch.Tensor.topk = torch.topk = stable_topk
    try:
        yield
    finally:
        torch.Tensor.topk, torch.topk = saved


# ---- one dense prefill ----

class Rope:
    """A layer's rotary embedding as the presses call it, where the model has one per kind of layer."""

    def __init__(self, rope, kind):
        self.rope, self.kind = rope, kind
        self.inv_freq = getattr(rope, f"{kind}_inv_freq")
        self.attention_scaling = getattr(rope, f"{kind}_attention_scaling", 1.0)

    def __call__(self, x, position_ids):
        return self.rope(x, position_ids, self.kind)


class Layers:
    """The inputs of every attention layer of one dense prefill, as a press' hook sees them."""

    @torch.inference_mode()
    def __init__(self, model, ids):
        body = model.model
        self.calls = [None] * len(body.layers)
        hooks = []
        kinds = getattr(model.config, "layer_types", None) or ["full_attention"] * len(body.layers)
        self.pressed = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
        for i, layer in enumerate(body.layers):
            layer.self_attn.rotary_emb = body.rotary_emb if hasattr(body.rotary_emb, "inv_freq") else Rope(body.rotary_emb, kinds[i])
            hooks.append(layer.self_attn.register_forward_hook(
                lambda module, args, kw, out, i=i: self.calls.__setitem__(i, (module, kw, out)), with_kwargs=True))
        self.n = len(ids)
        cache = DynamicCache()
        self.logits = model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        for h in hooks:
            h.remove()
        self.kv = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]

    def weights(self, i):
        """[1][query head][L][L]: what materialised attention would hand to a press."""
        module, kw, _ = self.calls[i]
        q = get_prerope_query_states(module, kw["hidden_states"])
        cos, sin = (x[:, None] for x in kw["position_embeddings"])
        q = q * cos + rotate_half(q) * sin
        logits = q @ self.kv[i][0].repeat_interleave(module.num_key_value_groups, dim=1).transpose(2, 3) * module.scaling
        return logits.masked_fill(torch.ones(self.n, self.n, dtype=torch.bool).triu(1), float("-inf")).softmax(dim=-1)

    def inputs(self, i, weights):
        module, kw, _ = self.calls[i]
        return (module, kw["hidden_states"], *self.kv[i], self.weights(i) if weights else None,
                {"position_embeddings": kw["position_embeddings"]})

    def scores(self, ref, ratio):
        press, out = ref.make(), []
        press.compression_ratio = ratio
        for i in self.pressed:
            with Normals(0, i):
                out.append(press.score(*self.inputs(i, ref.weights))[0])
        return out

    def cache(self):
        out = DynamicCache()
        for i, (k, v) in enumerate(self.kv):
            out.update(k.clone(), v.clone(), i)
        return out

    def unmask(self):
        for module, _, _ in self.calls:
            module.masked_key_indices = None


def rotate(x, angle):
    half = x.shape[-1] // 2
    c, s = torch.cos(angle), torch.sin(angle)
    c, s = torch.cat((c, c), -1), torch.cat((s, s), -1)
    return x * c + torch.cat((-x[..., half:], x[..., :half]), -1) * s


def slots_of(module, dense, left):
    """Which slot each row of one head's pressed (keys, values) was: by its key, or what is not 0 of all of them, or by
    value and the key turned back."""
    (k, v), (nk, nv) = dense, left
    by_key = {row.tobytes(): t for t, row in enumerate(torch.where((nk != 0).any(0), k, 0).numpy())}
    found = [by_key.get(row.tobytes()) for row in nk.numpy()]
    if None not in found:
        return found
    by_value = {}
    for t, row in enumerate(v.numpy()):
        by_value.setdefault(row.tobytes(), []).append(t)
    out = []
    for i, row in enumerate(nv.numpy()):
        slots = torch.tensor(by_value[row.tobytes()])
        turned = rotate(k[slots], (i - slots).float()[:, None] * module.rotary_emb.inv_freq[None])
        out.append(int(slots[(turned - nk[i]).abs().amax(-1).argmin()]))
    return out


def run(layers, press, weights):
    """[pressed layer][head][token] bool, and the cache as the press leaves it (masked pairs still in it)."""
    cache, kept = layers.cache(), []
    layers.unmask()
    for i in layers.pressed:
        module, kw, out = layers.calls[i]
        with Normals(0, i):
            press.forward_hook(module, [], {**kw, "past_key_values": cache, "cache_position": torch.arange(layers.n)},
                               [out[0], layers.weights(i) if weights else None])
        (k, v), layer = layers.kv[i], cache.layers[i]
        mask = torch.zeros(k.shape[1], layers.n, dtype=torch.bool)
        if module.masked_key_indices is not None:
            _, heads, slots = module.masked_key_indices
            mask[:] = True
            mask[heads, slots] = False
        else:
            for h in range(k.shape[1]):
                mask[h, slots_of(module, (k[0, h], v[0, h]), (layer.keys[0, h], layer.values[0, h]))] = True
        kept.append(mask)
    return torch.stack(kept), cache


@torch.inference_mode()
def walk(model, layers, cache, first_pos, n):
    """Greedy tokens over the pressed cache; the first comes from the dense prefill."""
    ids, top, logits = [], [], layers.logits
    for i in range(n):
        p, t = torch.log_softmax(logits.double(), -1).topk(TOP)
        ids.append(int(t[0]))
        top.append([round(float(x), 5) for x in p])
        if i + 1 == n:
            break
        pos = torch.tensor([[first_pos + i]])
        logits = model(torch.tensor([[ids[-1]]]), past_key_values=cache, position_ids=pos,
                       cache_position=torch.tensor([first_pos + i]), use_cache=True).logits[0, -1]
    return ids, top


def record(kept, scores, long):
    """What is stored of a kept set."""
    n = kept.sum(-1).numpy()
    packed = np.packbits(kept.numpy(), axis=-1)
    crc = np.array([[zlib.crc32(head.tobytes()) for head in layer] for layer in packed], dtype="<u4")
    e = {"n": int(n.flat[0]) if (n == n.flat[0]).all() else n.tolist(), "crc": b64(crc)}
    by_score = scores is not None and all((s.masked_fill(~m, np.inf).amin(-1) >= s.masked_fill(m, -np.inf).amax(-1)).all()
                                          for s, m in zip(scores, kept))
    if by_score:
        cut = [[(float(s[h][m[h]].min()), float(s[h][~m[h]].max()) if not m[h].all() else -np.inf) for h in range(len(m))]
               for s, m in zip(scores, kept)]
        e["cut"] = b64(np.array(cut, dtype="<f4"))
    if not (long and by_score):
        e["bits"] = b64(packed)
    return e


def one_press(model, peer, layers, ref):
    long = layers.n > LONG
    out = {"kept": {}}
    press = ref.make()
    scores = None
    if isinstance(press, ScorerPress) and not isinstance(press, StreamingLLMPress):
        scores = layers.scores(ref, 0.5)
        if any(torch.isnan(x).any() for x in scores):
            return None
        if all(torch.equal(x, y) for x, y in zip(scores, layers.scores(ref, 0.75))):
            out["scores"] = b64(torch.stack(scores)[:, :, ::STRIDE].numpy())
        else:
            scores = None  # the ratio is in the score
    for ratio in ref.ratios:
        if ratio is not None and layers.n > WALK_MAX and ratio not in FEW_RATIOS:
            continue
        if ratio is not None and compute_n_kept(layers.n, ratio) <= ref.window:
            continue
        press = ref.make()
        if ratio is not None:
            press.compression_ratio = ratio
        kept, cache = run(layers, press, ref.weights)
        out["kept"]["" if ratio is None else str(ratio)] = record(kept, scores, long)
        rotated = isinstance(press, KeyRerotationPress) or isinstance(press, FinchPress) and press.rerotate_keys
        # The reference has one next position for all layers: after re-rotation it is wrong in those left alone.
        one_position = not rotated or len(layers.pressed) == len(layers.kv)
        if ratio in (None, WALK_RATIO) and layers.n <= WALK_MAX and one_position:
            first = int(kept[0, 0].sum()) if rotated else layers.n
            ids, top = walk(model, layers, cache, first, WALK_LONG if long else WALK)
            out["walk"] = {"ids": ids, "text": detokenize(peer, ids), "top": top}
        layers.unmask()
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("name")
    p.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "data"))
    p.add_argument("--press", action="append", help="only these; the others stay as the file has them")
    p.add_argument("--prompt", action="append", help="only these, and no others in the file")
    a = p.parse_args()
    torch.set_num_threads(1)
    model = ref_model.load_model(a.model)
    peer = ref_model.LlamaCpp(a.model)
    doc = {"format": 2, "model": os.path.basename(a.model), "reference": "kvpress 0.5.5, f32", "stride": STRIDE,
           "walk_ratio": WALK_RATIO, "prompts": []}
    path, old = os.path.join(a.out, f"presses_{a.name}.json.gz"), {}
    if a.press and os.path.exists(path):
        with gzip.open(path) as f:
            old = {entry["name"]: entry["presses"] for entry in json.load(f)["prompts"]}
    for title, (text, n) in prompts().items():
        if a.prompt and title not in a.prompt:
            continue
        ids = peer.tokenize(text)[:n]
        assert len(ids) == n, (title, len(ids))
        layers = Layers(model, ids)
        print(f"{title}: {len(ids)} tokens, layers pressed: {len(layers.pressed)}", file=sys.stderr)
        entry = {"name": title, "ids": ids, "pressed": layers.pressed, "presses": {}}
        for name, ref in PRESSES.items():
            if ref.layers not in (None, len(layers.kv)):
                continue
            if a.press and name not in a.press:
                if name in old.get(title, {}):
                    entry["presses"][name] = old[title][name]
                continue
            with torch.inference_mode(), lower_slot_wins():
                e = one_press(model, peer, layers, ref)
            if e is None:
                print(f"  {name}: left out, the reference gives NaN", file=sys.stderr)
                continue
            entry["presses"][name] = e
            print(f"  {name}: {e.get('walk', {}).get('text')!r}", file=sys.stderr)
        doc["prompts"].append(entry)
    recorded.save(path, doc)


if __name__ == "__main__":
    main()
