# SPDX-License-Identifier: Apache-2.0
"""What the load tools and the harness wrote, judged; exit 1 with a reason.

    check.py guidellm FILE REQUESTS TOKENS    each request was whole and as long as asked
    check.py aiperf FOLDER REQUESTS TOKENS
    check.py harness OURS THEIRS              the same documents, the same log probabilities, the same accuracy
"""

import glob
import json
import sys

LOGPROB = 0.02  # nats of a whole choice: f32 in two orders of summation


def guidellm(path, requests, tokens):
    runs = json.load(open(path))["benchmarks"]
    done = [r for run in runs for r in run["requests"]["successful"]]
    lengths = [r["output_tokens"] for r in done]
    assert len(done) == int(requests), f"{len(done)} requests were whole"
    assert set(lengths) == {int(tokens)}, f"answers of {lengths} tokens"


def aiperf(folder, requests, tokens):
    report = json.load(open(glob.glob(folder + "/**/profile_export_aiperf.json", recursive=True)[0]))
    assert report["request_count"]["avg"] == int(requests), report["request_count"]
    assert report["output_sequence_length"]["avg"] > 0


def samples(folder):
    path, = glob.glob(folder + "/**/samples_pressd_facts_*.jsonl", recursive=True)
    return {s["doc_id"]: s for s in map(json.loads, open(path))}


def harness(ours, theirs):
    a, b = samples(ours), samples(theirs)
    assert a.keys() == b.keys() and len(a) > 40
    worst = max(abs(float(x[0][0]) - float(y[0][0])) for i in a for x, y in zip(a[i]["resps"], b[i]["resps"]))
    right = [sum(s["acc"] for s in x.values()) / len(x) for x in (a, b)]
    print(f"accuracy {right[0]:.4f} and {right[1]:.4f}, log probabilities apart by at most {worst:.2g}")
    assert worst <= LOGPROB and right[0] == right[1]
    assert right[0] > 0.4, "no better than chance: this compares nothing"


if __name__ == "__main__":
    {"guidellm": guidellm, "aiperf": aiperf, "harness": harness}[sys.argv[1]](*sys.argv[2:])
