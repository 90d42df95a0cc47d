# SPDX-License-Identifier: Apache-2.0
"""pressed.py MODEL.gguf TOKENIZER SAMPLES PREFACE RATIO OUT: what lm-evaluation-harness asked, under a press, in torch.

The preface is read whole; of each layer and KV head the keys of least norm stay (Devoto et al. 2024, kvpress' KnormPress);
the rest of each prompt is read behind what is left, at its own positions.  OUT: by document and choice the log
probability of the continuation so, and of one without a press.  The first token behind the preface is read densely."""

import glob
import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


def main():
    path, tokenizer, samples, preface, ratio, out = sys.argv[1:]
    tok = AutoTokenizer.from_pretrained(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(os.path.dirname(path), gguf_file=os.path.basename(path), dtype=torch.float32)
    head = tok.encode(open(preface).read())
    n = len(head)

    def read(ids, cache, at):
        place = torch.arange(at, at + len(ids))[None]  # for RoPE alone: who sees whom counts what the cache still has
        return model(torch.tensor([ids]), past_key_values=cache, position_ids=place, use_cache=True).logits[0]

    def layers(ratio):
        """The preface's keys and values, and the logits behind it."""
        cache = DynamicCache(config=model.config)
        last = read(head, cache, 0)[-1:]
        made = []
        for x in cache.layers:
            k, v = x.keys, x.values
            kept = k.norm(dim=-1).sort(dim=-1, stable=True).indices[..., :int(n * (1 - ratio))]
            kept = kept.sort().values[..., None].expand(-1, -1, -1, k.shape[-1])
            made.append((k.gather(2, kept), v.gather(2, kept)))
        return last, made

    def score(start, ids, n_cont):
        last, made = start
        cache = DynamicCache(config=model.config)
        for i, (k, v) in enumerate(made):
            cache.update(k, v, i)
        logits = torch.cat([last, read(ids[n:], cache, n)]).log_softmax(-1)  # row i: behind n + i tokens
        return sum(logits[j - n, ids[j]].item() for j in range(len(ids) - n_cont, len(ids)))

    done = {}
    with torch.no_grad():
        starts = layers(float(ratio)), layers(0.0)
        found, = glob.glob(samples + "/**/samples_pressd_facts_*.jsonl", recursive=True)
        for s in map(json.loads, open(found)):
            doc = done[s["doc_id"]] = []
            for a in s["arguments"].values() if isinstance(s["arguments"], dict) else s["arguments"]:
                context, more = a.values() if isinstance(a, dict) else a
                whole = tok.encode(context + more)
                assert whole[:n] == head
                doc.append([score(start, whole, len(whole) - len(tok.encode(context))) for start in starts])
    with open(out, "w") as f:
        json.dump(done, f)


main()
