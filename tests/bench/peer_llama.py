#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time llama.cpp through the low-level API of the llama_cpp package.

One process, one model, one flash-attention setting.  Prints one JSON object per repetition:
  {"engine":"llama.cpp","model":..,"fa":"on","test":"pp","n":512,"tok_s":..}      prompt of n tokens, empty cache
  {"engine":"llama.cpp","model":..,"fa":"on","test":"tg","n":2048,"gen":64,"tok_s":..}  decode at depth n
The work is that of llama-bench: token ids drawn at random, logits of the last position only, no
sampling, one warm-up.  Needs nothing but the llama_cpp package.
"""

import argparse
import ctypes
import json
import os
import random
import sys
import time

import llama_cpp as L


def quiet(level, text, user):
    if level >= 4 or os.environ.get("PEER_VERBOSE"):
        sys.stderr.write(text.decode("utf-8", "replace"))


class Peer:
    """A model and one context; `feed` decodes ids at the end of sequence 0."""

    def __init__(self, path, threads, n_ctx, ubatch, fa):
        mp = L.llama_model_default_params()
        mp.n_gpu_layers = 0
        self.model = L.llama_model_load_from_file(path.encode(), mp)
        if not self.model:
            raise SystemExit(f"peer_llama: cannot load {path}")
        cp = L.llama_context_default_params()
        cp.n_ctx = n_ctx
        cp.n_batch = cp.n_ubatch = ubatch
        cp.n_threads = cp.n_threads_batch = threads
        cp.flash_attn_type = 1 if fa else 0
        cp.no_perf = True
        self.ctx = L.llama_init_from_model(self.model, cp)
        if not self.ctx:
            raise SystemExit("peer_llama: cannot make a context")
        self.n_vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(self.model))
        self.ubatch = ubatch
        self.memory = L.llama_get_memory(self.ctx)
        self.batch = L.llama_batch_init(ubatch, 0, 1)
        self.pos = 0

    def clear(self):
        L.llama_memory_clear(self.memory, True)
        self.pos = 0

    def feed(self, ids):
        for at in range(0, len(ids), self.ubatch):
            part = ids[at:at + self.ubatch]
            b = self.batch
            b.n_tokens = len(part)
            for i, t in enumerate(part):
                b.token[i] = t
                b.pos[i] = self.pos + i
                b.n_seq_id[i] = 1
                b.seq_id[i][0] = 0
                b.logits[i] = at + i + 1 == len(ids)
            if L.llama_decode(self.ctx, b) != 0:
                raise SystemExit("peer_llama: llama_decode failed")
            self.pos += len(part)
        L.llama_synchronize(self.ctx)


def numbers(text):
    return [int(x) for x in text.split(",") if x]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-m", "--model", required=True)
    p.add_argument("-t", "--threads", type=int, default=2)
    p.add_argument("-p", "--prompts", type=numbers, default=[128, 512, 2048])
    p.add_argument("-d", "--depths", type=numbers, default=[0, 512, 2048])
    p.add_argument("-n", "--gen", type=int, default=64)
    p.add_argument("-r", "--reps", type=int, default=2)
    p.add_argument("--ubatch", type=int, default=512)
    p.add_argument("--fa", choices=["on", "off"], default="on")
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()

    log = L.llama_log_callback(quiet)
    L.llama_log_set(log, ctypes.c_void_p(0))
    L.llama_backend_init()
    rng = random.Random(a.seed)
    need = max(a.prompts + [d + a.gen for d in a.depths])
    peer = Peer(a.model, a.threads, -(-(need + 1) // 256) * 256, a.ubatch, a.fa == "on")
    ids = lambda n: [rng.randrange(1, peer.n_vocab) for _ in range(n)]
    peer.feed(ids(16))
    peer.feed(ids(1))

    def tell(**row):
        head = {"engine": "llama.cpp", "model": os.path.basename(a.model), "fa": a.fa, "threads": a.threads}
        print(json.dumps({**head, **row}), flush=True)

    for _ in range(a.reps):
        for n in a.prompts:
            peer.clear()
            prompt = ids(n)
            t0 = time.perf_counter()
            peer.feed(prompt)
            tell(test="pp", n=n, tok_s=n / (time.perf_counter() - t0))
        for d in a.depths:
            peer.clear()
            peer.feed(ids(d))
            steps = [[t] for t in ids(a.gen)]
            t0 = time.perf_counter()
            for step in steps:
                peer.feed(step)
            tell(test="tg", n=d, gen=a.gen, tok_s=a.gen / (time.perf_counter() - t0))


if __name__ == "__main__":
    main()
