#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Pictures of OUT/samples.csv into OUT: plot.py OUT [--model NAME].  Needs matplotlib.

  depth.png    decode tokens/s and KV bytes against depth: dense, pressed, llama.cpp (groups depth)
  length.png   what a prompt costs against its length: time, time a token after it, memory, pages (group curve)
  streams.png  the same against the number of streams (group crowd)

A point is the median of its samples, a bar from the least to the greatest.  A picture without samples is left out.
"""

import argparse
import csv
import json
import os
import statistics

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter, LogLocator  # noqa: E402

COLOURS = {"": "#1f4e9c", "0.5": "#d9822b", "0.75": "#b3261e", "llama.cpp": "#6b6b6b"}


class Series:
    """Samples of one model and thread count, quiet ones where there are any."""

    def __init__(self, rows, quiet=0.1):
        self.rows, self.quiet = rows, quiet

    def points(self, test, what, ratio="", engine="pressd", setting=""):
        """[(n, median, least, greatest)] by n."""
        by = {}
        for r in self.rows:
            if (r["test"], r["what"], r["ratio"], r["engine"], r["setting"]) == (test, what, ratio, engine, setting):
                by.setdefault(int(r["n"]), []).append((float(r["others"]), float(r["value"])))
        out = []
        for n, v in sorted(by.items()):
            values = [x for o, x in v if o <= self.quiet] or [x for _, x in v]
            out.append((n, statistics.median(values), min(values), max(values)))
        return out

    def best_peer(self, test, what):
        """The better setting at each n."""
        best = {}
        for setting in sorted({r["setting"] for r in self.rows if r["engine"] == "llama.cpp"}):
            for p in self.points(test, what, "", "llama.cpp", setting):
                if p[0] not in best or p[1] > best[p[0]][1]:
                    best[p[0]] = p
        return [best[n] for n in sorted(best)]

    def ratios(self, test):
        return sorted({r["ratio"] for r in self.rows if r["test"] == test and r["engine"] == "pressd"})


def label(ratio):
    return f"pressd, {float(ratio):.0%} removed" if ratio else "pressd, dense"


def draw(ax, points, name, colour, scale=1.0, dashed=False):
    if points:
        x, y, low, high = ([p[0] for p in points], *([p[i] / scale for p in points] for i in (1, 2, 3)))
        ax.errorbar(x, y, [[a - b for a, b in zip(y, low)], [b - a for a, b in zip(y, high)]], label=name, color=colour,
                    marker="o", markersize=4, linewidth=1.8, capsize=2, linestyle="--" if dashed else "-")


def finish(ax, title, xlabel, log=False):
    """With `log` both axes are logarithmic: a cost that grows with n is a line of slope 1."""
    ax.set_title(title, fontsize=11, loc="left")
    ax.set_xlabel(xlabel)
    if log:
        ax.set_xscale("log", base=2)
        ticks = sorted({x for line in ax.get_lines() for x in line.get_xdata() if x > 0})
        ax.set_xticks(ticks, [f"{t / 1024:g}k" if t >= 1024 else f"{t:g}" for t in ticks])
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if v < 10000 else f"{v / 1000:g}k"))
        ax.minorticks_off()
    else:
        ax.set_ylim(bottom=0)
    ax.grid(True, color="#dddddd", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def depth(s, title, path):
    if not s.points("decode", "rate"):
        return
    fig, (a, b) = plt.subplots(1, 2, figsize=(9.6, 3.9), constrained_layout=True)
    for ratio in s.ratios("decode"):
        draw(a, s.points("decode", "rate", ratio), label(ratio), COLOURS.get(ratio, "#444444"))
        draw(b, s.points("decode", "kv", ratio), label(ratio), COLOURS.get(ratio, "#444444"), 1e6)
    peer = s.best_peer("decode", "rate")
    draw(a, peer, "llama.cpp, dense", COLOURS["llama.cpp"], dashed=True)
    finish(a, "decode, tokens/s", "tokens in the context")
    finish(b, "KV cache held, MB" + (" (llama.cpp: as dense)" if peer else ""), "tokens in the context")
    a.legend(frameon=False, fontsize=9)
    fig.suptitle(title, fontsize=9, x=0.01, ha="left", color="#444444")
    fig.savefig(path, dpi=90)


def cost(s, test, panels, xlabel, title, path):
    if not s.points(test, panels[0][0]):
        return
    fig, axes = plt.subplots(2, 2, figsize=(9.6, 6.8), constrained_layout=True)
    for ax, (what, name, scale) in zip(axes.flat, panels):
        for ratio in s.ratios(test):
            draw(ax, s.points(test, what, ratio), label(ratio), COLOURS.get(ratio, "#444444"), scale)
        finish(ax, name, xlabel, log=True)
    axes.flat[0].legend(frameon=False, fontsize=9)
    fig.suptitle(title, fontsize=9, x=0.01, ha="left", color="#444444")
    fig.savefig(path, dpi=90)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", help="folder with samples.csv and runs.jsonl")
    p.add_argument("--model", help="file name of the model; default the first of the samples")
    p.add_argument("--threads", type=int, help="default the most that was measured")
    a = p.parse_args()
    with open(os.path.join(a.out, "samples.csv"), newline="") as f:
        rows = list(csv.DictReader(f))
    with open(os.path.join(a.out, "runs.jsonl")) as f:
        cpu = json.loads(f.readline())["cpu"]
    model = a.model or rows[0]["model"]
    threads = a.threads or max(int(r["threads"]) for r in rows if r["model"] == model)
    s = Series([r for r in rows if r["model"] == model and int(r["threads"]) == threads])
    title = f"{model.removesuffix('.gguf')}, {threads} threads, {cpu}; press: expected_attention"
    depth(s, title, os.path.join(a.out, "depth.png"))
    cost(s, "curve", (("prefill", "prefill, s", 1), ("decode", "each token after it, ms", 1),
                      ("rss peak", "memory above idle at its peak, MB", 1), ("pages", "KV pages when it ended", 1)),
         "prompt tokens", title, os.path.join(a.out, "length.png"))
    cost(s, "crowd", (("rate", "tokens/s of all streams", 1), ("rss peak", "memory above idle at its peak, MB", 1),
                      ("kv", "KV cache held, MB", 1e6), ("pages", "KV pages held", 1)),
         "streams of a 512-token prompt each", title, os.path.join(a.out, "streams.png"))


if __name__ == "__main__":
    main()
