#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write data/logits_<name>.json.gz: what the f32 reference says about the next token, for check_logits.py.

    logits.py MODEL.gguf NAME [--out DIR]

Two kinds of positions per prompt:
  forced   after the first k tokens of the prompt, for k at both sides of page and window bounds and
           spread over the rest: checks prefill of every length
  greedy   along the reference's own greedy continuation: checks the cache that decode reads

Each position holds the reference's top 100 as ids and natural-log probabilities over the whole
vocabulary (five decimals).  Token texts are stored once per id, because the wire speaks text; an id has
no text when it is a control token, half a character, or shares its text with another id.
Needs torch and the packages of ref_model.py; takes about a minute per model on one core.
"""

import argparse
import collections
import ctypes
import os
import sys

import torch

import recorded
import ref_model

TOP = 100
GREEDY = 64
LONG_GREEDY = 24
EDGES = (1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65)
LONG_EDGES = (511, 512, 513, 575, 576, 640)

PROSE = """\
The road over the pass had been closed since November, and nobody in the village expected the post before
spring. So when old Marta heard bells on the third morning of the thaw, she put down her bucket and walked to
the bridge to see who was mad enough to come. It was a boy with two mules. He had slept, he said, in the
shepherd's hut below the glacier, and he had eaten snow and hard cheese for four days. In the left saddlebag
were letters; in the right one, wrapped in oilcloth, was a violin that belonged to a man who had died in
"""

CODE = """\
#include <stdio.h>
#include <stdlib.h>

/* A fixed-size ring of integers: push fails when it is full, pop fails when it is empty. */
typedef struct ring {
    int *slot;
    size_t cap, head, count;
} ring;

int ring_init(ring *r, size_t cap) {
    r->slot = malloc(cap * sizeof(*r->slot));
    r->cap = cap;
    r->head = r->count = 0;
    return r->slot ? 0 : -1;
}

int ring_push(ring *r, int value) {
    if (r->count == r->cap)
        return -1;
    r->slot[(r->head + r->count) % r->cap] = value;
    r->count++;
    return 0;
}

int ring_pop(ring *r, int *value) {
"""

DIALOGUE = """\
Interviewer: You began keeping bees in 1998, on the roof of a bank. Whose idea was that?
Beekeeper: Mine, I am afraid. The bank's manager was a neighbour. I told him the roof was flat, south-facing and
empty, and he asked what the insurance would say.
Interviewer: And what did it say?
Beekeeper: Nothing! We never told them. For two years there were 40,000 bees above the vault.
Interviewer: What is the most common mistake of beginners?
Beekeeper: They open the hive too often. They want to look. Every time you look you
"""

LONG_PART = """\
In the {n} year of the survey the team walked the {a} shore and counted {b} at every {c} marker. The weather was
{d}, the boat leaked, and the notes were written in pencil because ink would not dry. What they found did not agree
with the map: the {c} stood further inland than before, and the {b} had moved with it. """
LONG_WORDS = (("first", "north", "gulls", "stone", "fair"), ("second", "east", "seals", "iron", "wet"),
              ("third", "south", "terns", "wooden", "cold"), ("fourth", "west", "crabs", "broken", "calm"),
              ("fifth", "inner", "herons", "painted", "foul"), ("sixth", "outer", "otters", "granite", "bright"),
              ("seventh", "upper", "plovers", "brass", "grey"), ("eighth", "lower", "cormorants", "leaning", "mild"),
              ("ninth", "far", "sandpipers", "sunken", "windy"))


def prompts():
    long = "".join(LONG_PART.format(n=n, a=a, b=b, c=c, d=d).replace("\n", " ") for n, a, b, c, d in LONG_WORDS)
    return {"prose": PROSE.replace("\n", " ").rstrip(), "code": CODE, "dialogue": DIALOGUE.rstrip(), "long": long.rstrip()}


class Texts:
    """Token texts as the wire shows them; None where text does not name one id."""

    def __init__(self, peer):
        L, self.vocab = peer.L, peer.vocab
        n = L.llama_vocab_n_tokens(peer.vocab)
        buf = ctypes.create_string_buffer(512)
        self.texts = []
        for t in range(n):
            size = L.llama_token_to_piece(peer.vocab, t, buf, len(buf), 0, True)
            control = L.llama_vocab_is_control(peer.vocab, t)
            try:
                self.texts.append(None if control or size <= 0 else buf.raw[:size].decode())
            except UnicodeDecodeError:
                self.texts.append(None)
        seen = collections.Counter(x for x in self.texts if x is not None)
        self.texts = [x if x is not None and seen[x] == 1 else None for x in self.texts]
        self.control = {t for t in range(n) if L.llama_vocab_is_control(peer.vocab, t)}


@torch.inference_mode()
def greedy(model, ids, n):
    out, cache, feed = [], None, ids
    for _ in range(n):
        r = model(torch.tensor([feed]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = r.past_key_values
        out.append(int(r.logits[0, -1].argmax()))
        feed = out[-1:]
    return out


def position(k, row):
    p, i = row.topk(TOP)
    return {"k": k, "ids": i.tolist(), "lp": [round(x, 5) for x in p.tolist()]}


def spread(n, edges, count):
    ks = {k for k in edges if k <= n} | {n - i * max(1, n // count) for i in range(count)}
    return sorted(k for k in ks if k >= 1)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("name")
    p.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "data"))
    a = p.parse_args()
    torch.set_num_threads(1)
    model = ref_model.load_model(a.model)
    peer = ref_model.LlamaCpp(a.model)
    texts = Texts(peer)
    used, cases = set(), []
    for name, text in prompts().items():
        ids = peer.tokenize(text)
        cont = greedy(model, ids, LONG_GREEDY if name == "long" else GREEDY)
        stop = next((i for i, t in enumerate(cont) if t in texts.control), len(cont))
        cont = cont[:stop]
        lp = ref_model.log_probs(model, ids + cont)
        ks = spread(len(ids), LONG_EDGES, 1) if name == "long" else spread(len(ids), EDGES, 12)
        ks = [k for k in ks if k >= min(512, len(ids)) - 1] if name == "long" else ks
        forced = [position(k, lp[k - 1]) for k in ks]
        walk = [position(len(ids) + i, lp[len(ids) + i - 1]) for i in range(len(cont))]
        for t, w in zip(cont, walk):
            # the cached steps and the one full pass must tell the same story
            assert w["ids"][0] == t or w["lp"][0] - w["lp"][1] < 1e-3, (name, w["k"])
        used.update(t for c in forced + walk for t in c["ids"])
        used.update(ids + cont)
        cases.append({"name": name, "text": text, "ids": ids, "greedy": cont, "forced": forced, "walk": walk})
        print(f"{name}: {len(ids)} tokens, {len(forced)} forced, {len(walk)} greedy", file=sys.stderr)
    doc = {"format": 1, "model": os.path.basename(a.model), "dtype": "f32", "top": TOP, "cases": cases,
           "texts": {str(t): texts.texts[t] for t in sorted(used) if texts.texts[t] is not None}}
    path = os.path.join(a.out, f"logits_{a.name}.json.gz")
    recorded.save(path, doc)


if __name__ == "__main__":
    main()
