#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Count the tests inside meson's test programs.

usage: count.py testlog.json

meson counts programs; a program of ours holds many tests, which cmocka reports
one by one.  Prints a line for each failed test and ends in `N passed, N failed`.
No file means that meson ran nothing: `0 passed, 0 failed`.  A program that does not end well although it reports no failed test (a crash, a
leak found at exit, a time-out) counts as one failed test.
"""
import json
import os
import re
import sys


def tally(text):
    """(passed, failed) that the program reports, or None if it reports nothing."""
    passed = re.findall(r"^\[  PASSED  \] (\d+) test", text, re.M)
    if passed:
        failed = re.findall(r"^\[  FAILED  \] (\d+) test", text, re.M)
        return sum(map(int, passed)), sum(map(int, failed))
    own = re.findall(r"^(\d+) passed, (\d+) failed$", text, re.M)
    return tuple(map(int, own[-1])) if own else None


def main():
    passed = failed = 0
    if not os.path.exists(sys.argv[1]):
        print("0 passed, 0 failed")
        return
    with open(sys.argv[1], encoding="utf-8", errors="replace") as log:
        for line in log:
            test = json.loads(line)
            name, result = test["name"], test["result"]
            text = (test.get("stdout") or "") + "\n" + (test.get("stderr") or "")
            good = result in ("OK", "EXPECTEDFAIL")
            if result == "SKIP":
                print(f"{name}: skipped")
                continue
            counts = tally(text)
            if counts is None:
                counts = (1, 0) if good else (0, 1)
            if not good and counts[1] == 0:
                counts = (counts[0], 1)
            if counts[1]:
                for bad in sorted(set(re.findall(r"^\[  FAILED  \] (\D\S*)", text, re.M))):
                    print(f"{name}: {bad} failed")
                print(f"{name}: {result}, exit status {test.get('returncode')}")
            passed += counts[0]
            failed += counts[1]
    print(f"{passed} passed, {failed} failed")


main()
