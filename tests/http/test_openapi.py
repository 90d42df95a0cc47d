# SPDX-License-Identifier: Apache-2.0
"""/openapi.json: valid, complete, and true of the server that gives it."""
import os
import re
import unittest

from harness import ServerTest

try:
    import jsonschema
    import openapi_spec_validator
except ImportError:
    openapi_spec_validator = None

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Document(ServerTest):
    def setUp(self):
        self.doc = self.s.get("/openapi.json").json

    def operations(self):
        for path, item in self.doc["paths"].items():
            for method in ("get", "post"):
                if method in item:
                    yield method, path, item[method]

    def schema(self, schema):
        return {**schema, "components": self.doc["components"]}

    def check(self, schema, value):
        jsonschema.Draft202012Validator(self.schema(schema)).validate(value)

    @unittest.skipUnless(openapi_spec_validator, "the openapi-spec-validator package is not installed")
    def test_valid(self):
        self.assertEqual(self.doc["openapi"], "3.1.0")
        openapi_spec_validator.validate(self.doc)

    def test_every_route_and_no_other(self):
        served = set()
        for name in sorted(os.listdir(os.path.join(ROOT, "server"))):
            if name.endswith(".c"):
                text = open(os.path.join(ROOT, "server", name)).read()
                served |= {(m.lower(), label) for m, label in
                           re.findall(r'\.method = "(\w+)",\s*\.path = "[^"]+",\s*\.label = "([^"]+)"', text)}
        self.assertGreater(len(served), 12)
        self.assertEqual({(m, p) for m, p, _ in self.operations()}, served)

    def test_presses_are_the_servers(self):
        names = [p["name"] for p in self.s.get("/v1/presses").json["data"]]
        self.assertEqual(self.doc["components"]["schemas"]["PressName"]["enum"], names)
        self.assertEqual(self.doc["info"]["version"], self.s.get("/version").json["version"])

    @unittest.skipUnless(openapi_spec_validator, "the openapi-spec-validator package is not installed")
    def test_examples_are_served_as_described(self):
        replayed = 0
        for method, path, op in self.operations():
            content = op["responses"]["200"]["content"]
            if method == "post":
                body = op["requestBody"]["content"]["application/json"]
                self.check(body["schema"], body["example"])
                r = self.s.post(path, body["example"])
                replayed += 1
            else:
                r = self.s.get(path.replace("{id}", "fake"))
            self.assertEqual(r.status, 200, (path, r.body))
            if "application/json" in content:
                self.check(content["application/json"]["schema"], r.json)
        self.assertEqual(replayed, 11)

    @unittest.skipUnless(openapi_spec_validator, "the openapi-spec-validator package is not installed")
    def test_what_it_forbids_is_refused(self):
        """And what it allows is served; bounds from both sides."""
        schema = self.doc["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        error = self.doc["components"]["responses"]["Error"]["content"]["application/json"]["schema"]
        good = [{"n": 2, "best_of": 2}, {"stop": ["a"] * 4}, {"logit_bias": {"5": -100}}, {"prompt": [[1], "b"]}, {"top_p": 1},
                {"repetition_penalty": 2}, {"logprobs": 100, "echo": True}, {"stop_token_ids": [1] * 128}, {"compression": "knorm@0.5"},
                {"n": None, "stop": None, "compression": None, "logit_bias": None, "echo": None}, {"min_tokens": 1}, {"seed": -1},
                {"compression": {"press": {"name": "knorm"}, "budget_tokens": 4, "scope": {"context_tokens": 2}}}]
        bad = [{"n": 0}, {"n": 129}, {"best_of": 21}, {"stop": ["a"] * 5}, {"stop": ""}, {"logit_bias": {"5": 101}},
               {"logit_bias": {"x": 1}}, {"logit_bias": []}, {"prompt": []}, {"prompt": [[]]}, {"top_p": 0}, {"temperature": 2.1},
               {"repetition_penalty": 0}, {"logprobs": 101}, {"logprobs": True}, {"stop_token_ids": [1] * 129}, {"echo": 1},
               {"prompt_logprobs": 101}, {"presence_penalty": "1"}, {"min_tokens": -1}, {"compression": 5},
               {"compression": {"press": {"name": "nope"}, "ratio": 0.5}}, {"stream_options": 1}]
        valid = jsonschema.Draft202012Validator(self.schema(schema))
        for fields in good:
            body = {"prompt": "abc", "max_tokens": 2, **fields}
            with self.subTest(fields=fields):
                self.assertEqual((valid.is_valid(body), self.s.post("/v1/completions", body).status), (True, 200))
        for fields in bad:
            body = {"prompt": "abc", "max_tokens": 2, **fields}
            with self.subTest(fields=fields):
                r = self.s.post("/v1/completions", body)
                self.assertEqual((valid.is_valid(body), r.status), (False, 400))
                self.check(error, r.json)


class WithoutMetrics(ServerTest):
    args = ("--no-metrics",)

    def test_what_is_not_served_is_not_described(self):
        self.assertNotIn("/metrics", self.s.get("/openapi.json").json["paths"])
        self.assertEqual(self.s.get("/metrics").status, 404)


if __name__ == "__main__":
    unittest.main()
