#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The clients suite: run.py [NAME ...], in the environment that run.sh makes."""

import os
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))


def cases(suite):
    for x in suite:
        if isinstance(x, unittest.TestSuite):
            yield from cases(x)
        else:
            yield x


def main():
    sys.dont_write_bytecode = True
    os.environ.update({"OPENAI_API_KEY": "none", "ANTHROPIC_API_KEY": "none", "LANGSMITH_TRACING": "false",
                       "LITELLM_LOCAL_MODEL_COST_MAP": "True"})  # nothing is asked of the network
    sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "e2e")]
    found = unittest.TestLoader().discover(HERE, "test_*.py")
    wanted = [t for t in cases(found) if not sys.argv[1:] or any(n in t.id() for n in sys.argv[1:])]
    result = unittest.TextTestRunner(verbosity=2).run(unittest.TestSuite(wanted))
    failed, skipped = len(result.failures) + len(result.errors), len(result.skipped)
    print(f"{result.testsRun - failed - skipped} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed or not result.testsRun else 0)


if __name__ == "__main__":
    main()
