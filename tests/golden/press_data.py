#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write data/press_data.bin: scores and kept sets of kvpress 0.5.5's presses that need trained tensors, for
tests/unit/test_press_golden.c.

    press_data.py [--out DIR]

Inputs and file are presses_unit.py's; the tensors are drawn as tests/unit/press_data_case.h draws them, from a
seed of their own each.  Needs torch and kvpress; takes seconds.
"""

import argparse
import os
import types

import numpy as np
import torch
from kvpress import (AdaKVPress, DuoAttentionPress, ExpectedAttentionPress, ExpectedAttentionStatsPress, KnormPress,
                     KVzapPress, LUKVPress, QFilterPress)

import presses_unit

LAYER, LAYERS, HIDDEN = 3, 8, 24


class Data:
    """The tensors of tests/unit/press_data_case.h."""

    def __init__(self, seed, d, hq, h):
        draw = lambda i, scale, *shape: np.float32(scale) * presses_unit.Draw(seed + 600000 + 1000 * i)(*shape)
        self.mean, self.cov = draw(0, 1, LAYERS, hq, d), draw(1, 0.05, LAYERS, hq, d, d)
        self.filters = draw(2, 1, LAYERS, h, d)
        self.pattern, self.calibrated = (draw(i, 0.5, LAYERS, h) + np.float32(0.5) for i in (3, 4))
        self.linear = draw(5, 0.1, LAYERS, h, hq * d), draw(6, 1, LAYERS, h)
        self.mlp = (draw(7, 0.2, LAYERS, HIDDEN, hq * d), draw(8, 1, LAYERS, HIDDEN), draw(9, 0.3, LAYERS, h, HIDDEN),
                    draw(10, 1, LAYERS, h))
        rows = torch.arange(1, 100, dtype=torch.float32)[:, None, None] / np.float32(100)
        self.curves = (rows + draw(11, 0.3, 99, LAYERS, h)).clamp(0, 1).numpy()


def stats(data, **params):
    press = ExpectedAttentionStatsPress(**params)
    press.mu, press.cov = data.mean, data.cov
    return press


def qfilter(data):
    press = QFilterPress()
    press.q_filters = data.filters
    return press


def linear(w, b):
    layer = torch.nn.Linear(w.shape[1], w.shape[0])
    layer.weight.data, layer.bias.data = w, b
    return layer


def kvzap(data, kind):
    press = KVzapPress(model_type=kind)
    t = data.linear if kind == "linear" else data.mlp
    w, b = t[-2:]
    layers = [linear(w[i], b[i]) for i in range(LAYERS)]
    if kind == "mlp":
        w1, b1 = t[:2]
        layers = [torch.nn.Sequential(linear(w1[i], b1[i]), torch.nn.GELU(), last) for i, last in enumerate(layers)]
    press.kvzap_model = types.SimpleNamespace(layers=layers)
    return press


def duo(data, ratio, calibrated=False):
    press = DuoAttentionPress(head_compression_ratio=ratio)
    found = (1, 7, data.calibrated) if calibrated else (5, 20, data.pattern)
    press.load_attention_pattern = lambda model: (*found[:2], found[2].numpy())
    press.post_init_from_model(types.SimpleNamespace(device="cpu"))
    return press


def lukv(data, child, **params):
    press = LUKVPress(child, **params)
    press._budget_curves = data.curves
    return press


# text of the press -> how to make it
PRESSES = {
    "expected_attention_stats": stats,
    "expected_attention_stats:use_covariance=false": lambda d: stats(d, use_covariance=False),
    "expected_attention_stats:n_future_positions=99,n_sink=0,use_vnorm=false":
        lambda d: stats(d, n_future_positions=99, n_sink=0, use_vnorm=False),
    "adakv(expected_attention_stats:epsilon=0.01)": lambda d: AdaKVPress(stats(d, epsilon=0.01)),
    "qfilter": qfilter,
    "adakv(qfilter)": lambda d: AdaKVPress(qfilter(d)),
    "kvzap": lambda d: kvzap(d, "mlp"),
    "kvzap:model_type=linear": lambda d: kvzap(d, "linear"),
    "adakv(kvzap)": lambda d: AdaKVPress(kvzap(d, "mlp")),
    "duo_attention": lambda d: duo(d, 0.0),
    "duo_attention:head_compression_ratio=0.3": lambda d: duo(d, 0.3),
    "duo_attention:head_compression_ratio=0.78125": lambda d: duo(d, 0.78125),  # 12.5 of 16 heads: half to even
    "duo_attention:head_compression_ratio=1": lambda d: duo(d, 1.0),
    "duo_attention:head_compression_ratio=0.6,on_the_fly_scoring=true": lambda d: duo(d, 0.6, True),
    "lukv(knorm)": lambda d: lukv(d, KnormPress()),
    "lukv(expected_attention:epsilon=0.02)": lambda d: lukv(d, ExpectedAttentionPress(epsilon=0.02)),
    "lukv:sink=0,window=0(kvzap)": lambda d: lukv(d, kvzap(d, "mlp"), sink=0, window=0),
    "lukv:sink=30,window=9(qfilter)": lambda d: lukv(d, qfilter(d), sink=30, window=9),
}
RATIOS = {"lukv": (0.005, 0.33, 0.5, 0.9, 0.985, 0.999)}


def masked_to_kept(module, shape):
    kept = torch.ones(shape, dtype=torch.bool)
    if getattr(module, "masked_key_indices", None) is not None:
        _, heads, slots = module.masked_key_indices
        kept[heads, slots] = False
    return kept


def answers(press, args, ratio):
    """The scores (None where the press has none) and what stays."""
    module, _, keys = args[:3]
    shape = keys.shape[1:3]
    module.masked_key_indices = None
    if isinstance(press, DuoAttentionPress):
        press.compress(*args)
        return None, masked_to_kept(module, shape)
    press.compression_ratio = ratio
    if isinstance(press, (AdaKVPress, LUKVPress)):
        press.press.compression_ratio = ratio
        press.compress(*args)
        return None, masked_to_kept(module, shape)
    presses_unit.RATIO = ratio
    return presses_unit.answers(press, args)


@torch.inference_mode()
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "data"))
    a = p.parse_args()
    torch.set_num_threads(1)
    path = os.path.join(a.out, "press_data.bin")
    with open(path, "wb") as f:
        for seed, n, d, hq, h in presses_unit.SHAPES:
            args = list(presses_unit.inputs(seed, n, d, hq, h))
            args[1] = args[1][..., :hq * d]  # the queries alone: the regressors' input is of the model's width
            args[0].layer_idx = LAYER
            data = Data(seed, d, hq, h)
            for name, make in PRESSES.items():
                for ratio in RATIOS.get(name.split("(")[0].split(":")[0], (0.5,)):
                    scores, kept = answers(make(data), args, ratio)
                    f.write(f"case {seed} {n} {d} {hq} {h} {ratio} {int(scores is not None)} {name}\n".encode())
                    if scores is not None:
                        f.write(scores.numpy().astype("<f4").tobytes())
                    f.write(np.packbits(kept.numpy(), axis=-1).tobytes())
    print(f"{path}: {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    main()
