# SPDX-License-Identifier: Apache-2.0
"""A long answer whose memory, in the pool and in the process, stays where its press holds it."""

import collections

import common

Held = collections.namedtuple("Held", "usage pool rss")  # pool and rss: {tokens generated: bytes}

EVERY, SETTLED = 50, 300  # tokens between two looks, and before the first one


def watch(s, prompt, tokens, compression):
    """Generate exactly so many tokens, looking at the memory on the way."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "compression": compression,
            "stream_options": {"include_usage": True}}
    usage, pool, rss, n = None, {}, {}, 0
    for _, event in s.stream("/v1/completions", body, timeout=600):
        n += 1
        if n % EVERY == 0 and SETTLED <= n < tokens:
            rss[n] = s.memory()["VmRSS"]
            pool[n] = common.pressd.total(s.metrics(), "pressd_kv_cache_resident_bytes")
        if event != "[DONE]" and event.get("usage"):
            usage = event["usage"]
    return Held(usage, pool, rss)


def check(case, s, shape, prompt, tokens, compression, bound, least=0):
    """bound(generated tokens) -> bytes the pool may hold; `least` what it must."""
    held = watch(s, prompt, tokens, compression)
    dense, at_first = shape.dense(len(prompt) + tokens - 1), shape.dense(len(prompt) + SETTLED)
    grown = max(held.rss.values()) - held.rss[SETTLED]
    allowed = bound(tokens) - bound(SETTLED) + 0.1 * (dense - at_first)
    common.say(f"{compression}: bound {bound(tokens) / 1e6:.1f} MB, dense {dense / 1e6:.1f} MB; pool {min(held.pool.values()) / 1e6:.1f}"
               f"..{max(held.pool.values()) / 1e6:.1f} MB, RSS grew by {grown / 1e6:.2f} MB from token {SETTLED} to {tokens}")
    case.assertEqual(held.usage["completion_tokens"], tokens)
    case.assertEqual(len(held.pool), (tokens - 1) // EVERY - SETTLED // EVERY + 1)
    for n, bytes_ in held.pool.items():
        # the stream tells of a token when it is drawn: the step after it may be at work already
        case.assertLessEqual(bytes_, bound(n + 1), f"{compression}: at token {n}")
        case.assertGreaterEqual(bytes_, least, f"{compression}: at token {n}")
    case.assertLessEqual(held.usage["kv_cache_bytes_peak"], max(bound(tokens), bound(0)))
    case.assertEqual(held.usage["kv_cache_bytes_dense"], dense)
    case.assertLess(grown, allowed)  # a dense cache would have grown by ten times what is allowed on top
