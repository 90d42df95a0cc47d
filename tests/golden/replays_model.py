#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write data/replays_<name>.json.gz: what kvpress 0.5.5's presses that replay the context keep, for check_presses.py.

    replays_model.py MODEL.gguf NAME [--gates] [--out DIR] [--press TEXT ...] [--prompt NAME ...]

With --gates: data/gates_<name>.json.gz, fastkvzip with the gates that gates.py draws, for check_gates.py.

The form of the file is presses_model.py's; a prompt with "user" is a chat of that one message and its ids are what
the template makes of it; with "scope" they end where the message does, as kvpress' own pipeline gives a context to a
press, and nothing is generated.  The presses run as a whole on the real model, with a tokenizer that is llama.cpp's and the
file's own template; ratios share the replay, since no score depends on them.  Of a model with sliding windows the
layers without one alone are scored and pressed, as the server does (the reference refuses such models).

Where the reference is not followed: kvcompose leaves the replay's pairs in the cache (then its value norms have twice
the context's length and it fails); here they are cut off as soon as all attention was seen.  Unstructured, it may empty
a head; here one slot stays, as in the server.
Needs torch and the packages of ref_model.py and kvpress; a press that is given keeps the others as the file has them.
"""

import argparse
import gzip
import json
import os
import sys
import types

import jinja2.sandbox
import torch
from kvpress import FastKVzipPress, KVComposePress, KVgradPress, KVzipPress
from kvpress.presses import fastkvzip_press, kvzip_press
from transformers import DynamicCache

import gates
import presses_model as base
import recorded
import ref_model

RATIOS = (0.25, 0.5, 0.75, 0.9)
WALK = 12  # tokens
GATES_SEED = 7


class Tokenizer:
    """What kvzip asks of one."""

    def __init__(self, peer, template):
        self.peer, self.chat_template = peer, template

    def encode(self, text, return_tensors="pt", add_special_tokens=True):
        return torch.tensor([self.peer.tokenize(text, special=add_special_tokens, parse_special=True)], dtype=torch.long)

    def apply_chat_template(self, messages, add_generation_prompt, tokenize=False, **rest):
        env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        bos = self.peer.L.llama_vocab_bos(self.peer.vocab)
        return env.from_string(self.chat_template).render(messages=messages, add_generation_prompt=add_generation_prompt,
                                                          bos_token=base.detokenize(self.peer, [bos]), **rest)


class Pressed:
    """The model's layers that are pressed, numbered from 0, as the presses' last steps walk over them."""

    def __init__(self, model, pressed):
        self.real = [model.model.layers[i].self_attn for i in pressed]
        self.model = types.SimpleNamespace(layers=[types.SimpleNamespace(self_attn=types.SimpleNamespace(
            layer_idx=k, config=m.config, masked_key_indices=None)) for k, m in enumerate(self.real)])

    def apply(self):
        for layer, m in zip(self.model.layers, self.real):
            m.masked_key_indices = layer.self_attn.masked_key_indices

    def kept(self, heads, n):
        out = torch.ones(len(self.real), heads, n, dtype=torch.bool)
        for mask, layer in zip(out, self.model.layers):
            _, h, slots = layer.self_attn.masked_key_indices
            mask[h, slots] = False
        return out


class Behind(Tokenizer):
    """One that reads a text as the server does in a replay: it goes on, so that SentencePiece puts no space in front."""

    def encode(self, text, return_tensors="pt", add_special_tokens=True):
        first = super().encode("a", add_special_tokens=add_special_tokens)
        ids = super().encode("a" + text, add_special_tokens=add_special_tokens)
        if not text:
            return ids[:, :0]
        assert text[0] == "\n" and torch.equal(ids[:, :first.shape[1]], first)
        return ids[:, first.shape[1]:]


class Cuts:
    """kvzip's last step at every ratio."""

    def compress_post(self, model):
        self.scores, self.found = self.score_val[self.pressed][:, 0].clone(), {}
        for ratio in (*RATIOS, base.WALK_RATIO):  # the last one stays
            self.compression_ratio = ratio
            self.score_val = self.scores[:, None].clone()
            view = Pressed(model, self.pressed)
            super().compress_post(view)
            self.found[ratio] = view.kept(*self.scores.shape[1:])
            view.apply()
        self.scores = self.score_val[:, 0].clone()  # with the sinks


class Zip(Cuts, KVzipPress):
    pass


class Grad(Cuts, KVgradPress):
    pass


class Compose(KVComposePress):
    def prepare_important_masks(self):
        self.cache.crop(self.context_len)
        self.whole, self.n_all = self.cache, self.num_layers
        self.task_aggregators = [self.task_aggregators[i] for i in self.pressed]
        self.num_layers = len(self.pressed)
        self.cache = types.SimpleNamespace(layers=[self.whole.layers[i] for i in self.pressed])
        self.found = {}
        for ratio in (*RATIOS, base.WALK_RATIO):
            self.compression_ratio = ratio
            super().prepare_important_masks()
            self.found[ratio] = torch.stack([torch.stack(layer) for layer in self.important_mask_per_kv_head])
        self.kept_scores = self.scores.clone()

    def compute_important_per_layer(self):
        super().compute_important_per_layer()
        self.important_per_head = self.important_per_head.clip(min=1)

    def compress_cache(self, model):
        dense = [(layer.keys[0].clone(), layer.values[0].clone()) for layer in self.cache.layers]
        view = Pressed(model, self.pressed)
        super().compress_cache(view)
        if not self.structured:
            view.apply()
            assert torch.equal(view.kept(self.num_kv_heads, self.context_len), self.found[base.WALK_RATIO])
            return
        for mask, (k, v), layer in zip(self.found[base.WALK_RATIO], dense, self.cache.layers):
            for h in range(self.num_kv_heads):
                slots = base.slots_of(None, (k[h], v[h]), (layer.keys[0, h], layer.values[0, h]))
                assert slots == mask[h].nonzero()[:, 0].tolist()

    def _reset_state(self):
        super()._reset_state()
        self.scores = self.kept_scores


class Fast(FastKVzipPress):
    def compress_post(self, model):
        found, scores = {}, torch.stack([self.score_val[i] for i in self.pressed])
        for ratio in (*RATIOS, base.WALK_RATIO):
            self.compression_ratio, self.score_val = ratio, list(scores)
            view = Pressed(model, self.pressed)
            super().compress_post(view)
            found[ratio] = view.kept(*scores.shape[2:])
            view.apply()
        self.scores, self.found = scores[:, 0], found


def fast(model, **options):
    press, c = Fast(0.5, **options), model.config
    group = c.num_attention_heads // c.num_key_value_heads
    drawn = gates.draw(GATES_SEED, c.num_hidden_layers, c.num_key_value_heads, group, c.hidden_size)
    press.gates = []
    for i in range(c.num_hidden_layers):
        gate = fastkvzip_press.FastKVzipGate(i, c.hidden_size, c.num_key_value_heads, group, torch.float32, gates.SIZE, gates.SIZE)
        gate.load_state_dict({name: torch.tensor(drawn[f"layers.{i}.{name}"][1]).view(drawn[f"layers.{i}.{name}"][0])
                              for name in gate.state_dict()})
        press.gates.append(gate.requires_grad_(False))
    return press


# wire text -> the reference's press
PRESSES = {
    "kvzip": lambda m: Zip(0.5),
    "kvzip:layerwise=true": lambda m: Zip(0.5, layerwise=True),
    "kvzip:kvzip_plus_normalization=true,chunk_size=512": lambda m: Zip(0.5, kvzip_plus_normalization=True, chunk_size=512),
    "kvzip:n_sink=1,chunk_size=100": lambda m: Zip(0.5, n_sink=1, chunk_size=100),
    "kvgrad": lambda m: Grad(0.5),
    "kvgrad:layerwise=true,n_sink=1,chunk_size=100": lambda m: Grad(0.5, layerwise=True, n_sink=1, chunk_size=100),
    "kvcompose": lambda m: Compose(compression_ratio=0.5),
    "kvcompose:structured=false": lambda m: Compose(compression_ratio=0.5, structured=False),
    "kvcompose:agg_task=mean,agg_group=max,agg_head=max,add_v_norm=true,add_mean_across_heads=false,keep_token_lower_bound=9":
        lambda m: Compose(compression_ratio=0.5, agg_task="mean", agg_group="max", agg_head="max", add_v_norm=True,
                        add_mean_across_heads=False, keep_token_lower_bound=9),
}
SMALL = {
    "kvgrad": lambda m: Grad(0.5),
    "kvgrad:layerwise=true,n_sink=1,chunk_size=70": lambda m: Grad(0.5, layerwise=True, n_sink=1, chunk_size=70),
}
GATED = {
    "fastkvzip": fast,
    "fastkvzip:layerwise=true": lambda m: fast(m, layerwise=True),
    "fastkvzip:n_sink=0,window_ratio=0.1": lambda m: fast(m, n_sink=0, window_ratio=0.1),
}
# title -> (of presses_model.py, tokens it is cut to, form, presses: None = all)
RAW, CHAT, CONTEXT = range(3)  # CONTEXT: a chat up to the message's end
PROMPTS = {
    "letter chat": ("letter", 70, CHAT, None),
    "mixed context": ("mixed", 300, CONTEXT, ("kvzip", "kvzip:n_sink=1,chunk_size=100", "kvgrad", "kvcompose:structured=false")),
    "mixed": ("mixed", 300, RAW, None),
    "long chat": ("long", 960, CHAT, ("kvzip", "kvzip:kvzip_plus_normalization=true,chunk_size=512", "kvgrad", "kvcompose")),
}


def suffix_ids(tokenizer):
    """The ids that the template puts behind a message."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": "end of it"}], True)
    return tokenizer.encode(text[text.index("end of it") + len("end of it"):], add_special_tokens=False)[0].tolist()


def run(model, tokenizer, make, ids, pressed):
    """The press, and the cache and logits it leaves."""
    press, cache = make(model), DynamicCache()
    press.pressed = pressed
    for layer in model.model.layers:
        layer.self_attn.masked_key_indices = None
    kvzip_press.AutoTokenizer = types.SimpleNamespace(from_pretrained=lambda name: tokenizer)
    kvzip_press.Gemma3PreTrainedModel = ()  # its layers without a window are as good as any
    with press(model):
        logits = model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
    return press, cache, logits


def one_press(model, peer, tokenizer, make, ids, pressed, walks):
    press, cache, logits = run(model, tokenizer, make, ids, pressed)
    long = len(ids) > base.LONG
    out = {"scores": base.b64(press.scores[:, :, ::base.STRIDE].numpy()),
           "kept": {str(r): base.record(press.found[r], press.scores, long) for r in RATIOS}}
    if not walks:
        return out
    got, top = base.walk(model, types.SimpleNamespace(logits=logits), cache, len(ids), WALK)
    out["walk"] = {"ids": got, "text": base.detokenize(peer, got), "top": top}
    return out


@torch.inference_mode()
def small_doc(name, model, peer, ids, why):
    """Of a model of arch_models.py: kvgrad, whose way back is each architecture's own; None where no layer is pressed.
    why: no walk, since pairs that are hidden would be seen again; or None."""
    base.LONG, base.WALK_LONG, base.STRIDE = 0, WALK, 7
    kinds = getattr(model.config, "layer_types", None) or [
        "sliding_attention" if getattr(model.config, "sliding_window", None) else "full_attention"] * model.config.num_hidden_layers
    pressed = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    if not pressed:
        return None
    entry = {"name": "replayed", "ids": ids, "pressed": pressed, "presses": {}}
    for text, make in SMALL.items():
        with base.lower_slot_wins():
            entry["presses"][text] = one_press(model, peer, Behind(peer, None), make, ids, pressed, why is None)
    return {"format": 2, "model": name, "reference": "kvpress 0.5.5, f32", "stride": base.STRIDE, "walk_ratio": base.WALK_RATIO,
            "alone": True, "prompts": [entry], "not_judged": {} if why is None else {"walks": why}}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("name")
    p.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "data"))
    p.add_argument("--gates", action="store_true")
    p.add_argument("--press", action="append")
    p.add_argument("--prompt", action="append")
    a = p.parse_args()
    torch.set_num_threads(1)
    model = ref_model.load_model(a.model)
    peer = ref_model.LlamaCpp(a.model)
    template = model.gguf_meta.get("tokenizer.chat_template")
    kinds = getattr(model.config, "layer_types", None) or ["full_attention"] * model.config.num_hidden_layers
    pressed = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    doc = {"format": 2, "model": os.path.basename(a.model), "reference": "kvpress 0.5.5, f32", "stride": base.STRIDE,
           "walk_ratio": base.WALK_RATIO, "alone": True, "prompts": []}
    presses = GATED if a.gates else PRESSES
    if a.gates:
        doc["gates"] = {"seed": GATES_SEED, "layers": len(kinds), "heads": model.config.num_key_value_heads, "width": model.config.hidden_size,
                        "group": model.config.num_attention_heads // model.config.num_key_value_heads}
    path, old = os.path.join(a.out, f"{'gates' if a.gates else 'replays'}_{a.name}.json.gz"), {}
    if os.path.exists(path):
        with gzip.open(path) as f:
            old = {entry["name"]: entry["presses"] for entry in json.load(f)["prompts"]}
    for title, (source, n, form, names) in PROMPTS.items():
        chat = form != RAW and template is not None
        text, _ = base.prompts()[source]
        ids = peer.tokenize(text)[:n]
        tokenizer = Tokenizer(peer, template if chat else None)
        entry = {"name": title, "pressed": pressed, "presses": {}}
        if chat:
            entry["user"] = base.detokenize(peer, ids)
            ids = tokenizer.encode(tokenizer.apply_chat_template([{"role": "user", "content": entry["user"]}], True),
                                   add_special_tokens=False)[0].tolist()
        if chat and form == CONTEXT:
            ids = ids[:-len(suffix_ids(tokenizer))]
            entry["scope"] = len(ids)
        entry["ids"] = ids
        for name in presses:
            if names is not None and name not in names:
                continue
            if a.press and name not in a.press or a.prompt and title not in a.prompt:
                if name in old.get(title, {}):
                    entry["presses"][name] = old[title][name]
                continue
            with torch.inference_mode(), base.lower_slot_wins():
                entry["presses"][name] = e = one_press(model, peer, tokenizer, presses[name], ids, pressed, form != CONTEXT)
            print(f"  {title}, {len(ids)} tokens, {name}: {e.get('walk', {}).get('text')!r}", file=sys.stderr)
        if entry["presses"]:
            doc["prompts"].append(entry)
    recorded.save(path, doc)


if __name__ == "__main__":
    main()
