#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The HTTP suite: run.py BINARY [unittest names or -v]

BINARY is pressd_http_test, the server on the fake engine.  Needs only the
standard library; the tests with the official client are skipped, and say so,
where the `openai` package is missing.
"""
import os
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.dont_write_bytecode = True
    sys.path.insert(0, HERE)
    import harness
    harness.BINARY = os.path.abspath(sys.argv[1])
    names = [a for a in sys.argv[2:] if not a.startswith("-")]
    loader = unittest.TestLoader()
    suite = loader.loadTestsFromNames(names) if names else loader.discover(HERE, "test_*.py")
    result = unittest.TextTestRunner(verbosity=2 if "-v" in sys.argv else 1).run(suite)
    failed = len(result.failures) + len(result.errors)
    skipped = len(result.skipped)
    print(f"{result.testsRun - failed - skipped} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed or not result.testsRun else 0)


if __name__ == "__main__":
    main()
