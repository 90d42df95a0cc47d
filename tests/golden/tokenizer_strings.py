# SPDX-License-Identifier: Apache-2.0
"""The strings every tokenizer is judged on: varied, seeded, the same on every machine."""
import random
import unicodedata

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, doesn't it?", "I'd've thought they'll say we're DONE; it's HE'S, SHE'LL, I'M!",
    "Zażółć gęślą jaźń, proszę bardzo.", "Příliš žluťoučký kůň úpěl ďábelské ódy.", "Fünf große Äpfel kosten 3,50 € – stimmt's?",
    "Où est le cœur de l'été ? L’œuvre n'est pas là…", "El niño comió piñas y pingüinos; ¿verdad?", "Ação, coração e pão: não há solução.",
    "Съешь же ещё этих мягких французских булок.", "Ελληνικά: το ξίφος, η ψυχή και ο ήλιος.", "שלום עולם, מה שלומך היום?",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣٤٥", "سلام دنیا، می‌خواهم بروم.", "नमस्ते दुनिया, आप कैसे हैं? १२३", "বাংলা ভাষা খুব সুন্দর।", "தமிழ் மொழி இனிமையானது.",
    "తెలుగు అక్షరాలు", "ಕನ್ನಡ ನುಡಿ", "മലയാളം എഴുത്ത്", "ภาษาไทยไม่มีช่องว่างระหว่างคำ", "ພາສາລາວ", "မြန်မာဘာသာ", "ភាសាខ្មែរ", "བོད་སྐད་",
    "今日は良い天気ですね。散歩に行きましょう！", "カタカナとひらがな、漢字１２３", "我们今天去公园散步，好不好？", "繁體中文與簡體中文。", "안녕하세요, 오늘 날씨가 좋네요.",
    "Xin chào, tiếng Việt có nhiều dấu.", "Привіт, як справи? Їжак і ґанок.", "Բարեւ աշխարհ", "გამარჯობა მსოფლიო", "አማርኛ ጽሑፍ", "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ", "ᚠᚢᚦᚨᚱᚲ",
    "e\u0301 vs é, n\u0303 vs ñ, \u1e9b\u0323", "İstanbul'da ıssız ŞİŞLİ", "ﬁne ﬂow ﬀ ½ ⅓ ² ₃ Ⅷ ㊿ ①",
]
EMOJI = ["😀", "👨‍👩‍👧‍👦", "👩🏽‍💻", "🏳️‍🌈", "🇩🇪🇯🇵", "1️⃣", "❤️‍🔥", "🧑🏿‍🤝‍🧑🏻", "☺︎", "🫠", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "\u200d", "\ufe0f", "🤦🏼‍♂️"]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\r", "\n\n", "\x0b", "\x0c", "\u00a0", "\u3000", "\u2028", "\u2009", "\u0085", "\u200b", "\ufeff", "\u1680", "\x1c"]
CODE = [
    "def f(x, *args):\n    return [i**2 for i in range(x) if i % 2 == 0]\n", "for (int i = 0; i < n; ++i) {\n\t\ta[i] += b[i]->c;\n\t}\n",
    "SELECT a.id, COUNT(*) FROM t AS a WHERE a.x >= 10 GROUP BY 1;", "<table><tr><td class=\"x\">1 &amp; 2</td></tr></table>\n", "#include <stdio.h>\n\n\n/* ---- */\n",
    "let s = `a${b}c`; // it's => {...}\n", "\\frac{1}{2} \\sum_{i=0}^{n} x_i^2", "https://example.org/a/b?c=d&e=%20f#g", "x = 0x1F + 3.14e-10 - 1_000_000;\n", "{\"k\": [1, 2.5, null, true], \"u\": \"\\u00e9\"}\n",
    "fn main() -> Result<(), Box<dyn Error>> {\n        println!(\"{:?}\", v);\n}\n", "if [[ $x == *.c ]]; then\n    echo \"$x\" | sed 's/a/b/g'\nfi\n", "A\tB\tC\n1\t2\t3\n", "- [ ] todo\n  - [x] done\n\n---\n",
]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<bos>", "<eos>", "<unk>", "<s>", "</s>", "<|eot_id|>", "<|begin_of_text|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|end|>",
            "<|start_header_id|>", "[INST]", "<0x0A>", "<0x41>", "[PAD151646]", "<unused5>", "<mask>", "<pad>", "<repo_name>", "<|im_", "|>", "▁", "▁▁the", "Ġthe", "[multimodal]"]


def _runs(rng):
    """Code points by script-like range, assigned ones only."""
    out = []
    for lo in list(range(0x20, 0x3400, 0x40)) + list(range(0x3400, 0x10000, 0x400)) + list(range(0x10000, 0x1FC00, 0x80)) + [0x20000, 0x2A700, 0xE0000, 0xE0100, 0xF0000, 0x10FF80]:
        step = 0x40 if lo < 0x3400 else 0x400 if lo < 0x10000 else 0x80
        cps = [c for c in range(lo, lo + step) if c < 0x110000 and unicodedata.category(chr(c)) not in ("Cs", "Cn")]
        if cps:
            out.append(cps)
    return out


def _mix(rng, parts, n):
    return "".join(rng.choice(parts) for _ in range(n))


def _word(rng, cps):
    return "".join(chr(rng.choice(cps)) for _ in range(rng.randint(1, 8)))


def _break(rng, data):
    b = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        kind, at = rng.randrange(5), rng.randrange(len(b) + 1)
        if kind == 0 and b:
            del b[min(at, len(b) - 1)]
        elif kind == 1:
            b[at:at] = bytes([rng.choice([0x80, 0xBF, 0xC0, 0xC3, 0xE2, 0xED, 0xF0, 0xF4, 0xFF, 0xFE, 0xF8])])
        elif kind == 2:
            b[at:at] = rng.choice([b"\xc0\x80", b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xed\xb0\x80", b"\xf0\x80\x80\x80", b"\xe2\x96", b"\xe2 ", b"\xf0\x9f "])
        elif kind == 3:
            b = b[:at]
        elif b:
            b[min(at, len(b) - 1)] = rng.randrange(256)
    return bytes(b)


def _above_unicode(b):
    """Sequences past U+10FFFF: llama.cpp throws on them, so it cannot judge."""
    return any(b[i] >= 0xF4 and all(0x80 <= x <= 0xBF for x in b[i + 1:i + 4]) and len(b) > i + 3 and (b[i] > 0xF4 or b[i + 1] >= 0x90)
               for i in range(len(b)))


def strings(n=6000, seed=20261):
    rng = random.Random(seed)
    runs = _runs(rng)
    out = [b""]
    for part in SENTENCES + EMOJI + SPACES + CODE + SPECIALS:
        out.append(part.encode())
    for cps in runs:
        out.append((_word(rng, cps) + " " + _word(rng, cps) + _word(rng, cps)).encode())
    letters = SENTENCES + [s.upper() for s in SENTENCES]
    words = [w for s in letters for w in s.split()]
    while len(out) < n:
        kind = rng.randrange(14)
        if kind == 0:
            s = " ".join(rng.choice(words) for _ in range(rng.randint(1, 10)))
        elif kind == 1:
            s = _mix(rng, words + SPACES, rng.randint(2, 10))
        elif kind == 2:
            s = _mix(rng, SPACES, rng.randint(1, 12)) + rng.choice(words + ["", "1", "."]) + _mix(rng, SPACES, rng.randint(0, 6))
        elif kind == 3:
            s = rng.choice([" ", "\n", "\t", "\r\n", "\u3000"]) * rng.randint(1, 70) + rng.choice(["", "x", "1", "\n", " "])
        elif kind == 4:
            s = _mix(rng, EMOJI + [" ", "a"], rng.randint(1, 8))
        elif kind == 5:
            s = _mix(rng, CODE, 1) + rng.choice(["", "    ", "\n\n", "\t"]) + rng.choice(CODE)[: rng.randint(0, 30)]
        elif kind == 6:
            s = "".join(rng.choice("0123456789٣४۵１²Ⅷ.,:-+ $%€") for _ in range(rng.randint(1, 25)))
        elif kind == 7:
            s = "".join(rng.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ aA1\n…«»“”’‘–—") for _ in range(rng.randint(1, 30)))
        elif kind == 8:
            s = rng.choice(["'", "’", " '", "\n'"]) .join(rng.choice(["s", "T", "re", "VE", "ll", "Ll", "d", "m", "ſ", "it", "they", "1", ""]) for _ in range(rng.randint(2, 7)))
        elif kind == 9:
            s = rng.choice(["", " "]).join(_word(rng, rng.choice(runs)) for _ in range(rng.randint(1, 5)))
        elif kind == 10:
            s = "".join(chr(rng.choice(rng.choice(runs))) for _ in range(rng.randint(1, 12)))
        elif kind == 11:
            s = _mix(rng, SPECIALS + words + [" ", "\n", "<", "|"], rng.randint(1, 6))
        elif kind == 12:
            s = rng.choice(["a", "é", "=", "-", "ab", "の", "0", "\u200d", "A ", "=-", "haha"]) * rng.randint(1, 90)
        else:
            s = None
        if s is None:
            b = _break(rng, _mix(rng, words + EMOJI + [" ", "▁"], rng.randint(1, 5)).encode())
        else:
            b = s.encode()
        if len(b) <= 400 and not _above_unicode(b):
            out.append(b)
    return out
