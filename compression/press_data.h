/* SPDX-License-Identifier: Apache-2.0 */
/* Press data: tensors that some presses need and no request can carry, trained
 * or measured for one model, kept in a safetensors file beside it.
 *
 *   __metadata__  format "pressd press data 1", model_key, model_name, and what
 *                 belongs to a set: duo_attention.*.sink_size and .recent_size
 *   tensors       the names of the table in press_data.c, F32
 *
 * Tensors come in sets; a file holds whole sets, any of them, and belongs to the
 * one model file it was made for.  `pressd calibrate` and `pressd
 * import-press-data` make it, `pressd serve --press-data` loads it.
 * NL layers, Hq query and Hk KV heads, D head size, d model width.  Layers with
 * a sliding window are never pressed: what stands there is not read.
 * Thread: make one; read-only afterwards, any. */
#ifndef PD_COMPRESSION_PRESS_DATA_H
#define PD_COMPRESSION_PRESS_DATA_H

#include "compression/adapter.h"
#include "compression/press.h"
#include "compression/spec.h"
#include "engine/cache/codes.h"
#include "engine/gguf/gguf.h"

typedef enum {
    PD_DATA_QUERY_MEAN,     /* [NL][Hq][D] of queries before RoPE, after q-norm */
    PD_DATA_QUERY_COV,      /* [NL][Hq][D][D] */
    PD_DATA_QFILTERS,       /* [NL][Hk][D]; the score is -(filter . key) */
    PD_DATA_DUO_PATTERN,    /* [NL][Hk] trained, in [0, 1]; low = streaming */
    PD_DATA_DUO_CALIBRATED, /* [NL][Hk] measured; < 0 = a head of a layer that is never pressed */
    PD_DATA_KVZAP_WEIGHT,   /* [NL][Hk][d] */
    PD_DATA_KVZAP_BIAS,     /* [NL][Hk] */
    PD_DATA_KVZAP_W1,       /* [NL][n_hidden][d] */
    PD_DATA_KVZAP_B1,       /* [NL][n_hidden] */
    PD_DATA_KVZAP_W2,       /* [NL][Hk][n_hidden] */
    PD_DATA_KVZAP_B2,       /* [NL][Hk] */
    PD_DATA_LUKV_CURVES,    /* [99][NL][Hk] pruned share of a head when (row + 1) % of all go */
    PD_DATA_GATE_Q,         /* [NL][Hq][16][d] Fast KVzip's gates, heads as the model has them */
    PD_DATA_GATE_Q_BIAS,    /* [NL][Hq][16] */
    PD_DATA_GATE_K,         /* [NL][Hk][16][d] */
    PD_DATA_GATE_Q_NORM,    /* [NL][16] */
    PD_DATA_GATE_K_NORM,    /* [NL][16] */
    PD_DATA_GATE_BASE,      /* [NL][Hk][16][16] base keys */
    PD_DATA_GATE_B,         /* [NL][Hq] */
    /* Bases (bases.h): rows are directions, the strongest first; _ENERGY is the mean square along each. */
    PD_DATA_EIGEN_SHARED,         /* [NL][D][D] keys before RoPE, one basis for all heads of a layer */
    PD_DATA_EIGEN_SHARED_ENERGY,  /* [NL][D] */
    PD_DATA_EIGEN_HEAD,           /* [NL][Hk][D][D] keys before RoPE */
    PD_DATA_EIGEN_HEAD_ENERGY,    /* [NL][Hk][D] */
    PD_DATA_EIGEN_SCORE,          /* [NL][Hk][D][D] what projects a key so that scores are kept */
    PD_DATA_EIGEN_REBUILD,        /* [NL][Hk][D][D] and what rebuilds it */
    PD_DATA_EIGEN_SCORE_ENERGY,   /* [NL][Hk][D] */
    PD_DATA_EIGEN_ROTATED,        /* [NL][Hk][D][D] keys after RoPE */
    PD_DATA_EIGEN_ROTATED_ENERGY, /* [NL][Hk][D] */
    PD_DATA_EIGEN_VALUE,          /* [NL][Hk][D][D] */
    PD_DATA_EIGEN_VALUE_ENERGY,   /* [NL][Hk][D] */
    PD_DATA_EIGEN_ERROR,          /* [NL][5][15] share of a layer's output that i/16 of the directions lose:
                                     shared, per_head, score, rotated, value */
    PD_DATA_JOINT,                /* [NL][J][J] keys before RoPE, all heads of a layer in one row of J = Hk D */
    PD_DATA_JOINT_ENERGY,         /* [NL][J] */
    PD_DATA_JOINT_ERROR,          /* [NL][15] */
    PD_DATA_JOINT_OVERLAP,        /* [NL][3] share of attention that one token in eight holds (and sinks and recent ones), chosen by
                                      the first 1/4, 1/8 and 1/16 of the numbers; 0 = not measured */
    PD_DATA_BOOK_WEIGHT,          /* [NL][Hk][D/2] > 0 where a layer is pressed; what pairs of channels weigh in books */
    PD_DATA_BOOK,                 /* [NL][Hk][D][256 or 16] codebooks, one for each of pd_books (cache/codes.h) in turn */
    PD_DATA_BOOK_LAST = PD_DATA_BOOK + PD_BOOKS - 1,
    /* restorekv's rows and adapter (adapter.h), then its plus variant's.  A projection may have none. */
    PD_DATA_RESTORE,              /* [n][d] */
    PD_DATA_RESTORE_A,            /* + pd_proj: [NL][rank][n_in] */
    PD_DATA_RESTORE_B = PD_DATA_RESTORE_A + PD_PROJ_N, /* + pd_proj: [NL][n_out][rank] */
    PD_DATA_RESTORE_PLUS = PD_DATA_RESTORE_B + PD_PROJ_N,
    PD_DATA_N = PD_DATA_RESTORE_PLUS + 1 + 2 * PD_PROJ_N
} pd_data_id;

/* What comes together. */
typedef enum {
    PD_SET_STATS,          /* QUERY_MEAN, QUERY_COV */
    PD_SET_QFILTER,
    PD_SET_DUO_PATTERN,    /* with sink and recent size */
    PD_SET_DUO_CALIBRATED, /* likewise */
    PD_SET_KVZAP_LINEAR,   /* WEIGHT, BIAS */
    PD_SET_KVZAP_MLP,      /* W1 .. B2 */
    PD_SET_LUKV,
    PD_SET_FASTKVZIP,      /* GATE_Q .. GATE_B */
    PD_SET_EIGEN,          /* EIGEN_SHARED .. EIGEN_ERROR */
    PD_SET_JOINT,          /* JOINT .. JOINT_OVERLAP */
    PD_SET_CODES,          /* BOOK_WEIGHT .. BOOK_LAST */
    PD_SET_RESTORE,        /* RESTORE, its A and B */
    PD_SET_RESTORE_PLUS,
    PD_SET_N
} pd_data_set;

enum { PD_LUKV_ROWS = 99, PD_KVZAP_HIDDEN_MAX = 1 << 16, PD_DUO_SIZE_MAX = 1 << 24, PD_GATE_DIM = 16, PD_EIGEN_STEPS = 16, PD_EIGEN_CURVES = 5,
       PD_OVERLAP_SETUPS = 3, PD_OVERLAP_LEAST = 4 /* the first setup takes a fourth of the numbers, each next one half as many */ };

typedef struct pd_press_data pd_press_data;

/* The number that ties data to a model file: a 64-bit hash of its architecture,
 * the numbers of its hyper-parameters, every tensor's name, type and shape, and
 * the bytes of each one's first, middle and last row.  Names, templates and the
 * order of things do not count; another quantisation of the same model is another
 * model.  It tells files apart that were mixed up, not ones that were forged.
 * Reads a few hundred KB.  Errors: EFILE, ENOMEM. */
pd_status pd_model_key(const pd_gguf *g, uint64_t *ret, pd_err *err);

/* Empty data.  Errors: ENOMEM. */
pd_status pd_press_data_new(pd_press_data **ret, const pd_press_model *model, uint64_t key, pd_err *err);
/* Errors: EFILE (not press data, another model's, a wrong shape or value), ENOMEM. */
pd_status pd_press_data_load(pd_press_data **ret, const char *path, const pd_press_model *model, uint64_t key, pd_err *err);
/* `model_name` is for people.  Errors: EFILE, ENOMEM. */
pd_status pd_press_data_save(const pd_press_data *d, const char *path, const char *model_name, pd_err *err);
void pd_press_data_close(pd_press_data *d); /* NULL is fine */

/* The tensor, or NULL if its set is not there.  `d` may be NULL. */
const float *pd_press_data_get(const pd_press_data *d, pd_data_id id);
unsigned pd_press_data_have(const pd_press_data *d); /* bit 1 << set */
void pd_press_data_heads(const pd_press_data *d, size_t *per_layer, size_t *all); /* KV heads */
size_t pd_press_data_hidden(const pd_press_data *d); /* n_hidden of KVZAP_MLP */
/* What restorekv adds; its n is 0 if the set is not there. */
void pd_press_data_added(const pd_press_data *d, pd_data_set set, pd_added *ret);
/* Sink and recent tokens of a DUO set. */
void pd_press_data_duo(const pd_press_data *d, pd_data_set set, size_t *sink, size_t *recent);

/* ---- making it ---- */

/* Before the tensors of KVZAP_MLP (which go), of a RESTORE set (likewise) and of a DUO set. */
void pd_press_data_set_hidden(pd_press_data *d, size_t n_hidden);
void pd_press_data_set_added(pd_press_data *d, pd_data_set set, size_t n, size_t rank);
void pd_press_data_set_duo(pd_press_data *d, pd_data_set set, size_t sink, size_t recent);
enum { PD_DATA_DIMS_MAX = 4 };
/* The tensor's shape for this model; returns the number of dimensions. */
unsigned pd_press_data_shape(const pd_press_data *d, pd_data_id id, size_t shape[PD_DATA_DIMS_MAX]);
size_t pd_press_data_elems(const pd_press_data *d, pd_data_id id); /* their product */
/* Zeroed memory for the tensor, in place of what was there; NULL = none left.
 * The caller fills it. */
float *pd_press_data_put(pd_press_data *d, pd_data_id id);
const char *pd_data_name(pd_data_id id);   /* in the file */
pd_data_set pd_data_set_of(pd_data_id id);
/* Whole sets (of RESTORE ones the rows, and A and B together), finite values, ranges: what load checks too.  Errors: EINVAL. */
pd_status pd_press_data_check(const pd_press_data *d, pd_err *err);

/* ---- for presses ---- */

/* EINVAL if the instance (without its children) needs a set that inst->data has
 * not (PD_SET_N: none); says how to make it.  `path` names the press in the request; NULL = no
 * request. */
pd_status pd_press_check_data(const pd_press_inst *inst, const char *path, pd_err *err);

#endif
