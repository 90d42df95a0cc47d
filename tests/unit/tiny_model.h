/* SPDX-License-Identifier: Apache-2.0 */
/* Complete models of a few hundred kilobytes, made from a seed: everything the
 * engine loads from a real file, small enough for a sanitizer build.
 *
 *             layers  embd  heads  KV heads  head size  ff  context  windows
 *   llama        3     64     4       2         16      96    2048   none
 *   gemma3       7     64     4       1         32      96    2048   32, but layer 5
 *
 * llama has a byte-level vocabulary (token b < 256 is byte b; a few merges,
 * <|im_start|>, <|im_end|>, a ChatML template) and its own output matrix; gemma3
 * has a SentencePiece one (bytes and letters, <start_of_turn>) and tied
 * embeddings.  Weights are drawn so that attention is uneven and logits vary. */
#ifndef PD_TESTS_UNIT_TINY_MODEL_H
#define PD_TESTS_UNIT_TINY_MODEL_H

#include <stdbool.h>
#include <stdint.h>

typedef enum { TINY_LLAMA, TINY_GEMMA3 } tiny_arch;

/* What the matrices are stored as; Q4_1 keeps embeddings and output in Q8_0, as
 * real files do.  Norms are always F32. */
typedef enum { TINY_F32, TINY_F16, TINY_Q8_0, TINY_Q4_1 } tiny_type;

enum {
    TINY_CTX = 2048,
    TINY_WINDOW = 32,
    TINY_IM_START = 256 + 8, /* llama: the ids behind bytes and merges */
    TINY_IM_END,
    TINY_END_OF_TEXT,
    TINY_LLAMA_VOCAB,
};

/* Write the model to `path`.  False if the file cannot be written. */
bool tiny_model_write(const char *path, tiny_arch arch, tiny_type type, uint64_t seed);

/* "llama", "gemma3"; "f32", "f16", "q8_0", "q4_1".  False: no such name. */
bool tiny_arch_parse(const char *name, tiny_arch *ret);
bool tiny_type_parse(const char *name, tiny_type *ret);

#endif
