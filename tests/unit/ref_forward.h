/* SPDX-License-Identifier: Apache-2.0 */
/* A decoder forward pass that is easy to believe: double precision, no cache, no
 * tiles, every query against every key it may see, RoPE on the file's own rows.
 * It reads the weights from the GGUF file and shares no code with the engine
 * but the file reader. */
#ifndef PD_TESTS_UNIT_REF_FORWARD_H
#define PD_TESTS_UNIT_REF_FORWARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ref_model ref_model;

ref_model *ref_open(const char *path); /* a tiny model */
void ref_close(ref_model *m);
size_t ref_n_vocab(const ref_model *m);

/* Whether query q may look at key k <= q of that layer and KV head; *distance is
 * q - k and may be changed (keys that were moved). */
typedef bool (*ref_sees)(const void *arg, size_t layer, size_t head_kv, size_t q, size_t k, long *distance);

/* Told of every weight: query q of query head `head` gives keys [0, q] weight[] (0 to those it does not
 * see).  From now on; NULL = nobody is. */
typedef void (*ref_looks)(void *arg, size_t layer, size_t head, size_t q, const double *weight);
void ref_watch(ref_model *m, ref_looks looks, void *arg);

/* Final hidden states [n][n_embd] behind the output norm.  The caller frees it. */
double *ref_states(const ref_model *m, const int32_t *tokens, size_t n);
size_t ref_n_embd(const ref_model *m);

/* log softmax [n - from][n_vocab] after tokens from .. n-1; sees NULL = causal
 * (the model's own windows always hold).  The caller frees it. */
double *ref_logprobs(const ref_model *m, const int32_t *tokens, size_t n, size_t from, ref_sees sees, const void *arg);

#endif
