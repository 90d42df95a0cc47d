# SPDX-License-Identifier: Apache-2.0
"""Load a GGUF file as an f32 torch model: the reference every golden number comes from.

    model = load_model("smollm2-135m-instruct-q4_1.gguf")     # LlamaForCausalLM or Gemma3ForCausalLM, eval mode
    ids = tokenize("smollm2-135m-instruct-q4_1.gguf", "Hello") # llama.cpp's tokenizer, the GGUF's own vocabulary

The weights are exactly what the file's blocks mean (dequantised by the `gguf` package), so a difference
from the server is the server's arithmetic and not another set of weights.  Two conventions of the
format are undone: Llama's Q and K rows are stored interleaved for pairwise rotation where transformers
rotates halves, and Gemma's norm weights are stored with their 1 already added.

Run as a program to check the loader: against transformers' own GGUF loader for Llama, and both
architectures against llama.cpp's logits.  Needs torch, transformers, gguf, llama_cpp.
"""

import argparse
import ctypes
import os
import sys

import numpy as np
import torch
from gguf import GGUFReader, dequantize

GEMMA3_LOCAL_ROPE_BASE = 10_000.0  # not in the file: the architecture's constant
GEMMA3_FULL_EVERY = 6              # every sixth layer sees everything

LAYER_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
}
# Gemma 3 has a norm after attention and one on each side of the MLP.
NORM_NAMES = {
    "llama": {"ffn_norm": "post_attention_layernorm"},
    "gemma3": {"post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
               "post_ffw_norm": "post_feedforward_layernorm"},
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def read_meta(reader):
    """Every scalar of the file's header; arrays only as their length."""
    meta = {}
    for name, field in reader.fields.items():
        value = field.contents() if len(field.data) == 1 else None
        meta[name] = value if not isinstance(value, list) else len(value)
    return meta


def hf_name(name, arch):
    """The transformers name of a GGUF tensor, without the model's leading part changed."""
    stem, suffix = name.rsplit(".", 1)
    if stem in TOP_NAMES:
        return f"{TOP_NAMES[stem]}.{suffix}"
    block, layer, part = stem.split(".")
    if block != "blk":
        raise ValueError(f"tensor {name}: no such place in {arch}")
    part = LAYER_NAMES.get(part) or NORM_NAMES[arch][part]
    return f"model.layers.{layer}.{part}.{suffix}"


def unpermute(w, heads):
    """Row order of Q or K from pairs (x0 y0 x1 y1 ..) to halves (x0 x1 .. y0 y1 ..) within each head."""
    rows, cols = w.shape
    return w.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def config_of(meta):
    from transformers import Gemma3TextConfig, LlamaConfig

    arch = meta["general.architecture"]
    get = lambda key, default=None: meta.get(f"{arch}.{key}", default)
    common = dict(
        hidden_size=get("embedding_length"),
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=get("attention.head_count"),
        num_key_value_heads=get("attention.head_count_kv"),
        max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        bos_token_id=meta.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=meta.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=None,
        vocab_size=meta["vocab"],
        tie_word_embeddings=meta["tied"],
    )
    head_dim = get("attention.key_length", common["hidden_size"] // common["num_attention_heads"])
    if arch == "llama":
        return LlamaConfig(**common, head_dim=head_dim,
                           rope_parameters={"rope_type": "default", "rope_theta": get("rope.freq_base", 10_000.0)})
    if arch == "gemma3":
        return Gemma3TextConfig(
            **common, head_dim=head_dim, query_pre_attn_scalar=head_dim, sliding_window=get("attention.sliding_window"),
            layer_types=["full_attention" if (i + 1) % GEMMA3_FULL_EVERY == 0 else "sliding_attention"
                         for i in range(common["num_hidden_layers"])],
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": get("rope.freq_base")},
                "sliding_attention": {"rope_type": "default", "rope_theta": GEMMA3_LOCAL_ROPE_BASE}})
    raise ValueError(f"architecture {arch}: only llama and gemma3 have a reference here")


def load_model(path, attn="sdpa", dtype=torch.float32):
    """The model of a GGUF file, weights dequantised, eval mode; `model.gguf_meta` keeps the header."""
    from transformers import Gemma3ForCausalLM, LlamaForCausalLM

    reader = GGUFReader(path)
    meta = read_meta(reader)
    arch = meta["general.architecture"]
    tensors = {t.name: t for t in reader.tensors}
    meta["vocab"] = int(tensors["token_embd.weight"].shape[1])
    meta["tied"] = "output.weight" not in tensors
    config = config_of(meta)
    config._attn_implementation = attn
    with torch.device("meta"):
        model = {"llama": LlamaForCausalLM, "gemma3": Gemma3ForCausalLM}[arch](config)
    state = {}
    for name, t in tensors.items():
        if name.startswith("rope_freqs"):
            raise ValueError(f"{path}: tensor {name}: scaled rotations have no reference here")
        w = np.array(dequantize(t.data, t.tensor_type), dtype=np.float32)
        if arch == "llama" and ".attn_q." in name:
            w = unpermute(w, config.num_attention_heads)
        elif arch == "llama" and ".attn_k." in name:
            w = unpermute(w, config.num_key_value_heads)
        elif arch == "gemma3" and name.endswith("_norm.weight"):
            w = w - 1
        state[hf_name(name, arch)] = torch.from_numpy(np.ascontiguousarray(w)).to(dtype)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    missing = [n for n in missing if not (meta["tied"] and n == "lm_head.weight")]
    if missing or unexpected:
        raise ValueError(f"{path}: missing {missing}, unexpected {unexpected}")
    if meta["tied"]:
        model.tie_weights()
    # Buffers (rotation frequencies, embedding scale) are no weights: build them for real on the CPU.
    rebuilt = type(model.model.rotary_emb)(config=config)
    model.model.rotary_emb = rebuilt
    if arch == "gemma3":
        embed = model.model.embed_tokens
        embed.register_buffer("embed_scale", torch.tensor(embed.scalar_embed_scale), persistent=False)
    left = [n for n, x in list(model.named_parameters()) + list(model.named_buffers()) if x.is_meta]
    if left:
        raise ValueError(f"{path}: not filled: {left}")
    model.gguf_meta = meta
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def log_probs(model, ids, last=None):
    """[positions, vocab] f32 log-probabilities of the next token after each position (or the last few)."""
    logits = model(torch.tensor([ids]), use_cache=False, logits_to_keep=last or 0).logits[0]
    return torch.log_softmax(logits.double(), dim=-1).float()


class LlamaCpp:
    """llama.cpp's view of a file: its tokenizer, and its logits on f32 K/V for the loader's self-check."""

    def __init__(self, path, vocab_only=True):
        import llama_cpp as L

        self.L = L
        self.log = L.llama_log_callback(lambda level, text, user: None)
        L.llama_log_set(self.log, ctypes.c_void_p(0))
        L.llama_backend_init()
        params = L.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = 0
        self.model = L.llama_model_load_from_file(os.fsencode(path), params)
        if not self.model:
            raise ValueError(f"{path}: llama.cpp cannot load it")
        self.vocab = L.llama_model_get_vocab(self.model)

    def tokenize(self, text, special=True, parse_special=False):
        data = text.encode()
        out = (self.L.llama_token * (len(data) + 8))()
        n = self.L.llama_tokenize(self.vocab, data, len(data), out, len(out), special, parse_special)
        if n < 0:
            raise ValueError("the text has more tokens than bytes")
        return list(out[:n])

    def logits(self, ids):
        L = self.L
        params = L.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = len(ids) + 8, len(ids), len(ids)
        params.type_k = params.type_v = 0  # f32
        params.n_threads = params.n_threads_batch = 1
        ctx = L.llama_init_from_model(self.model, params)
        batch = L.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, t in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = t, i, 1, 1
            batch.seq_id[i][0] = 0
        if L.llama_decode(ctx, batch) != 0:
            raise ValueError("llama_decode failed")
        n = L.llama_vocab_n_tokens(self.vocab)
        out = np.ctypeslib.as_array(L.llama_get_logits(ctx), shape=(len(ids), n)).copy()
        L.llama_batch_free(batch)
        L.llama_free(ctx)
        return torch.from_numpy(out)


def tokenize(path, text, special=True, parse_special=False):
    return LlamaCpp(path).tokenize(text, special, parse_special)


CHECK_TEXT = ("The lighthouse keeper counted 14 ships before dawn, wrote each name in a ledger, and then, because "
              "the fog had come back, lit the lamp again. \"for (int i = 0; i < 14; i++) log(ships[i]);\" ") * 12  # past Gemma's window of 512


def check(path):
    """Compare this loader with two others; returns what was wrong, as text."""
    model = load_model(path)
    arch = model.gguf_meta["general.architecture"]
    peer = LlamaCpp(path, vocab_only=False)
    ids = peer.tokenize(CHECK_TEXT)
    ours = log_probs(model, ids)
    wrong = []
    # llama.cpp multiplies with 8-bit activations, so this is a check of structure: a wrong base,
    # window, norm or permutation moves the KL by orders of magnitude.
    theirs = torch.log_softmax(peer.logits(ids).double(), dim=-1)
    kl = (ours.double().exp() * (ours.double() - theirs)).sum(-1).mean().item()
    same = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    print(f"{os.path.basename(path)}: {len(ids)} tokens, KL(ref || llama.cpp) {kl:.2e}, same top token {same:.4f}")
    if not kl < 0.01:
        wrong.append(f"KL to llama.cpp {kl:.3g}, limit 0.01")
    if arch == "llama":
        from transformers import AutoModelForCausalLM

        other = AutoModelForCausalLM.from_pretrained(os.path.dirname(os.path.abspath(path)),
                                                     gguf_file=os.path.basename(path), dtype=torch.float32).eval()
        diff = (log_probs(other, ids) - ours).abs().max().item()
        print(f"{os.path.basename(path)}: max |log p| difference to transformers' GGUF loader {diff:.2e}")
        if not diff < 1e-4:
            wrong.append(f"transformers' loader differs by {diff:.3g}, limit 1e-4")
    return wrong


def main():
    p = argparse.ArgumentParser(description="check the reference loader on GGUF files")
    p.add_argument("files", nargs="+")
    torch.set_num_threads(1)
    os.environ.setdefault("TQDM_DISABLE", "1")
    wrong = {f: check(f) for f in p.parse_args().files}
    for f, lines in wrong.items():
        for line in lines:
            print(f"FAIL {f}: {line}")
    return any(wrong.values())


if __name__ == "__main__":
    sys.exit(main())
