#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Requests per minute when the pool holds a part of what the requests ask for, dense and pressed.

    small_pool.py [options] MODEL.gguf

COUNT requests of PROMPT tokens each come at once and are each answered with GEN tokens; the pool is SHARE of what
all of them would hold dense.  Prompts, answers' lengths and pool are the same for all rows, which take turns: each
round runs them all, the next one in the other order.  Rows: the press, requests per minute from the first request
to the last answer (median, least and most of the rounds), how many ran together at most, decode steps, and the
dense row's time over this one's in the same round (median, least, most).  The last row is the bound: the same prompts
with one token each, dense; nobody who reads them all is faster.  CSV on standard output.  Standard library only; a
measurement wants the machine alone.
"""

import argparse
import csv
import os
import random
import statistics
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
import pressd  # noqa: E402

PAGE = 16
# What is pressed once grows again with every answer; the others go on pressing it.
PRESSES = ["kv_compress", "kv_compress:when=always", "kv_compress:when=shortage", "prefill_decoding(kv_compress,decoding:compression_interval=16,target_size=64(snapkv:window_size=16))"]

BOUND = "prompts alone"


def work(a, s, press, rng, gen=None):
    """(seconds, most running, decode steps) for all requests with this press."""
    gen = gen or a.gen
    compression = {"compression": {"press": press, "ratio": a.ratio}} if press else {}
    bodies = [{"prompt": [rng.randrange(1000, 40000) for _ in range(a.prompt)], "max_tokens": gen, "temperature": 0,
               "ignore_eos": True, **compression} for _ in range(a.count)]
    done, wrong = [], []

    def one(body):
        try:
            done.append(s.ask("/v1/completions", body, timeout=3600)["usage"]["completion_tokens"])
        except Exception as e:  # noqa: BLE001 -- reported below
            wrong.append(e)

    threads = [threading.Thread(target=one, args=(b,)) for b in bodies]
    before = pressd.total(s.metrics(), "pressd_decode_steps_total")
    t0 = time.monotonic()
    for t in threads:
        t.start()
    most = 0
    while any(t.is_alive() for t in threads):
        most = max(most, pressd.total(s.metrics(), "pressd_requests_running"))
        time.sleep(0.1)
    seconds = time.monotonic() - t0
    if wrong or any(n != gen for n in done):
        raise SystemExit(f"{press or 'dense'}: {wrong or done}")
    return seconds, int(most), int(pressd.total(s.metrics(), "pressd_decode_steps_total") - before)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--press", action="append", help="beside the dense cache; default: kv_compress alone, going on, and with a decode press")
    p.add_argument("--ratio", type=float, default=0.9)
    p.add_argument("--count", type=int, default=16)
    p.add_argument("--prompt", type=int, default=1000)
    p.add_argument("--gen", type=int, default=200)
    p.add_argument("--share", type=float, default=0.25, help="pool over demand")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    with pressd.Server(a.model, "--threads", str(a.threads)) as s:
        r = s.ask("/v1/completions", {"prompt": list(range(1000, 1000 + PAGE)), "max_tokens": 0})["kv_cache"]
        pages = -(-(a.prompt + a.gen) // PAGE)
        pool = int(a.share * a.count * r["bytes"] * pages)
    rows = ["", *(a.press or PRESSES), BOUND]
    took = {press: [] for press in rows}
    for i in range(a.rounds):
        for press in rows if i % 2 == 0 else rows[::-1]:
            with pressd.Server(a.model, "--threads", str(a.threads), "--parallel", str(a.count), "--ctx-size",
                               str(a.prompt + a.gen), "--kv-cache-bytes", str(pool), "--request-timeout", "3600") as s:
                s.ask("/v1/completions", {"prompt": [1000] * 16, "max_tokens": 4})
                took[press].append(work(a, s, "" if press == BOUND else press, random.Random(i), 1 if press == BOUND else None))
    out = csv.writer(sys.stdout)
    out.writerow(("press", "ratio", "count", "prompt", "gen", "pool_mib", "requests_per_minute", "least", "most", "running",
                  "steps", "times", "times_least", "times_most"))
    for press in rows:
        rate = [60 * a.count / seconds for seconds, _, _ in took[press]]
        times = [dense / seconds for (dense, _, _), (seconds, _, _) in zip(took[""], took[press])]
        out.writerow((press or "none", "" if press in ("", BOUND) else a.ratio, a.count, a.prompt, 1 if press == BOUND else a.gen,
                      f"{pool / 2**20:.1f}", *(f"{f(rate):.1f}" for f in (statistics.median, min, max)),
                      max(most for _, most, _ in took[press]), round(statistics.median(n for _, _, n in took[press])),
                      *(f"{f(times):.2f}" for f in (statistics.median, min, max))))


if __name__ == "__main__":
    main()
