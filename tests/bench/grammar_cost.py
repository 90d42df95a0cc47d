#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a grammar costs per token: the same request with an answer's form and without, in turn.

    grammar_cost.py PORT [--tokens N] [--rounds N] [--pid PID]     a server that nothing else asks

One line per way to draw and form: microseconds per token, and the cost beside the row without a form.  A round asks
for each row once, and of the rounds the best counts: the machine's noise only adds.  With --pid it is the processor
time of that process (a server started with --threads 1, since threads that wait spin), which neighbours disturb less."""

import argparse
import http.client
import json
import os

DRAWN = (("greedy", {"temperature": 0}), ("temperature 0.8", {"temperature": 0.8, "seed": 1}),
         ("top_p 0.9", {"temperature": 0.8, "seed": 1, "top_p": 0.9}))
FORMS = (  # endless ones, so that each answer has all its tokens
    ("none", {}),
    ("any text", {"grammar": "root ::= [^\\x00]*"}),
    ("a string of 150 or more", {"grammar": 'root ::= "\\"" char{150,} "\\""\nchar ::= [^"\\\\\\x00-\\x1f] | "\\\\" [nt"]'}),
    ("strings of up to 40", {"guided_json": {"type": "array", "minItems": 80, "items": {"type": "string", "maxLength": 40}}}),
    ("integers 0 to 99", {"guided_json": {"type": "array", "minItems": 200, "items": {"type": "integer", "minimum": 0, "maximum": 99}}}),
    ("objects", {"guided_json": {"type": "array", "minItems": 80, "items": {
        "type": "object", "required": ["name", "n", "ok"], "additionalProperties": False,
        "properties": {"name": {"type": "string"}, "n": {"type": "number"}, "ok": {"type": "boolean"}}}}}),
    ("a pattern", {"guided_regex": "([A-Z][a-z]{1,12}( [a-z]{1,12}){3,9}\\. ){60,}"}),
)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("port", type=int)
    p.add_argument("--tokens", type=int, default=100)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--pid", type=int)
    o = p.parse_args()

    def spent():
        with open(f"/proc/{o.pid}/schedstat") as f:  # the main thread's, in nanoseconds
            total = int(f.read().split()[0])
        for t in os.listdir(f"/proc/{o.pid}/task"):
            if int(t) != o.pid:
                with open(f"/proc/{o.pid}/task/{t}/schedstat") as f:
                    total += int(f.read().split()[0])
        return total / 1e3

    def ask(body):
        t0 = spent() if o.pid else 0
        c = http.client.HTTPConnection("127.0.0.1", o.port, timeout=300)
        c.request("POST", "/v1/completions", json.dumps({"prompt": "Once upon a time", "max_tokens": o.tokens, "ignore_eos": True, **body}))
        r = json.loads(c.getresponse().read())
        t = r["timings"]
        return (spent() - t0) / t["predicted_n"] if o.pid else t["predicted_ms"] * 1e3 / t["predicted_n"]

    best = {}
    for _ in range(o.rounds):
        for how, drawn in DRAWN:
            for form, given in FORMS:
                best[how, form] = min(best.get((how, form), 1e12), ask({**drawn, **given}))
    for (how, form), us in best.items():
        print(f"{how:16} {form:24} {us:8.0f} us/token {us / best[how, 'none'] * 100 - 100:+6.1f} %")


if __name__ == "__main__":
    main()
