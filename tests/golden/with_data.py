# SPDX-License-Identifier: Apache-2.0
"""Press data imported in its published form, served in f32, and its presses checked: what check_gates.py and
check_restore.py have in common."""

import os
import subprocess
import sys
import tempfile


def check(model, golden, write, more=()):
    """write(folder) -> [(kind, files)] in the order of import.  The exit code of check_presses.py, or 1."""
    here = os.path.dirname(os.path.abspath(__file__))
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "data")
        for kind, files in write(folder):
            made = subprocess.run([os.environ["PRESSD_BIN"], "import-press-data", "-m", model, "--kind", kind, *files, "-o", data])
            if made.returncode != 0:
                print("1 checks, 1 failures")
                return 1
        return subprocess.run([sys.executable, os.path.join(here, "with_server.py"), model, "--compute", "f32", "--press-data", data, "--",
                               sys.executable, os.path.join(here, "check_presses.py"), "{url}", "--golden", golden, *more]).returncode
