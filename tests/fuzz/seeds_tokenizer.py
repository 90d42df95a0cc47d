# SPDX-License-Identifier: Apache-2.0
"""Seeds for the tokenizer fuzz target: one vocabulary per kind, with merges, control
and user-defined pieces, and a text that uses them.

    python3 tests/fuzz/seeds_tokenizer.py DIRECTORY
"""
import os
import sys

NORMAL, CONTROL, USER = 1, 3, 4


def piece(text, kind=NORMAL, score=0, split=0, rule=True):
    b = text.encode()
    return bytes([kind, score, split | (0x80 if rule else 0), len(b)]) + b


def main(folder):
    os.makedirs(folder, exist_ok=True)
    bpe = [piece("ab"), piece("abc", split=1), piece("\u0120a", split=1), piece("<|im_start|>", CONTROL, rule=False),
           piece("<|im_end|>", CONTROL, rule=False), piece("<b>", USER, rule=False)]
    spm = [piece("\u2581", score=9), piece("a", score=5), piece("b", score=4), piece("ab", score=3), piece("\u2581a", score=2),
           piece("\n\n", USER), piece("<s>", CONTROL)]
    text = " abc ab'll 123\r\n  \u00e9\U0001F600 <|im_start|><b>\n\n\n<s>".encode() + b"\xff\xe2\x96 "
    jinja = b"{% for m in messages %}{{- '<|im_start|>' + message.role + \"\\n\" }}{# c #}{% endfor %}"
    for kind in range(24):
        pieces = spm if kind & 1 else bpe
        body = bytes([kind, len(pieces)]) + b"".join(pieces)
        with open(os.path.join(folder, "kind%d" % kind), "wb") as f:
            f.write(body + (text if kind % 3 else text + jinja))


if __name__ == "__main__":
    main(sys.argv[1])
