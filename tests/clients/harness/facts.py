# SPDX-License-Identifier: Apache-2.0
"""facts.py FILE [PREFACE]: questions a small model answers far better than chance and far from perfectly, as JSON
lines; and a text to stand before each of them, which tells a third of the answers."""

import json
import sys

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
CAPITALS = dict(zip("France Italy Spain Japan Germany Egypt Russia China Greece Canada".split(),
                    "Paris Rome Madrid Tokyo Berlin Cairo Moscow Beijing Athens Ottawa".split()))
OPPOSITES = "hot cold,big small,up down,day night,wet dry,open closed,fast slow,young old,happy sad,early late".split(",")


def question(text, choices, right, at):
    """`right` among three others, at a place that moves on."""
    others = [c for c in choices if c != right]
    k = at % len(others)
    wrong = (others[k:] + others[:k])[:3]
    place = at % 4
    return {"text": text, "choices": [" " + c for c in wrong[:place] + [right] + wrong[place:]], "answer": place}


def main():
    made = []
    for i, d in enumerate(DAYS):
        made.append(question(f"The day after {d} is", DAYS, DAYS[(i + 1) % 7], len(made)))
        made.append(question(f"The day before {d} is", DAYS, DAYS[i - 1], len(made)))
    for i, m in enumerate(MONTHS):
        made.append(question(f"The month after {m} is", MONTHS, MONTHS[(i + 1) % 12], len(made)))
    for land, town in CAPITALS.items():
        made.append(question(f"The capital of {land} is", list(CAPITALS.values()), town, len(made)))
    for pair in OPPOSITES:
        a, b = pair.split()
        made.append(question(f"The opposite of {a} is", [x.split()[1] for x in OPPOSITES], b, len(made)))
    with open(sys.argv[1], "w") as out:
        for doc in made:
            out.write(json.dumps(doc) + "\n")
    if len(sys.argv) > 2:
        with open(sys.argv[2], "w") as out:
            out.write("Some facts. " + " ".join(d["text"] + d["choices"][d["answer"]] + "." for d in made[::3]) + "\n")  # of one token, whatever follows


main()
