# SPDX-License-Identifier: Apache-2.0
"""schemathesis over /openapi.json: what the document allows and what it forbids, sent to the real server on the
HTTP suite's fake engine.  No 5xx, replies of the described shape, nothing forbidden accepted.

What is allowed by shape may still be refused by sense (more tokens than the context has, a token the vocabulary
does not have), so the check that all of it is accepted is left out.  PRESSD_SCHEMATHESIS_EXAMPLES is how many
requests are drawn per operation (10 here, 2,000 in long.sh), beside those that cover each keyword once."""

import os
import re
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

import common

HERE = os.path.dirname(os.path.abspath(__file__))


class OpenAPI(unittest.TestCase):
    def test_what_the_document_says(self):
        sys.path.insert(0, os.path.join(os.path.dirname(HERE), "http"))
        import harness
        build = os.path.dirname(os.path.dirname(os.path.abspath(common.pressd.binary())))
        harness.BINARY = os.path.join(build, "tests", "http", "pressd_http_test")
        n = os.environ.get("PRESSD_SCHEMATHESIS_EXAMPLES", "10")
        with unittest.mock.patch.dict(os.environ):  # settings of the tests, not of the server
            for name in [x for x in os.environ if x.startswith("PRESSD_")]:
                del os.environ[name]
            server = harness.Server("--ctx-size", "64")  # answers stay short
        self.addCleanup(server.stop)
        with tempfile.TemporaryDirectory() as where:
            r = subprocess.run(
                [os.path.join(os.path.dirname(sys.executable), "schemathesis"), "run", f"http://127.0.0.1:{server.port}/openapi.json",
                 "--max-examples", n, "--generation-deterministic", "--mode", "all", "--phases", "examples,coverage,fuzzing",
                 "--exclude-checks", "positive_data_acceptance", "--continue-on-failure", "--no-color"],
                cwd=where, capture_output=True, text=True)
        tail = r.stdout[-6000:] + r.stderr[-2000:]
        self.assertEqual(r.returncode, 0, tail)
        tested = re.search(r"Tested: (\d+)", r.stdout)
        ops = [m for path, x in server.get("/openapi.json").json["paths"].items() for m in x
               if m in ("get", "post") and path != "/openapi.json"]  # which it reads, and therefore does not test
        self.assertEqual(int(tested[1]), len(ops), tail)
        print(re.search(r"([\d,]+) generated", r.stdout)[0], end=" ")
