#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What pressing costs in quality: every press and ratio against the dense cache of the same server.

    quality.py [options] MODEL.gguf ...   > quality.csv      (run by quality.sh, which gets the texts)

Of each text the first CONTEXT tokens are pressed and the next TOKENS are scored against the pressed cache
(`echo` and `logprobs`, scope context_tokens), teacher forced.  Per press, ratio and kind of text:

  kl     mean over tokens of KL(dense || pressed), nats, over the dense top 100 and one bucket for the rest
  top1   share of tokens where both give the same first token
  dnll   mean rise of the negative log-likelihood of the true token, nats
  bytes  cache after the press, as a share of the dense cache's

`random` and `streaming_llm` (sinks and the most recent, the same bytes) are the controls: a press that does
not beat them has not earned its work.  CSV on standard output; --markdown FILE and --png FILE write a table
and a picture of the means over texts.
"""

import argparse
import collections
import csv
import gzip
import math
import os
import re
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
import pressd  # noqa: E402

TOP = 100
CONTROLS = ("random:seed=1", "streaming_llm")
FIELDS = ("model", "press", "ratio", "text", "tokens", "kl", "top1", "dnll", "bytes")
# Wrappers worth a row of their own; every press that ranks tokens by itself is taken from the server's list.
WRAPPED = ("adakv(expected_attention:epsilon=0.01)", "adakv(snapkv)", "critical(expected_attention)", "critical_adakv(snapkv)",
           "chunkkv(snapkv)", "chunk(expected_attention)", "entropy_gated_chunkkv(snapkv)", "block(keydiff)",
           "merging(snapkv)", "key_rerotation(streaming_llm)")


# ---- texts: three kinds that no test of ours was tuned on ----

def narrative():
    verses = subprocess.run(["bible", "-f"], input="Ruth1:1-4:22\nEsther1:1-5:14\n", text=True, capture_output=True, check=True).stdout
    return " ".join(re.findall(r"^(?:bible.*?> ?)?\w+?\d+:\d+ (.*)$", verses, re.M))


def dictionary():
    with gzip.open("/usr/share/dictd/devil.dict.dz") as f:
        text = f.read().decode("utf-8", "replace")
    return text[text.index("ABASEMENT"):]


def code():
    import argparse as module  # any long module of the standard library
    with open(module.__file__) as f:
        return f.read()


KINDS = {"narrative": narrative, "dictionary": dictionary, "code": code}


# ---- scoring ----

Scored = collections.namedtuple("Scored", "top nll bytes")


def score(s, ids, context, press, ratio):
    """The distributions the server gives for ids[context:], the context pressed first."""
    body = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": TOP}
    if press:
        body["compression"] = {"press": press, "ratio": ratio, "scope": {"context_tokens": context}}
    r = s.ask("/v1/completions", body, timeout=1800)
    lp = r["choices"][0]["logprobs"]
    if r["kv_cache"].get("skipped"):
        raise ValueError(f"{press} was skipped: {r['kv_cache']['skipped']}")
    return Scored(lp["top_logprobs"][context:], [-x for x in lp["token_logprobs"][context:]], r["kv_cache"]["bytes"])


def kl(dense, pressed):
    """Over the texts that both list, and one bucket for all others."""
    both = [(p, pressed[t]) for t, p in dense.items() if t in pressed]
    rest = [max(1 - sum(map(math.exp, side)), 1e-12) for side in zip(*both)] if both else [1.0, 1.0]
    return sum(math.exp(p) * (p - q) for p, q in both) + rest[0] * math.log(rest[0] / rest[1])


def compare(dense, pressed):
    best = lambda top: max(top, key=top.get)
    return {"kl": statistics.fmean(map(kl, dense.top, pressed.top)),
            "top1": statistics.fmean(best(a) == best(b) for a, b in zip(dense.top, pressed.top)),
            "dnll": statistics.fmean(pressed.nll) - statistics.fmean(dense.nll),
            "bytes": pressed.bytes / dense.bytes}


def presses_of(s):
    """(name, needs a ratio) of what this server can run."""
    listed = {p["name"]: p for p in s.get("/v1/presses")[2]["data"] if p["runnable"]}
    own = [n for n, p in listed.items() if p["kind"] == "scorer" and not p["accepts"] and n not in ("random", "streaming_llm")]
    return list(CONTROLS) + own + [w for w in WRAPPED if w.split("(")[0] in listed]


def windows(s, kind, context, tokens, count):
    ids = s.ask("/tokenize", {"prompt": KINDS[kind]()})["tokens"]
    n = context + tokens
    if len(ids) < n * count:
        raise ValueError(f"the {kind} text has {len(ids)} tokens, {n * count} are needed")
    return [ids[i * n:(i + 1) * n] for i in range(count)]


def measure(a, model, out):
    name = os.path.basename(model)
    with pressd.Server(model, *a.server_args.split()) as s:
        texts = [(f"{kind} {i + 1}", ids) for kind in a.kinds for i, ids in enumerate(windows(s, kind, a.context, a.tokens, a.windows))]
        dense = {title: score(s, ids, a.context, None, 0) for title, ids in texts}
        for press in a.press or presses_of(s):
            for ratio in a.ratios:
                rows = []
                for title, ids in texts:
                    try:
                        m = compare(dense[title], score(s, ids, a.context, press, ratio))
                    except (ValueError, AssertionError) as e:
                        print(f"{name} {press}@{ratio}: {e}", file=sys.stderr)
                        break
                    rows.append(m)
                    out({"model": name, "press": press, "ratio": ratio, "text": title, "tokens": a.tokens, **m})
                if rows:
                    print(f"{name} {press}@{ratio}: KL {statistics.fmean(r['kl'] for r in rows):.4f}", file=sys.stderr)


# ---- what people look at ----

def means(rows):
    """model -> press -> ratio -> {what: mean over texts}"""
    cells = collections.defaultdict(list)
    for r in rows:
        cells[r["model"], r["press"], r["ratio"]].append(r)
    out = collections.defaultdict(lambda: collections.defaultdict(dict))
    for (model, press, ratio), some in cells.items():
        out[model][press][ratio] = {k: statistics.fmean(r[k] for r in some) for k in ("kl", "top1", "dnll", "bytes")}
    return out


def markdown(rows, ratios, f):
    for model, presses in means(rows).items():
        print(f"\n**{model}**: mean KL / first token unchanged / rise of NLL, by ratio removed\n", file=f)
        print("| press | " + " | ".join(f"{r:g}" for r in ratios) + " |\n|---|" + "---|" * len(ratios), file=f)
        order = sorted(presses, key=lambda p: statistics.fmean(math.log(max(c["kl"], 1e-6)) for c in presses[p].values()))
        for p in order:
            cell = lambda c: f"{c['kl']:.3f} / {c['top1']:.2f} / {c['dnll']:+.2f}" if c else ""
            mark = " (control)" if p in CONTROLS else ""
            print(f"| `{p}`{mark} | " + " | ".join(cell(presses[p].get(r)) for r in ratios) + " |", file=f)


def picture(rows, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    data = means(rows)
    fig, axes = plt.subplots(1, len(data), figsize=(7.5 * len(data), 6), squeeze=False)
    for ax, (model, presses) in zip(axes[0], data.items()):
        best = sorted(presses, key=lambda p: statistics.fmean(math.log(max(c["kl"], 1e-6)) for c in presses[p].values()))
        shown = [p for p in best if p not in CONTROLS][:9] + list(CONTROLS)
        for p in shown:
            cells = sorted(presses.get(p, {}).values(), key=lambda c: c["bytes"])
            ax.plot([c["bytes"] for c in cells], [c["kl"] for c in cells], marker="o", ms=4, label=p,
                    **({"ls": "--", "color": "0.4" if p == CONTROLS[0] else "0.65"} if p in CONTROLS else {}))
        ax.set(title=model, xlabel="cache bytes, share of dense", ylabel="KL to the dense cache (nats)", yscale="log")
        ax.grid(alpha=0.3, which="both")
        ax.legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=90)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*")
    p.add_argument("--press", action="append", help="only these, as in a request; default: all the server lists")
    p.add_argument("--ratios", type=lambda x: [float(v) for v in x.split(",")], default=[0.25, 0.5, 0.75, 0.9])
    p.add_argument("--kinds", type=lambda x: x.split(","), default=list(KINDS))
    p.add_argument("--context", type=int, default=1024)
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--windows", type=int, default=2, help="pieces of each text")
    p.add_argument("--server-args", default="", help='e.g. "--compute f32"')
    p.add_argument("--from-csv", help="draw from an earlier run's CSV")
    p.add_argument("--markdown")
    p.add_argument("--png")
    a = p.parse_args()
    rows = []
    if a.from_csv:
        with open(a.from_csv) as f:
            rows = [{k: v if k in ("model", "press", "text") else float(v) for k, v in r.items()} for r in csv.DictReader(f)]
        a.ratios = sorted({r["ratio"] for r in rows})
    else:
        w = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
        w.writeheader()

        def out(row):
            rows.append(row)
            w.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
            sys.stdout.flush()

        for model in a.models:
            measure(a, model, out)
    if a.markdown:
        with open(a.markdown, "w") as f:
            markdown(rows, a.ratios, f)
    if a.png:
        picture(rows, a.png)
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
