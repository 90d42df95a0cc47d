#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Hold a running pressd against kvpress: which tokens every press keeps of a real model's cache.

    check_presses.py BASE_URL [--golden FILE] [--mode f32|int8] [--press TEXT] [--prompt NAME] [--rtol X]

For each prompt, press and ratio of the golden file (presses_model.py) the server's
POST /v1/compression/explain must keep the same slots in every layer and head.  Presses are asked many at a
time ("compare", one prefill for all); of the shortest prompt each is asked alone as well and must say the same.

  f32   (server run with --compute f32) scores within --rtol, kept sets equal; a slot may be another one
        only if its score ties with the one it replaces.  Then 8 greedy tokens over the pressed cache:
        log-probabilities of the top 5 within 1e-3.
  int8  activations differ, so sets do: Jaccard index of kept sets, mean and worst head, against fixed gates.

Presses that look at positions or seeds alone must agree exactly in both.  Standard library only.
Exit code 0 if all agree, 1 if not, 2 if the server cannot be asked.
"""

import argparse
import array
import base64
import gzip
import json
import os
import sys
import urllib.error
import urllib.request

EXACT = ("random", "streaming_llm")
# z-scores: 1 is their size, near 0 nothing is relative.  leverage has the directions in which few keys differ
# count as much as any, so rounding of the keys shows more (5e-4 at 48 columns of 106 tokens).
STANDARDIZED = {"non_causal_attention": 1.0, "leverage": 10.0}
# kept sets of int8 activations against f32: (mean, worst head) per ratio
INT8_GATES = {0.25: (0.96, 0.85), 0.5: (0.96, 0.85), 0.75: (0.95, 0.80)}
INT8_ROOM = (0.03, 0.15)  # less for the standardized ones: unscaled logits, and small directions of the keys
ADA_HEAD_BUDGET = 0.02  # heads' shares may move this much of the layer's total under int8 ...
ADA_HEAD_SLOTS = 4      # ... or this many slots, which is more in a short prompt
MEMBERS, MEMBERS_SCORES = 16, 6  # presses asked at a time: a reply of some ten megabytes
WALK_TOL = 1e-3
WALK_TIE_TOL = 5e-2  # tied slots are other tokens (knorm: equal tokens have equal keys in layer 0), so the walk moves a little
WALK_MARGIN = 0.01  # below this the greedy token may differ, and the walk ends


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

    def explain(self, ids, press, ratio, scores):
        r = self.ask("/v1/compression/explain", {"model": self.model, "prompt": ids, "scores": scores,
                                                 "compression": {"press": press, "ratio": ratio}})
        if r["scope_tokens"] != len(ids):
            raise ValueError(f"scope_tokens is {r['scope_tokens']}, the prompt has {len(ids)} tokens")
        return [[h for h in layer["heads"]] for layer in r["layers"]]

    def compare(self, ids, members, scores):
        """members: (press, ratio) pairs -> heads of each, as explain gives them."""
        out, size = {}, MEMBERS_SCORES if scores else MEMBERS
        for i in range(0, len(members), size):
            some = members[i:i + size]
            r = self.ask("/v1/compression/explain", {
                "model": self.model, "prompt": ids, "scores": scores,
                "compare": [{"press": press, "ratio": ratio} for press, ratio in some]})
            if len(r["compare"]) != len(some) or r["scope_tokens"] != len(ids):
                raise ValueError(f"{len(r['compare'])} presses compared on {r['scope_tokens']} tokens, not {len(some)} on {len(ids)}")
            for key, entry in zip(some, r["compare"]):
                if "skipped" in entry:
                    raise ValueError(f"{key[0]} was skipped: {entry['skipped']}")
                out[key] = [layer["heads"] for layer in entry["layers"]]
        return out

    def walk(self, ids, press, ratio, n, top):
        r = self.ask("/v1/completions", {"model": self.model, "prompt": ids, "max_tokens": n, "temperature": 0,
                                         "logprobs": top, "compression": {"press": press, "ratio": ratio}})
        return r["choices"][0]


def unpack_bits(text, n_layer, n_head, n):
    raw, row = base64.b64decode(text), (n + 7) // 8
    sets = []
    for i in range(n_layer * n_head):
        bits = raw[i * row:(i + 1) * row]
        sets.append({t for t in range(n) if bits[t >> 3] >> (7 - (t & 7)) & 1})
    return [sets[i * n_head:(i + 1) * n_head] for i in range(n_layer)]


def unpack_floats(text):
    a = array.array("f")
    a.frombytes(base64.b64decode(text))
    if sys.byteorder == "big":
        a.byteswap()
    return a


def child_name(press):
    return press[press.index("(") + 1:-1] if "(" in press else press


class Check:
    def __init__(self, server, golden, mode, rtol):
        self.server, self.golden, self.mode, self.rtol = server, golden, mode, rtol
        self.failures, self.checks = [], 0

    def fail(self, text):
        self.failures.append(text)
        if len(self.failures) <= 20:
            print(f"    FAIL {text}")

    def expect(self, ok, text):
        self.checks += 1
        if not ok:
            self.fail(text)
        return ok

    def ties(self, lost, got, scores):
        """The swapped slots (layer, head, slot) carry the same scores, as the server sees them."""
        a = sorted(float(scores[l][h]["scores"][t]) for l, h, t in lost)
        b = sorted(float(scores[l][h]["scores"][t]) for l, h, t in got)
        return len(a) == len(b) and all(abs(x - y) <= 2 * self.rtol * max(abs(x), abs(y)) for x, y in zip(a, b))

    def kept_f32(self, where, want, got, again):
        """Per head for plain presses, per layer for those that share a budget.  True if the sets are the same."""
        scores = None
        for l, heads in enumerate(want):
            lost = [(l, h, t) for h in range(len(heads)) for t in sorted(heads[h] - got[l][h])]
            new = [(l, h, t) for h in range(len(heads)) for t in sorted(got[l][h] - heads[h])]
            if lost or new:
                scores = scores or again()
                self.expect(self.ties(lost, new, scores), f"{where} layer {l}: {len(lost)} slots lost, {len(new)} instead, "
                            f"not ties: {lost[:3]} {new[:3]}")
            else:
                self.checks += 1
        return scores is None

    def kept_int8(self, press, where, ratio, want, got, shared):
        j = [len(a & b) / max(1, len(a | b)) for lw, lg in zip(want, got) for a, b in zip(lw, lg)]
        mean, worst = INT8_GATES[ratio]
        if press in STANDARDIZED:
            mean, worst = mean - INT8_ROOM[0], worst - INT8_ROOM[1]
        self.expect(sum(j) / len(j) >= mean, f"{where}: mean Jaccard {sum(j) / len(j):.4f} < {mean}")
        if shared:
            for l, (a, b) in enumerate(zip(want, got)):
                total = sum(map(len, a))
                moved = max(abs(len(x) - len(y)) for x, y in zip(a, b))
                self.expect(moved <= max(ADA_HEAD_BUDGET * total, ADA_HEAD_SLOTS),
                            f"{where} layer {l}: a head's budget moved by {moved} of {total}")
        else:
            self.expect(min(j) >= worst, f"{where}: worst head's Jaccard {min(j):.4f} < {worst}")
        return f"J {sum(j) / len(j):.4f} worst {min(j):.4f}"

    def sizes(self, where, want, got, shared):
        for l, (a, b) in enumerate(zip(want, got)):
            na, nb = [len(x) for x in a], [len(x) for x in b]
            ok = sum(na) == sum(nb) if shared else na == nb
            self.expect(ok, f"{where} layer {l}: keeps {nb}, not {na}")

    def scores(self, press, where, want, heads, n):
        stride, worst, i = self.golden["stride"], 0.0, 0
        per = len(range(0, n, stride))
        for l, layer in enumerate(heads):
            for h, head in enumerate(layer):
                s, w = head["scores"], want[i:i + per]
                i += per
                if not self.expect(len(s) == n, f"{where} layer {l} head {h}: {len(s)} scores, not {n}"):
                    continue
                # scores that cross zero have no relative error there
                floor = STANDARDIZED.get(press, 0.01 * sum(map(abs, w)) / per)
                for k, x in enumerate(w):
                    worst = max(worst, abs(float(s[k * stride]) - x) / max(abs(x), floor, 1e-30))
        self.expect(worst <= self.rtol, f"{where}: scores differ by {worst:.2e} relative")
        return f"scores {worst:.1e}"

    def walk(self, where, ids, press, gold, tol):
        c = self.server.walk(ids, press, self.golden["walk_ratio"], len(gold["ids"]), len(gold["top"][0]))
        tops, worst = c["logprobs"]["top_logprobs"], 0.0
        for i, want in enumerate(gold["top"]):
            if not self.expect(i < len(tops), f"{where}: only {len(tops)} tokens generated"):
                break
            # one entry per text, and the chosen token's if it is not among the best
            got = sorted(tops[i].values(), reverse=True)[:len(want)]
            if len(got) == len(want):
                worst = max(worst, max(abs(a - b) for a, b in zip(got, want)))
            if want[0] - want[1] < WALK_MARGIN:
                break
        else:
            self.expect(c["text"] == gold["text"], f"{where}: generated {c['text']!r}, not {gold['text']!r}")
        self.expect(worst <= tol, f"{where}: log-probabilities differ by {worst:.2e}")
        return f"walk {worst:.1e}"

    @staticmethod
    def kept_of(prompt, press, entry):
        # key_rerotation keeps what its child keeps, and is stored once
        return entry["kept"] or prompt["presses"][child_name(press)]["kept"]

    def gather(self, prompt, chosen):
        """Everything the server keeps of the prompt: (press, ratio) -> heads."""
        plain, scored = [], []
        for press, entry in chosen.items():
            kept = self.kept_of(prompt, press, entry)
            for text in kept:
                # no score depends on the ratio: once is enough
                with_scores = self.mode == "f32" and "scores" in entry and text == next(iter(kept))
                (scored if with_scores else plain).append((press, float(text)))
        return {**self.server.compare(prompt["ids"], plain, False), **self.server.compare(prompt["ids"], scored, True)}

    def alone(self, where, ids, press, ratio, heads):
        """The press really applied keeps what the comparison said."""
        own = self.server.explain(ids, press, ratio, False)
        self.expect([[h["kept"] for h in layer] for layer in own] == [[h["kept"] for h in layer] for layer in heads],
                    f"{where}: applied, it keeps other slots than compared")

    def press(self, prompt, press, entry, answers, alone):
        ids, n, notes, tol = prompt["ids"], len(prompt["ids"]), [], WALK_TOL
        shared = press.startswith("adakv")
        exact = child_name(press).split(":")[0] in EXACT
        f32 = self.mode == "f32"
        for text, bits in self.kept_of(prompt, press, entry).items():
            ratio, where = float(text), f"{prompt['name']} {press}@{text}"
            heads = answers[press, ratio]
            got = [[set(h["kept"]) for h in layer] for layer in heads]
            want = unpack_bits(bits, len(heads), len(heads[0]), n)
            self.expect(all(h["kept"] == sorted(set(h["kept"])) for layer in heads for h in layer), f"{where}: not ascending")
            self.sizes(where, want, got, shared)
            if exact:
                self.expect(want == got, f"{where}: other slots")
            elif f32:
                same = self.kept_f32(where, want, got, lambda: self.server.explain(ids, press, ratio, True))
                if not same and ratio == self.golden["walk_ratio"]:
                    tol = WALK_TIE_TOL
            else:
                notes.append(self.kept_int8(press.split(":")[0], where, ratio, want, got, shared))
            if "scores" in heads[0][0]:
                notes.append(self.scores(press.split(":")[0], where, unpack_floats(entry["scores"]), heads, n))
            if alone and ratio == self.golden["walk_ratio"]:
                self.alone(where, ids, press, ratio, heads)
        if f32 and "walk" in entry:
            notes.append(self.walk(f"{prompt['name']} {press} walk", ids, press, entry["walk"], tol))
        return notes


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("base", help="http://127.0.0.1:8080")
    p.add_argument("--golden", default=os.path.join(here, "data", "presses_smollm2-135m.json.gz"))
    p.add_argument("--mode", choices=("f32", "int8"), default="f32")
    p.add_argument("--rtol", type=float, default=1e-4)
    p.add_argument("--model", help="default: the first the server lists")
    p.add_argument("--api-key")
    p.add_argument("--press", action="append", help="only presses that contain this text")
    p.add_argument("--prompt", action="append", help="only this prompt")
    a = p.parse_args()
    with gzip.open(a.golden) as f:
        golden = json.load(f)
    server = Server(a.base, a.model, a.api_key)
    check = Check(server, golden, a.mode, a.rtol)
    shortest = min(golden["prompts"], key=lambda prompt: len(prompt["ids"]))
    try:
        server.pick_model()
        for prompt in golden["prompts"]:
            if a.prompt and prompt["name"] not in a.prompt:
                continue
            print(f"{prompt['name']}: {len(prompt['ids'])} tokens", flush=True)
            chosen = {k: v for k, v in prompt["presses"].items() if not a.press or any(x in k for x in a.press)}
            answers = check.gather(prompt, chosen)
            for press, entry in chosen.items():
                before = len(check.failures)
                try:
                    notes = check.press(prompt, press, entry, answers, prompt is shortest)
                except ValueError as e:
                    check.fail(f"{prompt['name']} {press}: {e}")
                    notes = []
                print(f"  {'ok  ' if len(check.failures) == before else 'FAIL'} {press}  {', '.join(notes)}", flush=True)
    except ValueError as e:
        check.fail(str(e))
    except (urllib.error.URLError, OSError) as e:
        print(f"cannot ask {a.base}: {e}", file=sys.stderr)
        return 2
    print(f"{check.checks} checks, {len(check.failures)} failures")
    return 1 if check.failures or check.checks == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
