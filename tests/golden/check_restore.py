#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""restorekv with drawn rows and adapters (adapters.py), imported and served, against kvpress: check_restore.py MODEL GOLDEN

Both variants come from their published form.  Ends as check_presses.py does, which it runs.
"""

import gzip
import json
import os
import sys

import adapters
import with_data


def main():
    model, golden = sys.argv[1:3]
    with gzip.open(golden) as f:
        sizes = json.load(f)["adapters"]

    def write(folder):
        return [(kind, adapters.write(os.path.join(folder, kind), plus, **sizes)) for plus, kind in enumerate(("restorekv", "restorekv_plus"))]

    return with_data.check(model, golden, write, sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
