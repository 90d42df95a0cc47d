#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What presses add to the time of reading a prompt, end to end: scoring, what prefill collects for it, storing.

    press_overhead.py [options] MODEL.gguf

One server; each round asks for every prompt length and press one dense and one pressed completion of a new prompt, in
turns (the next round in the other order), and takes the ratio of the pair: the machine drifts by more than a press
costs.  Times are the processor time of the whole server, which others on the machine hardly change, and the reply's
own `prompt_ms`.  Rows: prompt tokens, press, dense time (median, ms), and of the pairs' ratios less one, in per cent,
the median, the quartiles, the least and the most: first of processor time, then of prompt_ms.  CSV on standard output.
Standard library only; a measurement wants the machine alone.
"""

import argparse
import csv
import os
import random
import re
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
import pressd  # noqa: E402

PRESSES = ["knorm", "keydiff", "streaming_llm", "tova", "snapkv", "expected_attention", "adakv(knorm)", "adakv(snapkv)",
           "adakv(expected_attention)", "observed_attention"]


def processor_ms(pid):
    """What the server's threads have run so far; the kernel counts nanoseconds."""
    total = 0
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/schedstat") as f:
            total += int(f.read().split()[0])
    return total / 1e6


def read(server, rng, n, press, ratio):
    """(processor ms, prompt_ms) of one prompt of n tokens."""
    more = {"compression": {"press": press, **({"ratio": ratio} if ratio is not None else {})}} if press else {}
    body = {"prompt": [rng.randrange(1000, 20000) for _ in range(n)], "max_tokens": 1, "temperature": 0, "ignore_eos": True, **more}
    before = processor_ms(server.process.pid)
    reply = server.ask("/v1/completions", body, timeout=600)
    return processor_ms(server.process.pid) - before, reply["timings"]["prompt_ms"]


def spread(pairs, k):
    """Median, quartiles and ends of pressed / dense - 1 in per cent; k: which time."""
    x = sorted(100 * (p[k] / d[k] - 1) for d, p in pairs)
    q = statistics.quantiles(x, n=4, method="inclusive") if len(x) > 1 else x * 3
    return [f"{v:.1f}" for v in (q[1], q[0], q[2], x[0], x[-1])]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--press", action="append", help="may be given more than once")
    p.add_argument("--ratio", type=float, default=0.5)
    p.add_argument("--prompt", type=int, nargs="+", default=[2048, 8192])
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--press-data", help="for presses that need some")
    a = p.parse_args()
    presses = a.press or PRESSES
    rng = random.Random(1)
    pairs = {(n, press): [] for n in a.prompt for press in presses}
    with pressd.Server(a.model, "--threads", str(a.threads), "--ctx-size", str(max(a.prompt) + 16),
                       *(["--press-data", a.press_data] if a.press_data else [])) as s:
        listed = {x["name"]: x["takes_ratio"] for x in s.get("/v1/presses")[2]["data"]}
        ratio = {x: a.ratio if listed[re.split("[:(]", x)[0]] else None for x in presses} | {"": None}
        for n in a.prompt:
            read(s, rng, n, "", None)
        for r in range(a.rounds):
            for n, press in pairs if r % 2 == 0 else reversed(pairs):
                turn = ["", press] if r % 2 == 0 else [press, ""]
                got = {name: read(s, rng, n, name, ratio[name]) for name in turn}
                pairs[n, press].append((got[""], got[press]))
    out = csv.writer(sys.stdout)
    ends = [f"{time}_{what}" for time in ("processor", "prompt") for what in ("median", "q1", "q3", "least", "most")]
    out.writerow(["prompt", "press", "ratio", "rounds", "dense_processor_ms", "dense_prompt_ms", *ends])
    for (n, press), of in pairs.items():
        dense = [f"{statistics.median(d[k] for d, _ in of):.0f}" for k in (0, 1)]
        out.writerow([n, press, ratio[press], a.rounds, *dense, *spread(of, 0), *spread(of, 1)])


if __name__ == "__main__":
    main()
