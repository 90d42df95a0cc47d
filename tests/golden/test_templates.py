# SPDX-License-Identifier: Apache-2.0
"""Published chat templates, rendered by our interpreter and by Jinja2 as transformers does.

    test_templates.py RENDER_TEMPLATE FOLDER...      (folders or files of templates)

Every template with every conversation and setting below: where Jinja2 writes a text, ours
writes the same to the byte; where Jinja2 refuses, ours refuses, and with the template's own
words if it was the template that did.
"""
import datetime
import json
import os
import subprocess
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = 1764000000
LEAST = 60  # templates of as many models
TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather <now> in a city & its \"surroundings\".",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "City's name"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
        "days": {"type": "integer", "minimum": 1, "description": "How many\ndays"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "where": {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": ["number", "null"]}}},
        "any": {"anyOf": [{"type": "string"}, {"type": "boolean"}]}},
        "required": ["city", "days"]}}}
TOOL2 = {"type": "function", "function": {"name": "now", "description": "Zeit — 時間", "parameters": {"type": "object", "properties": {}},
                                          "return": {"type": "string", "description": "ISO"}}}
TOOL3 = {"type": "function", "function": {"name": "python", "description": "Runs code.", "strict": True, "parameters": {
    "type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"], "additionalProperties": False}}}


def call(name, arguments, i=0, **more):
    return {"id": "call%05d" % i, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def m(role, content, **more):
    return {"role": role, "content": content, **more}


ARGS = {"city": "Zürich", "days": 3, "tags": ["a", "b's"], "where": {"lat": 47.0, "lon": None}, "any": True}
S, U, A, T = "system", "user", "assistant", "tool"
CALLED = [m(S, "Be exact."), m(U, "Weather in Zürich?")]
ASKED = m(A, None, tool_calls=[call("get_weather", ARGS)])
RESULT = m(T, '{"temp": 7.5, "sky": "<clear>"}', tool_call_id="call00000", name="get_weather")
TALKS = [
    [m(U, "Hello")],
    [m(U, "")],
    [m(S, "Be brief."), m(U, "Hi")],
    [m(S, "  padded \n"), m(U, "\n u \n"), m(A, "  a  "), m(U, " again\n")],
    [m(U, "a"), m(A, "b"), m(U, "c"), m(A, "d"), m(U, "e")],
    [m(S, "s"), m(U, "a"), m(A, "b")],
    [m(U, "one"), m(U, "two")],
    [m(S, "only rules")],
    [m(A, "I begin.")],
    [],
    [m(U, "a"), m(S, "late"), m(U, "b")],
    [m("developer", "dev"), m(U, "a")],
    [m(U, "a"), m("critic", "odd role")],
    [m(U, "日本語 😀 \u0301\u00a0"), m(A, "né\u2028"), m(U, "{{ x }}{% y %} 'q' \"d\" \\n <b>&amp;")],
    [m(U, [{"type": "text", "text": "part one"}, {"type": "text", "text": "part two"}])],
    [m(S, [{"type": "text", "text": "rules"}]), m(U, [{"type": "text", "text": "in parts"}]), m(A, [{"type": "text", "text": "out"}]), m(U, "x")],
    [m(U, [{"type": "image"}, {"type": "text", "text": "what is it?"}])],
    [m(U, "q"), m(A, "<think>\nlong thought\n</think>\n\nanswer"), m(U, "r"), m(A, "<think></think>plain"), m(U, "s")],
    [m(U, "q"), m(A, "answer", reasoning_content="because"), m(U, "r"), m(A, "again", reasoning_content="\nso\n"), m(U, "s")],
    [m(U, "q"), m(A, "answer", reasoning="because", thinking="hm"), m(U, "r")],
    CALLED,
    CALLED + [ASKED],
    CALLED + [ASKED, RESULT],
    CALLED + [ASKED, RESULT, m(A, "It is 7.5 degrees."), m(U, "Thanks")],
    CALLED + [m(A, "", tool_calls=[call("get_weather", json.dumps(ARGS)), call("now", "{}", 1)]), RESULT,
              m(T, "12:00", tool_call_id="call00001", name="now")],
    CALLED + [m(A, "Let me see.", tool_calls=[call("now", {}), call("get_weather", ARGS, 1)], reasoning_content="I must look."),
              m(T, "12:00", tool_call_id="call00000"), m(T, [{"type": "text", "text": "7.5"}], tool_call_id="call00001"), m(A, "Done.")],
    [m(U, "x"), m(A, "", tool_calls=[{"function": {"name": "now", "arguments": {}}}]), m(T, {"deep": [1, 2.5, None, True]}), m(A, "y"), m(U, "z"),
     m(A, None, tool_calls=[call("python", {"code": "print('a')\nprint(\"b\")"}, 3)]), m(T, "a\nb")],
    [m(U, "q"), m(A, None, tool_calls=[call("a", {"n": 1, "f": 1e20, "g": 0.1, "t": False, "l": [], "d": {}})]), m("function", "old", name="a")],
    [m(U, "q"), m(A, "x", tool_calls=[]), m(U, "r")],
    [m(U, "q"), m(A, None, tool_calls=None), m(U, "r")],
    [m(U, "x"), m(A, "y"), m("ipython", "out"), m(U, "z")],
]
SETTINGS = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False},
    {"add_generation_prompt": True, "tools": [TOOL, TOOL2]},
    {"add_generation_prompt": False, "tools": [TOOL3]},
    {"add_generation_prompt": True, "tools": None, "documents": None},
    {"add_generation_prompt": True, "enable_thinking": False, "thinking": False, "reasoning_effort": "low"},
    {"add_generation_prompt": True, "enable_thinking": True, "thinking": True, "reasoning_effort": "high", "tools": [TOOL2, TOOL3],
     "builtin_tools": ["python", "browser"], "model_identity": "You are one.", "date_string": "01 Jan 2030", "preserve_thinking": True,
     "keep_past_thinking": True, "clear_thinking": False, "truncate_history_thinking": False},
    {"add_generation_prompt": True, "documents": [{"title": "T", "text": "body <1>", "doc_id": 1}, {"title": "U", "text": "b\nc", "doc_id": "x"}],
     "citations": True, "controls": {"length": "long"}},
]


class Refused(TemplateError):
    pass


class Generation(jinja2.ext.Extension):
    """{% generation %} as transformers' tracker leaves it: a block that gives its text."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_give"), [], [], body).set_lineno(line)

    def _give(self, caller):
        return caller()


def environment():
    def refuse(text):
        raise Refused(text)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: datetime.datetime.fromtimestamp(NOW).strftime(form)
    return env


def by_jinja2(template, variables):
    try:
        return {"text": template.render(**variables)}
    except Refused as e:
        return {"refused": str(e)}
    except Exception as e:  # whatever a template does wrong
        return {"error": "%s: %s" % (type(e).__name__, e)}


class Ours:
    def __init__(self, program):
        self.p = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")

    def render(self, text, variables):
        self.p.stdin.write(json.dumps({"template": text, "vars": variables, "now": NOW}) + "\n")
        self.p.stdin.flush()
        return json.loads(self.p.stdout.readline())


def judge(want, got):
    """None or what is wrong."""
    if "text" in want:
        return None if got.get("text") == want["text"] else "another text"
    if "text" in got:
        return "no refusal"
    if "refused" in want and want["refused"][:200] not in got["error"]:
        return "another refusal"
    return None


def variables_of(text):
    for talk in TALKS:
        for extra in SETTINGS:
            yield {"messages": talk, "bos_token": "<s>", "eos_token": "</s>", **extra}


def check(ours, env, path, show):
    text = open(path, encoding="utf-8").read()
    n = bad = refused = 0
    try:
        template = env.from_string(text)
    except TemplateError as e:
        got = ours.render(text, {"messages": []})
        return 1, "error" not in got, 1, "Jinja2 cannot read it: %s" % e
    for variables in variables_of(text):
        want = by_jinja2(template, variables)
        got = ours.render(text, variables)
        wrong = judge(want, got)
        n += 1
        refused += "text" not in want
        if wrong:
            bad += 1
            if bad <= show:
                print("  %s: %s\n    vars %s\n    want %s\n    got  %s" % (os.path.basename(path), wrong, json.dumps(variables)[:300], first_difference(want, got), json.dumps(got)[:300]))
    return n, bad, refused, ""


def first_difference(want, got):
    a, b = want.get("text"), got.get("text")
    if a is None or b is None:
        return json.dumps(want)[:300]
    k = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return "at %d: %r, not %r" % (k, a[max(0, k - 30):k + 60], b[max(0, k - 30):k + 60])


def files(args):
    """Each text once."""
    seen = set()
    for a in args:
        for path in sorted(os.path.join(a, f) for f in os.listdir(a) if f.endswith(".jinja")) if os.path.isdir(a) else [a]:
            text = open(path, "rb").read()
            if text not in seen:
                seen.add(text)
                yield path


def main():
    ours, env = Ours(sys.argv[1]), environment()
    passed = failed = cases = refusals = 0
    for path in files(sys.argv[2:]):
        n, bad, refused, note = check(ours, env, path, int(os.environ.get("SHOW", "1")))
        cases += n
        refusals += refused
        passed += not bad
        failed += bool(bad)
        if bad or note:
            print("%s: %d of %d differ %s" % (os.path.basename(path), bad, n, note))
    print("%d distinct templates, %d cases, %d of them refused by Jinja2 too" % (passed + failed, cases, refusals))
    if passed + failed < LEAST and any(map(os.path.isdir, sys.argv[2:])):
        print("that is fewer than %d templates" % LEAST)
        failed += 1
    print("%d passed, %d failed" % (passed, failed))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
