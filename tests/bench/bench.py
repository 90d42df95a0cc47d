#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure pressd beside llama.cpp in alternation and append the samples to OUT/samples.csv.

Both get the same GGUF, the same threads, an f16 cache and distinct prompts of English words, greedy.  llama.cpp
runs with flash attention on and off; the report takes the better one of each row.  Ours is timed through HTTP
(`timings` of the reply), the peer by its own llama-batched-bench, which has no HTTP in it: the difference, if any,
is on our side.  Rounds alternate (ours, peer, then peer, ours), since a shared machine drifts.

groups, in this order (--groups a,b chooses; the README of this folder says how each is measured):
  limits   the machine: read bandwidth at each row's working set, int8 and f32 peaks
  depth    prefill of N tokens and decode after them, for each N of --depths; ours also with --ratios
  streams  8 streams at depth 2048, tokens/s of all
  ttft     time to first token over HTTP, 2,048-token prompt
  memory   RSS idle and its peak while an 8,192-token prompt is served
  start    process start to first token
  stall    gaps between the tokens of 4 running streams while a 4,096-token prompt is read
  curve    ours alone: cost against prompt length, dense and pressed
  crowd    ours alone: cost against the number of streams, dense and pressed
"""

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import time

import measure
from measure import LlamaServer, Streams, percentile, pressd

GROUPS = ("limits", "depth", "streams", "ttft", "memory", "start", "stall", "curve", "crowd")
WORDS = ("time people water house light world stone river paper music story green north small large hand line field "
         "table heart voice night money plant young white black south early late").split()
DEEP = 4096  # from here on one step does one prompt, so that a turn stays short
GEN = 64
MB = 1e6


def numbers(kind):
    return lambda text: [kind(x) for x in text.split(",") if x]


class Bench:
    def __init__(self, a, step):
        self.a, self.step, self.rng = a, step, random.Random(a.seed)
        self.words = {}

    # ---- prompts ----

    def ids(self, model, n):
        """n ids of whole words, another text each time."""
        if model not in self.words:
            command = [pressd.binary(), "tokenize", "--json", "-m", model]
            found = [json.loads(subprocess.check_output([*command, " " + w]))["tokens"] for w in WORDS]
            self.words[model] = [t[-1] for t in found if t]
        return self.rng.choices(self.words[model], k=n)

    def body(self, model, n, gen, press="", ratio=0.0, **more):
        extra = {"compression": {"press": press, "ratio": ratio}} if press else {}
        return {"prompt": self.ids(model, n), "max_tokens": gen, "temperature": 0, "ignore_eos": True, **extra, **more}

    # ---- both servers ----

    def ours(self, model, threads, ctx, *args):
        return pressd.Server(model, "--threads", str(threads), "--ctx-size", str(ctx), "--request-timeout", "3600",
                             "--draft-tokens", "0", *args, *self.a.server_args)

    def theirs(self, model, threads, ctx, fa, *args):
        return LlamaServer(model, "--threads", str(threads), "--ctx-size", str(ctx), "--flash-attn", fa, *args)

    def batched(self, model, threads, fa, prompts, streams=1):
        """llama-batched-bench, a JSON object for each prompt length."""
        ctx = streams * (-(-(max(prompts) + GEN) // 256) * 256)
        return measure.run_json([
            os.path.join(os.environ["PEER_BIN"], "llama-batched-bench"), "-m", model, "-t", str(threads), "-tb", str(threads),
            "-c", str(ctx), "-b", "2048", "-ub", "512", "-npp", ",".join(map(str, prompts)), "-ntg", str(GEN),
            "-npl", str(streams), "-fa", fa, "--output-format", "jsonl"])

    def turns(self, round_, ours, peer):
        """The steps of a round in its order; `peer` takes on or off."""
        steps = [ours] + [lambda fa=fa: peer(fa) for fa in self.a.fa if self.a.peer]
        for s in steps if round_ % 2 == 0 else steps[::-1]:
            s()

    def run(self, name, head, work):
        return self.step.run(f"{head['model']} -t {head['threads']} round {head['round']} {name}", head, work)

    # ---- groups ----

    def limits(self, head, model):
        """Sizes: what a decode step reads at each depth, and a megabyte a core as the level of the caches."""
        shape = inspect(model)
        weights, kv = sum(t["bytes"] for t in shape["types"]), shape["kv_cache"]
        at = lambda d: kv["full_bytes_per_token"] * d + kv["window_bytes_per_token"] * min(d, kv["window"] or d)
        sizes = sorted({round((weights + at(d + GEN // 2)) / MB) for d in self.a.depths})

        def work():
            command = [self.a.limits, str(head["threads"]), "0.3", str(head["threads"]), *map(str, sizes)]
            lines = subprocess.check_output(command, text=True).splitlines()[1:]
            for what, size, value, unit in (line.split(",") for line in lines):
                yield {"engine": "machine", "test": "limits", "n": size, "what": what, "unit": unit, "value": float(value)}

        self.run("limits", head, lambda: list(work()))

    def depth(self, head, model):
        low = [n for n in self.a.depths if n < DEEP]
        repeated = [n for n in low for _ in range(4 if n <= 512 else 2)]
        for prompts in [repeated] + [[n] for n in self.a.depths if n >= DEEP]:
            if prompts:
                self.turns(head["round"], lambda p=prompts: self.depth_ours(head, model, p),
                           lambda fa, p=prompts: self.depth_peer(head, model, p, fa))

    def depth_ours(self, head, model, prompts):
        for ratio in [0.0, *self.a.ratios]:
            wanted = [n for n in prompts if not ratio or n >= 512]
            if wanted:
                self.run(f"pressd depth {sorted(set(wanted))} ratio {ratio}", {**head, "engine": "pressd"},
                         lambda: self.depth_rows(model, head["threads"], wanted, ratio))

    def depth_rows(self, model, threads, prompts, ratio):
        rows = []
        press = self.a.press if ratio else ""
        with self.ours(model, threads, max(prompts) + GEN + 1) as s:
            s.ask("/v1/completions", self.body(model, 16, 4))
            for n in prompts:
                r = s.ask("/v1/completions", self.body(model, max(n, 1), GEN, press, ratio), timeout=3600)
                t, kv = r["timings"], r["kv_cache"]
                row = lambda test, what, unit, value: rows.append({
                    "test": test, "n": n, "press": press, "ratio": ratio or "", "what": what, "unit": unit, "value": value})
                row("prefill", "rate", "tok/s", t["prompt_n"] * 1e3 / t["prompt_ms"])
                row("decode", "rate", "tok/s", (t["predicted_n"] - 1) * 1e3 / t["predicted_ms"])
                row("decode", "kv", "bytes", kv["bytes"])
                row("prefill", "kv peak", "bytes", kv["bytes_peak"])
        return rows

    def depth_peer(self, head, model, prompts, fa):
        def work():
            for v, n in zip(self.batched(model, head["threads"], fa, [max(n, 1) for n in prompts]), prompts):
                yield {"test": "prefill", "n": n, "what": "rate", "unit": "tok/s", "value": v["speed_pp"]}
                yield {"test": "decode", "n": n, "what": "rate", "unit": "tok/s", "value": v["speed_tg"]}

        self.run(f"llama.cpp fa {fa} depth {sorted(set(prompts))}", {**head, "engine": "llama.cpp", "setting": f"fa {fa}"},
                 lambda: list(work()))

    def streams(self, head, model, n=2048, count=8):
        def ours(press="", ratio=0.0):
            with self.ours(model, head["threads"], n + 4096, "--parallel", str(count)) as s:
                rate, held, depth = self.crowd_rate(s, model, n, count, press, ratio)
                kv = pressd.total(held, "pressd_kv_cache_resident_bytes")
            row = {"test": f"{count} streams", "n": n, "press": press, "ratio": ratio or ""}
            return [{**row, "what": "rate", "unit": "tok/s", "value": rate}, {**row, "what": "kv", "unit": "bytes", "value": kv},
                    {**row, "what": "mean depth", "unit": "tokens", "value": depth}]

        def peer(fa):
            v = self.batched(model, head["threads"], fa, [n], count)[0]
            return [{"test": f"{count} streams", "n": n, "what": "rate", "unit": "tok/s", "value": v["speed_tg"]}]

        def all_ours():
            self.run("pressd streams", {**head, "engine": "pressd"}, ours)
            self.run("pressd streams pressed", {**head, "engine": "pressd"}, lambda: ours(self.a.press, self.a.ratios[-1]))

        self.turns(head["round"], all_ours,
                   lambda fa: self.run(f"llama.cpp fa {fa} streams",
                                       {**head, "engine": "llama.cpp", "setting": f"fa {fa}"}, lambda: peer(fa)))

    def crowd_rate(self, s, model, n, count, press="", ratio=0.0):
        """Tokens/s of `count` streams together once all of them run, the metrics then, and the mean depth: streams
        that were read first go on while the others' prompts are read, so it is above n."""
        s.ask("/v1/completions", self.body(model, 16, 4))
        run = Streams(s, [self.body(model, n, 4096, press, ratio) for _ in range(count)])
        try:
            run.wait(run.started)
            t0 = max(x[0] for x in run.times)
            run.wait(lambda: run.after(t0, GEN))
            held = s.metrics()
            t1 = min(x[-1] for x in run.times)
        finally:
            run.stop()
        tokens = sum(1 for x in run.times for t in x if t0 < t <= t1)
        depth = n + sum(1 for x in run.times for t in x if t <= t0) / count + tokens / count / 2
        return tokens / (t1 - t0), held, depth

    def ttft(self, head, model, n=2048):
        def work(server):
            with server as s:
                s.ask("/v1/completions", self.body(model, 16, 4))
                for _ in range(3):
                    body, t0 = self.body(model, n, 2), time.monotonic()
                    first = next(t for t, e in s.stream("/v1/completions", body, timeout=600) if e != "[DONE]" and e.get("choices"))
                    yield {"test": "ttft", "n": n, "what": "time", "unit": "ms", "value": (first - t0) * 1e3}

        self.servers(head, "ttft", lambda: list(work(self.ours(model, head["threads"], 4096))),
                     lambda fa: list(work(self.theirs(model, head["threads"], 4096, fa, "--parallel", "1"))))

    def servers(self, head, name, ours, peer):
        self.turns(head["round"], lambda: self.run(f"pressd {name}", {**head, "engine": "pressd"}, ours),
                   lambda fa: self.run(f"llama.cpp fa {fa} {name}",
                                       {**head, "engine": "llama.cpp", "setting": f"fa {fa}"}, lambda: peer(fa)))

    def memory(self, head, model, n=8192):
        ctx = n + 256

        def work(server, press="", ratio=0.0):
            row = {"test": "memory", "n": n, "unit": "MB", "press": press, "ratio": ratio or ""}
            with server as s:
                s.ask("/v1/completions", self.body(model, 16, 4))
                yield {**row, "n": 0, "what": "idle", "value": s.memory()["VmRSS"] / MB}
                s.ask("/v1/completions", self.body(model, n, 8, press, ratio), timeout=3600)
                yield {**row, "what": "peak", "value": s.memory()["VmHWM"] / MB}
                yield {**row, "what": "after", "value": s.memory()["VmRSS"] / MB}

        def ours():
            return [r for p, ratio in (("", 0.0), (self.a.press, 0.75))
                    for r in work(self.ours(model, head["threads"], ctx), p, ratio)]

        # llama-server stops at the length the model was trained for unless the file says more
        longer = f"{inspect(model)['architecture']}.context_length=int:{2 * ctx}"
        self.servers(head, "memory", ours, lambda fa: list(work(
            self.theirs(model, head["threads"], ctx, fa, "--parallel", "1", "--override-kv", longer))))

    def start(self, head, model):
        body = {"prompt": "Once upon a time", "max_tokens": 1, "temperature": 0}

        def work(server):
            return [{"test": "start", "n": 1, "what": "time", "unit": "s", "value": measure.first_token(server(), body)}
                    for _ in range(3)]

        self.servers(head, "start", lambda: work(lambda: self.ours(model, head["threads"], 8192)),
                     lambda fa: work(lambda: self.theirs(model, head["threads"], 8192, fa, "--parallel", "1", "--no-warmup")))

    def stall(self, head, model, n=4096, count=4):
        def work(server):
            with server as s:
                s.ask("/v1/completions", self.body(model, 16, 4))
                run = Streams(s, [self.body(model, 512, 4096) for _ in range(count)])
                try:
                    run.wait(run.started)
                    t0 = max(x[0] for x in run.times)
                    run.wait(lambda: run.after(t0, GEN))
                    t1 = time.monotonic()
                    alone = run.gaps(t0, t1)
                    s.ask("/v1/completions", self.body(model, n, 1), timeout=600)
                    t2 = time.monotonic()
                    run.wait(lambda: run.after(t2, 1))  # a gap that spans the end belongs to it
                    t3 = max(next(t for t in x if t > t2) for x in run.times)
                    busy = run.gaps(t1, t3)
                    run.wait(lambda: run.after(t3, GEN))
                    after = run.gaps(t3, time.monotonic())
                finally:
                    run.stop()
            row = {"test": "stall", "n": n}
            ms = lambda what, x: {**row, "what": what, "unit": "ms", "value": x * 1e3}
            return [ms("alone p50", percentile(alone, 50)), ms("alone p99", percentile(alone, 99)),
                    ms("during p50", percentile(busy, 50)), ms("during p99", percentile(busy, 99)), ms("during max", max(busy)),
                    ms("after p50", percentile(after, 50)), ms("after p99", percentile(after, 99)),
                    {**row, "what": "p99 / during p50", "unit": "", "value": percentile(busy, 99) / percentile(busy, 50)},
                    ms("prompt", t2 - t1), {**row, "what": "p99 / alone p50", "unit": "", "value": percentile(busy, 99) / percentile(alone, 50)}]

        self.servers(head, "stall", lambda: work(self.ours(model, head["threads"], 8192)),
                     lambda fa: work(self.theirs(model, head["threads"], 8192 * (count + 1), fa, "--parallel", str(count + 1))))

    def curve(self, head, model):
        for n in self.a.lengths:
            for ratio in [0.0, *self.a.ratios]:
                self.run(f"pressd curve {n} ratio {ratio}", {**head, "engine": "pressd"}, lambda: self.cost(model, head["threads"], n, ratio))

    def cost(self, model, threads, n, ratio):
        press = self.a.press if ratio else ""
        row = {"test": "curve", "n": n, "press": press, "ratio": ratio or ""}
        with self.ours(model, threads, n + GEN + 1) as s:
            s.ask("/v1/completions", self.body(model, 16, 4))
            idle = s.memory()["VmRSS"]
            resident = 0
            for _, event in s.stream("/v1/completions", self.body(model, n, GEN, press, ratio, stream_options={"include_usage": True}), timeout=3600):
                if event != "[DONE]":
                    resident = max(resident, s.memory()["VmRSS"]) if event.get("choices") else resident
                    last = event
            peak = s.memory()["VmHWM"]
        t = last["timings"]
        return [{**row, "what": "prefill", "unit": "s", "value": t["prompt_ms"] / 1e3},
                {**row, "what": "decode", "unit": "ms/token", "value": t["predicted_ms"] / (t["predicted_n"] - 1)},
                {**row, "what": "rss", "unit": "MB", "value": (resident - idle) / MB},
                {**row, "what": "rss peak", "unit": "MB", "value": (peak - idle) / MB},
                {**row, "what": "pages", "unit": "", "value": last["kv_cache"]["pages"]}]

    def crowd(self, head, model, n=512):
        def work(count, press, ratio):
            row = {"test": "crowd", "n": count, "press": press, "ratio": ratio or ""}
            with self.ours(model, head["threads"], n + 4096, "--parallel", str(count)) as s:
                idle = s.memory()["VmRSS"]
                rate, held, depth = self.crowd_rate(s, model, n, count, press, ratio)
                peak = s.memory()["VmHWM"]
            return [{**row, "what": "rate", "unit": "tok/s", "value": rate},
                    {**row, "what": "rss peak", "unit": "MB", "value": (peak - idle) / MB},
                    {**row, "what": "kv", "unit": "bytes", "value": pressd.total(held, "pressd_kv_cache_resident_bytes")},
                    {**row, "what": "pages", "unit": "", "value": pressd.total(held, "pressd_kv_cache_pages", state="sequences")},
                    {**row, "what": "mean depth", "unit": "tokens", "value": depth}]

        for count in self.a.crowds:
            for ratio in (0.0, self.a.ratios[-1]):
                self.run(f"pressd crowd {count} ratio {ratio}", {**head, "engine": "pressd"},
                         lambda: work(count, self.a.press if ratio else "", ratio))


def inspect(model):
    return json.loads(subprocess.check_output([pressd.binary(), "inspect", "--json", model]))


def machine():
    """The CPU's name and the flags speed depends on."""
    wanted = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vbmi", "avx512_vnni", "avx_vnni", "avx512_bf16",
              "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16")
    with open("/proc/cpuinfo") as f:
        info = dict(map(str.strip, line.split(":", 1)) for line in f.read().split("\n\n")[0].splitlines() if ":" in line)
    name = info.get("model name", "unknown CPU")
    if "cpu family" in info:
        name += f" (family {info['cpu family']}, model {info['model']})"
    flags = info.get("flags", info.get("Features", "")).split()
    return {"cpu": name, "cpus": len(os.sched_getaffinity(0)), "flags": [w for w in wanted if w in flags]}


def quiet_output(command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()


def describe(a, run):
    """What a later reader must know of this run, as one line of OUT/runs.jsonl."""
    with pressd.Server(a.models[0], *a.server_args) as s:
        kernels = s.get("/v1/models")[2]["data"][0]["meta"]["isa"]
    out = {"run": run, "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), **machine(),
           "kernels": kernels, "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE", ""),
           "commit": quiet_output(["git", "-C", measure.HERE, "describe", "--always", "--dirty"]), "argv": sys.argv[1:]}
    if a.peer:
        with open(os.path.join(os.environ["PEER_BIN"], "flags.txt")) as f:
            out["peer"] = f.read().splitlines()
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+", help="GGUF files")
    p.add_argument("--out", required=True, help="folder for samples.csv and runs.jsonl; further runs add to them")
    p.add_argument("--groups", type=numbers(str), default=list(GROUPS))
    p.add_argument("--quick", action="store_true", help="limits, depth, streams and start; one thread count, 2 rounds")
    p.add_argument("-t", "--threads", type=numbers(int), default=sorted({1, min(2, len(os.sched_getaffinity(0)))}),
                   help="thread counts of limits and depth; the other groups take the largest")
    p.add_argument("-r", "--rounds", type=int, default=3)
    p.add_argument("-d", "--depths", type=numbers(int), default=[0, 128, 512, 2048, 4096, 8192])
    p.add_argument("--fa", type=numbers(str), default=["on", "off"], help="the peer's flash attention settings")
    p.add_argument("--press", default="expected_attention")
    p.add_argument("--ratios", type=numbers(float), default=[0.5, 0.75])
    p.add_argument("--lengths", type=numbers(int), default=[512, 1024, 2048, 4096, 8192, 16384, 32768])
    p.add_argument("--crowds", type=numbers(int), default=[1, 2, 4, 8, 16, 32, 64])
    p.add_argument("--no-peer", dest="peer", action="store_false")
    p.add_argument("--limits", default=os.environ.get("PRESSD_BENCH_LIMITS", ""), help="the bench_limits program")
    p.add_argument("--server-args", type=shlex.split, default=[], help="further arguments of pressd")
    p.add_argument("--lock", default="", help="file to lock exclusively while steps run")
    p.add_argument("--slice", type=float, default=40, help="seconds after which the lock is given up between steps")
    p.add_argument("--quiet", type=float, default=0.05, help="share of the processors that others may take before a step is repeated")
    p.add_argument("--tries", type=int, default=3, help="most tries of a disturbed step")
    p.add_argument("--seed", type=int, default=int(time.time()))
    a = p.parse_args()
    for g in a.groups:
        if g not in GROUPS:
            p.error(f"no group {g!r}; there are {', '.join(GROUPS)}")
    if a.quick:
        a.groups = [g for g in a.groups if g in ("limits", "depth", "streams", "start")]
        a.threads, a.rounds, a.ratios = a.threads[-1:], min(a.rounds, 2), a.ratios[-1:]
        a.depths = [d for d in a.depths if d != 4096]
    if a.peer and not os.environ.get("PEER_BIN"):
        p.error("PEER_BIN is not set (tests/bench/peer.sh makes it); --no-peer measures pressd alone")

    os.makedirs(a.out, exist_ok=True)
    run = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    with open(os.path.join(a.out, "runs.jsonl"), "a") as f:
        print(json.dumps(describe(a, run)), file=f)
    turn = measure.Turn(a.lock, a.slice)
    bench = Bench(a, measure.Step(measure.Samples(os.path.join(a.out, "samples.csv"), run), turn, a.quiet, a.tries))
    for round_ in range(a.rounds):
        for group in [g for g in GROUPS if g in a.groups]:
            if group in ("memory", "curve", "crowd") and round_ > 0:
                continue  # sizes, and a picture: one round
            for threads in a.threads if group in ("limits", "depth") else a.threads[-1:]:
                for model in a.models:
                    getattr(bench, group)({"round": round_, "model": os.path.basename(model), "threads": threads}, model)
    turn.give()


if __name__ == "__main__":
    main()
