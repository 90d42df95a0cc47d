# SPDX-License-Identifier: Apache-2.0
"""tokenizer.py MODEL.gguf FOLDER: the byte-level BPE of a GGUF file as a Hugging Face tokenizer, for tools that
count tokens or send ids.  Digits stand alone, as SmolLM2's tokenizer has it."""

import os
import sys

from gguf import GGUFReader
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def main():
    fields = GGUFReader(sys.argv[1]).fields
    tokens, merges, kinds = (fields["tokenizer.ggml." + n].contents() for n in ("tokens", "merges", "token_type"))
    t = Tokenizer(models.BPE(vocab={x: i for i, x in enumerate(tokens)}, merges=[tuple(m.split(" ", 1)) for m in merges]))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    special = [x for x, k in zip(tokens, kinds) if k == 3]
    eos = tokens[fields["tokenizer.ggml.eos_token_id"].contents()]
    fast = PreTrainedTokenizerFast(tokenizer_object=t, eos_token=eos, additional_special_tokens=special)
    fast.save_pretrained(sys.argv[2])
    with open(os.path.join(sys.argv[2], "config.json"), "w") as f:  # loaders look for one first
        f.write('{"model_type": "llama"}\n')


main()
