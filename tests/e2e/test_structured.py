# SPDX-License-Identifier: Apache-2.0
"""Answers held to a form: random schemas at high temperature, and the form beside every other way to shape an answer."""

import importlib.util
import json
import os
import random
import sys
import unittest

import common
import jsonschema

_spec = importlib.util.spec_from_file_location(
    "test_schemas", os.path.join(os.path.dirname(__file__), "..", "grammar", "test_schemas.py"))
schemas = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(schemas)

PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
                                           "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2}},
          "required": ["name", "age", "tags"], "additionalProperties": False}
ASK = [{"role": "user", "content": "Tell me about a person, as JSON."}]
CHAT = "/v1/chat/completions"


def form(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def chat(s, /, schema=PERSON, **extra):
    return s.ask(CHAT, {"messages": ASK, "max_tokens": 120, "response_format": form(schema), **extra})


class Structured(unittest.TestCase):
    def setUp(self):
        self.s = common.server()

    def holds(self, choice, schema=PERSON):
        self.assertEqual(choice["finish_reason"], "stop", choice)
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)

    def test_random_schemas(self):
        """PRESSD_TEST_LONG asks 1,000 instead of 100; an answer cut by max_tokens counts as such and must be the few."""
        n = 1000 if os.environ.get("PRESSD_TEST_LONG") else 100
        whole = cut = refused = 0

        def one(seed):
            g = schemas.Gen(random.Random(seed))
            schema = g.schema()
            if not isinstance(schema, dict):
                schema = {}
            schema["$defs"] = g.defs
            status, _, body = self.s.post(CHAT, {"messages": ASK, "max_tokens": 60, "temperature": 1.3, "seed": seed,
                                                 "response_format": form(schema)})
            return schema, status, body

        for i in range(0, n, 4):
            for schema, status, body in common.parallel([lambda k=k: one(k) for k in range(i, min(i + 4, n))]):
                if status == 400:
                    self.assertTrue(any(k in body["error"]["message"] for k in schemas.KNOWN), body)
                    refused += 1
                    continue
                self.assertEqual(status, 200, body)
                choice = body["choices"][0]
                if choice["finish_reason"] == "length":
                    cut += 1
                    continue
                whole += 1
                schemas.Validator(schema, format_checker=schemas.PROPER).validate(json.loads(choice["message"]["content"]))
        print(f"{whole} whole, {cut} cut at max_tokens, {refused} refused", file=sys.stderr)
        self.assertGreater(whole, n // 2)

    def test_beside_other_settings(self):
        for extra in ({"temperature": 0}, {"temperature": 1.5, "seed": 3}, {"temperature": 1.2, "top_k": 3}, {"temperature": 1.2, "top_p": 0.5},
                      {"temperature": 1.2, "min_p": 0.2}, {"min_tokens": 100, "temperature": 0}, {"repetition_penalty": 1.3, "temperature": 0},
                      {"compression": {"press": "knorm", "ratio": 0.5}, "temperature": 0}, {"logprobs": True, "top_logprobs": 2}):
            with self.subTest(extra):
                self.holds(chat(self.s, **extra)["choices"][0])

    def test_several_answers(self):
        r = chat(self.s, n=3, temperature=1.5, seed=5)
        self.assertEqual(len(r["choices"]), 3)
        for choice in r["choices"]:
            self.holds(choice)

    def test_a_stream_says_the_same(self):
        whole = chat(self.s, temperature=0)["choices"][0]["message"]["content"]
        events = [e for _, e in self.s.stream(CHAT, {"messages": ASK, "max_tokens": 120, "response_format": form(PERSON),
                                                     "temperature": 0, "stream": True})]
        parts = [c["delta"].get("content") or "" for e in events if isinstance(e, dict) for c in e["choices"]]
        self.assertEqual("".join(parts), whole)

    def test_a_stop_string_ends_it_early(self):
        r = chat(self.s, temperature=0, stop=['"age"'])["choices"][0]
        self.assertEqual(r["finish_reason"], "stop")
        self.assertTrue(r["message"]["content"].startswith("{") and '"age"' not in r["message"]["content"], r)

    def test_a_limit_leaves_a_prefix(self):
        whole = chat(self.s, temperature=0)["choices"][0]["message"]["content"]
        r = chat(self.s, temperature=0, max_tokens=4)["choices"][0]
        self.assertEqual(r["finish_reason"], "length")
        self.assertTrue(whole.startswith(r["message"]["content"]), r)

    def test_every_spelling(self):
        c = {"type": "object", "properties": {"a": {"const": 7}}, "required": ["a"]}
        for body, want in (({"guided_json": c}, c), ({"json_schema": c}, c), ({"structured_outputs": {"json": c}}, c),
                           ({"response_format": {"type": "json_object"}}, {"type": "object"}),
                           ({"guided_choice": ["yes", "no"]}, ["yes", "no"]), ({"grammar": 'root ::= "a" [0-9]{2} | "b"'}, None)):
            with self.subTest(body):
                r = self.s.ask(CHAT, {"messages": ASK, "max_tokens": 200, "temperature": 0, **body})["choices"][0]
                text = r["message"]["content"]
                if isinstance(want, dict) and r["finish_reason"] == "stop":
                    jsonschema.validate(json.loads(text), want)
                elif isinstance(want, list):
                    self.assertIn(text, want)
                elif want is None:
                    self.assertRegex(text, r"^(a\d\d|b)$")
        r = self.s.ask("/v1/responses", {"input": "A person.", "max_output_tokens": 120, "temperature": 0,
                                         "text": {"format": {"type": "json_schema", "name": "x", "schema": PERSON}}})
        text = "".join(p["text"] for o in r["output"] if o["type"] == "message" for p in o["content"])
        jsonschema.validate(json.loads(text), PERSON)

    def test_a_form_that_never_hinders_changes_nothing(self):
        """Any text at all as the grammar, and no grammar: the same tokens, at any temperature."""
        for how in ({"temperature": 0}, {"temperature": 1, "seed": 11}):
            a, b = (self.s.ask("/v1/completions", {"prompt": "The sea", "max_tokens": 24, **how, **g})["choices"][0]["text"]
                    for g in ({}, {"grammar": "root ::= [^\\x00]*"}))
            self.assertEqual(a, b)


if __name__ == "__main__":
    unittest.main()
