#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write data/calibrate_smollm2.json.gz: what `pressd calibrate` should measure, computed with torch.

    calibrate.py MODEL [--out DIR] [--against DATA]

The text is LICENSE, cut as the arguments in CUT say.  Everything is computed straight from its definition: the
model runs in f32 with materialised attention, sums are numpy's in f64, singular vectors come from the queries
themselves and the ridge from scikit-learn's formula on all rows at once; gates are trained by autograd in f64, with
the draws and steps of compression/calibrate_gate.c.  Of large tensors every STRIDE-th number is kept.  --against compares a file of press data number by number instead of writing.
check_calibrate.py does that without torch.  Needs torch, transformers, gguf, safetensors, and pressd for the ids
($PRESSD_BIN; the tokenizer has goldens of its own); a minute.
"""

import argparse
import json
import os
import subprocess

import numpy as np
import torch

import recorded
import ref_model

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PRESSD = os.environ.get("PRESSD_BIN") or os.path.join(ROOT, "build/server/pressd")
CUT = {"--tokens": 1024, "--chunk": 256, "--repeat-tokens": 512}
SINK, ALPHA, DUO_POSITIONS = 4, 1.0, 500
EVERY, STEPS = 32, 16  # rows that are looked at, points of a curve of errors
GATES = [(0, 1), (14, 0), (29, 2)]  # layer and KV head of those that are trained here too
MOST = 4000  # numbers kept of one tensor

# SmolLM2's template, written out: this must not come from the code under test.
BEFORE = ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
          "<|im_start|>user\n")
ASK = "\n\nRepeat the previous context exactly."
AFTER = "<|im_end|>\n<|im_start|>assistant\n"


def encode(model, text):
    out = subprocess.run([PRESSD, "tokenize", "-m", model, "--special", "--json", "-"], input=text, text=True,
                         capture_output=True, check=True).stdout
    return json.loads(out)["tokens"]


class Pass:
    """One prompt through the model: per layer the attention input, q and k before and after RoPE, v, weights."""

    @torch.inference_mode()
    def __init__(self, model, ids):
        cfg, layers = model.config, model.model.layers
        self.x, self.weights = [None] * len(layers), None
        hooks = [layer.self_attn.register_forward_hook(
            lambda m, args, kw, out, i=i: self.x.__setitem__(i, kw["hidden_states"][0]), with_kwargs=True)
            for i, layer in enumerate(layers)]
        out = model(torch.tensor([ids]), output_attentions=True, use_cache=False, logits_to_keep=1)
        for h in hooks:
            h.remove()
        self.weights = [w[0] for w in out.attentions]
        cos, sin = model.model.rotary_emb(self.x[0][None], torch.arange(len(ids))[None])
        rotate = lambda t: t * cos[0] + torch.cat((-t[..., t.shape[-1] // 2:], t[..., :t.shape[-1] // 2]), -1) * sin[0]
        split = lambda t, heads: t.view(len(ids), heads, cfg.head_dim).transpose(0, 1)
        self.q0, self.k0, self.v = [], [], []
        for x, layer in zip(self.x, layers):
            self.q0.append(split(layer.self_attn.q_proj(x), cfg.num_attention_heads))
            self.k0.append(split(layer.self_attn.k_proj(x), cfg.num_key_value_heads))
            self.v.append(split(layer.self_attn.v_proj(x), cfg.num_key_value_heads))
        self.q, self.k = [rotate(q) for q in self.q0], [rotate(k) for k in self.k0]


def stats_and_filters(passes, cfg):
    group, heads = cfg.num_attention_heads // cfg.num_key_value_heads, cfg.num_attention_heads
    mean, cov, filters = [], [], []
    for layer in range(cfg.num_hidden_layers):
        raw = torch.cat([p.q0[layer][:, SINK:] for p in passes], 1).double().numpy()
        mean.append(raw.mean(1))
        cov.append(np.stack([np.cov(raw[h], rowvar=False) for h in range(heads)]))
        rotated = torch.cat([p.q[layer][:, SINK:] for p in passes], 1).double().numpy()
        u = np.stack([np.linalg.svd(rotated[h], full_matrices=False)[2][0] for h in range(heads)])
        u *= np.sign((rotated @ u[:, :, None]).mean((1, 2)))[:, None]
        filters.append(-u.reshape(-1, group, u.shape[1]).mean(1))
    return np.stack(mean), np.stack(cov), np.stack(filters)


def score_moment(sq, inv_freq, n):
    """Mean of R_p sq R_p^T over p < n, one by one."""
    half, out = len(inv_freq), np.zeros_like(sq)
    for p in range(n):
        c, s = np.diag(np.cos(p * inv_freq)), np.diag(np.sin(p * inv_freq))
        r = np.block([[c, -s], [s, c]])
        out += r @ sq @ r.T / n
    assert out.shape == (2 * half, 2 * half)
    return out


def energies(model, passes):
    """Mean squares of keys and values along the directions of each basis, the largest first: singular values."""
    cfg = model.config
    group, n = cfg.num_attention_heads // cfg.num_key_value_heads, max(p.k[0].shape[1] for p in passes)
    inv_freq = model.model.rotary_emb.inv_freq.double().numpy()
    rows = lambda name, i: torch.cat([getattr(p, name)[i][:, SINK:] for p in passes], 1).double().numpy()
    along = lambda x: np.linalg.svd(x, compute_uv=False) ** 2 / len(x)
    out = {}
    for i in range(cfg.num_hidden_layers):
        k, heads = rows("k0", i), range(cfg.num_key_value_heads)
        moments = np.stack([x.T @ x for x in rows("q0", i)]).reshape(len(heads), group, *k.shape[2:] * 2).sum(1)
        score = []
        for h in heads:
            w, u = np.linalg.eigh(score_moment(moments[h], inv_freq, n))
            score.append(along(k[h] @ (u * np.sqrt(w / w.mean())) @ u.T))
        for name, e in (("eigen_attention.shared", along(np.concatenate(k))), ("eigen_attention.score", score),
                        ("eigen_attention.per_head", [along(k[h]) for h in heads]),
                        ("eigen_attention.rotated", [along(x) for x in rows("k", i)]),
                        ("eigen_attention.value", [along(x) for x in rows("v", i)]),
                        ("joint.keys", along(np.concatenate(k, 1)))):
            out.setdefault(name + ".energy", []).append(e)
    return {name: np.array(e) for name, e in out.items()}


def errors(model, passes):
    """What a layer's output loses when keys (or values) have i/16 of their directions, over some rows of all passes."""
    cfg, out = model.config, {}
    hk, d, group = cfg.num_key_value_heads, cfg.head_dim, cfg.num_attention_heads // cfg.num_key_value_heads
    inv_freq = model.model.rotary_emb.inv_freq.double().numpy()
    down = lambda s: np.linalg.eigh(s)[1][..., ::-1]  # directions in columns, the strongest first
    for i, layer in enumerate(model.model.layers):
        get = lambda name: [getattr(p, name)[i].double().numpy() for p in passes]
        q0, k0, q, k, v = (get(name) for name in ("q0", "k0", "q", "k", "v"))
        n, heads = k[0].shape[1], range(hk)
        angle = np.arange(n)[:, None] * inv_freq
        cos, sin = np.tile(np.cos(angle), 2), np.tile(np.sin(angle), 2)
        rotate = lambda x: x * cos + np.concatenate((-x[..., d // 2:], x[..., :d // 2]), -1) * sin
        moment = lambda xs: sum(x[:, SINK:].transpose(0, 2, 1) @ x[:, SINK:] for x in xs)
        wide = lambda x: x.transpose(1, 0, 2).reshape(n, hk * d)
        mq = moment(q0).reshape(hk, group, d, d).sum(1)
        score, rebuild = [], []
        for h in heads:
            w, u = np.linalg.eigh(score_moment(mq[h], inv_freq, n))
            root, back = (u * np.sqrt(w)) @ u.T, (u / np.sqrt(w)) @ u.T
            x = down(root @ moment(k0)[h] @ root)
            score.append(root @ x), rebuild.append(back @ x)
        shared = np.stack([down(moment(k0).sum(0))] * hk)
        joint = down(sum(wide(x)[SINK:].T @ wide(x)[SINK:] for x in k0))
        wo = layer.self_attn.o_proj.weight.double().numpy()
        seen = np.tril(np.ones((n, n)))[EVERY - 1::EVERY]

        def output(q, k, v):
            s = q[:, EVERY - 1::EVERY] @ k.repeat(group, 0).transpose(0, 2, 1) / d**0.5
            p = np.exp(s - s.max(-1, keepdims=True)) * seen
            o = p / p.sum(-1, keepdims=True) @ v.repeat(group, 0)
            return o.transpose(1, 0, 2).reshape(len(seen), -1) @ wo.T

        def curve(low):  # low(pass, r) -> keys and values
            missed = [[((output(q[j], *low(j, r)) - exact[j])**2).sum() for j in range(len(passes))]
                      for r in range(1, STEPS)]
            return np.sqrt(np.sum(missed, 1) / sum((y**2).sum() for y in exact))

        def through(x, a, b, r):
            y = (x @ a[..., :r * a.shape[-1] // STEPS]) @ b[..., :r * b.shape[-1] // STEPS].swapaxes(-1, -2)
            return y

        def but_sinks(y, x):
            return np.concatenate((x[:, :SINK], y[:, SINK:]), 1)

        exact = [output(*x) for x in zip(q, k, v)]
        keys = lambda a, b: curve(lambda j, r: (but_sinks(rotate(through(k0[j], a, b, r)), k[j]), v[j]))
        rotated, value = down(moment(k)), down(moment(v))
        own = down(moment(k0))
        out.setdefault("eigen_attention.error", []).append([
            keys(shared, shared), keys(own, own), keys(np.stack(score), np.stack(rebuild)),
            curve(lambda j, r: (but_sinks(through(k[j], rotated, rotated, r), k[j]), v[j])),
            curve(lambda j, r: (k[j], but_sinks(through(v[j], value, value, r), v[j])))])
        out.setdefault("joint.keys.error", []).append(curve(lambda j, r: (but_sinks(
            rotate(through(wide(k0[j]), joint, joint, r).reshape(n, hk, d).transpose(1, 0, 2)), k[j]), v[j])))
    return {name: np.array(e) for name, e in out.items()}


def duo(model, passes):
    cfg = model.config
    group = cfg.num_attention_heads // cfg.num_key_value_heads
    cos, sin = (t[0].double() for t in model.model.rotary_emb(passes[0].x[0][None], torch.arange(DUO_POSITIONS)[None]))
    half = cfg.head_dim // 2
    rotate = lambda t: t * cos + torch.cat((-t[..., half:], t[..., :half]), -1) * sin
    out = np.zeros((cfg.num_hidden_layers, cfg.num_key_value_heads))
    for p in passes:
        for layer in range(cfg.num_hidden_layers):
            q = rotate(p.q0[layer].double().mean(1, keepdim=True).repeat(1, DUO_POSITIONS, 1))[:, -1:]
            k = rotate(p.k0[layer].double().mean(1, keepdim=True).repeat(1, DUO_POSITIONS, 1))
            w = (q @ k.repeat_interleave(group, 0).transpose(1, 2) / cfg.head_dim**0.5).softmax(-1)[:, 0]
            out[layer] += w.cumsum(1).mean(1).view(-1, group).mean(1).numpy() / len(passes)
    return out


def repeats(model, prompts):
    """KVzip scores [prompt][layer][head][n], and inputs and targets of the regressors per layer."""
    cfg = model.config
    group = cfg.num_attention_heads // cfg.num_key_value_heads
    scores, xs, ys = [], [[] for _ in model.model.layers], [[] for _ in model.model.layers]
    for ids, first, n, again in prompts:
        p = Pass(model, ids)
        scores.append([])
        for i, layer in enumerate(model.model.layers):
            w = p.weights[i][:, again:, first:first + n].double()
            scores[-1].append(w.amax(1).view(-1, group, n).amax(1).numpy())
            wo = layer.self_attn.o_proj.weight.view(cfg.hidden_size, cfg.num_attention_heads, cfg.head_dim).double()
            effect = torch.einsum("dhi,hti->htd", wo, p.v[i][:, first:first + n].double().repeat_interleave(group, 0))
            plus = w / p.x[i][again:].double().norm(dim=-1)[None, :, None] * effect.norm(dim=-1)[:, None]
            ys[i].append(plus.amax(1).view(-1, group, n).amax(1).log().numpy().T)
            xs[i].append(p.x[i][first:first + n].double().numpy())
    return scores, [np.concatenate(x) for x in xs], [np.concatenate(y) for y in ys]


def ridge(x, y):
    xc, yc = x - x.mean(0), y - y.mean(0)
    w = np.linalg.solve(xc.T @ xc + ALPHA * np.eye(x.shape[1]), xc.T @ yc).T
    return w, y.mean(0) - w @ x.mean(0)


def curves(scores):
    out = 0
    for s in scores:
        s = np.array(s)  # [layer][head][n]
        order = np.argsort(s, axis=None, kind="stable")
        rows = []
        for i in range(99):
            gone = np.zeros(s.size)
            gone[order[:int(s.size * (i + 1) / 100)]] = 1
            rows.append(gone.reshape(s.shape).mean(-1))
        out = out + np.stack(rows) / len(scores)
    return out


class Draws:
    """engine/base/rng.h's splitmix64."""

    def __init__(self, seed):
        self.state = seed

    def u64(self):
        mask = (1 << 64) - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & mask
        z = self.state
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        return z ^ z >> 31

    def f32(self, n):
        """n in [-1, 1)."""
        return np.array([(self.u64() >> 11) * 2.0**-53 * 2 - 1 for _ in range(n)], np.float32)


def gate(x, score, seed, group, steps=400, batch=256, warm=20, rate=0.01, b1=0.9, b2=0.99, size=16):
    """A gate's parameters after training on rows x [n][d] with scores in [0, 1]."""
    n, d = x.shape
    rows = torch.from_numpy(x.astype(np.float32).astype(np.float16).astype(np.float64))
    want, draws = torch.logit(torch.from_numpy(score.astype(np.float64)).clamp(1e-6, 1 - 1e-6)), Draws(seed)
    start = lambda a: torch.from_numpy(a.astype(np.float64)).requires_grad_()
    w = start(draws.f32((group + 1) * size * d).reshape(group + 1, size, d) * np.float32((3 / d) ** 0.5))
    base = start(draws.f32(size * size).reshape(size, size) * np.float32(0.1))
    bias, b = start(np.zeros((group, size))), start(np.full(group, float(want.mean()) + np.log(size)))
    params = [w, bias, base, b]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in params]
    unit = lambda t: t * (t.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    order, at, batch = list(range(n)), n, min(batch, n)
    for step in range(steps):
        if at + batch > n:
            for i in range(n, 1, -1):
                k = draws.u64() % i
                order[i - 1], order[k] = order[k], order[i - 1]
            at = 0
        pick, at = order[at:at + batch], at + batch
        z = torch.einsum("nd,god->ngo", rows[pick], w)
        q, k = 2 * unit(z[:, :-1] + bias), unit(z[:, -1])
        logit = (q * k[:, None]).sum(-1) / 4 + b - torch.logsumexp(q @ base.T / 4, -1)
        y = torch.sigmoid(logit).mean(-1).clamp(1e-6, 1 - 1e-6)
        loss = (torch.logit(y) - want[pick]).square().mean() / 2
        lr = rate * min(1, (step + 1) / warm) * 0.5 * (1 + np.cos(np.pi * step / steps)) / (1 - b1**(step + 1))
        with torch.no_grad():
            for p, g, (m, v) in zip(params, torch.autograd.grad(loss, params), moments):
                m.mul_(b1).add_(g, alpha=1 - b1)
                v.mul_(b2).addcmul_(g, g, value=1 - b2)
                p -= lr * m / ((v / (1 - b2**(step + 1))).sqrt() + 1e-8)
    w = w.detach().numpy()
    return {"q_proj.weight": w[:-1], "k_proj.weight": w[-1], "q_proj.bias": bias.detach().numpy(),
            "k_base": base.detach().numpy(), "b": b.detach().numpy()}


def gates(scores, xs, cfg):
    heads, group = cfg.num_key_value_heads, cfg.num_attention_heads // cfg.num_key_value_heads
    return [gate(xs[i], np.concatenate([s[i][h] for s in scores]), i * heads + h, group) for i, h in GATES]


def measure(path):
    model = ref_model.load_model(path, attn="eager")
    ids = encode(path, open(os.path.join(ROOT, "LICENSE"), encoding="utf-8").read())[:CUT["--tokens"]]
    chunk = CUT["--chunk"]
    chunks = [ids[i:i + chunk] for i in range(0, len(ids) - chunk + 1, chunk)]
    n_repeat = min(CUT["--repeat-tokens"] // chunk, len(chunks))
    before, middle = encode(path, BEFORE), encode(path, ASK) + encode(path, AFTER)
    prompts = []
    for i in range(n_repeat):
        c = chunks[i * len(chunks) // n_repeat]
        prompts.append((before + c + middle + c, len(before), chunk, len(before) + chunk + len(middle)))
    passes = [Pass(model, c) for c in chunks]
    mean, cov, filters = stats_and_filters(passes, model.config)
    scores, xs, ys = repeats(model, prompts)
    fits = [ridge(x, y) for x, y in zip(xs, ys)]
    return gates(scores, xs, model.config), {
        "expected_attention.query_mean": mean,
        "expected_attention.query_cov": cov,
        "qfilter.filters": filters,
        "duo_attention.calibrated": duo(model, passes),
        "kvzap.linear.weight": np.stack([w for w, _ in fits]),
        "kvzap.linear.bias": np.stack([b for _, b in fits]),
        "lukv.curves": curves(scores),
        **energies(model, passes),
        **errors(model, passes),
    }


def against(path, want):
    from safetensors.numpy import load_file

    got = load_file(path)
    for name, w in want.items():
        g = got[name].astype(float)
        assert g.shape == w.shape, (name, g.shape, w.shape)
        print(f"{name:32} {str(w.shape):20} largest difference {abs(g - w).max():.3g}, largest number {abs(w).max():.3g}")


def of_head(t, at, n):
    """The n numbers of a head's gate in a tensor of the file: layers, then KV heads, one behind the other."""
    layer = t[at[0]].reshape(-1)
    return layer[at[1] * n:(at[1] + 1) * n]


def against_gates(path, trained):
    from safetensors.numpy import load_file

    got = load_file(path)
    for at, g in zip(GATES, trained):
        for name, w in g.items():
            t = of_head(got["fastkvzip." + name], at, w.size)
            print(f"gate {at} {name:16} {str(w.shape):16} largest difference {abs(t - w.reshape(-1)).max():.3g}, largest number {abs(w).max():.3g}")


def sampled(t):
    stride = max(1, t.size // MOST) | 1  # odd: no power-of-two axis is met in one place only
    return {"shape": t.shape, "stride": stride, "scale": float(f"{abs(t).max():.6g}"),
            "values": [float(f"{x:.8g}") for x in t.reshape(-1)[::stride]]}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--out", default=os.path.join(HERE, "data"))
    p.add_argument("--against")
    a = p.parse_args()
    torch.set_num_threads(1)
    trained, tensors = measure(a.model)
    if a.against:
        against(a.against, tensors)
        against_gates(a.against, trained)
        return
    doc = {"format": 1, "model": os.path.basename(a.model), "text": "LICENSE", "cut": CUT,
           "tensors": {name: sampled(t) for name, t in tensors.items()},
           "gates": [{"at": at, "tensors": {"fastkvzip." + name: sampled(t) for name, t in g.items()}} for at, g in zip(GATES, trained)]}
    path = os.path.join(a.out, "calibrate_smollm2.json.gz")
    recorded.save(path, doc)


if __name__ == "__main__":
    main()
