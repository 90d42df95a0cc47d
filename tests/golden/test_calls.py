# SPDX-License-Identifier: Apache-2.0
"""What published chat templates write for calls, read back.

    test_calls.py READ_CALLS FOLDER...      (folders or files of templates)

A template shows in the history how its model writes calls.  Jinja2 writes an assistant's two calls and one; the reader
of answers, with the form it finds in the same template, must give the same names and arguments.
"""
import json
import os
import subprocess
import sys

import test_templates
from test_templates import ARGS, TOOL, TOOL2, A, U, by_jinja2, call, environment, files, m

LEAST = 100  # templates that are read
# Forms that stay text: what of the name of a template -> how its model writes a call.
OTHERS = {"functionary-medium-v3.2": ">>>name", "MiniMax-M3": "tags of their names"}


class Reader:
    def __init__(self, program):
        self.p = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")

    def read(self, template, text):
        self.p.stdin.write(json.dumps({"template": template, "tools": [TOOL, TOOL2], "text": text}) + "\n")
        self.p.stdin.flush()
        return json.loads(self.p.stdout.readline())


def conversations():
    """How arguments are given, the messages up to the calls that an assistant makes, and these calls."""
    for as_text in (False, True):  # templates want one or the other
        weather = call("get_weather", json.dumps(ARGS) if as_text else ARGS)
        now = call("now", "{}" if as_text else {}, 1)
        for calls, want in (([weather], [("get_weather", ARGS)]), ([weather, now], [("get_weather", ARGS), ("now", {})])):
            for content in ("", "I look."):
                yield as_text, [m(U, "Weather?"), m(A, content, tool_calls=calls)], want


def said(template, talk):
    """What the template writes for the last message; None: it refuses, or leaves the calls out."""
    variables = {"bos_token": "<s>", "eos_token": "</s>", "tools": [TOOL, TOOL2]}
    before = by_jinja2(template, {**variables, "messages": talk[:-1], "add_generation_prompt": True}).get("text")
    whole = by_jinja2(template, {**variables, "messages": talk, "add_generation_prompt": False}).get("text")
    if before is None or whole is None:
        return None
    k = next((i for i, (x, y) in enumerate(zip(before, whole)) if x != y), min(len(before), len(whole)))
    if whole.rfind("<", 0, k) > whole.rfind(">", 0, k):  # not within a tag
        k = whole.rfind("<", 0, k)
    return whole[k:] if "rich" in whole[k:] else None


def calls_of(message):
    got = []
    for c in message.get("tool_calls", []):
        try:
            got.append((c["function"]["name"], json.loads(c["function"]["arguments"])))
        except ValueError:
            got.append((c["function"]["name"], c["function"]["arguments"]))
    return got


def main():
    reader, env = Reader(sys.argv[1]), environment()
    passed = failed = silent = others = 0
    for path in files(sys.argv[2:]):
        name, text = os.path.basename(path), open(path, encoding="utf-8").read()
        try:
            template = env.from_string(text)
        except test_templates.TemplateError:
            continue
        seen, good = {}, {}
        wrong = ""
        for how, talk, want in conversations():
            answer = said(template, talk)
            if answer is None:
                continue
            want = [w for w in want if w[0] in answer]  # some templates write the first call alone
            got = calls_of(reader.read(text, answer))
            seen[how] = seen.get(how, 0) + 1
            good[how] = good.get(how, 0) + (got == want)
            if got != want and not wrong:
                wrong = "  %r\n  is read as %r" % (answer[:600], got)
        other = next((form for part, form in OTHERS.items() if part in name), None)
        read = any(good[how] == seen[how] for how in seen)  # text is quoted where the template expects an object
        if not seen:
            silent += 1
        elif other:
            others += 1
            if read:
                failed += 1
                print("%s: %s is read after all" % (name, other))
        elif read:
            passed += 1
        else:
            failed += 1
            print("%s: not all is read\n%s" % (name, wrong))
    print("%d templates write no calls, %d write forms that stay text" % (silent, others))
    if passed < LEAST and any(map(os.path.isdir, sys.argv[2:])):
        print("fewer than %d are read" % LEAST)
        failed += 1
    print("%d passed, %d failed" % (passed, failed))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
