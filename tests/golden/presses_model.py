#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write data/presses_<name>.json.gz: what kvpress 0.5.5 keeps of a real model's cache, for check_presses.py.

    presses_model.py MODEL.gguf NAME [--out DIR]

One dense f32 prefill per prompt; each press then scores the saved inputs of every layer, which gives the
same kept sets as pressing during prefill (a press runs after its layer's attention, so it never changes
what later layers see).  Stored per prompt and press:

  kept    ratio -> bits [layer][head][token], 1 = kept
  scores  f32 [layer][head][every STRIDE-th token], for presses whose score does not depend on the ratio
  walk    8 greedy tokens after the press at WALK_RATIO: their text and the top 5 log-probabilities

Of equal scores the lower slot is kept, which is our rule and one of the reference's outcomes.  SnapKV's sets
are left out where the window alone, all of one score, is more than the budget.
Needs torch and the packages of ref_model.py and kvpress; about five minutes on one core.
"""

import argparse
import base64
import ctypes
import gzip
import json
import os
import sys

import numpy as np
import torch
import kvpress
from kvpress import (AdaKVPress, ExpectedAttentionPress, KeyDiffPress, KeyRerotationPress, KnormPress, RandomPress,
                     SnapKVPress, StreamingLLMPress, TOVAPress)
from transformers import DynamicCache

import ref_model

RATIOS = (0.25, 0.5, 0.75)
LONG_RATIOS = (0.5, 0.75)  # of prompts above LONG tokens, to keep the file small
LONG = 1000
WALK_RATIO = 0.5
WALK = 8
TOP = 5
STRIDE = 37

# wire text -> the reference's press
PRESSES = {
    "random:seed=42": lambda: RandomPress(seed=42),
    "knorm": KnormPress,
    "keydiff": KeyDiffPress,
    "streaming_llm": StreamingLLMPress,
    "snapkv": SnapKVPress,
    "tova": TOVAPress,
    "expected_attention": ExpectedAttentionPress,
    "expected_attention:use_covariance=false": lambda: ExpectedAttentionPress(use_covariance=False),
    "expected_attention:epsilon=0.01": lambda: ExpectedAttentionPress(epsilon=0.01),
    "expected_attention:n_future_positions=128": lambda: ExpectedAttentionPress(n_future_positions=128),
    "adakv(expected_attention)": lambda: AdaKVPress(ExpectedAttentionPress()),
    "adakv(snapkv)": lambda: AdaKVPress(SnapKVPress()),
    "key_rerotation(knorm)": lambda: KeyRerotationPress(KnormPress()),
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
    letter = LETTER.replace("\n", " ").strip()
    return {
        "letter": letter,
        "mixed": figures(4) + "\n\n" + CODE + letter,
        "long": CODE + figures(12) + "\n\n" + letter + "\n\n" + figures(4) + CODE.replace("settle", "close_out"),
    }


def b64(a):
    return base64.b64encode(np.ascontiguousarray(a).tobytes()).decode()


def detokenize(peer, ids):
    buf, out = ctypes.create_string_buffer(512), b""
    for t in ids:
        n = peer.L.llama_token_to_piece(peer.vocab, t, buf, len(buf), 0, True)
        out += buf.raw[:n]
    return out.decode(errors="replace")


class Layers:
    """The inputs of every attention layer of one dense prefill, as a press' hook sees them."""

    @torch.inference_mode()
    def __init__(self, model, ids):
        self.calls = [None] * len(model.model.layers)
        hooks = []
        for i, layer in enumerate(model.model.layers):
            layer.self_attn.rotary_emb = model.model.rotary_emb
            hooks.append(layer.self_attn.register_forward_hook(
                lambda module, args, kw, out, i=i: self.calls.__setitem__(i, (module, kw)), with_kwargs=True))
        self.n = len(ids)
        cache = DynamicCache()
        self.logits = model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        for h in hooks:
            h.remove()
        self.kv = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]

    def inputs(self, i):
        module, kw = self.calls[i]
        return module, kw["hidden_states"], *self.kv[i], None, {"position_embeddings": kw["position_embeddings"]}

    def scores(self, press):
        return [press.score(*self.inputs(i))[0] for i in range(len(self.kv))]


def kept_of(layers, press, ratio, scores):
    """[layer][head][token] bool, and the cache as the press leaves it."""
    press.compression_ratio = ratio
    kept, cache = [], DynamicCache()
    for i, (k, v) in enumerate(layers.kv):
        module = layers.inputs(i)[0]
        mask = torch.zeros(k.shape[1], layers.n, dtype=torch.bool)
        module.masked_key_indices = None
        if isinstance(press, AdaKVPress):
            press.compress(*layers.inputs(i))
            _, heads, slots = module.masked_key_indices
            mask[:] = True
            mask[heads, slots] = False
        else:
            scorer = getattr(press, "press", press)
            s = scorer.score(*layers.inputs(i))[0] if scores is None else scores[i]
            n = kvpress.utils.compute_n_kept(layers.n, ratio)
            slots = s.argsort(dim=-1, descending=True, stable=True)[:, :n].sort(dim=-1).values
            mask.scatter_(1, slots, True)
            at = slots[None, :, :, None].expand(-1, -1, -1, k.shape[-1])
            k = press.rerotate_keys(module, slots[None], k) if isinstance(press, KeyRerotationPress) else k.gather(2, at)
            v = v.gather(2, at)
        cache.update(k.clone(), v.clone(), i)  # masking overwrites keys in place
        kept.append(mask)
    return torch.stack(kept), cache


@torch.inference_mode()
def walk(model, layers, cache, first_pos):
    """Greedy tokens over the pressed cache; the first comes from the dense prefill."""
    ids, top, logits = [], [], layers.logits
    for i in range(WALK):
        p, t = torch.log_softmax(logits.double(), -1).topk(TOP)
        ids.append(int(t[0]))
        top.append([round(float(x), 5) for x in p])
        if i + 1 == WALK:
            break
        pos = torch.tensor([[first_pos + i]])
        logits = model(torch.tensor([[ids[-1]]]), past_key_values=cache, position_ids=pos,
                       cache_position=torch.tensor([first_pos + i]), use_cache=True).logits[0, -1]
    return ids, top


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("name")
    p.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "data"))
    a = p.parse_args()
    torch.set_num_threads(1)
    model = ref_model.load_model(a.model)
    peer = ref_model.LlamaCpp(a.model)
    doc = {"format": 1, "model": os.path.basename(a.model), "reference": "kvpress 0.5.5, f32", "stride": STRIDE,
           "walk_ratio": WALK_RATIO, "prompts": []}
    for title, text in prompts().items():
        ids = peer.tokenize(text)
        layers = Layers(model, ids)
        print(f"{title}: {len(ids)} tokens", file=sys.stderr)
        entry = {"name": title, "ids": ids, "presses": {}}
        for name, make in PRESSES.items():
            with torch.inference_mode():
                press = make()
                e = {"kept": {}}
                scorer = getattr(press, "press", press)
                scores = None if isinstance(scorer, StreamingLLMPress) else layers.scores(scorer)
                if scores is not None and scorer is press:
                    e["scores"] = b64(torch.stack(scores)[:, :, ::STRIDE].numpy())
                for ratio in LONG_RATIOS if len(ids) > LONG else RATIOS:
                    if isinstance(scorer, SnapKVPress) and len(ids) * (1 - ratio) < scorer.window_size:
                        continue
                    kept, cache = kept_of(layers, press, ratio, scores)
                    # the rotated cache keeps what its child keeps: no second copy
                    if not isinstance(press, KeyRerotationPress):
                        e["kept"][str(ratio)] = b64(np.packbits(kept.numpy(), axis=-1))
                    if ratio == WALK_RATIO:
                        first = int(kept[0, 0].sum()) if isinstance(press, KeyRerotationPress) else len(ids)
                        out, top = walk(model, layers, cache, first)
                        e["walk"] = {"ids": out, "text": detokenize(peer, out), "top": top}
                for i in range(len(layers.kv)):
                    layers.inputs(i)[0].masked_key_indices = None
            entry["presses"][name] = e
            print(f"  {name}: {e.get('walk', {}).get('text')!r}", file=sys.stderr)
        doc["prompts"].append(entry)
    path = os.path.join(a.out, f"presses_{a.name}.json.gz")
    data = json.dumps(doc, ensure_ascii=False, separators=(",", ":")).encode()
    with open(path, "wb") as f:  # no name, no time: the same bytes every time
        with gzip.GzipFile(filename="", fileobj=f, mode="wb", compresslevel=9, mtime=0) as z:
            z.write(data)
    print(f"{path}: {os.path.getsize(path)} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
