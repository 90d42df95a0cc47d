#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What pressing costs in quality: every press and ratio against the dense cache of the same server.

    quality.py [options] MODEL.gguf ...   > quality.csv      (run by quality.sh, which gets the texts)

Of each text the first CONTEXT tokens are pressed.  The token behind them is the first to be read over the pressed
cache, and the TOKENS tokens that follow it are scored, teacher forced (`echo` and `logprobs`, scope
context_tokens).  Per press, ratio and text:

  kl     mean over tokens of KL(dense || pressed), nats, over the dense top 100 and one bucket for the rest
  top1   share of tokens where both give the same first token
  dnll   mean rise of the negative log-likelihood of the true token, nats
  bytes  the request's cache, as a share of the dense one (the scored tokens are in both)
  kl_random, kl_recent   the controls' kl at the same bytes

The controls are `random` (the mean of two seeds) and `streaming_llm` (sinks and the most recent): a press that does not beat them has not
earned its work.  Bytes fall in a straight line with the ratio of a control, so the ratio that gives a press's
bytes is known, and the control is asked again where it is another one.  Presses whose parameters say what goes
stand at their bytes.  Press data are measured first, from texts that are not scored (`pressd calibrate`).

A press that the server lists and that is neither here nor in NOT_HERE is an error.  CSV on standard output;
--markdown FILE and --png FILE write a table and a picture of the means over texts.

Presses that work while tokens are generated are told apart in generated tokens alone: --reads PROGRAM runs
golden_asked (tests/golden/asked.c) on the same texts instead, which forces the text behind a context token by token.
Their controls read as many bytes in a step (random pages, or the first and most recent ones), or hold as many (random
tokens, or the first and most recent ones, stay).  CSV of its own, for --reads-csv.
"""

import argparse
import collections
import csv
import fcntl
import glob
import gzip
import math
import os
import re
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP_DIR = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
import pressd  # noqa: E402

TOP = 100
RANDOM, RECENT = "random", "streaming_llm"
SEEDS = (1, 2)  # of random: whether the first token is among what a head loses decides much
CONTROLS = (RANDOM, RECENT)
MEASURES = ("kl", "top1", "dnll", "bytes", "kl_random", "kl_recent")
FIELDS = ("model", "press", "ratio", "text", "tokens") + MEASURES
SAME_BYTES = 0.01  # share of the dense cache that two caches may differ by and still be called equal

# Every press as it is measured.  Those that are not named are asked for by their name alone.
WITH = {
    "kvzap": ["kvzap:model_type=linear"], "finch": ["finch:window_size=64"],
    "adakv": ["adakv(snapkv)", "adakv(expected_attention)"], "critical": ["critical(expected_attention)"],
    "critical_adakv": ["critical_adakv(expected_attention)"], "lukv": ["lukv(expected_attention)"],
    "key_rerotation": ["key_rerotation(streaming_llm)"], "chunk": ["chunk:chunk_length=256(expected_attention)"],
    "chunkkv": ["chunkkv(snapkv)"], "entropy_gated_chunkkv": ["entropy_gated_chunkkv(snapkv)"], "block": ["block(keydiff)"],
    "merging": ["merging(snapkv)"], "composed": ["composed(keydiff,expected_attention)"]}
# Presses whose parameters say what goes.  {rising}: ratios from 0.25 in the first layer to 0.75 in the last.
# dms' thresholds are on its press's scale: the log of how much repeating the text would look at a token.
OWN = {
    "simlayerkv": [f"simlayerkv:lazy_threshold={t},n_recent=124" for t in (0.5, 0.7)],
    "duo_attention": [f"duo_attention:head_compression_ratio={r}" for r in (0.25, 0.5, 0.75)],
    "think": [f"think:key_channel_compression_ratio={r}" for r in (0.25, 0.5, 0.75)],
    "eigen_attention": [f"eigen_attention:error_budget={b}{v}" for v in ("", ",budget_for=both") for b in (0.02, 0.05, 0.1)],
    "per_layer": ["per_layer:compression_ratios={rising}(expected_attention)"],
    "dms": [f"dms:threshold={t}(kvzap:model_type=linear)" for t in (-7, -6, -5)]}
NOT_HERE = {
    "decoding": "prunes while tokens are generated: --reads",
    "compression_ratio_decoding": "as decoding",
    "cam": "as decoding",
    "hcattention": "reads less while tokens are generated: --reads",
    "quest": "as hcattention",
    "sals": "as hcattention",
    "prefill_decoding": "its first press is what happens to a context"}


# ---- texts: three kinds that no test of ours was tuned on, and others of their kind to calibrate with ----

def bible(passages):
    verses = subprocess.run(["bible", "-f"], input=passages, text=True, capture_output=True, check=True).stdout
    return " ".join(re.findall(r"^(?:bible.*?> ?)?\w+?\d+:\d+ (.*)$", verses, re.M))


def devil():
    with gzip.open("/usr/share/dictd/devil.dict.dz") as f:
        text = f.read().decode("utf-8", "replace")
    return text[text.index("ABASEMENT"):]


def source(pattern):
    return "".join(open(p).read() for p in sorted(glob.glob(os.path.join(TOP_DIR, pattern))))


KINDS = {"narrative": lambda: bible("Ruth1:1-4:22\nEsther1:1-5:14\n"),
         "dictionary": lambda: devil()[:100_000],
         "code": lambda: source("compression/safetensors.c")}


def to_calibrate():
    """A third of each kind, cut small so that a text of any length has all three."""
    parts = [bible("Genesis1:1-30:43\n"), devil()[100_000:], source("engine/gguf/*.c")]
    pieces = [[p[i:i + 6000] for i in range(0, len(p), 6000)] for p in parts]
    return "\n\n".join("\n\n".join(three) for three in zip(*pieces))


class Turns:
    """A shared lock on a file, given up for a moment between two steps once held so long; nothing without a file."""

    HOLD = 120

    def __init__(self, path):
        self.file = open(path, "w") if path else None
        self.since = None

    def __enter__(self):
        if self.file and self.since is None:
            fcntl.flock(self.file, fcntl.LOCK_SH)
            self.since = time.monotonic()

    def __exit__(self, *exc):
        if self.file and time.monotonic() - self.since > self.HOLD:
            fcntl.flock(self.file, fcntl.LOCK_UN)
            self.since = None
            time.sleep(0.2)


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def calibrate(a, model):
    """The model's press data, measured unless an earlier run left them."""
    os.makedirs(a.work, exist_ok=True)
    data = os.path.join(a.work, f"{os.path.basename(model)}.{a.calibrate}.safetensors")
    if not os.path.exists(data):
        text = os.path.join(a.work, "calibrate.txt")
        with open(text, "w") as f:
            f.write(to_calibrate())
        say(f"{os.path.basename(model)}: calibrating with {a.calibrate} tokens")
        with a.turns:
            subprocess.run([pressd.binary(), "calibrate", "-m", model, "--text", text, "-o", data + ".part", "-t", str(a.threads),
                            "--tokens", str(a.calibrate), "--repeat-tokens", str(a.calibrate // 3)], check=True, stdout=sys.stderr)
        os.rename(data + ".part", data)
    return data


# ---- scoring ----

Scored = collections.namedtuple("Scored", "top nll bytes")


def score(s, ids, context, press, ratio):
    """The distributions the server gives for ids[context + 1:], ids[:context] pressed first."""
    body = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": TOP}
    if press:
        body["compression"] = {"press": press, "scope": {"context_tokens": context}}
        if ratio is not None:
            body["compression"]["ratio"] = ratio
    r = s.ask("/v1/completions", body, timeout=1800)
    if r["kv_cache"].get("skipped"):
        raise ValueError(f"skipped: {r['kv_cache']['skipped']}")
    lp = r["choices"][0]["logprobs"]
    return Scored(lp["top_logprobs"][context + 1:], [-x for x in lp["token_logprobs"][context + 1:]], r["kv_cache"]["bytes"])


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


class Text:
    """One text: its dense answer, and what the controls give at any number of bytes."""

    def __init__(self, a, s, title, ids):
        self.a, self.s, self.title, self.ids = a, s, title, ids
        with a.turns:
            self.dense = score(s, ids, a.context, None, None)
        self.controls = {c: {0.0: {"kl": 0.0, "bytes": 1.0}} for c in CONTROLS}

    def pressed(self, press, ratio):
        texts = [f"{RANDOM}:seed={seed}" for seed in SEEDS] if press == RANDOM else [press]
        with self.a.turns:
            all_ = [compare(self.dense, score(self.s, self.ids, self.a.context, text, ratio)) for text in texts]
        m = {k: statistics.fmean(one[k] for one in all_) for k in all_[0]}
        if press in CONTROLS:
            self.controls[press][ratio] = m
        return m

    def control(self, press, share):
        """kl of a control whose cache is this share of the dense one's."""
        known = self.controls[press]
        if len(known) == 1:
            self.pressed(press, max(self.a.ratios))
        ratio, m = min(known.items(), key=lambda x: abs(x[1]["bytes"] - share))
        if abs(m["bytes"] - share) > SAME_BYTES:
            most = max(known)
            ratio = round(min(max(most * (1 - share) / (1 - known[most]["bytes"]), 0.0), 0.99), 3)
            m = known[ratio] if ratio in known else self.pressed(press, ratio)
        return m["kl"]


def presses_of(s, n_layer):
    """[(text, takes a ratio)] of what this server can run, and a complaint for each press that is forgotten."""
    listed = {p["name"]: p for p in s.get("/v1/presses")[2]["data"]}
    rising = ";".join(f"{0.25 + 0.5 * i / max(n_layer - 1, 1):.3f}" for i in range(n_layer))
    out, wrong = [(c, True) for c in CONTROLS], []
    for name, p in listed.items():
        if name in NOT_HERE or name in CONTROLS or p.get("reason", "").startswith("not served"):
            continue
        texts = WITH.get(name) or OWN.get(name) or [name]
        if not p["runnable"] and name not in WITH:  # by its defaults, that is
            wrong.append(f"{name} cannot be run: {p.get('reason', '')}")
        elif name not in WITH and name not in OWN and (p["accepts"] or not p["takes_ratio"]):
            wrong.append(f"{name} is neither in WITH, OWN nor NOT_HERE")
        else:
            out += [(t.replace("{rising}", rising), name not in OWN) for t in texts]
    return out, wrong


def windows(s, kind, context, tokens, count):
    ids = s.ask("/tokenize", {"prompt": KINDS[kind]()})["tokens"]
    n = context + 1 + tokens
    if len(ids) < n * count:
        raise ValueError(f"the {kind} text has {len(ids)} tokens, {n * count} are needed")
    return [ids[i * n:(i + 1) * n] for i in range(count)]


def measure(a, model, out):
    """Rows of one model to out(); what went wrong, as lines."""
    name = os.path.basename(model)
    data = a.press_data or calibrate(a, model)
    with pressd.Server(model, "--press-data", data, "--threads", str(a.threads), *a.server_args.split()) as s:
        texts = [Text(a, s, f"{kind} {i + 1}", ids) for kind in a.kinds
                 for i, ids in enumerate(windows(s, kind, a.context, a.tokens, a.windows))]
        n_layer = len(s.ask("/v1/compression/explain", {"prompt": texts[0].ids[:64], "compression": {"press": "knorm", "ratio": 0.5}})["layers"])
        presses, wrong = presses_of(s, n_layer)
        if a.press:
            presses, wrong = [(c, True) for c in CONTROLS] + [(p, True) for p in a.press if p not in CONTROLS], []
        first = a.first.split(",")
        presses.sort(key=lambda x: (x[0] not in CONTROLS, next((i for i, w in enumerate(first) if w and x[0].startswith(w)), len(first))))
        todo = [(p, r) for p, by_ratio in presses for r in (sorted(a.ratios, reverse=True) if by_ratio else [None])]
        before = collections.defaultdict(list)  # an earlier run's rows by press and ratio
        for r in a.before:
            if r["model"] == name:
                before[r["press"], r["ratio"]].append(r)
        for done, (press, ratio) in enumerate(todo, 1):
            short = press if len(press) < 70 else re.sub(r"=[0-9.;]{30,}", "=...", press)
            what = short if ratio is None else f"{short}@{ratio:g}"
            old = {r["text"]: r for r in before[short, "" if ratio is None else ratio]}
            if len(old) == len(texts):
                for t in texts:
                    if press in CONTROLS:
                        t.controls[press][ratio] = old[t.title]
                    out(old[t.title])
                continue
            try:
                rows = [{"text": t.title, **t.pressed(press, ratio)} for t in texts]
            except (ValueError, AssertionError) as e:
                wrong.append(f"{what}: {e}")
                say(f"{name} {wrong[-1]}")
                continue
            for t, r in zip(texts, rows):
                r["kl_random"], r["kl_recent"] = (t.control(c, r["bytes"]) for c in CONTROLS)
                out({"model": name, "press": short, "ratio": "" if ratio is None else ratio, "tokens": a.tokens, **r})
            mean = lambda k: statistics.fmean(r[k] for r in rows)
            say(f"{name} {done}/{len(todo)} {what}: KL {mean('kl'):.4f}, random {mean('kl_random'):.4f}, "
                f"sinks and recent {mean('kl_recent'):.4f} at {mean('bytes'):.3f}")
    return [f"{name}: {w}" for w in wrong]


# ---- presses that work while tokens are generated ----

READS = ("model", "press", "text", "context", "tokens", "kl", "top1", "keys", "values", "bytes", "control", "kl_random", "kl_recent")
FORCED = 192
PAGES = "quest:token_budget={n},skip_layers=0,page_order={order}"
DECODE = "compression_ratio_decoding:target_compression_ratio={ratio},compression_interval=16({press})"
# (context, control, presses).  A control: at as many bytes read in a step ("pages"), at as many bytes held at the end
# ("tokens"; "pruned" while they come), or the press' own, which reads as many tokens ("order").
STEPS = (
    (1536, "order", ["sals", "sals:min_overlap=0.85"]),
    (1536, "tokens", ["sals", "sals+f16/q4", "hcattention:tau=1,sub_vector=2", "hcattention:sub_vector=2+f16/q4", "eigen_attention",
                      "eigen_attention:error_budget=0.1,budget_for=both", "+q8_0/q8_0", "+q4/q4"]),
    (1536, "pruned", ["kv_compress:when=always@0.75", *(DECODE.format(ratio=0.75, press=p) for p in (
        "kv_compress", "snapkv:window_size=16", "expected_attention", "knorm")),
        "cam:compression_interval=16,target_size=448(tova)", "dms:threshold=-5,decoding=true(kvzap:model_type=linear)"]),
    (1536, "pages", ["hcattention", "hcattention:tau=0.9", "hcattention:tau=0.9,renormalize=false",
                     "hcattention:tau=1,sub_vector=4,codes=index", "hcattention:sub_vector=4,codes=index"]),
    (3840, "pages", ["quest:token_budget=1024", "quest:token_budget=512", "quest:token_budget=512(hcattention)"]))


def asked(a, model, data, path, context, presses):
    """{press: what golden_asked says of it}; ValueError with its words if it says nothing."""
    with a.turns:
        r = subprocess.run([a.reads, model, data, str(context), str(FORCED), path, *presses], capture_output=True, text=True)
    rows = list(csv.DictReader(r.stdout.splitlines(), delimiter="\t"))
    if r.returncode or len(rows) != len(presses):
        raise ValueError(r.stderr.strip() or f"ended with {r.returncode}")
    return {row.pop("press"): {k: float(v) for k, v in row.items()} for row in rows}


def read_bytes(row):
    """Share of the dense cache's bytes that a step reads: keys and values are of one width."""
    return (row["key_share"] + row["value_share"]) / 2


def controls_of(a, model, data, path, context, control, rows):
    """{press: (text of the random control, of the recent one)}; a control of which one setting is known is straight."""
    if control == "order":
        return {p: tuple(p + (":" if p == "sals" else ",") + f"order={o}" for o in ("random", "recent")) for p in rows}
    probe = {"pages": PAGES.format(n=context // 2, order="recent"), "tokens": RECENT + "@0.5", "pruned": DECODE.format(ratio=0.5, press=RECENT)}[control]
    known = asked(a, model, data, path, context, [probe])[probe]
    out = {}
    for p, row in rows.items():
        if control == "pages":
            n = round(context / 2 + (read_bytes(row) - read_bytes(known)) / (1 - read_bytes(known)) * context / 2)
            out[p] = tuple(PAGES.format(n=max(n, 64), order=o) for o in ("random", "recent"))
        else:
            ratio = round(min(max(0.5 * (1 - row["bytes"]) / (1 - known["bytes"]), 0.0), 0.98), 3)
            out[p] = tuple(DECODE.format(ratio=ratio, press=c) if control == "pruned" else f"{c}@{ratio}" for c in CONTROLS)
    return out


def measure_reads(a, model, out):
    """Rows of one model to out(); lines of what went wrong."""
    name, wrong, data = os.path.basename(model), [], a.press_data or calibrate(a, model)
    for kind in a.kinds:
        path = os.path.join(a.work, f"{kind}.txt")
        with open(path, "w") as f:
            f.write(KINDS[kind]())
        for context, control, presses in STEPS:
            if all(any(r["model"] == name and r["press"] == p and r["text"] == kind and r["control"] == control for r in a.before)
                   for p in presses):
                for r in a.before:
                    if r["model"] == name and r["text"] == kind and r["control"] == control and r["press"] in presses:
                        out(r)
                continue
            try:
                rows = asked(a, model, data, path, context, presses)
                beside = controls_of(a, model, data, path, context, control, rows)
                of = asked(a, model, data, path, context, sorted({c for two in beside.values() for c in two}))
            except ValueError as e:
                wrong.append(f"{name}, {kind}, {control}: {e}")
                continue
            for press, r in rows.items():
                out({"model": name, "press": press, "text": kind, "context": context, "tokens": FORCED, "kl": r["kl_mean"], "top1": r["same_top"],
                     "keys": r["key_share"], "values": r["value_share"], "bytes": r["bytes"], "control": control,
                     "kl_random": of[beside[press][0]]["kl_mean"], "kl_recent": of[beside[press][1]]["kl_mean"]})
            say(f"{name}: {kind}, {control} at {context}")
    return wrong


CONTROL_SAYS = {"pages": "pages of as many bytes read", "order": "as many tokens of the same latents", "tokens": "tokens of as many bytes",
                "pruned": "pruned while they come, to as many bytes"}


def reads_markdown(rows, f):
    for model in dict.fromkeys(r["model"] for r in rows):
        print(f"**{model}**, while tokens are generated; † = not better than both controls\n\n"
              "| press | cache | keys, values read | KL / first token | random, first and recent: | |\n|---|---|---|---|---|---|", file=f)
        mine = [r for r in rows if r["model"] == model]
        for press, context, control in dict.fromkeys((r["press"], r["context"], r["control"]) for r in mine):
            some = [r for r in mine if (r["press"], r["context"], r["control"]) == (press, context, control)]
            c = {k: statistics.fmean(r[k] for r in some) for k in READS[5:] if k != "control"}
            print(f"| `{press}` | {c['bytes']:.2f} | {c['keys']:.2f}, {c['values']:.2f} | {c['kl']:.4f}{'' if beats(c) else '†'} / {c['top1']:.2f} "
                  f"| {c['kl_random']:.3f}, {c['kl_recent']:.3f} | {CONTROL_SAYS[control]}, behind {context:g} |", file=f)
        print(file=f)


# ---- what people look at ----

def read(path):
    with open(path) as f:
        return [{k: v if k in ("model", "press", "text", "control") or v == "" else float(v) for k, v in r.items()} for r in csv.DictReader(f)]


def means(rows):
    """model -> press -> ratio ("" for none) -> {what: mean over texts}"""
    cells = collections.defaultdict(list)
    for r in rows:
        cells[r["model"], r["press"], r["ratio"]].append(r)
    out = collections.defaultdict(lambda: collections.defaultdict(dict))
    for (model, press, ratio), some in cells.items():
        out[model][press][ratio] = {k: statistics.fmean(r[k] for r in some) for k in MEASURES}
    return out


def rank(cells):
    """How far above the better control, in logs: what presses are ordered by."""
    return statistics.fmean(math.log(max(c["kl"], 1e-6) / max(min(c["kl_random"], c["kl_recent"]), 1e-6)) for c in cells.values())


def beats(c):
    return c["kl"] < min(c["kl_random"], c["kl_recent"])


def cell(c):
    return f"{c['kl']:.3f}{'' if beats(c) else '†'} / {c['top1']:.2f} / {c['dnll']:+.2f}" if c else ""


def markdown(rows, f):
    for model, presses in means(rows).items():
        ratios = sorted({r for cells in presses.values() for r in cells if r != ""})
        by_ratio = {p: c for p, c in presses.items() if "" not in c}
        own = {p: c[""] for p, c in presses.items() if "" in c}
        order = sorted((p for p in by_ratio if p not in CONTROLS), key=lambda p: rank(by_ratio[p]))
        print(f"**{model}**, by ratio removed: mean KL / first token unchanged / rise of NLL; † = not better than both "
              "controls at the same bytes\n", file=f)
        print("| press | " + " | ".join(f"{r:g}" for r in ratios) + " |\n|---|" + "---|" * len(ratios), file=f)
        for p in CONTROLS:
            print(f"| `{p}` (control) | " + " | ".join(cell(by_ratio[p].get(r)).replace("†", "") for r in ratios) + " |", file=f)
        for p in order:
            print(f"| `{p}` | " + " | ".join(cell(by_ratio[p].get(r)) for r in ratios) + " |", file=f)
        if own:
            print("\n| its parameters say what goes | cache | KL / first token / NLL | random, sinks and recent at these bytes |\n|---|---|---|---|", file=f)
            for p, c in own.items():
                print(f"| `{p}` | {c['bytes']:.2f} | {cell(c)} | {c['kl_random']:.3f}, {c['kl_recent']:.3f} |", file=f)
        lose = {p: [r for r, c in sorted(by_ratio[p].items()) if not beats(c)] for p in order}
        always = [f"`{p}`" for p, l in lose.items() if l and len(l) == len(by_ratio[p])] + [f"`{p}`" for p, c in own.items() if not beats(c)]
        some = [f"`{p}` ({', '.join(f'{r:g}' for r in l)})" for p, l in lose.items() if 0 < len(l) < len(by_ratio[p])]
        print(f"\nNot better than the controls here: {', '.join(always) or 'none'}."
              f"\nAt some ratios not: {', '.join(some) or 'none'}.\n", file=f)


def picture(rows, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    data = {m: p for m, p in means(rows).items() if len({r for cells in p.values() for r in cells} - {""}) > 1}
    if not data:
        return
    fig, axes = plt.subplots(1, len(data), figsize=(9.5 * len(data), 5.6), squeeze=False)
    for ax, (model, presses) in zip(axes[0], data.items()):
        own = collections.defaultdict(list)  # with their parameters' values as points of one line
        for p, cells in presses.items():
            if "" in cells:
                own[p.split(":")[0] + (" (values too)" if "budget_for=both" in p else "")].append(cells[""])
        best = sorted((p for p in presses if p not in CONTROLS and "" not in presses[p]), key=lambda p: rank(presses[p]))
        lines = [(p, list(presses[p].values()), {}) for p in best[:9]]
        lines += [(p, cells, {"marker": "s", "ls": ":"}) for p, cells in own.items()]
        lines += [(p, list(presses[p].values()), {"ls": "--", "color": "0.3" if p == RANDOM else "0.6"}) for p in CONTROLS if p in presses]
        for p, cells, how in lines:
            cells.sort(key=lambda c: c["bytes"])
            ax.plot([c["bytes"] for c in cells], [c["kl"] for c in cells], label=p, ms=4, **{"marker": "o", **how})
        ax.set(title=model, xlabel="cache bytes, share of dense", ylabel="KL to the dense cache (nats)", yscale="log")
        ax.grid(alpha=0.3, which="both")
        ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the lines, which fill the axes
    fig.tight_layout()
    fig.savefig(path, dpi=75)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*")
    p.add_argument("--press", action="append", help="only this one beside the controls, as in a request; default: all the server lists")
    p.add_argument("--first", default="", metavar="NAME,...", help="presses to begin with, by how their texts begin, where a run may be cut off")
    p.add_argument("--ratios", type=lambda x: [float(v) for v in x.split(",")], default=[0.5, 0.75, 0.9])
    p.add_argument("--kinds", type=lambda x: x.split(","), default=list(KINDS))
    p.add_argument("--context", type=int, default=1024)
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--windows", type=int, default=1, help="pieces of each text")
    p.add_argument("--calibrate", type=int, default=24576, metavar="TOKENS", help="length of the text that press data are measured from")
    p.add_argument("--press-data", help="use these instead")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--work", default=os.path.join(TOP_DIR, "build", "quality"), help="folder of the press data")
    p.add_argument("--lock", help="take a shared lock on this file for each step")
    p.add_argument("--server-args", default="", help='e.g. "--compute f32"')
    p.add_argument("--resume", help="CSV of a run with these settings that was cut off: measure what it lacks")
    p.add_argument("--from-csv", action="append", help="draw from earlier runs' CSVs")
    p.add_argument("--reads", metavar="PROGRAM", help="golden_asked: measure what presses cost that work while tokens are generated, nothing else")
    p.add_argument("--reads-csv", help="an earlier --reads run's CSV, for --markdown")
    p.add_argument("--markdown")
    p.add_argument("--png")
    a = p.parse_args()
    a.turns = Turns(a.lock)
    rows, wrong = [], []
    a.before = read(a.resume) if a.resume else []
    if a.from_csv:
        for path in a.from_csv:
            rows += read(path)
    else:
        w = csv.DictWriter(sys.stdout, READS if a.reads else FIELDS, lineterminator="\n")
        w.writeheader()

        def out(row):
            rows.append(row)
            w.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
            sys.stdout.flush()

        for model in a.models:
            wrong += (measure_reads if a.reads else measure)(a, model, out)
    if a.markdown and not a.reads:
        with open(a.markdown, "w") as f:
            markdown(rows, f)
            if a.reads_csv:
                reads_markdown(read(a.reads_csv), f)
    if a.png:
        picture(rows, a.png)
    for w in wrong:
        say(f"not measured: {w}")
    return 0 if rows and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
