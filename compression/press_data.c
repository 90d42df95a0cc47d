/* SPDX-License-Identifier: Apache-2.0 */
/* Press data in memory and in its file (see press_data.h).  One table says what
 * each tensor is called, which set it belongs to and what shape it has; load,
 * save and all checks go by it. */
#include "compression/press_data.h"

#include "compression/safetensors.h"
#include "engine/base/buf.h"
#include "engine/base/file.h"
#include "engine/base/num.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char format[] = "pressd press data 1";

/* dims: l layers, q query heads, k KV heads, D head size, d model width,
 * h hidden units, r rows of a curve, g size of a gate, J keys of all heads in a row,
 * b curves of errors, e their points, C and c 256 and 16 centroids, P pairs
 * of channels, o setups of overlaps, n rows and R rank of what restorekv adds, Q queries of all
 * heads in a row, f feed-forward units. */
static const struct {
    const char *name, *dims;
    pd_data_set set;
    float min, max;
} tensors[PD_DATA_N] = {
    [PD_DATA_QUERY_MEAN] = {"expected_attention.query_mean", "lqD", PD_SET_STATS, -INFINITY,
                            INFINITY},
    [PD_DATA_QUERY_COV] = {"expected_attention.query_cov", "lqDD", PD_SET_STATS, -INFINITY,
                           INFINITY},
    [PD_DATA_QFILTERS] = {"qfilter.filters", "lkD", PD_SET_QFILTER, -INFINITY, INFINITY},
    [PD_DATA_DUO_PATTERN] = {"duo_attention.pattern", "lk", PD_SET_DUO_PATTERN, 0, 1},
    [PD_DATA_DUO_CALIBRATED] = {"duo_attention.calibrated", "lk", PD_SET_DUO_CALIBRATED, -1, 1},
    [PD_DATA_KVZAP_WEIGHT] = {"kvzap.linear.weight", "lkd", PD_SET_KVZAP_LINEAR, -INFINITY,
                              INFINITY},
    [PD_DATA_KVZAP_BIAS] = {"kvzap.linear.bias", "lk", PD_SET_KVZAP_LINEAR, -INFINITY, INFINITY},
    [PD_DATA_KVZAP_W1] = {"kvzap.mlp.0.weight", "lhd", PD_SET_KVZAP_MLP, -INFINITY, INFINITY},
    [PD_DATA_KVZAP_B1] = {"kvzap.mlp.0.bias", "lh", PD_SET_KVZAP_MLP, -INFINITY, INFINITY},
    [PD_DATA_KVZAP_W2] = {"kvzap.mlp.2.weight", "lkh", PD_SET_KVZAP_MLP, -INFINITY, INFINITY},
    [PD_DATA_KVZAP_B2] = {"kvzap.mlp.2.bias", "lk", PD_SET_KVZAP_MLP, -INFINITY, INFINITY},
    [PD_DATA_LUKV_CURVES] = {"lukv.curves", "rlk", PD_SET_LUKV, 0, 1},
    [PD_DATA_GATE_Q] = {"fastkvzip.q_proj.weight", "lqgd", PD_SET_FASTKVZIP, -INFINITY, INFINITY},
    [PD_DATA_GATE_Q_BIAS] = {"fastkvzip.q_proj.bias", "lqg", PD_SET_FASTKVZIP, -INFINITY, INFINITY},
    [PD_DATA_GATE_K] = {"fastkvzip.k_proj.weight", "lkgd", PD_SET_FASTKVZIP, -INFINITY, INFINITY},
    [PD_DATA_GATE_Q_NORM] = {"fastkvzip.q_norm.weight", "lg", PD_SET_FASTKVZIP, -INFINITY, INFINITY},
    [PD_DATA_GATE_K_NORM] = {"fastkvzip.k_norm.weight", "lg", PD_SET_FASTKVZIP, -INFINITY, INFINITY},
    [PD_DATA_GATE_BASE] = {"fastkvzip.k_base", "lkgg", PD_SET_FASTKVZIP, -INFINITY, INFINITY},
    [PD_DATA_GATE_B] = {"fastkvzip.b", "lq", PD_SET_FASTKVZIP, -INFINITY, INFINITY},
    [PD_DATA_EIGEN_SHARED] = {"eigen_attention.shared", "lDD", PD_SET_EIGEN, -INFINITY, INFINITY},
    [PD_DATA_EIGEN_SHARED_ENERGY] = {"eigen_attention.shared.energy", "lD", PD_SET_EIGEN, 0, INFINITY},
    [PD_DATA_EIGEN_HEAD] = {"eigen_attention.per_head", "lkDD", PD_SET_EIGEN, -INFINITY, INFINITY},
    [PD_DATA_EIGEN_HEAD_ENERGY] = {"eigen_attention.per_head.energy", "lkD", PD_SET_EIGEN, 0, INFINITY},
    [PD_DATA_EIGEN_SCORE] = {"eigen_attention.score", "lkDD", PD_SET_EIGEN, -INFINITY, INFINITY},
    [PD_DATA_EIGEN_REBUILD] = {"eigen_attention.score.rebuild", "lkDD", PD_SET_EIGEN, -INFINITY, INFINITY},
    [PD_DATA_EIGEN_SCORE_ENERGY] = {"eigen_attention.score.energy", "lkD", PD_SET_EIGEN, 0, INFINITY},
    [PD_DATA_EIGEN_ROTATED] = {"eigen_attention.rotated", "lkDD", PD_SET_EIGEN, -INFINITY, INFINITY},
    [PD_DATA_EIGEN_ROTATED_ENERGY] = {"eigen_attention.rotated.energy", "lkD", PD_SET_EIGEN, 0, INFINITY},
    [PD_DATA_EIGEN_VALUE] = {"eigen_attention.value", "lkDD", PD_SET_EIGEN, -INFINITY, INFINITY},
    [PD_DATA_EIGEN_VALUE_ENERGY] = {"eigen_attention.value.energy", "lkD", PD_SET_EIGEN, 0, INFINITY},
    [PD_DATA_EIGEN_ERROR] = {"eigen_attention.error", "lbe", PD_SET_EIGEN, 0, INFINITY},
    [PD_DATA_JOINT] = {"joint.keys", "lJJ", PD_SET_JOINT, -INFINITY, INFINITY},
    [PD_DATA_JOINT_ENERGY] = {"joint.keys.energy", "lJ", PD_SET_JOINT, 0, INFINITY},
    [PD_DATA_JOINT_ERROR] = {"joint.keys.error", "le", PD_SET_JOINT, 0, INFINITY},
    [PD_DATA_BOOK_WEIGHT] = {"hcattention.book.weight", "lkP", PD_SET_CODES, 0, INFINITY},
#define BOOK(i, sub, n, dims) [PD_DATA_BOOK + i] = {"hcattention.book." #sub "." #n, dims, PD_SET_CODES, -INFINITY, INFINITY}
    BOOK(0, 2, 256, "lkDC"), BOOK(1, 4, 256, "lkDC"), BOOK(2, 8, 256, "lkDC"),
    BOOK(3, 2, 16, "lkDc"), BOOK(4, 4, 16, "lkDc"), BOOK(5, 8, 16, "lkDc"),
#undef BOOK
    [PD_DATA_JOINT_OVERLAP] = {"joint.keys.overlap", "lo", PD_SET_JOINT, 0, 1},
#define LORA(at, set, name, proj, id, a, b) \
    [PD_DATA_RESTORE_A + at + id] = {name "." proj ".lora_A", a, set, -INFINITY, INFINITY}, \
    [PD_DATA_RESTORE_B + at + id] = {name "." proj ".lora_B", b, set, -INFINITY, INFINITY}
#define RESTORE(at, set, name) \
    [PD_DATA_RESTORE + at] = {name ".embeddings", "nd", set, -INFINITY, INFINITY}, \
    LORA(at, set, name, "q_proj", PD_PROJ_Q, "lRd", "lQR"), LORA(at, set, name, "k_proj", PD_PROJ_K, "lRd", "lJR"), \
    LORA(at, set, name, "v_proj", PD_PROJ_V, "lRd", "lJR"), LORA(at, set, name, "o_proj", PD_PROJ_O, "lRQ", "ldR"), \
    LORA(at, set, name, "gate_proj", PD_PROJ_GATE, "lRd", "lfR"), LORA(at, set, name, "up_proj", PD_PROJ_UP, "lRd", "lfR"), \
    LORA(at, set, name, "down_proj", PD_PROJ_DOWN, "lRf", "ldR")
    RESTORE(0, PD_SET_RESTORE, "restorekv"),
    RESTORE(PD_DATA_RESTORE_PLUS - PD_DATA_RESTORE, PD_SET_RESTORE_PLUS, "restorekv_plus"),
#undef RESTORE
#undef LORA
};

/* How to get a set: the command that makes it. */
static const struct {
    const char *what, *command;
} sets[PD_SET_N] = {
    [PD_SET_STATS] = {"query statistics", "calibrate -m MODEL --text FILE --only stats"},
    [PD_SET_QFILTER] = {"filters", "calibrate -m MODEL --text FILE --only qfilter"},
    [PD_SET_DUO_PATTERN] = {"a trained head pattern",
                            "import-press-data -m MODEL --kind duo FILE..."},
    [PD_SET_DUO_CALIBRATED] = {"head scores", "calibrate -m MODEL --text FILE --only duo"},
    [PD_SET_KVZAP_LINEAR] = {"linear regressors", "calibrate -m MODEL --text FILE --only kvzap"},
    [PD_SET_KVZAP_MLP] = {"MLP regressors (model_type linear does without)",
                          "import-press-data -m MODEL --kind kvzap FILE"},
    [PD_SET_LUKV] = {"budget curves", "calibrate -m MODEL --text FILE --only lukv"},
    [PD_SET_FASTKVZIP] = {"gates", "calibrate -m MODEL --text FILE --only fastkvzip"},
    [PD_SET_EIGEN] = {"bases of keys and values", "calibrate -m MODEL --text FILE --only eigen"},
    [PD_SET_JOINT] = {"bases of all heads' keys", "calibrate -m MODEL --text FILE --only joint"},
    [PD_SET_CODES] = {"codebooks of keys", "calibrate -m MODEL --text FILE --only codes"},
    [PD_SET_RESTORE] = {"restore embeddings and their adapter", "import-press-data -m MODEL --kind restorekv FILE..."},
    [PD_SET_RESTORE_PLUS] = {"restore embeddings and their adapter", "import-press-data -m MODEL --kind restorekv_plus FILE..."},
};

static const char *const duo_names[2] = {"duo_attention.pattern", "duo_attention.calibrated"};

struct pd_press_data {
    pd_press_model model; /* its own `data` is not used */
    uint64_t key;
    size_t n_hidden;
    size_t duo[2][2]; /* PATTERN, CALIBRATED: sink, recent */
    size_t added[2][2]; /* RESTORE, its plus variant: rows, rank */
    float *t[PD_DATA_N];
};

/* ---- shapes ---- */

static size_t dim_of(const pd_press_data *d, pd_data_set set, char c) {
    const size_t *added = d->added[set == PD_SET_RESTORE_PLUS];
    switch (c) {
    case 'l': return d->model.n_layer;
    case 'q': return d->model.n_head;
    case 'k': return d->model.n_head_kv;
    case 'D': return d->model.head_dim;
    case 'd': return d->model.n_embd;
    case 'h': return d->n_hidden;
    case 'g': return PD_GATE_DIM;
    case 'J': return d->model.n_head_kv * d->model.head_dim;
    case 'b': return PD_EIGEN_CURVES;
    case 'e': return PD_EIGEN_STEPS - 1;
    case 'P': return d->model.head_dim / 2;
    case 'C': return 256;
    case 'c': return 16;
    case 'o': return PD_OVERLAP_SETUPS;
    case 'n': return added[0];
    case 'R': return added[1];
    case 'Q': return d->model.n_head * d->model.head_dim;
    case 'f': return d->model.n_ff;
    default: return PD_LUKV_ROWS;
    }
}

unsigned pd_press_data_shape(const pd_press_data *d, pd_data_id id,
                             size_t shape[PD_DATA_DIMS_MAX]) {
    const unsigned n = (unsigned)strlen(tensors[id].dims);
    for (unsigned i = 0; i < n; i++) shape[i] = dim_of(d, tensors[id].set, tensors[id].dims[i]);
    return n;
}

size_t pd_press_data_elems(const pd_press_data *d, pd_data_id id) {
    size_t shape[PD_DATA_DIMS_MAX], n = 1;
    const unsigned n_dim = pd_press_data_shape(d, id, shape);
    for (unsigned i = 0; i < n_dim; i++)
        if (!pd_mul_size(n, shape[i], &n)) return SIZE_MAX;
    return n;
}

/* ---- look ---- */

const char *pd_data_name(pd_data_id id) {
    return tensors[id].name;
}

pd_data_set pd_data_set_of(pd_data_id id) {
    return tensors[id].set;
}

const float *pd_press_data_get(const pd_press_data *d, pd_data_id id) {
    return d ? d->t[id] : NULL;
}

unsigned pd_press_data_have(const pd_press_data *d) {
    unsigned have = 0;
    for (int id = 0; d && id < PD_DATA_N; id++)
        if (d->t[id]) have |= 1u << tensors[id].set;
    return have;
}

void pd_press_data_heads(const pd_press_data *d, size_t *per_layer, size_t *all) {
    *per_layer = d->model.n_head_kv;
    *all = d->model.n_layer * d->model.n_head_kv;
}

size_t pd_press_data_hidden(const pd_press_data *d) {
    return d->n_hidden;
}

static pd_data_id first_of(pd_data_set set) {
    return set == PD_SET_RESTORE_PLUS ? PD_DATA_RESTORE_PLUS : PD_DATA_RESTORE;
}

void pd_press_data_added(const pd_press_data *d, pd_data_set set, pd_added *ret) {
    const pd_data_id at = first_of(set);
    *ret = (pd_added){.x = pd_press_data_get(d, at)};
    if (!ret->x) return;
    ret->n = d->added[set == PD_SET_RESTORE_PLUS][0];
    ret->adapter.rank = d->added[set == PD_SET_RESTORE_PLUS][1];
    for (int p = 0; p < PD_PROJ_N; p++) {
        ret->adapter.a[p] = d->t[at + (PD_DATA_RESTORE_A - PD_DATA_RESTORE) + p];
        ret->adapter.b[p] = d->t[at + (PD_DATA_RESTORE_B - PD_DATA_RESTORE) + p];
    }
}

void pd_press_data_duo(const pd_press_data *d, pd_data_set set, size_t *sink, size_t *recent) {
    const size_t *v = d->duo[set == PD_SET_DUO_CALIBRATED];
    *sink = v[0];
    *recent = v[1];
}

/* ---- make ---- */

pd_status pd_press_data_new(pd_press_data **ret, const pd_press_model *model, uint64_t key,
                            pd_err *err) {
    pd_press_data *d = calloc(1, sizeof *d);
    if (!d) return pd_fail(err, PD_ENOMEM, NULL, "no memory for press data");
    d->model = *model;
    d->model.data = NULL;
    d->key = key;
    *ret = d;
    return PD_OK;
}

void pd_press_data_close(pd_press_data *d) {
    for (int id = 0; d && id < PD_DATA_N; id++) free(d->t[id]);
    free(d);
}

void pd_press_data_set_hidden(pd_press_data *d, size_t n_hidden) {
    for (int id = PD_DATA_KVZAP_W1; id <= PD_DATA_KVZAP_B2; id++) {
        free(d->t[id]);
        d->t[id] = NULL;
    }
    d->n_hidden = n_hidden;
}

void pd_press_data_set_added(pd_press_data *d, pd_data_set set, size_t n, size_t rank) {
    const int at = first_of(set);
    for (int id = at; id < at + (PD_DATA_RESTORE_PLUS - PD_DATA_RESTORE); id++) {
        free(d->t[id]);
        d->t[id] = NULL;
    }
    size_t *v = d->added[set == PD_SET_RESTORE_PLUS];
    v[0] = n;
    v[1] = rank;
}

void pd_press_data_set_duo(pd_press_data *d, pd_data_set set, size_t sink, size_t recent) {
    size_t *v = d->duo[set == PD_SET_DUO_CALIBRATED];
    v[0] = sink;
    v[1] = recent;
}

float *pd_press_data_put(pd_press_data *d, pd_data_id id) {
    const size_t n = pd_press_data_elems(d, id);
    float *t = calloc(n ? n : 1, sizeof *t); /* calloc checks the product */
    if (!t) return NULL;
    free(d->t[id]);
    return d->t[id] = t;
}

static pd_status check_values(const pd_press_data *d, pd_data_id id, pd_err *err) {
    const size_t n = pd_press_data_elems(d, id);
    for (size_t i = 0; i < n; i++) {
        const float x = d->t[id][i];
        if (!isfinite(x))
            return pd_fail(err, PD_EINVAL, NULL, "%s[%zu] is no number", tensors[id].name, i);
        if (x < tensors[id].min || x > tensors[id].max)
            return pd_fail(err, PD_EINVAL, NULL, "%s[%zu] is %.9g; it must be in [%.9g, %.9g]",
                           tensors[id].name, i, (double)x, (double)tensors[id].min,
                           (double)tensors[id].max);
    }
    return PD_OK;
}

/* Of an adapter's A its B, and the other way round; of others themselves. */
static int partner(int id) {
    const bool adapter = id > PD_DATA_RESTORE && id != PD_DATA_RESTORE_PLUS;
    if (!adapter) return id;
    const int at = first_of(tensors[id].set) + (PD_DATA_RESTORE_B - PD_DATA_RESTORE);
    return id < at ? id + PD_PROJ_N : id - PD_PROJ_N;
}

pd_status pd_press_data_check(const pd_press_data *d, pd_err *err) {
    const unsigned have = pd_press_data_have(d);
    for (int id = 0; id < PD_DATA_N; id++) {
        if (!(have & 1u << tensors[id].set)) continue;
        if (!d->t[id] && (partner(id) == id || d->t[partner(id)])) /* a projection may be as it was */
            return pd_fail(err, PD_EINVAL, NULL,
                           "%s is missing: other tensors of its set are there", tensors[id].name);
        if (d->t[id]) PD_TRY(check_values(d, (pd_data_id)id, err));
    }
    for (int i = 0; i < 2; i++) {
        if (!(have & 1u << (PD_SET_DUO_PATTERN + i))) continue;
        /* without a recent token a streaming head would lose what it just read */
        if (d->duo[i][0] > PD_DUO_SIZE_MAX || d->duo[i][1] < 1 || d->duo[i][1] > PD_DUO_SIZE_MAX)
            return pd_fail(
                err, PD_EINVAL, NULL,
                "%s has sink_size %zu and recent_size %zu; 0 to %d and 1 to %d are allowed",
                duo_names[i], d->duo[i][0], d->duo[i][1], PD_DUO_SIZE_MAX, PD_DUO_SIZE_MAX);
    }
    return PD_OK;
}

/* ---- the file ---- */

static pd_status put_file(const pd_press_data *d, const char *path, pd_st_meta *meta, size_t n_meta,
                          pd_err *err) {
    pd_st_out out[PD_DATA_N];
    size_t n = 0;
    for (int id = 0; id < PD_DATA_N; id++) {
        if (!d->t[id]) continue;
        out[n] = (pd_st_out){.name = tensors[id].name, .values = d->t[id]};
        out[n].n_dim = pd_press_data_shape(d, (pd_data_id)id, out[n].shape);
        n++;
    }
    return pd_safetensors_write(path, out, n, meta, n_meta, err);
}

pd_status pd_press_data_save(const pd_press_data *d, const char *path, const char *model_name,
                             pd_err *err) {
    char key[24], names[4][64], sizes[4][24];
    PD_TRY(pd_press_data_check(d, err));
    snprintf(key, sizeof key, "%016llx", (unsigned long long)d->key);
    pd_st_meta meta[7] = {{"format", format}, {"model_key", key}, {"model_name", model_name}};
    size_t n = 3;
    for (int i = 0; i < 4; i++) {
        if (!d->t[PD_DATA_DUO_PATTERN + i / 2]) continue;
        snprintf(names[i], sizeof names[i], "%s.%s", duo_names[i / 2],
                 i % 2 ? "recent_size" : "sink_size");
        snprintf(sizes[i], sizeof sizes[i], "%zu", d->duo[i / 2][i % 2]);
        meta[n++] = (pd_st_meta){names[i], sizes[i]};
    }
    return put_file(d, path, meta, n, err);
}

static pd_status check_model(const pd_press_data *d, const pd_safetensors *f, const char *path,
                             pd_err *err) {
    const char *is = pd_safetensors_meta(f, "format"), *key = pd_safetensors_meta(f, "model_key");
    if (!is || strcmp(is, format) != 0 || !key)
        return pd_file_fail(path, err,
                            "is not a file of press data; `pressd calibrate` makes one, "
                            "`pressd import-press-data` converts published ones");
    char want[24];
    snprintf(want, sizeof want, "%016llx", (unsigned long long)d->key);
    if (strcmp(key, want) == 0) return PD_OK;
    const char *name = pd_safetensors_meta(f, "model_name");
    return pd_file_fail(
        path, err, "is press data of another model: of '%.80s' (key %.16s), this one's key is %s",
        name ? name : "?", key, want);
}

static int find_tensor(const char *name) {
    for (int id = 0; id < PD_DATA_N; id++)
        if (strcmp(tensors[id].name, name) == 0) return id;
    return -1;
}

static pd_status load_tensor(pd_press_data *d, const pd_st_tensor *t, const char *path,
                             pd_err *err) {
    const int id = find_tensor(t->name);
    if (id < 0)
        return pd_file_fail(path, err, "tensor '%.60s' is not one that a press reads", t->name);
    size_t shape[PD_DATA_DIMS_MAX];
    const unsigned n = pd_press_data_shape(d, (pd_data_id)id, shape);
    bool same = n == t->n_dim;
    for (unsigned i = 0; same && i < n; i++) same = shape[i] == t->shape[i];
    if (!same) {
        char text[96] = "";
        for (unsigned i = 0, at = 0; i < n && at < sizeof text; i++)
            at += (unsigned)snprintf(text + at, sizeof text - at, "%s%zu", i ? ", " : "", shape[i]);
        return pd_file_fail(path, err, "tensor '%.60s' has a shape other than [%s]", t->name, text);
    }
    float *dst = pd_press_data_put(d, (pd_data_id)id);
    if (!dst) return pd_fail(err, PD_ENOMEM, NULL, "no memory for press data");
    pd_st_read(t, dst);
    return PD_OK;
}

static size_t meta_size(const pd_safetensors *f, const char *name, const char *what) {
    char key[64], *end;
    snprintf(key, sizeof key, "%s.%s", name, what);
    const char *s = pd_safetensors_meta(f, key);
    if (!s || s[0] < '0' || s[0] > '9') return SIZE_MAX;
    const unsigned long long v = strtoull(s, &end, 10);
    return *end == '\0' && v <= PD_DUO_SIZE_MAX ? (size_t)v : SIZE_MAX; /* refused by the check */
}

/* Rows and rank of what a RESTORE set adds, from the shapes of its tensors. */
static pd_status load_added(pd_press_data *d, const pd_safetensors *f, const char *path, pd_data_set set, pd_err *err) {
    const pd_data_id at = first_of(set);
    const pd_st_tensor *x = pd_safetensors_find(f, tensors[at].name), *a = NULL;
    for (int p = 0; !a && p < PD_PROJ_N; p++) a = pd_safetensors_find(f, tensors[at + (PD_DATA_RESTORE_A - PD_DATA_RESTORE) + p].name);
    const size_t n = x && x->n_dim == 2 ? x->shape[0] : 1, rank = a && a->n_dim == 3 ? a->shape[1] : 1;
    if (n < 1 || n > PD_ADDED_MAX)
        return pd_file_fail(path, err, "tensor '%s' has %zu rows; 1 to %d are allowed", x->name, n, PD_ADDED_MAX);
    if (rank < 1 || rank > PD_ADAPTER_RANK_MAX)
        return pd_file_fail(path, err, "tensor '%s' has rank %zu; 1 to %d are allowed", a->name, rank, PD_ADAPTER_RANK_MAX);
    pd_press_data_set_added(d, set, n, rank);
    return PD_OK;
}

static pd_status load(pd_press_data *d, const pd_safetensors *f, const char *path, pd_err *err) {
    PD_TRY(check_model(d, f, path, err));
    PD_TRY(load_added(d, f, path, PD_SET_RESTORE, err));
    PD_TRY(load_added(d, f, path, PD_SET_RESTORE_PLUS, err));
    const pd_st_tensor *w1 = pd_safetensors_find(f, tensors[PD_DATA_KVZAP_W1].name);
    if (w1 && w1->n_dim == 3) {
        if (w1->shape[1] < 1 || w1->shape[1] > PD_KVZAP_HIDDEN_MAX)
            return pd_file_fail(path, err, "tensor '%s' has %zu hidden units; 1 to %d are allowed",
                                w1->name, w1->shape[1], PD_KVZAP_HIDDEN_MAX);
        d->n_hidden = w1->shape[1];
    }
    for (size_t i = 0; i < pd_safetensors_count(f); i++)
        PD_TRY(load_tensor(d, pd_safetensors_at(f, i), path, err));
    for (int i = 0; i < 2; i++) {
        d->duo[i][0] = meta_size(f, duo_names[i], "sink_size");
        d->duo[i][1] = meta_size(f, duo_names[i], "recent_size");
    }
    pd_err why = {0};
    if (pd_press_data_check(d, &why) != PD_OK) return pd_file_fail(path, err, "%s", why.msg);
    return PD_OK;
}

pd_status pd_press_data_load(pd_press_data **ret, const char *path, const pd_press_model *model,
                             uint64_t key, pd_err *err) {
    pd_safetensors *f;
    PD_TRY(pd_safetensors_open(&f, path, err));
    pd_press_data *d = NULL;
    pd_status rc = pd_press_data_new(&d, model, key, err);
    if (rc == PD_OK) rc = load(d, f, path, err);
    pd_safetensors_close(f);
    if (rc != PD_OK) {
        pd_press_data_close(d);
        return rc;
    }
    *ret = d;
    return PD_OK;
}

/* ---- for presses ---- */

pd_status pd_press_check_data(const pd_press_inst *inst, const char *path, pd_err *err) {
    const pd_press *p = inst->press;
    if (!p->data_set) return PD_OK;
    const unsigned have = pd_press_data_have(inst->data);
    const int set = p->data_set(inst, have);
    if (set == PD_SET_N || have & 1u << set) return PD_OK;
    return pd_fail(err, PD_EINVAL, path,
                   "%s%spress '%s' needs %s of this model, which are not loaded: "
                   "`pressd %s -o DATA` makes them, "
                   "`pressd serve --press-data DATA` loads them",
                   path ? path : "", path ? ": " : "", p->name, sets[set].what, sets[set].command);
}
