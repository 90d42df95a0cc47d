#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`pressd calibrate` against torch's numbers (calibrate.py), then its file in use; ends in `N passed, N failed`.

    check_calibrate.py MODEL [--golden FILE]

Runs $PRESSD_BIN in f32.  Standard library only; about a minute.
"""

import argparse
import gzip
import json
import math
import os
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
import pressd  # noqa: E402

# Largest difference as a share of the tensor's largest number.  Both sides sum in f32 in other orders; the ridge
# has about as many rows as columns and magnifies that; near-equal scores may change places in a curve (one slot of
# two texts of 256 is 0.002).
BOUND = {"kvzap.linear.weight": 1e-3, "kvzap.linear.bias": 1e-3, "lukv.curves": 0.01}
GATE_BOUND = 0.02  # 400 steps of training carry the rounding on: here up to 0.003 of a tensor's largest number
DEFAULT_BOUND = 1e-5

PRESSES = ["expected_attention_stats@0.5", "qfilter@0.5", "kvzap:model_type=linear@0.5", "lukv(knorm)@0.5", "fastkvzip@0.5",
           "duo_attention:head_compression_ratio=0.5"]

results = []


def check(name, problem):
    results.append(not problem)
    print(f"{name}: {problem or 'ok'}")


def read_tensor(data, name):
    n = struct.unpack("<Q", data[:8])[0]
    t = json.loads(data[8:8 + n])[name]
    begin, end = (8 + n + o for o in t["data_offsets"])
    return t["shape"], struct.unpack(f"<{(end - begin) // 4}f", data[begin:end])


def compare(data, name, want):
    shape, got = read_tensor(data, name)
    if shape != want["shape"]:
        return f"shape {shape}, not {want['shape']}"
    bound = BOUND.get(name, DEFAULT_BOUND) * want["scale"]
    got = got[::want["stride"]]
    if len(got) != len(want["values"]):
        return f"{len(got)} numbers, not {len(want['values'])}"
    worst = max(range(len(got)), key=lambda i: abs(got[i] - want["values"][i]))
    diff = abs(got[worst] - want["values"][worst])
    return "" if diff <= bound else f"number {worst * want['stride']} is {got[worst]}, torch {want['values'][worst]}"


def compare_gate(data, at, name, want):
    """A KV head's numbers stand one behind the other in its layer."""
    shape, got = read_tensor(data, name)
    each, n = len(got) // shape[0], math.prod(want["shape"])
    got = got[at[0] * each + at[1] * n:][:n][::want["stride"]]
    if len(got) != len(want["values"]):
        return f"{len(got)} numbers, not {len(want['values'])}"
    worst = max(abs(a - b) for a, b in zip(got, want["values"]))
    return "" if worst <= GATE_BOUND * want["scale"] else f"off by {worst:g}, the largest number is {want['scale']:g}"


def use(model, path):
    """A server with the file runs the presses that need it; one without says what to do."""
    prompt = open(os.path.join(pressd.ROOT, "LICENSE"), encoding="utf-8").read()[:6000]
    ask = lambda s, press: s.post("/v1/completions", {"prompt": prompt, "max_tokens": 4, "temperature": 0,
                                                      "compression": press})
    with pressd.Server(model, "--press-data", path) as s:
        listed = {p["name"]: p for p in s.get("/v1/presses")[2]["data"]}
        check("runnable", "" if all(listed[n]["runnable"] for n in ("qfilter", "duo_attention", "lukv")) else "not said")
        check("kvzap's default is not", "" if "--kind kvzap" in listed["kvzap"].get("reason", "") else listed["kvzap"])
        for press in PRESSES:
            status, _, body = ask(s, press)
            kept = body["kv_cache"]["tokens_kept"] / body["kv_cache"]["tokens_seen"] if status == 200 else 0
            # duo's streaming heads hold 384 of some 1,350 tokens, the others all
            low, high = (0.5, 0.75) if press.startswith("duo") else (0.45, 0.55)
            check(press, "" if status == 200 and low < kept < high else f"{status}, {kept}, {body}")
        dense = ask(s, "none")[2]["kv_cache"]["bytes"]
        for press, most in (("hcattention:sub_vector=4", 0.65), ("hcattention:sub_vector=2,centroids=16,codes=index", 1)):
            status, _, body = ask(s, press)
            kv = body.get("kv_cache", {})
            index = "codes_bytes" in kv.get("read", {})
            check(press, "" if status == 200 and kv["bytes"] <= most * dense and index == ("index" in press) else f"{status}, {body}")
        status, _, body = ask(s, "duo_attention@0.5")
        check("duo takes no ratio", "" if status == 400 and "neither ratio nor budget" in body["error"]["message"] else body)
    with pressd.Server(model) as s:
        for press in ("qfilter@0.5", "hcattention:sub_vector=4"):
            status, _, body = ask(s, press)
            said = body.get("error", {}).get("message", "")
            check(f"{press} without data", "" if status == 400 and "pressd calibrate" in said else f"{status}: {said}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--golden", default=os.path.join(HERE, "data", "calibrate_smollm2.json.gz"))
    a = p.parse_args()
    with gzip.open(a.golden) as f:
        doc = json.load(f)
    with tempfile.TemporaryDirectory() as tmp:
        path = os.path.join(tmp, "data")
        cut = [str(x) for pair in doc["cut"].items() for x in pair]
        r = subprocess.run([pressd.binary(), "calibrate", "-m", a.model, "--text", os.path.join(pressd.ROOT, doc["text"]),
                            "--only", "stats,qfilter,duo,kvzap,lukv,fastkvzip,eigen,joint,codes",
                            "-o", path, "--compute", "f32", *cut], capture_output=True, text=True)
        check("calibrate", r.stderr if r.returncode else "")
        if r.returncode == 0:
            data = open(path, "rb").read()
            for name, want in doc["tensors"].items():
                check(name, compare(data, name, want))
            for gate in doc["gates"]:
                for name, want in gate["tensors"].items():
                    check(f"{name} of {gate['at']}", compare_gate(data, gate["at"], name, want))
            use(a.model, path)
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return not all(results)


if __name__ == "__main__":
    sys.exit(main())
