#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Requests per minute when the pool holds a part of what the requests ask for, dense and pressed.

    small_pool.py [options] MODEL.gguf

COUNT requests of PROMPT tokens each come at once and are each answered with GEN tokens; the pool is SHARE of what
all of them would hold dense.  Rows: the press, requests per minute from the first request to the last answer, how
many ran together at most, and the first row's time over this one's.  CSV on standard output.  Standard library
only; a measurement wants the machine alone.
"""

import argparse
import csv
import os
import random
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
import pressd  # noqa: E402

PAGE = 16
# What is pressed once grows again with every answer; the others go on pressing it.
PRESSES = ["kv_compress", "kv_compress:when=always", "prefill_decoding(kv_compress,decoding:compression_interval=16,target_size=64(snapkv:window_size=16))"]


def work(a, s, press, rng):
    """(seconds, most running) for all requests with this press."""
    compression = {"compression": {"press": press, "ratio": a.ratio}} if press else {}
    bodies = [{"prompt": [rng.randrange(1000, 40000) for _ in range(a.prompt)], "max_tokens": a.gen, "temperature": 0,
               "ignore_eos": True, **compression} for _ in range(a.count)]
    done, wrong = [], []

    def one(body):
        try:
            done.append(s.ask("/v1/completions", body, timeout=3600)["usage"]["completion_tokens"])
        except Exception as e:  # noqa: BLE001 -- reported below
            wrong.append(e)

    threads = [threading.Thread(target=one, args=(b,)) for b in bodies]
    t0 = time.monotonic()
    for t in threads:
        t.start()
    most = 0
    while any(t.is_alive() for t in threads):
        most = max(most, pressd.total(s.metrics(), "pressd_requests_running"))
        time.sleep(0.1)
    seconds = time.monotonic() - t0
    if wrong or any(n != a.gen for n in done):
        raise SystemExit(f"{press or 'dense'}: {wrong or done}")
    return seconds, int(most)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--press", action="append", help="beside the dense cache; default: kv_compress alone, going on, and with a decode press")
    p.add_argument("--ratio", type=float, default=0.9)
    p.add_argument("--count", type=int, default=16)
    p.add_argument("--prompt", type=int, default=1000)
    p.add_argument("--gen", type=int, default=200)
    p.add_argument("--share", type=float, default=0.25, help="pool over demand")
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    with pressd.Server(a.model, "--threads", str(a.threads)) as s:
        r = s.ask("/v1/completions", {"prompt": list(range(1000, 1000 + PAGE)), "max_tokens": 0})["kv_cache"]
        pages = -(-(a.prompt + a.gen) // PAGE)
        pool = int(a.share * a.count * r["bytes"] * pages)
    out = csv.writer(sys.stdout)
    out.writerow(("press", "ratio", "count", "prompt", "gen", "pool_mib", "requests_per_minute", "running", "times"))
    first = None
    for press in ["", *(a.press or PRESSES)]:
        with pressd.Server(a.model, "--threads", str(a.threads), "--parallel", str(a.count), "--ctx-size",
                           str(a.prompt + a.gen), "--kv-cache-bytes", str(pool), "--request-timeout", "3600") as s:
            s.ask("/v1/completions", {"prompt": [1000] * 16, "max_tokens": 4})
            seconds, most = work(a, s, press, random.Random(1))
        first = first or seconds
        out.writerow((press or "none", a.ratio if press else "", a.count, a.prompt, a.gen, f"{pool / 2**20:.1f}",
                      f"{60 * a.count / seconds:.1f}", most, f"{first / seconds:.2f}"))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
