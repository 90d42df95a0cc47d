# SPDX-License-Identifier: Apache-2.0
"""OpenAI's and Anthropic's JavaScript clients: js/*.mjs print "ok NAME" or "FAIL NAME: why"."""

import os
import shutil
import subprocess
import unittest

import common

HERE = os.path.dirname(os.path.abspath(__file__))


class JavaScript(unittest.TestCase):
    def run_script(self, name, expected):
        home = os.environ["PRESSD_CLIENTS_NODE"]  # the module is looked up from where the script stands
        script = shutil.copy(os.path.join(HERE, "js", name), home)
        r = subprocess.run(["node", script, f"http://127.0.0.1:{common.server().port}"], capture_output=True, text=True, timeout=170)
        lines = r.stdout.splitlines()
        self.assertEqual([x for x in lines if not x.startswith("ok ")], [], r.stderr)
        self.assertEqual((r.returncode, len(lines)), (0, expected), r.stdout + r.stderr)

    def test_openai(self):
        self.run_script("openai.mjs", 6)

    def test_anthropic(self):
        self.run_script("anthropic.mjs", 3)
