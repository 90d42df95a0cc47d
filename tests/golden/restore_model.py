#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write what kvpress 0.5.5's RestoreKVPress keeps and says, for check_restore.py: data/restore_<name>.json.gz, or of a
seeded model data/arch_<name>_restore.json.gz.

    restore_model.py NAME... [MODEL.gguf] [--out DIR]

NAME is one of arch_models.py's seeded models, or with MODEL.gguf the name of that file's goldens.  Rows and
adapters are those that adapters.py draws, written as they are published; PEFT loads the adapter into the model and
kvpress runs its own pass.  All else is replays_model.py's: the form of the file, the presses run as a whole, ratios
that share the replay.  The walk's next position is behind the rows, as in kvpress' pipeline.
Needs what replays_model.py needs, and peft.
"""

import argparse
import os
import sys
import tempfile

import torch
from kvpress import RestoreKVPress
from safetensors.torch import load_file
from transformers.utils import logging

import adapters
import arch
import arch_models
import arch_presses
import presses_model as base
import recorded
import ref_model
import replays_model as replays

SEED = 11
replays.RATIOS = (0.25, 0.5, 0.75)  # 0.9 and 8 rows are all of a short prompt
logging.disable_progress_bar()


class Restored(replays.Zip, RestoreKVPress):
    """With rows and adapter from a folder; the rows run once, whatever the number of ratios."""

    def post_init_from_model(self, model):
        folder = self.folders[self.kvzip_plus_normalization]
        self.restore_embeddings = load_file(os.path.join(folder, "restore_embeddings.safetensors"))["restore_embeddings"]
        for name in list(getattr(model, "peft_config", {})):  # a second adapter would draw the first one's weights anew
            model.delete_adapter(name)
        model.load_adapter(folder, adapter_name=self.adapter_name)
        model.disable_adapters()
        for name, t in load_file(os.path.join(folder, "adapter_model.safetensors")).items():
            place = name.removeprefix("base_model.model.").removesuffix(".weight")
            assert torch.equal(t, model.get_submodule(f"{place}.{self.adapter_name}").weight), name
        self.whole, self.ran = model, False

    def append_restore_tokens(self, view):
        if not self.ran:
            super().append_restore_tokens(self.whole)
        self.ran = True


PRESSES = {
    "restorekv": {},
    "restorekv:layerwise=true": {"layerwise": True},
    "restorekv:kvzip_plus_normalization=true,chunk_size=100": {"kvzip_plus_normalization": True, "chunk_size": 100},
}


def folders_of(folder, sizes):
    out = [os.path.join(folder, name) for name in ("plain", "plus")]
    for plus, path in enumerate(out):
        adapters.write(path, plus, **sizes)
    return out


def one_press(model, peer, tokenizer, make, ids, pressed):
    press, cache, logits = replays.run(model, tokenizer, make, ids, pressed)
    n = len(ids) + adapters.ROWS
    assert cache.get_seq_length() == n and all(mask.any(-1).all() for mask in press.found.values())  # where kvpress empties a head, we do not
    got, top = base.walk(model, argparse.Namespace(logits=logits), cache, n, replays.WALK)
    return {"scores": base.b64(press.scores[:, :, ::base.STRIDE].numpy()),
            "kept": {str(r): base.record(press.found[r], press.scores, len(ids) > base.LONG) for r in replays.RATIOS},
            "walk": {"ids": got, "text": arch_presses.wire_text(peer, got), "top": top}}


def prompts_of(peer, tokenizer, template, seeded):
    """title -> (ids, the message they were made of or None)"""
    if seeded:
        ids = peer.tokenize(arch.prompts(seeded)["long"])
        return {"short": (ids[:arch_presses.SHORT], None), "long": (ids[:arch_presses.LONG], None)}
    out = {}
    for title in ("letter chat", "mixed"):
        source, n, form, _ = replays.PROMPTS[title]
        ids, user = peer.tokenize(base.prompts()[source][0])[:n], None
        if form == replays.CHAT and template:
            user = base.detokenize(peer, ids)
            ids = tokenizer.encode(tokenizer.apply_chat_template([{"role": "user", "content": user}], True), add_special_tokens=False)[0].tolist()
        out[title] = ids, user
    return out


def record(name, path, model, seeded, out):
    peer, c = ref_model.LlamaCpp(path), model.config
    template = None if seeded else model.gguf_meta.get("tokenizer.chat_template")
    kinds = getattr(c, "layer_types", None) or ["full_attention"] * c.num_hidden_layers
    pressed = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    sizes = {"seed": SEED, "layers": len(kinds), "width": c.hidden_size, "queries": c.num_attention_heads * dim,
             "keys": c.num_key_value_heads * dim, "units": c.intermediate_size}
    doc = {"format": 2, "model": name, "reference": "kvpress 0.5.5, f32", "stride": base.STRIDE, "walk_ratio": base.WALK_RATIO, "alone": True,
           "adapters": sizes, "prompts": []}
    with tempfile.TemporaryDirectory() as folder:
        Restored.folders = folders_of(folder, sizes)
        for title, (ids, user) in prompts_of(peer, replays.Tokenizer(peer, template), template, seeded).items():
            entry = {"name": title, "ids": ids, "pressed": pressed, "presses": {}}
            if user is not None:
                entry["user"] = user
            tokenizer = replays.Tokenizer(peer, template if user is not None else None)
            for wire, options in PRESSES.items():
                with torch.inference_mode(), base.lower_slot_wins():
                    entry["presses"][wire] = e = one_press(model, peer, tokenizer, lambda m: Restored(0.5, **options), ids, pressed)
                print(f"  {name} {title}, {len(ids)} tokens, {wire}: {e['walk']['text']!r}", file=sys.stderr)
            doc["prompts"].append(entry)
    recorded.save(os.path.join(out, f"arch_{name}_restore.json.gz" if seeded else f"restore_{name}.json.gz"), doc)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", nargs="+")
    p.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "data"))
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.name[-1].endswith(".gguf"):
        record(a.name[0], a.name[-1], ref_model.load_model(a.name[-1]), None, a.out)
        return
    for name in a.name:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.gguf")
            arch_models.write(name, path)
            record(name, path, arch.model_of(name), name, a.out)


if __name__ == "__main__":
    main()
