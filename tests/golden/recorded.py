# SPDX-License-Identifier: Apache-2.0
"""How golden numbers are written: JSON, compressed, the same bytes every time."""

import gzip
import json
import os
import sys


def save(path, doc):
    data = json.dumps(doc, ensure_ascii=False, separators=(",", ":")).encode()
    with open(path, "wb") as f:  # no name, no time
        with gzip.GzipFile(filename="", fileobj=f, mode="wb", compresslevel=9, mtime=0) as z:
            z.write(data)
    print(f"{path}: {os.path.getsize(path)} bytes", file=sys.stderr)
