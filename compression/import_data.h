/* SPDX-License-Identifier: Apache-2.0 */
/* Press data from the files their authors publish.
 *
 * Each function reads one published thing into `d`; shapes must be those of d's
 * model.  On failure d may hold half a set and is good for nothing but close.
 * Values are checked when d is saved.  Errors: EFILE (path and fault), ENOMEM. */
#ifndef PD_COMPRESSION_IMPORT_DATA_H
#define PD_COMPRESSION_IMPORT_DATA_H

#include "compression/press_data.h"

/* kvpress' ExpectedAttentionStats: safetensors query_mean, query_cov. */
pd_status pd_import_stats(pd_press_data *d, const char *path, pd_err *err);
/* Q-Filters: safetensors q_filters. */
pd_status pd_import_qfilter(pd_press_data *d, const char *path, pd_err *err);
/* KVzap: safetensors layers.<l>.weight, .bias (linear) or layers.<l>.0.weight,
 * .0.bias, .2.weight, .2.bias (MLP); the file says which. */
pd_status pd_import_kvzap(pd_press_data *d, const char *path, pd_err *err);
/* DuoAttention's full_attention_heads.tsv, a line per layer, clipped to [0, 1] as
 * its authors do; sink and recent size stand in its config.json. */
pd_status pd_import_duo(pd_press_data *d, const char *path, size_t sink, size_t recent, pd_err *err);
/* Fast KVzip's gates (q<G>_dim16_sink16), each layer's dictionary as layers.<l>.<name>
 * of a safetensors file; they are published as pickled objects, which are not read. */
pd_status pd_import_fastkvzip(pd_press_data *d, const char *path, pd_err *err);

/* What a PEFT adapter_config.json says of its LoRA. */
typedef struct pd_lora_config {
    size_t rank;      /* 1 to PD_ADAPTER_RANK_MAX */
    double scale;     /* lora_alpha / r, or / sqrt(r) */
    unsigned targets; /* bit 1 << pd_proj: those it names; 0 = it has a pattern */
} pd_lora_config;

const char *pd_proj_name(pd_proj proj); /* "q_proj" */

/* RestoreKV's restore_embeddings.safetensors and the LoRA adapter beside it, in PEFT's form
 * (adapter_model.safetensors); set: PD_SET_RESTORE or its plus variant.  Layers that the adapter
 * leaves out get none of it.  Their rows of queries and keys are transformers', and so in the order
 * of the loaded model (model.h). */
pd_status pd_import_restorekv(pd_press_data *d, pd_data_set set, const char *rows, const char *adapter, const pd_lora_config *c, pd_err *err);
/* LU-KV's budget curves: .npy (versions 1 to 3), f4 or f8, [99][NL][Hk]. */
pd_status pd_import_lukv(pd_press_data *d, const char *path, pd_err *err);

#endif
