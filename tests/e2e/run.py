# SPDX-License-Identifier: Apache-2.0
"""Run the e2e cases and end in `N passed, N failed`; a skipped case counts as neither and is named."""

import os
import sys
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)


class Result(unittest.TextTestResult):
    """Counts successes and says how long each case took."""

    def startTestRun(self):
        self.good = 0

    def startTest(self, test):
        self.began = time.monotonic()
        super().startTest(test)

    def addSuccess(self, test):
        self.good += 1
        super().addSuccess(test)
        self.stream.writeln(f"    {time.monotonic() - self.began:.1f} s")


def cases(suite):
    for item in suite:
        yield from cases(item) if isinstance(item, unittest.TestSuite) else [item]


def end(suite):
    """Run those whose name contains a word of the command line; the exit code."""
    wanted = sys.argv[1:]
    found = [c for c in cases(suite) if not wanted or any(w in c.id() for w in wanted)]
    r = unittest.TextTestRunner(sys.stderr, verbosity=2, resultclass=Result).run(unittest.TestSuite(found))
    bad = len(r.failures) + len(r.errors)
    for test, why in r.skipped:
        print(f"skipped {test}: {why}")
    if r.good + bad == 0:
        print("no case ran")
        bad = 1
    sys.stdout.flush()
    print(f"{r.good} passed, {bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(end(unittest.defaultTestLoader.discover(HERE, "test_*.py")))
