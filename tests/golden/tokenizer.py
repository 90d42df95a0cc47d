# SPDX-License-Identifier: Apache-2.0
"""Make data/tokenizer/: what llama.cpp's tokenizer says about every string of
tokenizer_strings.py, cross-checked with Hugging Face tokenizers.

    tokenizer.py VOCABS SMOLLM2.gguf GEMMA.gguf [NAME..]     (VOCABS: fetch_vocabs.sh's folder; all, or these)

llama.cpp is asked through llama_cpp, vocabulary only.  The Hugging Face side is
built by hand from the file's own pieces and merges (or scores) with the
published pre-tokenizer, since the library's own GGUF conversion is wrong for
these files.  It takes no broken UTF-8.  Disagreements are printed; the golden
holds llama.cpp's answer unless HF_IS_RIGHT says why not.

strings.bin   "PDTS" | u32 n | n x { u16 len | bytes }
<name>.bin    "PDTG" | u32 n | u64 hash_plain[n] | u64 hash_special[n] | u32 m | m x { u16 k | i32 id[k] }
hash: FNV-1a 64 over the ids as little-endian i32; the m full lists are of the first m strings, plain.
"""
import ctypes
import os
import struct
import sys

import llama_cpp
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from tokenizer_strings import strings

FULL = 200
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {"llama-bpe": LLAMA3, "qwen2": LLAMA3.replace("{1,3}", "")}
# llama.cpp calls every "</s>" a control token; in Gemma's file it is a user-defined HTML tag, in Qwen2's a
# normal piece.  (Phi-3's is the old end of text, typed user-defined: there llama.cpp is the safe one.)
HF_IS_RIGHT = {"gemma3": b"</s>", "qwen2": b"</s>"}
QUIET = llama_cpp.llama_log_callback(lambda level, text, data: None)


def fnv(ids):
    h = 0xCBF29CE484222325
    for b in struct.pack("<%di" % len(ids), *ids):
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


class LlamaCpp:
    def __init__(self, path):
        p = llama_cpp.llama_model_default_params()
        p.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), p)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.buf = (llama_cpp.llama_token * 4096)()

    def encode(self, b, special):
        n = llama_cpp.llama_tokenize(self.vocab, b, len(b), self.buf, 4096, False, special)
        assert n >= 0
        return list(self.buf[:n])


def field(r, key):
    f = r.fields.get(key)
    return None if f is None else f.contents()


def hugging_face(path, special):
    r = GGUFReader(path)
    f = r.fields["tokenizer.ggml.tokens"]
    pieces = [bytes(f.parts[i]).decode() for i in f.data]
    types = field(r, "tokenizer.ggml.token_type")
    vocab = {s: i for i, s in enumerate(pieces)}
    if field(r, "tokenizer.ggml.model") == "gpt2":
        pre = field(r, "tokenizer.ggml.pre")
        m = r.fields["tokenizer.ggml.merges"]
        merges = []
        for i in m.data:
            s = bytes(m.parts[i]).decode()
            at = s.index(" ", 1)
            merges.append((s[:at], s[at + 1:]))
        t = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre == "llama-bpe"))
        if pre in SPLITS:
            t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated"),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        else:
            steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
            if pre == "smollm":
                steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
            t.pre_tokenizer = pre_tokenizers.Sequence(steps)
    else:
        scores = field(r, "tokenizer.ggml.scores")
        usable = {s: i for s, i in vocab.items() if types[i] in (1, 4, 5)}
        rules = []
        for s, i in usable.items():
            for k in range(1, len(s)):
                a, b = s[:k], s[k:]
                if a in usable and b in usable:
                    rules.append((-scores[i], usable[a], usable[b], a, b))
        rules.sort()
        t = Tokenizer(models.BPE(vocab, [(a, b) for *_, a, b in rules], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        steps = [normalizers.Replace(" ", "\u2581")]
        if field(r, "tokenizer.ggml.add_space_prefix") is not False:
            steps.insert(0, normalizers.Prepend("\u2581"))
        t.normalizer = normalizers.Sequence(steps)
    user = [AddedToken(s, special=False, normalized=False) for s, i in vocab.items() if types[i] == 4]
    if user:
        t.add_tokens(user)
    if special:
        t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s, i in vocab.items() if types[i] == 3])
    assert t.get_vocab_size() == len(pieces)
    return t


def main(vocabs, smollm2, gemma, *names):
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "tokenizer")
    os.makedirs(here, exist_ok=True)
    texts = strings()
    with open(os.path.join(here, "strings.bin"), "wb") as f:
        f.write(b"PDTS" + struct.pack("<I", len(texts)))
        for b in texts:
            f.write(struct.pack("<H", len(b)) + b)
    files = {"smollm2": smollm2, "gemma3": gemma}
    for name in ("gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3"):
        files[name] = os.path.join(vocabs, "ggml-vocab-%s.gguf" % name)
    llama_cpp.llama_log_set(QUIET, ctypes.c_void_p(0))
    for name, path in files.items():
        if names and name not in names:
            continue
        judge, second = LlamaCpp(path), hugging_face(path, False)
        third = hugging_face(path, True) if name in HF_IS_RIGHT else None
        plain, special, checked, apart = [], [], 0, []
        for b in texts:
            ids = judge.encode(b, False)
            try:
                other = second.encode(b.decode(), add_special_tokens=False).ids
                checked += 1
                if other != ids:
                    apart.append((b, ids, other))
                    if HF_IS_RIGHT.get(name, b"\0\0") in b:
                        ids = other
            except UnicodeDecodeError:
                pass
            plain.append(ids)
            right = third and HF_IS_RIGHT[name] in b
            special.append(third.encode(b.decode(), add_special_tokens=False).ids if right else judge.encode(b, True))
        print("%-10s %d strings, %d checked against Hugging Face, %d apart" % (name, len(texts), checked, len(apart)))
        for b, x, y in apart[:int(os.environ.get("SHOW", "6"))]:
            print("   ", repr(b.decode())[:100], "llama.cpp", x[:12], "hf", y[:12])
        with open(os.path.join(here, name + ".bin"), "wb") as f:
            f.write(b"PDTG" + struct.pack("<I", len(texts)))
            f.write(struct.pack("<%dQ" % len(texts), *map(fnv, plain)))
            f.write(struct.pack("<%dQ" % len(texts), *map(fnv, special)))
            f.write(struct.pack("<I", FULL))
            for ids in plain[:FULL]:
                f.write(struct.pack("<H%di" % len(ids), len(ids), *ids))


if __name__ == "__main__":
    main(*sys.argv[1:])
