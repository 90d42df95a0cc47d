#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tokens/s and KV bytes of pressd beside llama.cpp, in one run on one machine, as CSV on standard output.

What is compared: the same GGUF, the same number of threads, f16 cache, prompts of random ids, greedy.
llama.cpp is timed in its own process (peer_llama.py, or llama-bench where PEER_BIN has it) with flash
attention on and off; both are printed and `ratio` compares with the better one.  Ours is timed through
HTTP: `timings` of the reply for prefill and decode, the wall clock of the whole request beside it.

Rounds alternate (ours, peer, peer, ours, ...), since a shared machine drifts by more than what is
measured: every figure is the median of the rounds with its least and greatest.

rows:  model,test,n,press,ratio,what,unit,median,min,max,rounds
  test pp  prompt of n tokens into an empty cache            tok/s
  test tg  decode with n tokens in the cache                 tok/s
  test kv  prompt of n tokens with a press at a ratio        bytes after prefill, peak, dense; tok/s of both phases
  test start  process start to the first readiness           s
"""

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
import pressd  # noqa: E402

FIELDS = ("model", "test", "n", "press", "ratio", "what", "unit", "median", "min", "max", "rounds")


def numbers(text):
    return [int(x) for x in text.split(",") if x]


class Table:
    """Samples by row key, in the order the keys came up."""

    def __init__(self):
        self.rows = {}

    def add(self, key, value):
        self.rows.setdefault(key, []).append(value)

    def median(self, key):
        return statistics.median(self.rows[key]) if key in self.rows else None

    def write(self, out):
        w = csv.writer(out, lineterminator="\n")
        w.writerow(FIELDS)
        short = lambda x: f"{x:.0f}" if x == int(x) else f"{x:.4g}"
        for key, v in self.rows.items():
            w.writerow((*key, short(statistics.median(v)), short(min(v)), short(max(v)), len(v)))


class Run:
    def __init__(self, a, table):
        self.a, self.table, self.rng = a, table, random.Random(a.seed)

    def ids(self, n):
        return [self.rng.randrange(300, self.vocab) for _ in range(n)]

    def ours(self, model):
        name = os.path.basename(model)
        a = self.a
        t0 = time.monotonic()
        with pressd.Server(model, "--threads", str(a.threads), *a.server_args.split()) as s:
            add = lambda test, n, what, unit, value, press="", ratio="": self.table.add(
                (name, test, n, press, ratio, what, unit), value)
            add("start", 0, "pressd", "s", time.monotonic() - t0)
            self.vocab = 40000  # below every served vocabulary
            limit = s.get("/v1/models")[2]["data"][0]["max_model_len"]
            self.complete(s, self.ids(16), 2)

            def one(n, gen, press=None, ratio=None):
                extra = {"compression": {"press": press, "ratio": ratio}} if press else {}
                t = time.monotonic()
                r = self.complete(s, self.ids(n), gen, **extra)
                return r, time.monotonic() - t

            for n in a.prompts:
                if n + 1 > limit:
                    continue
                r, wall = one(n, 1)
                add("pp", n, "pressd", "tok/s", r["timings"]["prompt_per_second"])
                add("pp", n, "pressd, wall clock", "tok/s", n / wall)
            for d in a.depths:
                if d + a.gen > limit:
                    continue
                r, _ = one(max(d, 1), a.gen)
                add("tg", d, "pressd", "tok/s", self.decode_rate(r))
            for n in a.kv_prompts:
                if n + a.gen > limit:
                    continue
                for press in a.presses:
                    for ratio in a.ratios:
                        r, _ = one(n, a.gen, press, ratio)
                        kv = r["kv_cache"]
                        row = lambda what, unit, v: add("kv", n, what, unit, v, press, ratio)
                        row("after prefill", "bytes", kv["bytes_after_prefill"])
                        row("peak", "bytes", kv["bytes_peak"])
                        row("dense f16", "bytes", kv["bytes_dense"])
                        row("press", "ms", kv["press_ms"])
                        row("prefill", "tok/s", r["timings"]["prompt_per_second"])
                        row("decode", "tok/s", self.decode_rate(r))

    def complete(self, s, ids, n, **extra):
        return s.ask("/v1/completions", {"prompt": ids, "max_tokens": n, "temperature": 0, "ignore_eos": True, **extra},
                     timeout=1800)

    @staticmethod
    def decode_rate(r):
        """The first token comes out of prefill: n tokens are n - 1 steps of predicted_ms."""
        t = r["timings"]
        return (t["predicted_n"] - 1) * 1e3 / t["predicted_ms"] if t["predicted_ms"] else 0.0

    def peer(self, model):
        name, a = os.path.basename(model), self.a
        for fa in ("on", "off"):
            for row in self.peer_rows(model, fa):
                self.table.add((name, row["test"], row["n"], "", "", f"llama.cpp fa {fa}", "tok/s"), row["tok_s"])

    def peer_rows(self, model, fa):
        a = self.a
        lists = [",".join(map(str, x)) for x in (a.prompts, a.depths)]
        if a.peer == "llama-bench":
            command = [os.path.join(os.environ["PEER_BIN"], "llama-bench"), "-m", model, "-t", str(a.threads), "-r", "1",
                       "-fa", "1" if fa == "on" else "0", "-b", "512", "-ub", "512", "-o", "jsonl"]
            jobs = [[*command, "-n", "0", "-p", lists[0]], [*command, "-p", "0", "-n", str(a.gen), "-d", lists[1]]]
            for job in jobs:
                for line in subprocess.run(job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout.splitlines():
                    v = json.loads(line)
                    yield {"test": "pp" if v["n_prompt"] else "tg", "n": v["n_prompt"] or v["n_depth"], "tok_s": v["avg_ts"]}
            return
        job = [a.peer_python, os.path.join(HERE, "peer_llama.py"), "-m", model, "-t", str(a.threads), "--fa", fa, "-r", "1",
               "-p", lists[0], "-d", lists[1], "-n", str(a.gen)]
        done = subprocess.run(job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        yield from map(json.loads, done.stdout.splitlines())

    def compare(self, model):
        """ratio rows: our median over the better of the peer's two settings."""
        name = os.path.basename(model)
        for test, ns in (("pp", self.a.prompts), ("tg", self.a.depths)):
            for n in ns:
                key = lambda what: (name, test, n, "", "", what, "tok/s")
                ours = self.table.median(key("pressd"))
                peers = [x for x in (self.table.median(key(f"llama.cpp fa {fa}")) for fa in ("on", "off")) if x]
                if ours and peers:
                    self.table.add((name, test, n, "", "", "pressd / best llama.cpp", "ratio"), ours / max(peers))


def machine():
    """The CPU's name and the flags speed depends on."""
    model, flags = "unknown CPU", []
    wanted = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile",
              "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16")
    with open("/proc/cpuinfo") as f:
        for line in f:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            if key.strip() in ("flags", "Features"):
                flags = [w for w in wanted if w in value.split()]
                break
    return f"{model}, {len(os.sched_getaffinity(0))} CPUs, flags {' '.join(flags)}"


def find_peer(python):
    if os.access(os.path.join(os.environ.get("PEER_BIN", ""), "llama-bench"), os.X_OK):
        return "llama-bench"
    found = subprocess.run([python, "-c", "import llama_cpp; print(llama_cpp.__version__, llama_cpp.llama_print_system_info().decode())"],
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return "llama_cpp " + found.stdout.strip() if found.returncode == 0 else None


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+", help="GGUF files")
    p.add_argument("-t", "--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    p.add_argument("-r", "--rounds", type=int, default=3)
    p.add_argument("-p", "--prompts", type=numbers, default=[128, 512, 2048])
    p.add_argument("-d", "--depths", type=numbers, default=[0, 512, 2048])
    p.add_argument("-n", "--gen", type=int, default=64)
    p.add_argument("--kv-prompts", type=numbers, default=[512, 2048])
    p.add_argument("--presses", type=lambda s: [x for x in s.split(";") if x], default=["knorm", "snapkv", "expected_attention"],
                   help="press texts, separated by ';'")
    p.add_argument("--ratios", type=lambda s: [float(x) for x in s.split(",")], default=[0.0, 0.5, 0.75])
    p.add_argument("--long", action="store_true", help="8192 as well")
    p.add_argument("--server-args", default="", help="further arguments of pressd")
    p.add_argument("--no-peer", action="store_true")
    p.add_argument("--peer-python", default=sys.executable, help="a python that has llama_cpp")
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    if a.long:  # 8192 is SmolLM2's whole context: leave room for what is generated
        a.prompts, a.depths, a.kv_prompts = a.prompts + [8000], a.depths + [8000], a.kv_prompts + [8000]
    found = None if a.no_peer else find_peer(a.peer_python)
    a.peer = found and found.split()[0]
    version = subprocess.run([pressd.binary(), "version"], stdout=subprocess.PIPE, text=True).stdout.strip().replace("\n", "; ")
    print(f"# {machine()}\n# pressd: {version}\n# peer: {found or 'none'}\n# {a.threads} threads, {a.rounds} rounds, "
          f"load {os.getloadavg()[0]:.2f} before", flush=True)
    table = Table()
    run = Run(a, table)
    for r in range(a.rounds):
        for model in a.models:
            order = [run.ours] + ([run.peer] if a.peer else [])
            for step in order if r % 2 == 0 else order[::-1]:
                step(model)
    for model in a.models:
        run.compare(model)
    table.write(sys.stdout)
    print(f"# load {os.getloadavg()[0]:.2f} after")


if __name__ == "__main__":
    main()
