# SPDX-License-Identifier: Apache-2.0
"""What the e2e cases share: the servers, prompts cut to a number of tokens, the KV arithmetic.

A server with ordinary settings is started once per model and kept for the whole run; a case that needs
other settings, or counts what a server did since its start, starts its own.
"""

import atexit
import concurrent.futures
import os
import sys
import time
import unittest

import pressd
import text

SUBSET = os.environ.get("PRESSD_TEST_SERVER_ARGS", "").split()  # e.g. "--cpu-mask avx2": the whole suite on other kernels
PAGE = 16  # tokens of a page


class Shape:
    """Numbers of a test model the checks calculate with."""

    def __init__(self, layers, heads_kv, head_dim, full=None, window=0):
        self.layers, self.heads_kv, self.head_dim, self.window = layers, heads_kv, head_dim, window
        self.full = list(range(layers)) if full is None else full
        self.head_token = head_dim * 2 * 2  # K and V in f16
        self.page_bytes = PAGE * self.head_token

    def dense(self, tokens):
        """bytes_dense: f16 bytes of this many tokens, a sliding layer at most its window."""
        sliding = self.layers - len(self.full)
        held = len(self.full) * tokens + sliding * min(tokens, self.window or tokens)
        return held * self.heads_kv * self.head_token

    def paged(self, tokens):
        """Whole pages of this many tokens in every head of the full layers."""
        return len(self.full) * self.heads_kv * -(-tokens // PAGE) * self.page_bytes


SHAPES = {"smollm2": Shape(30, 3, 64), "gemma3": Shape(18, 1, 256, full=[5, 11, 17], window=512)}

_shared = {}


def server(kind="smollm2"):
    """The shared server of a model; skips the case when the environment names no such model."""
    if kind not in _shared:
        s = start(kind)
        _shared[kind] = s
        atexit.register(s.stop)
    s = _shared[kind]
    if s.process.poll() is not None:
        raise AssertionError(f"the shared server ended with {s.process.returncode}:\n{s.log_tail()}")
    return s


def start(kind, *args, **kw):
    path = pressd.model_path(kind)
    if path is None:
        raise unittest.SkipTest(f"no {kind} model given")
    return pressd.Server(path, *SUBSET, *args, **kw).start()


def ids(s, n, start_at=0):
    """Exactly n token ids of prose."""
    reply = s.ask("/tokenize", {"prompt": text.prose(n // 10 + 4, start_at)})
    if reply["count"] < n:
        raise AssertionError(f"the prose has {reply['count']} tokens, {n} are needed")
    return reply["tokens"][:n]


def complete(s, prompt, n, /, **extra):
    """A greedy completion of exactly n tokens."""
    return s.ask("/v1/completions", {"prompt": prompt, "max_tokens": n, "temperature": 0, "ignore_eos": True, **extra})


def parallel(jobs):
    """Run the callables at once; their results in order."""
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        return [f.result() for f in [pool.submit(j) for j in jobs]]


def wait_until(test, seconds, step=0.01):
    """True as soon as test() holds; False after the time is over."""
    end = time.monotonic() + seconds * pressd.PATIENCE
    while not test():
        if time.monotonic() > end:
            return False
        time.sleep(step)
    return True


def idle(s):
    """No sequence holds a page and nothing runs or waits; the pool's equation is checked on the way."""
    m = s.metrics()
    pages = {state: pressd.total(m, "pressd_kv_cache_pages", state=state) for state in ("free", "sequences", "store")}
    return (pages["sequences"] == 0 and pressd.total(m, "pressd_requests_running") == 0
            and pressd.total(m, "pressd_requests_waiting") == 0)


def say(*words):
    """A measured fact for the log."""
    print("   ", *words, file=sys.stderr, flush=True)
