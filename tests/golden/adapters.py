# SPDX-License-Identifier: Apache-2.0
"""Random restore embeddings and LoRA adapters for restorekv in the form they are published in: a folder with
restore_embeddings.safetensors and PEFT's adapter_model.safetensors and adapter_config.json.

Drawn from a seed by the standard library alone, so that the recorder, who has PEFT load the folder, and the checker,
who has pressd import it, have the same one.  The plain variant adapts all seven projections; the plus one some, one
layer less, and scales by sqrt(r).  No dropout: transformers leaves an adapter's layers in training mode, where it would act.
"""

import array
import json
import os
import random

import gates

ROWS, RANK, ALPHA = 8, 4, 6
PLUS_TARGETS = ("q_proj", "v_proj", "down_proj")


def projections(width, queries, keys, units):
    """name -> (columns, rows) of the model's matrices"""
    return {"self_attn.q_proj": (width, queries), "self_attn.k_proj": (width, keys), "self_attn.v_proj": (width, keys),
            "self_attn.o_proj": (queries, width), "mlp.gate_proj": (width, units), "mlp.up_proj": (width, units),
            "mlp.down_proj": (units, width)}


def write(folder, plus, seed, layers, width, queries, keys, units):
    rng = random.Random(seed + plus)

    def draw(rows, columns, scale):
        return (rows, columns), array.array("f", (scale * (2 * rng.random() - 1) for _ in range(rows * columns)))

    os.makedirs(folder, exist_ok=True)
    gates.write(os.path.join(folder, "restore_embeddings.safetensors"), {"restore_embeddings": draw(ROWS, width, 0.3)})
    parts, names = {}, PLUS_TARGETS if plus else [name.split(".")[1] for name in projections(1, 1, 1, 1)]
    for i in range(layers - plus):
        for name, (columns, rows) in projections(width, queries, keys, units).items():
            if name.split(".")[1] in names:
                parts[f"base_model.model.model.layers.{i}.{name}.lora_A.weight"] = draw(RANK, columns, 3 / columns ** 0.5)
                parts[f"base_model.model.model.layers.{i}.{name}.lora_B.weight"] = draw(rows, RANK, 0.2)
    gates.write(os.path.join(folder, "adapter_model.safetensors"), parts)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none",
              "target_modules": list(names), "use_rslora": bool(plus), "inference_mode": True, "modules_to_save": None,
              "layers_to_transform": list(range(layers - 1)) if plus else None}
    with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f)
    return [os.path.join(folder, name) for name in ("restore_embeddings.safetensors", "adapter_model.safetensors", "adapter_config.json")]
