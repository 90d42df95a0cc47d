#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Files that ask for what pressd does not compute must not load: the small models of arch_models.py with one thing
changed.  Ends in `N passed, N failed`.  Runs $PRESSD_BIN; standard library only.
"""

import array
import os
import sys
import tempfile

import arch_models
from arch_models import BOOL, Tensor

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
import pressd  # noqa: E402


def key(k, v):
    return lambda tensors, meta: meta.update({k: v})


def tensor(name, n, value=1.0):
    return lambda tensors, meta: tensors.update({name: Tensor((n,), array.array("f", [value] * n))})


def without(name):
    return lambda tensors, meta: tensors.pop(name)


# what is changed -> what the error must say; None: it must load
CASES = [
    ("llama", key("llama.frobnication", 3), "llama.frobnication"),
    ("llama", key("llama.expert_count", 8), "llama.expert_count is 8"),
    ("llama", key("llama.expert_count", 0), None),
    ("llama", key("llama.logit_scale", 0.5), "llama.logit_scale is 0.5"),
    ("llama", key("llama.logit_scale", 1.0), None),
    ("llama", key("llama.attention.clamp_kqv", 8.0), "llama.attention.clamp_kqv is 8"),
    ("llama", key("llama.attention.causal", False), "llama.attention.causal is 0"),
    ("llama", key("llama.rope.freq_base_swa", 1e4), "llama.rope.freq_base_swa"),
    ("llama", key("qwen2.frobnication", 3), None),  # another architecture's business
    ("llama", key("llama.rope.dimension_count", 16), "RoPE 16"),
    ("llama", key("llama.rope.scaling.type", "dynamic"), "llama.rope.scaling.type is 'dynamic'"),
    ("llama", key("llama.rope.scaling.type", "longrope"), "rope_factors_short.weight is missing"),
    ("llama", key("llama.attention.sliding_window_pattern", (BOOL, [True, False])), "sliding_window_pattern has 2"),
    ("llama", key("llama.attention.sliding_window_pattern", (BOOL, [True, False, True])), None),
    ("llama", tensor("blk.0.attn_q.bias", 128), "blk.0.attn_q.bias has no place in architecture llama"),
    ("llama", tensor("blk.1.ffn_gate_inp.weight", 32), "blk.1.ffn_gate_inp.weight has no place"),
    ("llama3", tensor("rope_freqs.weight", 16, 0.0), "rope_freqs.weight[0] is 0, not positive"),
    ("llama3", tensor("rope_freqs.weight", 8), "rope_freqs.weight has shape"),
    ("llama-yarn", key("llama.rope.scaling.yarn_ext_factor", 0.5), "yarn_ext_factor 0.5"),
    ("llama-yarn", key("llama.rope.scaling.yarn_log_multiplier", 0.1), "yarn_log_multiplier 0.1"),
    ("llama-yarn", key("llama.rope.scaling.yarn_ext_factor", -1.0), None),
    ("qwen2", without("blk.2.attn_v.bias"), "blk.2.attn_v.bias is missing"),
    ("qwen3", without("blk.0.attn_k_norm.weight"), "blk.0.attn_k_norm.weight is missing"),
    ("phi3", without("rope_factors_long.weight"), "rope_factors_long.weight is missing"),
    ("phi3", tensor("rope_factors_long.weight", 16, -2.0), "rope_factors_long.weight[0] is -2"),
    ("gemma2", without("blk.3.post_ffw_norm.weight"), "blk.3.post_ffw_norm.weight is missing"),
    ("gemma3", key("gemma3.rope.freq_base_swa", 2e4), None),
    ("gemma3", key("general.architecture", "gemma3n"), "'gemma3n' is not served"),
]


def outcome(path):
    """None if it loads, else what was said."""
    server = pressd.Server(path, "--compute", "f32", timeout=60)
    try:
        server.start()
        return None if server.stop() == 0 else "did not end well"
    except pressd.ServerDied as e:
        return str(e)
    finally:
        server.kill()


def main():
    good = bad = 0
    with tempfile.TemporaryDirectory() as d:
        for name, change, want in CASES:
            path = os.path.join(d, "model.gguf")
            arch_models.write(name, path, change)
            said = outcome(path)
            ok = said is None if want is None else said is not None and want in said
            good, bad = good + ok, bad + (not ok)
            print(f"{'ok  ' if ok else 'FAIL'} refused {name}: {want or 'loads'}" + ("" if ok else f"; said {said!r}"), flush=True)
    print(f"{good} passed, {bad} failed")
    return bad != 0


if __name__ == "__main__":
    sys.exit(main())
