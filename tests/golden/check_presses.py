#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Hold a running pressd against kvpress: which tokens every press keeps of a real model's cache.

    check_presses.py BASE_URL [--golden FILE] [--mode f32|int8] [--long] [--press TEXT] [--prompt NAME] [--rtol X]

For each prompt, press and ratio of the golden file (presses_model.py) the server's
POST /v1/compression/explain must keep the same slots in every layer and head.  Presses are asked many at a
time ("compare", one prefill for all); of the shortest prompt each is asked alone as well and must say the same.

  f32   (server run with --compute f32) scores within --rtol, kept sets equal; a slot may be another one
        only if its score ties with the one it replaces.  Then 8 or 32 greedy tokens over the pressed cache:
        log-probabilities of the top 5 within 1e-3.
  int8  activations differ, so sets do: Jaccard index of kept sets, mean and worst head, against fixed gates.

Presses that look at positions or seeds alone must agree exactly in both.  Without --long, prompts above 2,000
tokens and walks after more than 500 are left out.  Standard library only.
Exit code 0 if all agree, 1 if not, 2 if the server cannot be asked.
"""

import argparse
import array
import base64
import gzip
import json
import math
import os
import sys
import urllib.error
import urllib.request
import zlib

EXACT = ("random", "streaming_llm")
# The reference's own f32 noise is larger than --rtol for these: logits that are not scaled before their softmax
# (errors of exp grow with them), the inverse of an ill-conditioned matrix, which we compute in double, and ranks,
# where two nearly equal values change places.
SCORE_TOL = {"non_causal_attention": 2e-3, "leverage": 0.2, "lagkv": 0.1}
SHARED = ("adakv", "critical_adakv")  # one budget for the heads of a layer
GLOBAL = ("kvzip", "kvgrad", "kvcompose", "fastkvzip", "restorekv")  # one budget for all layers
CHAINED = ("block", "composed", "critical", "critical_adakv")  # rank more than once: a tie in one ranking changes what the next one sees
CHAINED_SLOTS = 0.01             # of a layer's kept slots may then be others
CHUNKED = ("chunkkv", "entropy_gated_chunkkv")  # keep or lose whole chunks: no bound on one head
# kept sets of int8 activations against f32: (mean, worst head) per ratio
INT8_GATES = {0.25: (0.96, 0.85), 0.5: (0.96, 0.85), 0.75: (0.95, 0.80)}  # 0.9 leaves too few slots to say
ADA_HEAD_BUDGET = 0.03  # heads' shares may move this much of the layer's total under int8 ...
ADA_HEAD_SLOTS = 6      # ... or this many slots, which is more in a short prompt
INT8_MEAN = {"leverage": 0.06, "kvgrad": 0.02}  # lower by so much where the score itself is ill-conditioned (SCORE_TOL), or where
# what 8 bits lose comes twice, in a weight and in the gradient that it is multiplied by
FEW_HEADS = 30  # of so few (Gemma 3 has three) a mean says less
MEMBERS, MEMBERS_SCORES = 32, 8  # presses asked at a time: a reply of some ten megabytes
SHORT = 200     # a prompt below has too few slots for a bound on one head
LONG_PROMPT, LONG_ALONE, LONG_WALK = 2000, 500, 500
WALK_TOL = 1e-3
WALK_TIE_TOL = 5e-2  # tied slots are other tokens (knorm: equal tokens have equal keys in layer 0), so the walk moves a little
WALK_MARGIN = 0.01  # below this the greedy token may differ, and the walk ends


def number(x):
    """A score as JSON has it: null is a protected slot."""
    return math.inf if x is None else float(x)


def wish(press, ratio):
    return {"press": press} if ratio is None else {"press": press, "ratio": ratio}


def asked(prompt):
    """The prompt's members of a request: its ids, or the one message they were made of."""
    return {"messages": [{"role": "user", "content": prompt["user"]}]} if "user" in prompt else {"prompt": prompt["ids"]}


class Server:
    def __init__(self, base, model, key):
        self.base, self.model, self.key = base.rstrip("/"), model, key

    def ask(self, path, body=None):
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        req = urllib.request.Request(self.base + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(req, timeout=600) as r:
                return json.load(r)
        except urllib.error.HTTPError as e:
            raise ValueError(f"{path}: HTTP {e.code}: {e.read(2000).decode(errors='replace')}") from None

    def pick_model(self):
        self.model = self.model or self.ask("/v1/models")["data"][0]["id"]

    def explain(self, prompt, press, ratio, scores):
        compression = wish(press, ratio)
        if "scope" in prompt:
            compression["scope"] = {"context_tokens": prompt["scope"]}
        r = self.ask("/v1/compression/explain", {"model": self.model, **asked(prompt), "scores": scores, "compression": compression})
        if r["scope_tokens"] != len(prompt["ids"]):
            raise ValueError(f"scope_tokens is {r['scope_tokens']}, the prompt has {len(prompt['ids'])} tokens")
        if "skipped" in r:
            raise ValueError(f"{press} was skipped: {r['skipped']}")
        return [[h for h in layer["heads"]] for layer in r["layers"]]

    def compare(self, ids, members, scores):
        """members: (press, ratio) pairs -> heads of each, as explain gives them."""
        out, size = {}, MEMBERS_SCORES if scores else MEMBERS
        for i in range(0, len(members), size):
            some = members[i:i + size]
            r = self.ask("/v1/compression/explain", {
                "model": self.model, "prompt": ids, "scores": scores,
                "compare": [wish(press, ratio) for press, ratio in some]})
            if len(r["compare"]) != len(some) or r["scope_tokens"] != len(ids):
                raise ValueError(f"{len(r['compare'])} presses compared on {r['scope_tokens']} tokens, not {len(some)} on {len(ids)}")
            for key, entry in zip(some, r["compare"]):
                if "skipped" in entry:
                    raise ValueError(f"{key[0]} was skipped: {entry['skipped']}")
                out[key] = [layer["heads"] for layer in entry["layers"]]
        return out

    def walk(self, prompt, press, ratio, n, top):
        """The text, and each token's best log-probabilities."""
        body = {"model": self.model, **asked(prompt), "max_tokens": n, "temperature": 0, "compression": wish(press, ratio)}
        if "user" in prompt:
            c = self.ask("/v1/chat/completions", {**body, "logprobs": True, "top_logprobs": top})["choices"][0]
            return c["message"]["content"], [[t["logprob"] for t in x["top_logprobs"]] for x in c["logprobs"]["content"]]
        c = self.ask("/v1/completions", {**body, "logprobs": top, "ignore_eos": True})["choices"][0]
        # one entry per text, and the chosen token's if it is not among the best
        return c["text"], [list(t.values()) for t in c["logprobs"]["top_logprobs"]]


def unpack_bits(text, n_layer, n_head, n):
    raw, row = base64.b64decode(text), (n + 7) // 8
    sets = []
    for i in range(n_layer * n_head):
        bits = raw[i * row:(i + 1) * row]
        sets.append({t for t in range(n) if bits[t >> 3] >> (7 - (t & 7)) & 1})
    return [sets[i * n_head:(i + 1) * n_head] for i in range(n_layer)]


def crc_of(kept, n):
    bits = bytearray((n + 7) // 8)
    for t in kept:
        bits[t >> 3] |= 128 >> (t & 7)
    return zlib.crc32(bits)


def unpack(text, kind):
    a = array.array(kind)
    a.frombytes(base64.b64decode(text))
    if sys.byteorder == "big":
        a.byteswap()
    return a


def child_name(press):
    return press[press.index("(") + 1:-1] if "(" in press else press


class Check:
    def __init__(self, server, golden, mode, rtol, long):
        self.server, self.golden, self.mode, self.rtol, self.long = server, golden, mode, rtol, long
        self.failures, self.checks, self.tied = [], 0, 0

    def fail(self, text):
        self.failures.append(text)
        if len(self.failures) <= 20:
            print(f"    FAIL {text}")

    def expect(self, ok, text):
        self.checks += 1
        if not ok:
            self.fail(text)
        return ok

    def near(self, x, y):
        return abs(x - y) <= 2 * self.rtol * max(abs(x), abs(y))

    def ties(self, lost, got, scores):
        """The swapped slots (layer, head, slot) carry the same scores, as the server sees them."""
        if not all("scores" in scores[l][0] for l, _, _ in lost + got):
            return False
        a = sorted(number(scores[l][h]["scores"][t]) for l, h, t in lost)
        b = sorted(number(scores[l][h]["scores"][t]) for l, h, t in got)
        return len(a) == len(b) and all(x == y or self.near(x, y) for x, y in zip(a, b))

    def by_bits(self, where, want, got, scores, chained, one_budget):
        """A layer whose sets differ: only by ties, over the whole layer, since a budget may be shared by its heads, or
        over all layers."""
        if one_budget:
            pairs = [(l, h, a, b) for l, (x, y) in enumerate(zip(want, got)) for h, (a, b) in enumerate(zip(x, y))]
            lost, new = ([(l, h, t) for l, h, a, b in pairs for t in sorted(a - b)], [(l, h, t) for l, h, a, b in pairs for t in sorted(b - a)])
            self.expect(self.ties(lost, new, scores), f"{where}: {len(lost)} slots lost, {len(new)} instead, not ties: {lost[:3]} {new[:3]}")
            return
        for l, heads in enumerate(want):
            lost = [(l, h, t) for h in range(len(heads)) for t in sorted(heads[h] - got[l][h])]
            new = [(l, h, t) for h in range(len(heads)) for t in sorted(got[l][h] - heads[h])]
            if chained and (lost or new):
                n = sum(map(len, heads))
                self.expect(len(lost) <= max(2, CHAINED_SLOTS * n), f"{where} layer {l}: {len(lost)} of {n} slots lost")
            elif lost or new:
                self.expect(self.ties(lost, new, scores), f"{where} layer {l}: {len(lost)} slots lost, "
                            f"{len(new)} instead, not ties: {lost[:3]} {new[:3]}")

    def by_cut(self, where, entry, got, scores, tol):
        """Where only the cut is known: what is kept scores at least so much, what is dropped at most so much."""
        cut = unpack(entry["cut"], "f")
        for l, heads in enumerate(got):
            for h, kept in enumerate(heads):
                least, most = cut[2 * (l * len(heads) + h):][:2]
                s = list(map(number, scores[l][h]["scores"]))
                slack = 2 * max(self.rtol, tol) * max(abs(least), abs(most) if math.isfinite(most) else 0)
                low = min(s[t] for t in kept)
                high = max((x for t, x in enumerate(s) if t not in kept), default=-math.inf)
                self.expect(low >= least - slack and high <= most + slack,
                            f"{where} layer {l} head {h}: keeps down to {low}, drops up to {high}; the cut is {least}, {most}")

    def kept_f32(self, where, entry, got, n, again, name):
        """True if the sets are the very same."""
        chained = name in CHAINED or name in SCORE_TOL
        crc = unpack(entry["crc"], "I")
        differ = [i for i, head in enumerate(h for layer in got for h in layer) if crc_of(head, n) != crc[i]]
        self.checks += 1
        if not differ:
            return True
        self.tied += 1
        scores = again()
        if "bits" in entry:
            self.by_bits(where, unpack_bits(entry["bits"], len(got), len(got[0]), n), got, scores, chained, name in GLOBAL)
        else:
            self.by_cut(where, entry, got, scores, SCORE_TOL.get(name, 0))
        return False

    def kept_int8(self, where, ratio, want, got, shared, loose, name):
        j = [len(a & b) / max(1, len(a | b)) for lw, lg in zip(want, got) for a, b in zip(lw, lg)]
        mean, worst = INT8_GATES[ratio]
        mean -= 0.02 * loose + INT8_MEAN.get(name, 0) + 0.03 * (len(j) < FEW_HEADS)
        self.expect(sum(j) / len(j) >= mean, f"{where}: mean Jaccard {sum(j) / len(j):.4f} < {mean}")
        if shared:
            for l, (a, b) in enumerate(zip(want, got)):
                total = sum(map(len, a))
                moved = max(abs(len(x) - len(y)) for x, y in zip(a, b))
                self.expect(moved <= max(ADA_HEAD_BUDGET * total, ADA_HEAD_SLOTS),
                            f"{where} layer {l}: a head's budget moved by {moved} of {total}")
        elif not loose:
            self.expect(min(j) >= worst, f"{where}: worst head's Jaccard {min(j):.4f} < {worst}")
        return f"J {sum(j) / len(j):.4f} worst {min(j):.4f}"

    def sizes(self, where, want, got, shared, one_budget):
        if one_budget:
            heads = sum(map(len, got))
            a, b = want * heads if isinstance(want, int) else sum(map(sum, want)), sum(len(h) for layer in got for h in layer)
            self.expect(abs(a - b) <= (heads if self.mode == "int8" else 0), f"{where}: keeps {b}, not {a}")
            return
        for l, b in enumerate(got):
            nb = [len(x) for x in b]
            na = [want] * len(b) if isinstance(want, int) else want[l]
            ok = sum(na) == sum(nb) if shared else na == nb
            self.expect(ok, f"{where} layer {l}: keeps {nb}, not {na}")

    def scores(self, where, want, heads, n, tol):
        stride, worst, i = self.golden["stride"], 0.0, 0
        per = len(range(0, n, stride))
        for l, layer in enumerate(heads):
            for h, head in enumerate(layer):
                s, w = head["scores"], want[i:i + per]
                i += per
                if not self.expect(len(s) == n, f"{where} layer {l} head {h}: {len(s)} scores, not {n}"):
                    continue
                # scores that cross zero have no relative error there, only that of the terms they are the sum of
                floor = 0.05 * sum(map(abs, w)) / per
                for k, x in enumerate(w):
                    worst = max(worst, abs(number(s[k * stride]) - x) / max(abs(x), floor, 1e-30))
        self.expect(worst <= max(self.rtol, tol), f"{where}: scores differ by {worst:.2e} relative")
        return f"scores {worst:.1e}"

    def walk(self, where, prompt, press, ratio, gold, tol):
        text, tops = self.server.walk(prompt, press, ratio, len(gold["ids"]), len(gold["top"][0]))
        worst = 0.0
        for i, want in enumerate(gold["top"]):
            if not self.expect(i < len(tops), f"{where}: only {len(tops)} tokens generated"):
                break
            got = sorted(tops[i], reverse=True)[:len(want)]
            if len(got) == len(want):
                worst = max(worst, max(abs(a - b) for a, b in zip(got, want)))
            if want[0] - want[1] < WALK_MARGIN:
                break
        else:
            self.expect(text == gold["text"], f"{where}: generated {text!r}, not {gold['text']!r}")
        self.expect(worst <= tol, f"{where}: log-probabilities differ by {worst:.2e}")
        return f"walk {worst:.1e}"

    def gather(self, prompt, chosen):
        """Everything the server keeps of the prompt: (press, ratio) -> heads of the pressed layers."""
        plain, scored = [], []
        for press, entry in chosen.items():
            for i, text in enumerate(entry["kept"]):
                # no score depends on the ratio: once is enough
                with_scores = self.mode == "f32" and "scores" in entry and i == 0
                (scored if with_scores else plain).append((press, float(text) if text else None))
        if self.golden.get("alone"):  # presses that no comparison takes
            answers = {key: self.server.explain(prompt, *key, members is scored) for members in (plain, scored) for key in members}
            return {key: [heads[l] for l in prompt["pressed"]] for key, heads in answers.items()}
        answers = {**self.server.compare(prompt["ids"], plain, False), **self.server.compare(prompt["ids"], scored, True)}
        return {key: [heads[l] for l in prompt["pressed"]] for key, heads in answers.items()}

    def alone(self, where, prompt, press, ratio, heads):
        """The press really applied keeps what the comparison said."""
        own = self.server.explain(prompt, press, ratio, False)
        self.expect([[h["kept"] for h in own[l]] for l in prompt["pressed"]] == [[h["kept"] for h in layer] for layer in heads],
                    f"{where}: applied, it keeps other slots than compared")

    def press(self, prompt, press, entry, answers, alone):
        n, notes, tol = len(prompt["ids"]), [], WALK_TOL
        name = press.split("(")[0].split(":")[0]
        shared = name in SHARED
        exact = child_name(press).split(":")[0] in EXACT
        f32 = self.mode == "f32"
        for text, e in entry["kept"].items():
            ratio, where = float(text) if text else None, f"{prompt['name']} {press}@{text}"
            heads = answers[press, ratio]
            got = [[set(h["kept"]) for h in layer] for layer in heads]
            self.expect(all(h["kept"] == sorted(set(h["kept"])) for layer in heads for h in layer), f"{where}: not ascending")
            if f32 or ratio is not None:  # a press that decides by a threshold of its own may cross it in int8
                self.sizes(where, e["n"], got, shared, name in GLOBAL)
            if exact or f32:
                again = lambda: [x for i, x in enumerate(self.server.explain(prompt, press, ratio, True)) if i in prompt["pressed"]]
                same = self.kept_f32(where, e, got, n, again, name)
                self.expect(same or not exact, f"{where}: other slots")
                if not same and text in ("", str(self.golden["walk_ratio"])):
                    tol = WALK_TIE_TOL
            elif "bits" in e and ratio in INT8_GATES:
                want = unpack_bits(e["bits"], len(heads), len(heads[0]), n)
                notes.append(self.kept_int8(where, ratio, want, got, shared, name in CHUNKED or name in GLOBAL or n < SHORT, name))
            if "scores" in heads[0][0]:
                notes.append(self.scores(where, unpack(entry["scores"], "f"), heads, n, SCORE_TOL.get(name, 0)))
            if alone and text in ("", str(self.golden["walk_ratio"])):
                self.alone(where, prompt, press, ratio, heads)
        if f32 and "walk" in entry and (self.long or n <= LONG_WALK):
            # nothing is kept of the prompt's own by a press that prunes while decoding: it says its sizes itself
            ratio = None if "" in entry["kept"] or not entry["kept"] else self.golden["walk_ratio"]
            notes.append(self.walk(f"{prompt['name']} {press} walk", prompt, press, ratio, entry["walk"], tol))
        return notes


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("base", help="http://127.0.0.1:8080")
    p.add_argument("--golden", default=os.path.join(here, "data", "presses_smollm2-135m.json.gz"))
    p.add_argument("--mode", choices=("f32", "int8"), default="f32")
    p.add_argument("--long", action="store_true", default=bool(os.environ.get("PRESSD_TEST_LONG")), help="or PRESSD_TEST_LONG=1")
    p.add_argument("--rtol", type=float, default=1e-4)
    p.add_argument("--model", help="default: the first the server lists")
    p.add_argument("--api-key")
    p.add_argument("--press", action="append", help="only presses that contain this text")
    p.add_argument("--prompt", action="append", help="only this prompt")
    a = p.parse_args()
    with gzip.open(a.golden) as f:
        golden = json.load(f)
    if golden["format"] != 2:
        raise SystemExit(f"{a.golden}: format {golden['format']}, this program reads 2")
    server = Server(a.base, a.model, a.api_key)
    check = Check(server, golden, a.mode, a.rtol, a.long)
    shortest = min(golden["prompts"], key=lambda prompt: len(prompt["ids"]))
    try:
        server.pick_model()
        for prompt in golden["prompts"]:
            if a.prompt and prompt["name"] not in a.prompt or len(prompt["ids"]) > (LONG_ALONE if golden.get("alone") else LONG_PROMPT) and not a.long:
                continue
            print(f"{prompt['name']}: {len(prompt['ids'])} tokens", flush=True)
            chosen = {k: v for k, v in prompt["presses"].items() if not a.press or any(x in k for x in a.press)}
            answers = check.gather(prompt, chosen)
            for press, entry in chosen.items():
                before = len(check.failures)
                try:
                    notes = check.press(prompt, press, entry, answers, prompt is shortest and not golden.get("alone"))
                except ValueError as e:
                    check.fail(f"{prompt['name']} {press}: {e}")
                    notes = []
                print(f"  {'ok  ' if len(check.failures) == before else 'FAIL'} {press}  {', '.join(notes)}", flush=True)
    except ValueError as e:
        check.fail(str(e))
    except (urllib.error.URLError, OSError) as e:
        print(f"cannot ask {a.base}: {e}", file=sys.stderr)
        return 2
    if check.tied:
        print(f"{check.tied} kept sets differ from the reference's by ties")
    print(f"{check.checks} checks, {len(check.failures)} failures")
    return 1 if check.failures or check.checks == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
