#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Small seeded models, one per architecture and kind of RoPE.  Standard library only.

    arch_models.py --list
    arch_models.py --args NAME        # what the server is to be started with
    arch_models.py NAME OUT.gguf [DATA.safetensors]

Weights are made, not stored: number i of a tensor is the i-th 16-bit number of SHAKE-128 over model and
tensor name, so the server's file and the reference's model (arch.py) have the same bits anywhere.  Tensors
have transformers' names and order here; to_gguf() turns them into what llama.cpp's converter writes: its
names, Q and K rows of arch llama in pairs, Gemma's norms plus 1.  The second file is press data of the same
kind, for the presses that need some.
"""

import array
import collections
import hashlib
import json
import math
import re
import struct
import sys

EMBD, FF, HEADS, KV_HEADS = 128, 160, 4, 2
CTX, ORIG_CTX = 512, 64  # context_length; the context that scaled RoPE was trained on
WINDOW = 48
FACTOR = 8.0

# Where the words of the vocabularies come from.
TEXT = """\
the road over the pass had been closed since november and nobody in the village expected the post before spring
so when old marta heard bells on the third morning of the thaw she put down her bucket and walked to the bridge
to see who was mad enough to come it was a boy with two mules he had slept he said in the hut below the glacier
and he had eaten snow and hard cheese for four days in the left bag were letters in the right one was a violin
that belonged to a man who had died return name amount for in if not open accounts station reported at dawn and
by noon observer wrote that the instruments were still working and that supplies would last more days she asked
"""


class Spec:
    """arch: general.architecture.  hf: transformers' class.  config: its arguments beside the sizes.
    meta: metadata beside the sizes, under the architecture's prefix.  args: of the server."""

    def __init__(self, arch, hf, layers=3, dim=32, base=10_000.0, tied=False, vocab="bpe", pre=None, config=None, meta=None,
                 factors=None, args=(), model=None):
        self.arch, self.hf, self.layers, self.dim, self.base, self.tied = arch, hf, layers, dim, base, tied
        self.vocab, self.pre, self.config, self.meta = vocab, pre, config or {}, meta or {}
        self.factors = factors or {}  # tensor -> [dim / 2]
        self.args = args
        self.model = model  # whose weights it has, if another's

    @property
    def gemma(self):
        return self.arch.startswith("gemma")


def frequencies(dim, base):
    return [base ** (-2 * i / dim) for i in range(dim // 2)]


def llama3_factors(dim, base, low=1.0, high=4.0):
    """The converter's rope_freqs for Llama 3.1's rule."""
    out = []
    for f in frequencies(dim, base):
        wave = 2 * math.pi / f
        if wave < ORIG_CTX / high:
            out.append(1.0)
        elif wave > ORIG_CTX / low:
            out.append(FACTOR)
        else:
            smooth = (ORIG_CTX / wave - low) / (high - low)
            out.append(1 / ((1 - smooth) / FACTOR + smooth))
    return out


# LongRoPE's two sets; any positive numbers will do.
SHORT = [1.0 + 0.03 * i for i in range(16)]
LONG = [1.0 + 0.05 * i * i for i in range(16)]
LONG_ATTN = math.sqrt(1 + math.log(CTX / ORIG_CTX) / math.log(ORIG_CTX))


def rope(kind, base=10_000.0, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": base, **more}}


def longrope(**more):
    return {**rope("longrope", factor=CTX / ORIG_CTX, original_max_position_embeddings=ORIG_CTX, short_factor=SHORT,
                   long_factor=LONG), "original_max_position_embeddings": ORIG_CTX, **more}


LONG_META = {"rope.scaling.original_context_length": ORIG_CTX, "rope.scaling.attn_factor": LONG_ATTN}
LONG_TENSORS = {"rope_factors_long": LONG, "rope_factors_short": SHORT}
YARN = rope("yarn", factor=FACTOR, original_max_position_embeddings=ORIG_CTX)
YARN_META = {"rope.scaling.type": "yarn", "rope.scaling.factor": FACTOR,
             "rope.scaling.original_context_length": ORIG_CTX, "rope.scaling.finetuned": True}
GEMMA3_LAYERS = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]

SPECS = {
    "llama": Spec("llama", "LlamaForCausalLM", pre="llama-bpe", config=rope("default"), meta={"vocab_size": None}),
    "llama-linear": Spec("llama", "LlamaForCausalLM", pre="smollm", tied=True, config=rope("linear", factor=FACTOR),
                         meta={"rope.scaling.type": "linear", "rope.scaling.factor": FACTOR}),
    "llama3": Spec("llama", "LlamaForCausalLM", pre="llama-bpe", tied=True, base=500_000.0,
                   config=rope("llama3", 500_000.0, factor=FACTOR, low_freq_factor=1.0, high_freq_factor=4.0,
                               original_max_position_embeddings=ORIG_CTX),
                   factors={"rope_freqs": llama3_factors(32, 500_000.0)}),
    "llama-yarn": Spec("llama", "LlamaForCausalLM", vocab="spm", config=YARN, meta=YARN_META),
    "llama-longrope": Spec("llama", "LlamaForCausalLM", vocab="spm", config=longrope(),
                           meta={**LONG_META, "rope.scaling.type": "longrope"}, factors=LONG_TENSORS),
    "mistral": Spec("llama", "MistralForCausalLM", vocab="spm", config={**rope("default"), "sliding_window": WINDOW},
                    meta={"attention.sliding_window": WINDOW}),
    "qwen2": Spec("qwen2", "Qwen2ForCausalLM", pre="qwen2", base=1e6, tied=True, config=rope("default", 1e6)),
    "qwen2-yarn": Spec("qwen2", "Qwen2ForCausalLM", pre="qwen2", config=YARN, meta=YARN_META),
    "qwen3": Spec("qwen3", "Qwen3ForCausalLM", pre="qwen2", dim=64, base=1e6, config=rope("default", 1e6)),
    "phi3": Spec("phi3", "Phi3ForCausalLM", vocab="spm", config=longrope(sliding_window=None),
                 meta={**LONG_META, "attention.sliding_window": 0}, factors=LONG_TENSORS),
    "phi3-short": Spec("phi3", "Phi3ForCausalLM", vocab="spm", config=longrope(sliding_window=None),
                       meta={**LONG_META, "attention.sliding_window": 0}, factors=LONG_TENSORS, model="phi3",
                       args=("--ctx-size", str(ORIG_CTX))),
    "phi3-window": Spec("phi3", "Phi3ForCausalLM", vocab="spm", config={**rope("default"), "sliding_window": WINDOW},
                        meta={"attention.sliding_window": WINDOW}),
    "gemma2": Spec("gemma2", "Gemma2ForCausalLM", layers=4, vocab="spm", tied=True,
                   config={**rope("default"), "sliding_window": WINDOW, "query_pre_attn_scalar": 32,
                           "attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0},
                   meta={"attention.sliding_window": WINDOW, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0}),
    "gemma3": Spec("gemma3", "Gemma3ForCausalLM", layers=7, base=1e6, vocab="spm", tied=True,
                   config={"rope_parameters": {
                       "full_attention": {"rope_type": "linear", "factor": FACTOR, "rope_theta": 1e6},
                       "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0}},
                       "sliding_window": WINDOW, "query_pre_attn_scalar": 32, "layer_types": GEMMA3_LAYERS},
                   meta={"attention.sliding_window": WINDOW, "rope.scaling.type": "linear", "rope.scaling.factor": FACTOR}),
}


# ---- weights ----

def uniform(key, n, scale, offset=0.0):
    """n numbers of variance scale^2, evenly spread around `offset`."""
    raw = array.array("H")
    raw.frombytes(hashlib.shake_128(key.encode()).digest(2 * n))
    if sys.byteorder == "big":
        raw.byteswap()
    step = scale * math.sqrt(3) / 32768
    return array.array("f", [offset + step * (x - 32768) for x in raw])


Tensor = collections.namedtuple("Tensor", "shape data")


def weights(name):
    """transformers' state dict of a model: name -> Tensor, rows first."""
    s = SPECS[name]
    seed, out = s.model or name, {}

    def matrix(key, rows, cols, gain):
        out[key] = Tensor((rows, cols), uniform(f"{seed}/{key}", rows * cols, gain / math.sqrt(cols)))

    def norm(key, n):
        # Gemma adds 1; its blocks' own norms are larger, or the embeddings (times sqrt(EMBD)) would drown the blocks
        post = s.gemma and ("post_attention" in key or "post_feedforward" in key)
        out[key] = Tensor((n,), uniform(f"{seed}/{key}", n, 0.15, 2.0 if post else 0.0 if s.gemma else 1.0))

    vocab, q, kv = len(vocabulary(s)[0]), HEADS * s.dim, KV_HEADS * s.dim
    matrix("model.embed_tokens.weight", vocab, EMBD, 3.0)
    for i in range(s.layers):
        p = f"model.layers.{i}."
        norm(p + "input_layernorm.weight", EMBD)
        norm(p + "post_attention_layernorm.weight", EMBD)
        if s.gemma:
            norm(p + "pre_feedforward_layernorm.weight", EMBD)
            norm(p + "post_feedforward_layernorm.weight", EMBD)
        if s.arch in ("qwen3", "gemma3"):
            norm(p + "self_attn.q_norm.weight", s.dim)
            norm(p + "self_attn.k_norm.weight", s.dim)
        if s.arch == "phi3":
            matrix(p + "self_attn.qkv_proj.weight", q + 2 * kv, EMBD, 1.5)
            matrix(p + "mlp.gate_up_proj.weight", 2 * FF, EMBD, 1.0)
        else:
            matrix(p + "self_attn.q_proj.weight", q, EMBD, 1.5)
            matrix(p + "self_attn.k_proj.weight", kv, EMBD, 1.5)
            matrix(p + "self_attn.v_proj.weight", kv, EMBD, 1.0)
            matrix(p + "mlp.gate_proj.weight", FF, EMBD, 1.0)
            matrix(p + "mlp.up_proj.weight", FF, EMBD, 1.0)
        if s.arch == "qwen2":
            for part, n in (("q", q), ("k", kv), ("v", kv)):
                key = p + f"self_attn.{part}_proj.bias"
                out[key] = Tensor((n,), uniform(f"{seed}/{key}", n, 0.5))
        matrix(p + "self_attn.o_proj.weight", EMBD, q, 2.0)
        matrix(p + "mlp.down_proj.weight", EMBD, FF, 1.0)
    norm("model.norm.weight", EMBD)
    if not s.tied:
        matrix("lm_head.weight", vocab, EMBD, 3.0)
    return out


# ---- vocabularies ----

def byte_alphabet():
    """How byte-level BPE spells each byte: itself if it can be seen, else the next character from U+0100."""
    seen = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    spell, extra = {b: chr(b) for b in seen}, 0
    for b in range(256):
        if b not in spell:
            spell[b], extra = chr(256 + extra), extra + 1
    return [spell[b] for b in range(256)]


def learn_merges(space, count):
    """Byte-pair merges of TEXT's words, each with its space in front."""
    words = collections.Counter(tuple(space + w) for w in TEXT.split())
    merges = []
    while len(merges) < count:
        pairs = collections.Counter()
        for w, n in words.items():
            for pair in zip(w, w[1:]):
                pairs[pair] += n
        best = max(pairs, key=lambda x: (pairs[x], x))
        merges.append(best)
        joined = collections.Counter()
        for w, n in words.items():
            new, i = [], 0
            while i < len(w):
                step = 2 if w[i:i + 2] == best else 1
                new.append("".join(w[i:i + step]))
                i += step
            joined[tuple(new)] += n
        words = joined
    return merges


CONTROL, UNKNOWN, BYTE, NORMAL = 3, 2, 6, 1
MERGES = 150


def vocabulary(s):
    """(pieces, types, scores, merges, metadata)"""
    if s.vocab == "bpe":
        merges = learn_merges("\u0120", MERGES)
        pieces = byte_alphabet() + ["".join(m) for m in merges] + ["<|start|>", "<|end|>"]
        types = [NORMAL] * (len(pieces) - 2) + [CONTROL] * 2
        meta = {"model": "gpt2", "pre": s.pre, "bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1,
                "add_bos_token": s.arch == "llama"}
        return pieces, types, None, [" ".join(m) for m in merges], meta
    merges = learn_merges("\u2581", MERGES)
    letters = sorted({c for m in merges for c in "".join(m)} | set("abcdefghijklmnopqrstuvwxyz"))
    words = list(dict.fromkeys("".join(m) for m in merges))
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + words + letters
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(words) + len(letters))
    if s.arch == "phi3":  # llama.cpp looks for it where the name says phi3
        pieces.append("<|endoftext|>")
        types.append(CONTROL)
    scores = [0.0] * 259 + [-1.0 - i for i in range(len(words))] + [-1000.0 - i for i in range(len(letters))]
    scores += [0.0] * (len(pieces) - len(scores))
    meta = {"model": "llama", "pre": "default", "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
            "add_bos_token": True, "add_eos_token": False, "add_space_prefix": not s.gemma}
    return pieces, types, scores, None, meta


# ---- GGUF ----

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
ALIGN = 32
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(s, key):
    stem, kind = key.rsplit(".", 1)
    if stem in TOP_NAMES:
        return f"{TOP_NAMES[stem]}.{kind}"
    layer, part = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", stem).groups()
    if part == "post_attention_layernorm":
        return f"blk.{layer}.{'post_attention_norm' if s.gemma else 'ffn_norm'}.{kind}"
    return f"blk.{layer}.{LAYER_NAMES[part]}.{kind}"


def in_pairs(t, heads):
    """Rows of each head from halves (x0 x1 .. y0 y1 ..) to pairs (x0 y0 x1 y1 ..)."""
    rows, cols = t.shape
    d = rows // heads
    out = array.array("f")
    for r in range(rows):
        at = r - r % d + (r % d) // 2 + d // 2 * (r % 2)
        out += t.data[at * cols:(at + 1) * cols]
    return Tensor(t.shape, out)


def to_gguf(s, tensors):
    out = {}
    for key, t in tensors.items():
        if s.arch == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
            t = in_pairs(t, HEADS if "q_proj" in key else KV_HEADS)
        if s.gemma and key.endswith("norm.weight"):
            t = Tensor(t.shape, array.array("f", [1 + x for x in t.data]))
        out[gguf_name(s, key)] = t
    for name, values in s.factors.items():
        out[name + ".weight"] = Tensor((len(values),), array.array("f", values))
    return out


def metadata(name):
    """key -> (type, value); arrays as (element type, list)."""
    s = SPECS[name]
    pieces, types, scores, merges, tok = vocabulary(s)
    m = {"general.architecture": s.arch, "general.name": name}
    sizes = {"block_count": s.layers, "context_length": CTX, "embedding_length": EMBD, "feed_forward_length": FF,
             "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "rope.freq_base": s.base,
             "attention.layer_norm_rms_epsilon": 1e-6 if s.gemma else 1e-5, "rope.dimension_count": s.dim, **s.meta}
    if s.dim * HEADS != EMBD or s.gemma:
        sizes.update({"attention.key_length": s.dim, "attention.value_length": s.dim})
    if "vocab_size" in sizes:
        sizes["vocab_size"] = len(pieces)
    m.update({f"{s.arch}.{k}": v for k, v in sizes.items()})
    m.update({f"tokenizer.ggml.{k}": v for k, v in tok.items()})
    m["tokenizer.ggml.tokens"] = (STRING, pieces)
    m["tokenizer.ggml.token_type"] = (I32, types)
    if scores:
        m["tokenizer.ggml.scores"] = (F32, scores)
    if merges:
        m["tokenizer.ggml.merges"] = (STRING, merges)
    return m


def pack(kind, v):
    if kind == STRING:
        raw = v.encode()
        return struct.pack("<Q", len(raw)) + raw
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], v)


def pack_value(v):
    if isinstance(v, tuple):
        kind, values = v
        return struct.pack("<IIQ", ARRAY, kind, len(values)) + b"".join(pack(kind, x) for x in values)
    kind = STRING if isinstance(v, str) else BOOL if isinstance(v, bool) else F32 if isinstance(v, float) else U32
    return struct.pack("<I", kind) + pack(kind, v)


def write(name, path, change=None):
    """The model as a GGUF file, all tensors f32; change(tensors, metadata) may spoil it."""
    tensors, meta = to_gguf(SPECS[name], weights(name)), metadata(name)
    if change:
        change(tensors, meta)
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(meta))]
    head += [pack(STRING, k) + pack_value(v) for k, v in meta.items()]
    at, data = 0, []
    for key, t in tensors.items():
        dims = t.shape[::-1]
        head.append(pack(STRING, key) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, at))
        raw = array.array("f", t.data)
        if sys.byteorder == "big":
            raw.byteswap()
        raw = raw.tobytes()
        data.append(raw + bytes(-len(raw) % ALIGN))
        at += len(data[-1])
    head = b"".join(head)
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % ALIGN) + b"".join(data))


# ---- press data ----

HIDDEN = 24
DUO = {"sink_size": 5, "recent_size": 20}


def press_data(name):
    """Tensor name -> Tensor, as compression/press_data.c lists them."""
    s = SPECS[name]
    curves, d = 99, s.dim
    shapes = {  # shape, scale, offset; kvzap's keeps its scores from 0, where no difference is small
        "expected_attention.query_mean": ((s.layers, HEADS, d), 1.0, 0.0),
        "expected_attention.query_cov": ((s.layers, HEADS, d, d), 0.05, 0.0),
        "qfilter.filters": ((s.layers, KV_HEADS, d), 1.0, 0.0),
        "duo_attention.pattern": ((s.layers, KV_HEADS), 0.28, 0.5),
        "kvzap.linear.weight": ((s.layers, KV_HEADS, EMBD), 0.1, 0.0), "kvzap.linear.bias": ((s.layers, KV_HEADS), 1.0, 6.0),
        "kvzap.mlp.0.weight": ((s.layers, HIDDEN, EMBD), 0.2, 0.0), "kvzap.mlp.0.bias": ((s.layers, HIDDEN), 1.0, 0.0),
        "kvzap.mlp.2.weight": ((s.layers, KV_HEADS, HIDDEN), 0.3, 0.0), "kvzap.mlp.2.bias": ((s.layers, KV_HEADS), 1.0, 12.0),
    }
    out = {k: Tensor(shape, uniform(f"{name}/{k}", math.prod(shape), scale, offset)) for k, (shape, scale, offset) in shapes.items()}
    noise = uniform(f"{name}/lukv.curves", curves * s.layers * KV_HEADS, 0.2)
    per = s.layers * KV_HEADS
    out["lukv.curves"] = Tensor((curves, s.layers, KV_HEADS), array.array(
        "f", [min(max((i // per + 1) / 100 + x, 0.0), 1.0) for i, x in enumerate(noise)]))
    return out


MASK = (1 << 64) - 1


def fnv(data, h=0xCBF29CE484222325):
    for b in data:
        h = (h ^ b) * 0x100000001B3 & MASK
    return h


def spread(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def model_key(name):
    """compression/model_key.c's number of the file that write() makes."""
    s = SPECS[name]
    key = fnv(s.arch.encode())
    for k, v in metadata(name).items():
        if k.startswith(s.arch + ".") and isinstance(v, (bool, int, float)):
            if isinstance(v, float):  # as the file holds it
                raw = struct.pack("<d", struct.unpack("<f", struct.pack("<f", v))[0])
            else:
                raw = struct.pack("<Q", int(v))
            key += spread(fnv(raw, fnv(k.encode())))
    for k, t in to_gguf(s, weights(name)).items():
        cols = t.shape[-1]
        rows = len(t.data) // cols
        h = fnv(struct.pack("<QQQQQ", 0, *(list(t.shape[::-1]) + [1] * (4 - len(t.shape)))), fnv(k.encode()))
        for r in (0, rows // 2, rows - 1):
            h = fnv(t.data[r * cols:(r + 1) * cols].tobytes(), h)
        key += spread(h)
    return spread(key & MASK)


def write_press_data(name, path):
    meta = {"format": "pressd press data 1", "model_key": f"{model_key(name):016x}", "model_name": name}
    meta.update({f"duo_attention.pattern.{k}": str(v) for k, v in DUO.items()})
    head, at, data = {"__metadata__": meta}, 0, []
    for k, t in press_data(name).items():
        raw = t.data.tobytes()
        head[k] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [at, at + len(raw)]}
        data.append(raw)
        at += len(raw)
    head = json.dumps(head).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head + b"".join(data))


def main():
    if sys.argv[1:] == ["--list"]:
        print("\n".join(SPECS))
        return 0
    if sys.argv[1:2] == ["--args"] and sys.argv[2:] and sys.argv[2] in SPECS:
        print(" ".join(SPECS[sys.argv[2]].args))
        return 0
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in SPECS:
        print(__doc__, file=sys.stderr)
        return 2
    write(sys.argv[1], sys.argv[2])
    if len(sys.argv) == 4:
        write_press_data(sys.argv[1], sys.argv[3])
    return 0


if __name__ == "__main__":
    sys.exit(main())
