#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""fastkvzip with drawn gates (gates.py), imported and served, against kvpress: check_gates.py MODEL GOLDEN

Ends as check_presses.py does, which it runs.
"""

import gzip
import json
import os
import sys

import gates
import with_data


def main():
    model, golden = sys.argv[1:3]
    with gzip.open(golden) as f:
        drawn = json.load(f)["gates"]

    def write(folder):
        path = os.path.join(folder, "gates.safetensors")
        gates.write(path, gates.draw(**drawn))
        return [("fastkvzip", [path])]

    return with_data.check(model, golden, write, sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
