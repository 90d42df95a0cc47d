#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""OUT/samples.csv and OUT/runs.jsonl to OUT/table.csv and OUT/table.md: report.py OUT [--models FOLDER].

A cell is the median of its samples with their least and greatest.  Samples of steps that others disturbed by more
than --quiet of the CPU are left out wherever quieter ones exist; a cell that has none is marked with *.  The peer's
setting (flash attention on or off) is the one with the better median in that row.  `better by` is the median over
rounds of the paired ratios, turned so that above 1 is in our favour: ours / theirs for a rate, theirs / ours for
times and bytes.

Bounds, for the `of bound` columns, from the machine's limits, the best seen in the same runs:
  decode   read bandwidth at the step's working set / (weights of the file + KV at that depth, f16)
  prefill  2 x weights x N at the int8 peak + 4 x head size x heads x sum of visible positions at the f32 peak
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys

from measure import pressd

GEN = 64
PREFILL, DECODE = (128, 512, 2048, 8192), (0, 512, 2048, 8192)
FIELDS = ("model", "threads", "row", "unit", "pressd", "pressd_min", "pressd_max", "peer", "peer_min", "peer_max",
          "peer_setting", "better_by", "better_by_min", "better_by_max", "bound", "pressd_of_bound", "peer_of_bound", "disturbed")


class Cell:
    """Samples of one figure of one engine: values by (run, round)."""

    def __init__(self, rows, quiet):
        calm = [r for r in rows if float(r["others"]) <= quiet]
        self.disturbed = bool(rows) and not calm
        self.rows = calm or rows
        self.values = [float(r["value"]) for r in self.rows]

    def __bool__(self):
        return bool(self.values)

    def median(self):
        return statistics.median(self.values)

    def by_round(self):
        rounds = {}
        for r in self.rows:
            rounds.setdefault((r["run"], r["round"]), []).append(float(r["value"]))
        return {k: statistics.median(v) for k, v in rounds.items()}


class Shape:
    """What a model's file says about the work of a token."""

    def __init__(self, path):
        s = json.loads(subprocess.check_output([pressd.binary(), "inspect", "--json", path]))
        self.kv = s["kv_cache"]
        self.weights = sum(t["bytes"] for t in s["types"])
        embd, q, kv = s["embedding_length"], s["heads"] * s["key_length"], s["kv_heads"] * s["key_length"]
        self.layer = embd * (q + 2 * kv) + q * embd + 3 * embd * s["feed_forward_length"]
        self.layers, self.head, self.q = s["layers"], embd * s["vocabulary"], q

    def step_bytes(self, depth, ratio=0.0):
        """A decode step's least reading: a press takes its share of the layers that see everything."""
        d = depth + GEN / 2
        kept = depth * (1 - ratio) + GEN / 2
        return self.weights + self.kv["full_bytes_per_token"] * kept + \
            self.kv["window_bytes_per_token"] * min(d, self.kv["window"] or d)

    def prefill_ops(self, n):
        """(int8, f32) operations; the output head for the last token alone."""
        window = min(self.kv["window"] or n, n)
        seen = self.kv["full_layers"] * n * n / 2 + self.kv["window_layers"] * (window * window / 2 + (n - window) * window)
        return 2 * (self.layers * self.layer * n + self.head), 4 * self.q * seen


class Report:
    def __init__(self, samples, folder, quiet):
        self.folder, self.quiet = folder, quiet
        self.by = {}
        for r in samples:
            key = (r["model"], int(r["threads"]), r["test"], int(r["n"]), r["press"], r["ratio"], r["what"], r["engine"], r["setting"])
            self.by.setdefault(key, []).append(r)
        self.rows = []

    def cell(self, *key):
        return Cell(self.by.get(key, []), self.quiet)

    def settings(self):
        return sorted({k[8] for k in self.by if k[7] == "llama.cpp"})

    def limit(self, threads, what, size=0):
        """The best that was seen.  Reading does not get faster as a buffer grows, so what was read at this size or any
        above it counts; the half-megabytes of rounding are allowed for."""
        seen = [v for k in self.by if k[1:3] == (threads, "limits") and k[6] == what and k[3] >= size - 1
                for v in self.cell(*k).values]
        return max(seen) * 1e9 if seen else None

    def line(self, model, threads, name, unit, test, n, what, press="", ratio="", up=True, bound=None):
        ours = self.cell(model, threads, test, n, press, ratio, what, "pressd", "")
        peers = [(c.median(), s, c) for s in self.settings()
                 for c in [self.cell(model, threads, test, n, "", "", what, "llama.cpp", s)] if c]
        if not ours:
            return
        row = {"model": model, "threads": threads, "row": name, "unit": unit, "pressd": ours.median(),
               "pressd_min": min(ours.values), "pressd_max": max(ours.values), "disturbed": "pressd" if ours.disturbed else ""}
        if peers:
            _, setting, peer = (max if up else min)(peers, key=lambda x: x[0])
            a, b = ours.by_round(), peer.by_round()
            pairs = [a[k] / b[k] if up else b[k] / a[k] for k in a if b.get(k)] or \
                [ours.median() / peer.median() if up else peer.median() / ours.median()]
            row |= {"peer": peer.median(), "peer_min": min(peer.values), "peer_max": max(peer.values), "peer_setting": setting,
                    "better_by": statistics.median(pairs), "better_by_min": min(pairs), "better_by_max": max(pairs)}
            if peer.disturbed:
                row["disturbed"] = (row["disturbed"] + " peer").strip()
        if bound:
            row |= {"bound": bound, "pressd_of_bound": row["pressd"] / bound}
            if peers:
                row["peer_of_bound"] = row["peer"] / bound
        self.rows.append(row)

    def model(self, model, threads):
        path = os.path.join(self.folder, model)
        shape = Shape(path) if os.path.exists(path) else None
        int8, f32 = self.limit(threads, "int8"), self.limit(threads, "f32")

        def decode_bound(n, ratio=0.0):
            size = shape and shape.step_bytes(n, ratio)
            read = size and self.limit(threads, "read", size / 1e6)
            return read and read / size

        def prefill_bound(n):
            if not (shape and int8 and f32):
                return None
            a, b = shape.prefill_ops(n)
            return n / (a / int8 + b / f32)

        ea = ("expected_attention", "0.75")
        for n in PREFILL:
            self.line(model, threads, f"prefill {n}", "tok/s", "prefill", n, "rate", bound=prefill_bound(n))
        for n in DECODE:
            self.line(model, threads, f"decode at {n}", "tok/s", "decode", n, "rate", bound=decode_bound(n))
        self.line(model, threads, "decode at 8192, pressed 0.75", "tok/s", "decode", 8192, "rate", *ea, bound=decode_bound(8192, 0.75))
        self.line(model, threads, "8 streams at 2048", "tok/s", "8 streams", 2048, "rate")
        self.line(model, threads, "8 streams at 2048, pressed 0.75", "tok/s", "8 streams", 2048, "rate", *ea)
        self.line(model, threads, "first token of 2048", "ms", "ttft", 2048, "time", up=False)
        self.line(model, threads, "start to first token", "s", "start", 1, "time", up=False)
        self.line(model, threads, "RSS idle", "MB", "memory", 0, "idle", up=False)
        self.line(model, threads, "RSS peak, 8192-token prompt", "MB", "memory", 8192, "peak", up=False)
        self.line(model, threads, "RSS peak, the same pressed 0.75", "MB", "memory", 8192, "peak", *ea, up=False)
        for what, name in (("alone p50", "4 streams alone: gap p50"), ("during p99", "while 4096 are read: gap p99"),
                           ("during max", "while 4096 are read: gap max"), ("p99 / alone p50", "gap p99 / gap p50 alone"), ("p99 / during p50", "gap p99 / gap p50 meanwhile"),
                           ("prompt", "first token of those 4096")):
            self.line(model, threads, name, "" if "/" in what else "ms", "stall", 4096, what, up=False)


def short(x):
    return "" if x is None else f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"


def span(row, who):
    if who not in row:
        return "-"
    star = "*" if who in row["disturbed"].split() else ""
    return f"{short(row[who])}{star} [{short(row[who + '_min'])}, {short(row[who + '_max'])}]"


def markdown(rows, runs, limits):
    last = runs[-1]
    peer = next((r["peer"] for r in reversed(runs) if r.get("peer")), [])
    on = [f[len("-DGGML_"):-len("=ON")] for f in peer if f.endswith("=ON")]
    out = [f"CPU: {last['cpu']}, {last['cpus']} cores, {' '.join(last['flags'])}  ",
           f"pressd {', '.join(sorted({r['commit'] for r in runs}))}, kernels {last['kernels']}"
           + (f", OPENBLAS_CORETYPE={last['openblas_coretype']}" if last["openblas_coretype"] else "") + "  "]
    if peer:
        out += [f"llama.cpp: {peer[0]} ({' '.join(on)}), better of flash attention on and off  "]
    out += [f"taken {runs[0]['time']} to {last['time']}", ""]
    if limits:
        out += ["| the machine | " + " | ".join(f"{t} thread{'s' * (t > 1)}" for t in sorted({t for _, t in limits})) + " |",
                "|---|" + "---|" * len({t for _, t in limits})]
        for what in dict.fromkeys(w for w, _ in limits):
            out.append(f"| {what} | " + " | ".join(short(limits.get((what, t))) for t in sorted({t for _, t in limits})) + " |")
        out.append("")
    for model, threads in dict.fromkeys((r["model"], r["threads"]) for r in rows):
        out += [f"### {model}, {threads} thread{'s' * (threads > 1)}", "",
                "| | pressd | llama.cpp | | pressd better by | bound | pressd of bound | llama.cpp of bound |",
                "|---|---|---|---|---|---|---|---|"]
        for r in rows:
            if (r["model"], r["threads"]) != (model, threads):
                continue
            ratio = f"**{r['better_by']:.2f}** [{r['better_by_min']:.2f}, {r['better_by_max']:.2f}]" if "better_by" in r else ""
            share = lambda k: f"{r[k]:.0%}" if k in r else ""
            unit = f", {r['unit']}" if r["unit"] else ""
            out.append(f"| {r['row']}{unit} | {span(r, 'pressd')} | {span(r, 'peer')} | {r.get('peer_setting', '')} | {ratio} | "
                       f"{short(r.get('bound'))} | {share('pressd_of_bound')} | {share('peer_of_bound')} |")
        out.append("")
    out.append("Median [least, greatest] of the samples; * = others used the machine meanwhile and no quieter sample exists.")
    return "\n".join(out) + "\n"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", help="folder with samples.csv and runs.jsonl")
    p.add_argument("--models", default=".", help="folder of the GGUF files, for the bounds")
    p.add_argument("--quiet", type=float, default=0.1)
    a = p.parse_args()
    with open(os.path.join(a.out, "samples.csv"), newline="") as f:
        samples = list(csv.DictReader(f))
    with open(os.path.join(a.out, "runs.jsonl")) as f:
        runs = [json.loads(line) for line in f]
    if len({(r["cpu"], tuple(r["flags"])) for r in runs}) != 1:
        sys.exit(f"report: {a.out} holds runs of different machines, which must not be mixed")
    report = Report(samples, a.models, a.quiet)
    pairs = sorted({(r["model"], int(r["threads"])) for r in samples}, key=lambda x: (x[0], -x[1]))
    for model, threads in pairs:
        report.model(model, threads)
    limits = {}
    for threads in sorted({t for _, t in pairs}):
        keys = sorted(k for k in report.by if k[1] == threads and k[2] == "limits")
        for what, name in (("int8", "int8 dot product, GOP/s"), ("f32", "f32 multiply-add, GFLOP/s")):
            cells = [v for k in keys if k[6] == what for v in report.cell(*k).values]
            if cells:
                limits[name, threads] = max(cells)
        for k in keys:
            if k[6] == "read":
                limits[f"read {k[3]} MB, GB/s" if k[3] > 4 else "read in cache, 1 MB a thread, GB/s", threads] = max(report.cell(*k).values)
    order = lambda name: (not name.startswith(("int8", "f32")), name != "read in cache, 1 MB a thread, GB/s",
                          int(name.split()[1]) if name.split()[1].isdigit() else 0)
    limits = {(w, t): v for w, t in sorted(limits, key=lambda x: order(x[0])) for v in [limits[w, t]]}
    with open(os.path.join(a.out, "table.csv"), "w", newline="") as f:
        w = csv.DictWriter(f, FIELDS, lineterminator="\n")
        w.writeheader()
        w.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in r.items()} for r in report.rows)
    text = markdown(report.rows, runs, limits)
    with open(os.path.join(a.out, "table.md"), "w") as f:
        f.write(text)
    print(text)


if __name__ == "__main__":
    main()
