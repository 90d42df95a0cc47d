/* SPDX-License-Identifier: Apache-2.0 */
/* Reading published press data (see import_data.h).  The files come from the
 * network: sizes and shapes are checked before a number is read. */
#include "compression/import_data.h"

#include "compression/safetensors.h"
#include "engine/base/file.h"
#include "engine/base/num.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MAX ((size_t)16 << 20) /* of a .tsv or .npy */

static pd_status no_memory(pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for press data");
}

/* "[a, b, c]" */
static const char *shape_text(const size_t *shape, unsigned n, char *buf, size_t size) {
    size_t at = (size_t)snprintf(buf, size, "[");
    for (unsigned i = 0; i < n && at < size; i++)
        at += (size_t)snprintf(buf + at, size - at, "%s%zu", i ? ", " : "", shape[i]);
    if (at < size) snprintf(buf + at, size - at, "]");
    return buf;
}

/* ---- safetensors ---- */

/* Tensor `name`, whose shape must be shape[n], to dst. */
static pd_status read_tensor(const pd_safetensors *f, const char *path, const char *name,
                             const size_t *shape, unsigned n, float *dst, pd_err *err) {
    const pd_st_tensor *t = pd_safetensors_find(f, name);
    if (!t) return pd_file_fail(path, err, "has no tensor '%s'", name);
    if (t->n_dim != n || memcmp(t->shape, shape, n * sizeof *shape) != 0) {
        char got[96], want[96];
        return pd_file_fail(path, err, "tensor '%s' has the shape %s; the model asks for %s", name,
                            shape_text(t->shape, t->n_dim, got, sizeof got),
                            shape_text(shape, n, want, sizeof want));
    }
    pd_st_read(t, dst);
    return PD_OK;
}

/* A tensor that is one of ours as it stands. */
static pd_status read_whole(pd_press_data *d, const pd_safetensors *f, const char *path,
                            const char *name, pd_data_id id, pd_err *err) {
    size_t shape[PD_DATA_DIMS_MAX];
    const unsigned n = pd_press_data_shape(d, id, shape);
    float *dst = pd_press_data_put(d, id);
    return dst ? read_tensor(f, path, name, shape, n, dst, err) : no_memory(err);
}

pd_status pd_import_stats(pd_press_data *d, const char *path, pd_err *err) {
    pd_safetensors *f;
    PD_TRY(pd_safetensors_open(&f, path, err));
    pd_status rc = read_whole(d, f, path, "query_mean", PD_DATA_QUERY_MEAN, err);
    if (rc == PD_OK) rc = read_whole(d, f, path, "query_cov", PD_DATA_QUERY_COV, err);
    pd_safetensors_close(f);
    return rc;
}

pd_status pd_import_qfilter(pd_press_data *d, const char *path, pd_err *err) {
    pd_safetensors *f;
    PD_TRY(pd_safetensors_open(&f, path, err));
    const pd_status rc = read_whole(d, f, path, "q_filters", PD_DATA_QFILTERS, err);
    pd_safetensors_close(f);
    return rc;
}

/* layers.<l>.<part> of every layer, one after the other. */
static pd_status read_layers(pd_press_data *d, const pd_safetensors *f, const char *path,
                             const char *part, pd_data_id id, pd_err *err) {
    size_t shape[PD_DATA_DIMS_MAX], each = 1;
    const unsigned n = pd_press_data_shape(d, id, shape);
    float *dst = pd_press_data_put(d, id);
    if (!dst) return no_memory(err);
    for (unsigned i = 1; i < n; i++) each *= shape[i];
    for (size_t l = 0; l < shape[0]; l++) {
        char name[64];
        snprintf(name, sizeof name, "layers.%zu.%s", l, part);
        PD_TRY(read_tensor(f, path, name, shape + 1, n - 1, dst + l * each, err));
    }
    return PD_OK;
}

static pd_status read_kvzap(pd_press_data *d, const pd_safetensors *f, const char *path,
                            pd_err *err) {
    const pd_st_tensor *w1 = pd_safetensors_find(f, "layers.0.0.weight");
    size_t shape[PD_DATA_DIMS_MAX];
    pd_press_data_shape(d, PD_DATA_KVZAP_BIAS, shape);
    const size_t per_layer = w1 ? 4 : 2;
    if (pd_safetensors_count(f) != shape[0] * per_layer)
        return pd_file_fail(path, err, "has %zu tensors; the %s of %zu layers are %zu",
                            pd_safetensors_count(f), w1 ? "MLPs" : "linear maps", shape[0],
                            shape[0] * per_layer);
    if (!w1) {
        PD_TRY(read_layers(d, f, path, "weight", PD_DATA_KVZAP_WEIGHT, err));
        return read_layers(d, f, path, "bias", PD_DATA_KVZAP_BIAS, err);
    }
    if (w1->n_dim != 2 || w1->shape[0] < 1 || w1->shape[0] > PD_KVZAP_HIDDEN_MAX)
        return pd_file_fail(path, err, "tensor '%s' is no matrix of 1 to %d hidden units", w1->name,
                            PD_KVZAP_HIDDEN_MAX);
    pd_press_data_set_hidden(d, w1->shape[0]);
    PD_TRY(read_layers(d, f, path, "0.weight", PD_DATA_KVZAP_W1, err));
    PD_TRY(read_layers(d, f, path, "0.bias", PD_DATA_KVZAP_B1, err));
    PD_TRY(read_layers(d, f, path, "2.weight", PD_DATA_KVZAP_W2, err));
    return read_layers(d, f, path, "2.bias", PD_DATA_KVZAP_B2, err);
}

pd_status pd_import_kvzap(pd_press_data *d, const char *path, pd_err *err) {
    pd_safetensors *f;
    PD_TRY(pd_safetensors_open(&f, path, err));
    const pd_status rc = read_kvzap(d, f, path, err);
    pd_safetensors_close(f);
    return rc;
}

/* Query heads stand by KV head, then by group: the model's own order. */
static pd_status read_gates(pd_press_data *d, const pd_safetensors *f, const char *path, pd_err *err) {
    size_t q[PD_DATA_DIMS_MAX], k[PD_DATA_DIMS_MAX];
    pd_press_data_shape(d, PD_DATA_GATE_Q, q);
    pd_press_data_shape(d, PD_DATA_GATE_K, k);
    const size_t n_layer = q[0], n_head = q[1], heads = k[1], embd = q[3], g = PD_GATE_DIM;
    const struct {
        const char *name;
        pd_data_id id;
        unsigned n;
        size_t shape[PD_DATA_DIMS_MAX];
    } part[] = {
        {"q_proj.weight", PD_DATA_GATE_Q, 2, {n_head * g, embd}},
        {"q_proj.bias", PD_DATA_GATE_Q_BIAS, 1, {n_head * g}},
        {"k_proj.weight", PD_DATA_GATE_K, 2, {heads * g, embd}},
        {"q_norm.weight", PD_DATA_GATE_Q_NORM, 1, {g}},
        {"k_norm.weight", PD_DATA_GATE_K_NORM, 1, {g}},
        {"k_base", PD_DATA_GATE_BASE, 4, {heads, 1, g, g}},
        {"b", PD_DATA_GATE_B, 3, {heads, 1, n_head / heads}},
    };
    const size_t n_part = sizeof part / sizeof *part;
    if (pd_safetensors_count(f) != n_layer * n_part)
        return pd_file_fail(path, err, "has %zu tensors; the gates of %zu layers are %zu", pd_safetensors_count(f),
                            n_layer, n_layer * n_part);
    for (size_t i = 0; i < n_part; i++) {
        float *dst = pd_press_data_put(d, part[i].id);
        if (!dst) return no_memory(err);
        const size_t each = pd_press_data_elems(d, part[i].id) / n_layer;
        for (size_t l = 0; l < n_layer; l++) {
            char name[64];
            snprintf(name, sizeof name, "layers.%zu.%s", l, part[i].name);
            PD_TRY(read_tensor(f, path, name, part[i].shape, part[i].n, dst + l * each, err));
        }
    }
    return PD_OK;
}

pd_status pd_import_fastkvzip(pd_press_data *d, const char *path, pd_err *err) {
    pd_safetensors *f;
    PD_TRY(pd_safetensors_open(&f, path, err));
    const pd_status rc = read_gates(d, f, path, err);
    pd_safetensors_close(f);
    return rc;
}

/* ---- restorekv ---- */

typedef struct {
    size_t layer;
    pd_proj proj;
    bool b;
} lora_place;

static const char *const projections[PD_PROJ_N] = {
    [PD_PROJ_Q] = "self_attn.q_proj", [PD_PROJ_K] = "self_attn.k_proj", [PD_PROJ_V] = "self_attn.v_proj", [PD_PROJ_O] = "self_attn.o_proj",
    [PD_PROJ_GATE] = "mlp.gate_proj", [PD_PROJ_UP] = "mlp.up_proj",     [PD_PROJ_DOWN] = "mlp.down_proj",
};

const char *pd_proj_name(pd_proj proj) {
    return strchr(projections[proj], '.') + 1;
}

/* Behind `word`, if that is how *p begins. */
static bool skip(const char **p, const char *word) {
    const size_t n = strlen(word);
    if (strncmp(*p, word, n) != 0) return false;
    *p += n;
    return true;
}

/* [base_model.][model.]...layers.<l>.<projection>.lora_A.weight, as PEFT names them. */
static bool place_of(const char *name, lora_place *ret) {
    const char *p = name;
    while (skip(&p, "base_model.") || skip(&p, "model.")) continue;
    if (!skip(&p, "layers.") || *p < '0' || *p > '9') return false;
    char *end;
    ret->layer = (size_t)strtoull(p, &end, 10);
    p = end;
    if (!skip(&p, ".")) return false;
    int proj = 0;
    while (proj < PD_PROJ_N && !skip(&p, projections[proj])) proj++;
    ret->proj = (pd_proj)proj;
    ret->b = strcmp(p, ".lora_B.weight") == 0;
    return proj < PD_PROJ_N && (ret->b || strcmp(p, ".lora_A.weight") == 0);
}

/* One tensor to its layer of A or B.  seen[layer * PD_PROJ_N + proj]: bit 1 << b. */
static pd_status read_lora(pd_press_data *d, const pd_safetensors *f, const pd_st_tensor *t, const char *path, pd_data_id at, double scale,
                           unsigned char *seen, pd_err *err) {
    lora_place to;
    size_t shape[PD_DATA_DIMS_MAX], n_layer;
    if (!place_of(t->name, &to))
        return pd_file_fail(path, err, "tensor '%.100s' is no lora_A or lora_B of a layer's q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj or down_proj",
                            t->name);
    const pd_data_id id = (pd_data_id)(at + (to.b ? PD_DATA_RESTORE_B : PD_DATA_RESTORE_A) - PD_DATA_RESTORE + (int)to.proj);
    pd_press_data_shape(d, id, shape);
    n_layer = shape[0];
    if (to.layer >= n_layer) return pd_file_fail(path, err, "tensor '%.100s' is of layer %zu; the model has %zu", t->name, to.layer, n_layer);
    unsigned char *mark = &seen[to.layer * PD_PROJ_N + (size_t)to.proj], bit = to.b ? 2 : 1;
    if (*mark & bit) return pd_file_fail(path, err, "tensor '%.100s' is there twice, under different names", t->name);
    *mark |= bit;
    /* layers that the adapter leaves out stay 0 */
    float *all = (float *)pd_press_data_get(d, id);
    if (!all) all = pd_press_data_put(d, id);
    if (!all) return no_memory(err);
    float *dst = all + to.layer * shape[1] * shape[2];
    PD_TRY(read_tensor(f, path, t->name, shape + 1, 2, dst, err));
    for (size_t i = 0; to.b && i < shape[1] * shape[2]; i++) dst[i] = (float)(scale * (double)dst[i]);
    return PD_OK;
}

static pd_status read_adapter(pd_press_data *d, const pd_safetensors *f, const char *path, pd_data_id at, const pd_lora_config *c, pd_err *err) {
    size_t shape[PD_DATA_DIMS_MAX];
    pd_press_data_shape(d, PD_DATA_RESTORE_A, shape);
    const size_t n = shape[0] * PD_PROJ_N;
    unsigned targets = 0;
    unsigned char *seen = calloc(n, 1);
    if (!seen) return no_memory(err);
    pd_status rc = PD_OK;
    for (size_t i = 0; i < pd_safetensors_count(f) && rc == PD_OK; i++)
        rc = read_lora(d, f, pd_safetensors_at(f, i), path, at, c->scale, seen, err);
    for (size_t i = 0; i < n && rc == PD_OK; i++) {
        if (seen[i]) targets |= 1u << i % PD_PROJ_N;
        if (seen[i] == 1 || seen[i] == 2)
            rc = pd_file_fail(path, err, "layer %zu's %s has no lora_%c", i / PD_PROJ_N, pd_proj_name((pd_proj)(i % PD_PROJ_N)), seen[i] == 1 ? 'B' : 'A');
    }
    free(seen);
    PD_TRY(rc);
    if (!targets) return pd_file_fail(path, err, "has no tensors");
    for (unsigned p = 0; p < PD_PROJ_N && c->targets; p++)
        if ((c->targets ^ targets) >> p & 1)
            return pd_file_fail(path, err, "%s %s, which its config %s", targets >> p & 1 ? "adapts" : "does not adapt",
                                pd_proj_name((pd_proj)p), targets >> p & 1 ? "does not name" : "names");
    return PD_OK;
}

pd_status pd_import_restorekv(pd_press_data *d, pd_data_set set, const char *rows, const char *adapter, const pd_lora_config *c, pd_err *err) {
    static const char name[] = "restore_embeddings";
    const pd_data_id at = set == PD_SET_RESTORE_PLUS ? PD_DATA_RESTORE_PLUS : PD_DATA_RESTORE;
    pd_safetensors *f;
    PD_TRY(pd_safetensors_open(&f, rows, err));
    const pd_st_tensor *t = pd_safetensors_find(f, name);
    const size_t n = t && t->n_dim == 2 ? t->shape[0] : 0;
    pd_status rc = PD_OK;
    if (t && (n < 1 || n > PD_ADDED_MAX))
        rc = pd_file_fail(rows, err, "tensor '%s' is no matrix of 1 to %d rows", name, PD_ADDED_MAX);
    if (rc == PD_OK) {
        pd_press_data_set_added(d, set, n, c->rank);
        rc = read_whole(d, f, rows, name, at, err);
    }
    pd_safetensors_close(f);
    PD_TRY(rc);
    PD_TRY(pd_safetensors_open(&f, adapter, err));
    rc = read_adapter(d, f, adapter, at, c, err);
    pd_safetensors_close(f);
    return rc;
}

/* ---- .tsv ---- */

static pd_status parse_tsv(const char *text, size_t n_row, size_t n_col, float *dst,
                           const char *path, pd_err *err) {
    const char *p = text;
    for (size_t r = 0; r < n_row; r++) {
        for (size_t c = 0; c < n_col; c++) {
            char *end;
            const float v = strtof(p, &end);
            const char want = c + 1 < n_col ? '\t' : '\n';
            while (*end == ' ' || *end == '\r') end++;
            if (end == p || (*end != want && !(want == '\n' && *end == '\0')))
                return pd_file_fail(path, err, "line %zu is not %zu numbers with tabs between them",
                                    r + 1, n_col);
            dst[r * n_col + c] = v < 0.0f   ? 0.0f
                                 : v > 1.0f ? 1.0f
                                            : v; /* NaN stays and is refused */
            p = end + (*end != '\0');
        }
    }
    while (*p == '\n' || *p == '\r' || *p == ' ') p++;
    return *p ? pd_file_fail(path, err, "has more than %zu lines, the layers of the model", n_row)
              : PD_OK;
}

pd_status pd_import_duo(pd_press_data *d, const char *path, size_t sink, size_t recent,
                        pd_err *err) {
    char *text;
    size_t n, shape[PD_DATA_DIMS_MAX];
    PD_TRY(pd_file_read(path, TEXT_MAX, &text, &n, err));
    pd_press_data_shape(d, PD_DATA_DUO_PATTERN, shape);
    float *dst = pd_press_data_put(d, PD_DATA_DUO_PATTERN);
    const pd_status rc = dst ? parse_tsv(text, shape[0], shape[1], dst, path, err) : no_memory(err);
    free(text);
    pd_press_data_set_duo(d, PD_SET_DUO_PATTERN, sink, recent);
    return rc;
}

/* ---- .npy ---- */

/* The text behind 'key': in the header's dictionary, or NULL. */
static const char *member(const char *head, const char *key) {
    char quoted[32];
    snprintf(quoted, sizeof quoted, "'%s':", key);
    const char *p = strstr(head, quoted);
    if (!p) return NULL;
    p += strlen(quoted);
    while (*p == ' ') p++;
    return p;
}

static bool begins(const char *p, const char *word) {
    return p && strncmp(p, word, strlen(word)) == 0;
}

/* "(a, b, c)", exactly these. */
static bool same_shape(const char *p, const size_t *shape, unsigned n) {
    if (!begins(p, "(")) return false;
    p++;
    for (unsigned i = 0; i < n; i++) {
        char *end;
        if (*p < '0' || *p > '9' || strtoull(p, &end, 10) != shape[i]) return false;
        for (p = end; *p == ' ' || *p == ','; p++) continue;
    }
    return *p == ')';
}

static pd_status parse_npy(const char *bytes, size_t n, const size_t *shape, unsigned n_dim,
                           float *dst, const char *path, pd_err *err) {
    static const char magic[] = "\x93NUMPY";
    const unsigned char *u = (const unsigned char *)bytes;
    if (n < 12 || memcmp(bytes, magic, 6) != 0 || u[6] < 1 || u[6] > 3)
        return pd_file_fail(path, err, "is not a .npy file of version 1, 2 or 3");
    const size_t begin = u[6] == 1 ? 10 : 12;
    size_t len = (size_t)u[8] | (size_t)u[9] << 8;
    if (u[6] > 1) len |= (size_t)u[10] << 16 | (size_t)u[11] << 24;
    char head[512];
    if (len >= sizeof head || len > n - begin)
        return pd_file_fail(path, err, "has a header of %zu bytes; a curve's is shorter than %zu",
                            len, sizeof head);
    memcpy(head, bytes + begin, len);
    head[len] = '\0';
    const char *type = member(head, "descr"), *order = member(head, "fortran_order"),
               *dims = member(head, "shape");
    const size_t width = begins(type, "'<f4'") ? 4 : begins(type, "'<f8'") ? 8 : 0;
    if (!width || !begins(order, "False"))
        return pd_file_fail(path, err, "is not an array of '<f4' or '<f8' in C order");
    size_t elems = 1;
    char want[96];
    for (unsigned i = 0; i < n_dim; i++) elems *= shape[i];
    if (!same_shape(dims, shape, n_dim))
        return pd_file_fail(path, err, "has a shape other than %s, which the model asks for",
                            shape_text(shape, n_dim, want, sizeof want));
    if (n - begin - len != elems * width)
        return pd_file_fail(path, err, "has %zu bytes of numbers, not %zu", n - begin - len,
                            elems * width);
    for (size_t i = 0; i < elems; i++) {
        const char *p = bytes + begin + len + i * width;
        double x;
        if (width == 4) {
            memcpy(&dst[i], p, sizeof *dst);
        } else {
            memcpy(&x, p, sizeof x);
            dst[i] = (float)x;
        }
    }
    return PD_OK;
}

pd_status pd_import_lukv(pd_press_data *d, const char *path, pd_err *err) {
    char *bytes;
    size_t n, shape[PD_DATA_DIMS_MAX];
    const unsigned n_dim = pd_press_data_shape(d, PD_DATA_LUKV_CURVES, shape);
    PD_TRY(pd_file_read(path, TEXT_MAX, &bytes, &n, err));
    float *dst = pd_press_data_put(d, PD_DATA_LUKV_CURVES);
    const pd_status rc = dst ? parse_npy(bytes, n, shape, n_dim, dst, path, err) : no_memory(err);
    free(bytes);
    return rc;
}
