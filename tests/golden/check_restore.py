#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""restorekv with drawn rows and adapters (adapters.py), imported and served, against kvpress: check_restore.py MODEL GOLDEN

Both variants come from their published form.  Ends as check_presses.py does, which it runs.
"""

import gzip
import json
import os
import subprocess
import sys
import tempfile

import adapters


def main():
    model, golden = sys.argv[1:3]
    here = os.path.dirname(os.path.abspath(__file__))
    with gzip.open(golden) as f:
        sizes = json.load(f)["adapters"]
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "data")
        for plus, kind in enumerate(("restorekv", "restorekv_plus")):
            files = adapters.write(os.path.join(folder, kind), plus, **sizes)
            made = subprocess.run([os.environ["PRESSD_BIN"], "import-press-data", "-m", model, "--kind", kind, *files, "-o", data])
            if made.returncode != 0:
                print("1 checks, 1 failures")
                return 1
        return subprocess.run([sys.executable, os.path.join(here, "with_server.py"), model, "--compute", "f32", "--press-data", data, "--",
                               sys.executable, os.path.join(here, "check_presses.py"), "{url}", "--golden", golden, *sys.argv[3:]]).returncode


if __name__ == "__main__":
    sys.exit(main())
