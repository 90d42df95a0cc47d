#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write data/arch_<name>.json.gz, .._presses.json.gz and .._replays.json.gz: transformers' and kvpress' word on the
small models of arch_models.py, for check_logits.py and check_presses.py.

    arch.py [--out DIR] [--logits-only | --presses-only | --replays-only] [NAME ...]
    arch.py --table            # what is stored, as Markdown: the table of README.md

logits   two prompts, the second far beyond windows and original contexts: the top TOP tokens after forced
         prefixes and along GREEDY greedy ones, as logits.py has them
presses  SHORT and LONG tokens, as presses_model.py has them (less of each, to keep files small), and which
         presses cannot be judged, with the reason

replays  kvgrad, which goes backwards through every layer (replays_model.py)

Before anything is written the model is held against a third party: llama.cpp reads the file and must say the
same (its products have 8-bit operands, so this is about structure: names, order, keys).
Needs torch, transformers, kvpress, gguf's reader through llama_cpp; a minute per model on one core.
"""

import argparse
import gzip
import json
import os
import re
import sys
import tempfile

import torch
import transformers

import arch_models
import arch_presses
import logits
import recorded
import ref_model
import replays_model

TOP, GREEDY = 32, 32
REPLAYED = 180  # tokens
KL_LIMIT = 1e-4
# llama.cpp leaves out the window that these files state, and takes the long factors in a context of 256
DIFFERENT = ("mistral", "phi3-window", "phi3-short")
HERE = os.path.dirname(os.path.abspath(__file__))


def model_of(name):
    """transformers' model with the seeded weights, f32."""
    s = arch_models.SPECS[name]
    vocab, *_, tok = arch_models.vocabulary(s)
    args = dict(vocab_size=len(vocab), hidden_size=arch_models.EMBD, intermediate_size=arch_models.FF,
                num_hidden_layers=s.layers, num_attention_heads=arch_models.HEADS, num_key_value_heads=arch_models.KV_HEADS,
                head_dim=s.dim, max_position_embeddings=arch_models.CTX, rms_norm_eps=1e-6 if s.gemma else 1e-5,
                tie_word_embeddings=s.tied, bos_token_id=tok["bos_token_id"], eos_token_id=tok["eos_token_id"],
                pad_token_id=None, attn_implementation="capped" if s.arch == "gemma2" else "sdpa")
    config = {"Gemma3ForCausalLM": "Gemma3TextConfig"}.get(s.hf, s.hf.replace("ForCausalLM", "Config"))
    config = getattr(transformers, config)(**{**args, **s.config})
    model = getattr(transformers, s.hf)(config).float()
    state = {k: torch.frombuffer(bytearray(t.data.tobytes()), dtype=torch.float32).reshape(t.shape)
             for k, t in arch_models.weights(name).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [k for k in missing if not (s.tied and k == "lm_head.weight")]
    if missing or unexpected:
        raise SystemExit(f"{name}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.eval().requires_grad_(False)


def prompts(name):
    text = arch_models.TEXT.replace("\n", " ")
    words = text.split()
    if arch_models.SPECS[name].args:  # a server of ORIG_CTX tokens
        return {"short": " ".join(words[:12])}
    return {"short": "The boy had 2 mules, he said; " + " ".join(words[40:60]) + "\n  (if not open: 1961)",
            "long": text + "Station 17 reported at dawn. " + " ".join(words[:70:-1])}


def against_llama_cpp(name, model, peer, ids):
    ours = ref_model.log_probs(model, ids)
    theirs = torch.log_softmax(peer.logits(ids).double(), dim=-1)
    kl = (ours.double().exp() * (ours.double() - theirs)).sum(-1).mean().item()
    print(f"{name}: {len(ids)} tokens, KL(transformers || llama.cpp) {kl:.1e}", file=sys.stderr)
    return kl


def logits_doc(name, model, peer):
    logits.TOP = TOP
    texts = logits.Texts(peer)
    used, cases = set(), []
    for title, text in prompts(name).items():
        ids = peer.tokenize(text)
        cont = logits.greedy(model, ids, GREEDY if len(ids) + GREEDY <= arch_models.CTX else 0)
        cont = cont[:next((i for i, t in enumerate(cont) if t in texts.control), len(cont))]
        lp = ref_model.log_probs(model, ids + cont)
        edges = (1, 2, 15, 16, 17, arch_models.WINDOW - 1, arch_models.WINDOW, arch_models.WINDOW + 1, arch_models.ORIG_CTX,
                 arch_models.ORIG_CTX + 1, 128, 129)
        ks = logits.spread(len(ids), edges, 6)
        forced = [logits.position(k, lp[k - 1]) for k in ks]
        walk = [logits.position(len(ids) + i, lp[len(ids) + i - 1]) for i in range(len(cont))]
        used.update(t for c in forced + walk for t in c["ids"])
        used.update(ids + cont)
        cases.append({"name": title, "text": text, "ids": ids, "greedy": cont, "forced": forced, "walk": walk})
        print(f"{name} {title}: {len(ids)} tokens, {len(forced)} forced, {len(walk)} greedy", file=sys.stderr)
    return {"format": 1, "model": name, "dtype": "f32", "top": TOP, "cases": cases,
            "texts": {str(t): texts.texts[t] for t in sorted(used) if texts.texts[t] is not None}}


def family(wire):
    """A press without its parameters, wrappers with their children."""
    return re.sub(r"@[0-9.]+", "", re.sub(r":[^(),]*(,[a-z_]+=[^(),]*)*", "", wire))


def table(out):
    """Which press is judged on which model, and by what."""
    cells, notes, names = {}, {}, []
    for name, s in arch_models.SPECS.items():
        path = os.path.join(out, f"arch_{name}_presses.json.gz")
        if not os.path.exists(path):
            continue
        names.append(name)
        with gzip.open(path) as f:
            doc = json.load(f)
        for prompt in doc["prompts"]:
            for wire, e in prompt["presses"].items():
                cells.setdefault(family(wire), {}).setdefault(name, set()).update(
                    "s" * ("scores" in e) + "k" * bool(e["kept"]) + "w" * ("walk" in e))
        for wire, why in doc["not_judged"].items():
            mark = notes.setdefault(why, len(notes) + 1)
            cells.setdefault(family(wire), {}).setdefault(name, set()).add(str(mark))
    lines = ["| press | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for press in sorted(cells):
        row = ["".join(sorted(cells[press].get(n, "-"), key="skw123456789-".index)) for n in names]
        lines.append(f"| {press} | " + " | ".join(row) + " |")
    lines += [""] + [f"{i}. {why}" for why, i in notes.items()]
    return "\n".join(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", nargs="*")
    p.add_argument("--out", default=os.path.join(HERE, "data"))
    p.add_argument("--logits-only", action="store_true")
    p.add_argument("--presses-only", action="store_true")
    p.add_argument("--replays-only", action="store_true")
    p.add_argument("--table", action="store_true")
    a = p.parse_args()
    if a.table:
        print(table(a.out))
        return
    torch.set_num_threads(1)
    for name in a.name or arch_models.SPECS:
        model = model_of(name)
        with tempfile.TemporaryDirectory() as d:
            path = os.path.join(d, "model.gguf")
            arch_models.write(name, path)
            peer = ref_model.LlamaCpp(path, vocab_only=False)
            ids = peer.tokenize(list(prompts(name).values())[-1])
            if against_llama_cpp(name, model, peer, ids) > KL_LIMIT and name not in DIFFERENT:
                raise SystemExit(f"{name}: llama.cpp does not agree")
            if not a.presses_only and not a.replays_only:
                recorded.save(os.path.join(a.out, f"arch_{name}.json.gz"), logits_doc(name, model, peer))
            if not a.logits_only and not arch_models.SPECS[name].args:
                ids = ids[:REPLAYED]
                why = arch_presses.NO_HIDING if arch_models.SPECS[name].arch == "gemma2" else None
                doc = replays_model.small_doc(name, model, peer, ids, why)
                if doc:
                    recorded.save(os.path.join(a.out, f"arch_{name}_replays.json.gz"), doc)
                if a.replays_only:
                    continue
                doc = arch_presses.presses_doc(name, model, peer, prompts(name)["long"])
                if doc:
                    recorded.save(os.path.join(a.out, f"arch_{name}_presses.json.gz"), doc)


if __name__ == "__main__":
    main()
