#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What prompt look-up gives: tokens per second with and without guesses, for answers that repeat and such that do not.

    lookup.py [options] MODEL.gguf

Each round asks every question of a server of each --draft-tokens, in turns; the answers must be the same, token for
token.  Rows: question, temperature, prompt tokens, the setting, tokens/s (median, least, most), tokens guessed and right,
and the median over that without guesses.  CSV on standard output.  Standard library only; a measurement wants the
machine alone.
"""

import argparse
import csv
import os
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
import pressd  # noqa: E402


def questions():
    with open(os.path.join(HERE, "README.md")) as f:
        text = f.read()
    return {
        "copy": ("Repeat this text word for word:\n\n" + text[1000:3200] + "\n\nThe text again:\n", 300),
        "quote": ("Summarise this manual and quote its commands:\n\n" + text[:9000] + "\n\nSummary:\n", 256),
        "list": ("Ten European countries as a JSON array of objects with the keys name, capital and language:\n", 256),
        "story": ("A story about a river and a mill:\n", 256),
    }


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--draft-tokens", type=int, nargs="+", default=[0, 8])
    a = p.parse_args()
    seen, text = {}, {}
    for r in range(a.rounds):
        for most in a.draft_tokens if r % 2 == 0 else reversed(a.draft_tokens):
            with pressd.Server(a.model, "--threads", str(a.threads), "--ctx-size", "8192", "--draft-tokens", str(most)) as s:
                s.ask("/v1/completions", {"prompt": "warm", "max_tokens": 4})
                for name, (prompt, n) in questions().items():
                    for temperature in (0, 0.7):
                        reply = s.ask("/v1/completions", {"prompt": prompt, "max_tokens": n, "temperature": temperature, "seed": 3,
                                                          "ignore_eos": True})
                        answer = reply["choices"][0]["text"]
                        if text.setdefault((name, temperature), answer) != answer:
                            raise SystemExit(f"{name}: --draft-tokens {most} changed the answer")
                        seen.setdefault((name, temperature, most), []).append(reply["timings"])
    out = csv.writer(sys.stdout)
    out.writerow(("question", "temperature", "prompt", "draft_tokens", "tokens_per_second", "least", "most", "guessed", "right", "times"))
    plain = {}
    for (name, temperature, most), runs in sorted(seen.items()):
        rate = [t["predicted_per_second"] for t in runs]
        plain.setdefault((name, temperature), statistics.median(rate))
        out.writerow((name, temperature, runs[0]["prompt_n"], most, f"{statistics.median(rate):.0f}", f"{min(rate):.0f}", f"{max(rate):.0f}",
                      runs[-1].get("draft_n", 0), runs[-1].get("draft_n_accepted", 0),
                      f"{statistics.median(rate) / plain[name, temperature]:.2f}"))


if __name__ == "__main__":
    main()
