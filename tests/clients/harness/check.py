# SPDX-License-Identifier: Apache-2.0
"""What the load tools and the harness wrote, judged; exit 1 with a reason.

    check.py guidellm FILE REQUESTS TOKENS    each request was whole and as long as asked
    check.py aiperf FOLDER REQUESTS TOKENS
    check.py harness OURS THEIRS              the same documents, the same log probabilities, the same accuracy
    check.py pressed OURS THEIRS METRICS      the same of pressed.py's numbers, and the cache was really pressed
"""

import glob
import json
import sys

LOGPROB = 0.02  # nats of a whole choice: f32 in two orders of summation
PRESSED = 0.1   # in the first layer a word said twice has keys of one norm, and rounding says which of them stays


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


def pressed(ours, theirs, metrics):
    """THEIRS: pressed.py's, for each document and choice the sum under the press and the one without."""
    a, b = samples(ours), {int(k): v for k, v in json.load(open(theirs)).items()}
    assert a.keys() == b.keys() and len(a) > 40
    pairs = [(float(x[0][0]), *y) for i in a for x, y in zip(a[i]["resps"], b[i], strict=True)]
    worst, felt = max(abs(x - y) for x, y, _ in pairs), max(abs(y - z) for _, y, z in pairs)
    right = [sum(s["acc"] for s in a.values()) / len(a)]
    for k in (0, 1):
        right.append(sum(max(range(len(v)), key=lambda i: v[i][k]) == a[i_]["doc"]["answer"] for i_, v in b.items()) / len(b))
    print(f"accuracy {right[0]:.4f}, {right[1]:.4f} and dense {right[2]:.4f}; log probabilities apart by at most {worst:.2g}, "
          f"{felt:.2g} by the press")
    assert worst <= PRESSED and abs(right[0] - right[1]) * len(a) < 1.5  # one close call at most
    assert felt > 10 * PRESSED, "the press does nothing: this compares nothing"
    assert right[0] >= right[2] - 0.1, "a mild ratio costs a tenth of the answers"
    text = open(metrics).read()
    count = {k: sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f'pressd_press_{k}{{press="knorm"')) for k in
             ("requests_total", "tokens_seen_total", "tokens_kept_total")}
    print(count)
    assert count["requests_total"] >= len(pairs) and 0.6 < count["tokens_kept_total"] / count["tokens_seen_total"] < 0.95


if __name__ == "__main__":
    {"guidellm": guidellm, "aiperf": aiperf, "harness": harness, "pressed": pressed}[sys.argv[1]](*sys.argv[2:])
