#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The energy table of SmolLM2 135M: what few directions keep of keys, values and all heads' keys together.

    pressd calibrate ... --only eigen,joint | check_energy.py

Judged by figures of another forward pass (f32) and another text: shares of keys depend little on the text, those of
values more.  They say why keys are stored by few directions and values are not, and why before RoPE.
Ends in `N passed, N failed`."""
import sys

WANT = {  # a quarter, half and three quarters of the directions; tolerance
    "keys before RoPE, per_head": ((0.941, 0.979, 0.995), 0.01),
    "keys after RoPE, rotated": ((0.840, 0.930, 0.976), 0.01),
    "values": ((0.593, 0.793, 0.919), 0.04),
    "keys before RoPE, joint": ((0.972, 0.993, 0.999), 0.01),
}


def main():
    passed = failed = 0
    lines = sys.stdin.read().splitlines()
    for name, (want, tolerance) in WANT.items():
        found = [x for x in lines if x.startswith(name + " ")]
        got = [float(x) for x in found[0][len(name):].split()[:3]] if len(found) == 1 else []
        good = len(got) == 3 and all(abs(g - w) <= tolerance for g, w in zip(got, want))
        print(f"{name}: {got or 'no such line'}, {list(want)} within {tolerance}{'' if good else ' FAILED'}")
        passed += good
        failed += not good
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
