/* SPDX-License-Identifier: Apache-2.0 */
/* compression/import_data: published files of every kind, and ones of another
 * shape, cut short or lying. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/import_data.h"
#include "compression/safetensors.h"
#include "engine/base/file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NL = 3, HQ = 4, HK = 2, D = 8, E = 16, FF = 24, HIDDEN = 5, MOST = 99 * NL * HK };
static const pd_press_model model = {NL, HQ, HK, D, E, FF, NULL};
static char dir[] = "/tmp/pressd-import-XXXXXX", file[64];
static float numbers[2048]; /* enough for any tensor below */

static int make_dir(void **state) {
    (void)state;
    if (!mkdtemp(dir)) return -1;
    snprintf(file, sizeof file, "%s/f", dir);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) numbers[i] = (float)(i % 101) / 100.0f;
    return 0;
}

static int drop_dir(void **state) {
    (void)state;
    unlink(file);
    return rmdir(dir);
}

static pd_press_data *fresh(void) {
    pd_press_data *d = NULL;
    assert_int_equal(pd_press_data_new(&d, &model, 1, NULL), PD_OK);
    return d;
}

static void write_bytes(const void *data, size_t n) {
    const pd_file_part part = {data, n};
    assert_int_equal(pd_file_write(file, &part, 1, NULL), PD_OK);
}

static void expect_file_error(pd_status rc, const pd_err *err, const char *says) {
    if (rc != PD_EFILE || !strstr(err->msg, says) || strncmp(err->msg, dir, strlen(dir)) != 0)
        fail_msg("%d '%s' should say '%s'", (int)rc, err->msg, says);
}

static void statistics_and_filters(void **state) {
    (void)state;
    const pd_st_out good[] = {{"query_mean", 3, {NL, HQ, D}, numbers}, {"query_cov", 4, {NL, HQ, D, D}, numbers},
                              {"q_filters", 3, {NL, HK, D}, numbers}};
    assert_int_equal(pd_safetensors_write(file, good, 3, NULL, 0, NULL), PD_OK);
    pd_press_data *d = fresh();
    pd_err err = {0};
    assert_int_equal(pd_import_stats(d, file, &err), PD_OK);
    assert_int_equal(pd_import_qfilter(d, file, &err), PD_OK);
    assert_int_equal(pd_press_data_have(d), 1u << PD_SET_STATS | 1u << PD_SET_QFILTER);
    assert_memory_equal(pd_press_data_get(d, PD_DATA_QUERY_COV), numbers, NL * HQ * D * D * sizeof *numbers);
    assert_int_equal(pd_press_data_check(d, &err), PD_OK);
    pd_press_data_close(d);

    const pd_st_out wrong[] = {{"query_mean", 3, {NL, HK, D}, numbers}, {"q_filters", 2, {NL * HK, D}, numbers}};
    assert_int_equal(pd_safetensors_write(file, wrong, 2, NULL, 0, NULL), PD_OK);
    d = fresh();
    expect_file_error(pd_import_stats(d, file, &err), &err,
                      "'query_mean' has the shape [3, 2, 8]; the model asks for [3, 4, 8]");
    err = (pd_err){0};
    expect_file_error(pd_import_qfilter(d, file, &err), &err, "has the shape [6, 8]");
    pd_press_data_close(d);

    assert_int_equal(pd_safetensors_write(file, good, 1, NULL, 0, NULL), PD_OK);
    d = fresh();
    err = (pd_err){0};
    expect_file_error(pd_import_stats(d, file, &err), &err, "has no tensor 'query_cov'");
    pd_press_data_close(d);
}

/* The tensors of `n_layer` layers; `parts` per layer. */
static void write_layers(const pd_st_out *part, size_t parts, size_t n_layer) {
    pd_st_out out[32];
    char name[32][32];
    for (size_t i = 0; i < n_layer * parts; i++) {
        out[i] = part[i % parts];
        snprintf(name[i], sizeof name[i], "layers.%zu.%s", i / parts, part[i % parts].name);
        out[i].name = name[i];
        out[i].values = numbers + i; /* every layer's own */
    }
    assert_int_equal(pd_safetensors_write(file, out, n_layer * parts, NULL, 0, NULL), PD_OK);
}

static void kvzap_of_both_kinds(void **state) {
    (void)state;
    static const pd_st_out linear[] = {{.name = "weight", .n_dim = 2, .shape = {HK, E}},
                                       {.name = "bias", .n_dim = 1, .shape = {HK}}};
    static const pd_st_out mlp[] = {{.name = "0.weight", .n_dim = 2, .shape = {HIDDEN, E}},
                                    {.name = "0.bias", .n_dim = 1, .shape = {HIDDEN}},
                                    {.name = "2.weight", .n_dim = 2, .shape = {HK, HIDDEN}},
                                    {.name = "2.bias", .n_dim = 1, .shape = {HK}}};
    pd_press_data *d = fresh();
    pd_err err = {0};
    write_layers(linear, 2, NL);
    assert_int_equal(pd_import_kvzap(d, file, &err), PD_OK);
    write_layers(mlp, 4, NL);
    assert_int_equal(pd_import_kvzap(d, file, &err), PD_OK);
    assert_int_equal(pd_press_data_have(d), 1u << PD_SET_KVZAP_LINEAR | 1u << PD_SET_KVZAP_MLP);
    assert_int_equal(pd_press_data_hidden(d), HIDDEN);
    assert_int_equal(pd_press_data_check(d, &err), PD_OK);
    for (size_t l = 0; l < NL; l++) {
        assert_memory_equal(pd_press_data_get(d, PD_DATA_KVZAP_WEIGHT) + l * HK * E, numbers + 2 * l, HK * E * 4);
        assert_memory_equal(pd_press_data_get(d, PD_DATA_KVZAP_W2) + l * HK * HIDDEN, numbers + 4 * l + 2,
                            HK * HIDDEN * 4);
    }
    write_layers(linear, 2, NL + 1);
    expect_file_error(pd_import_kvzap(d, file, &err), &err, "has 8 tensors; the linear maps of 3 layers are 6");
    pd_press_data_close(d);
}

static void duo_patterns(void **state) {
    (void)state;
    static const struct {
        const char *text, *says; /* NULL = good */
    } t[] = {
        {"0.5\t1.5\n-1\t0.25\n1e-3\t1\n", NULL},
        {"0.5\t1.5\r\n-1\t0.25\r\n1e-3\t1", NULL},
        {"0.5\t1.5\n-1\n1e-3\t1\n", "line 2 is not 2 numbers"},
        {"0.5\t1.5\t1\n-1\t2\n1e-3\t1\n", "line 1 is not 2 numbers"},
        {"0.5\t1.5\n-1\tx\n1e-3\t1\n", "line 2"},
        {"0.5\t1.5\n-1\t0.25\n", "line 3"},
        {"0.5\t1.5\n-1\t0.25\n1e-3\t1\n0\t0\n", "more than 3 lines"},
        {"", "line 1"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        write_bytes(t[i].text, strlen(t[i].text));
        pd_press_data *d = fresh();
        pd_err err = {0};
        const pd_status rc = pd_import_duo(d, file, 64, 256, &err);
        if (t[i].says) {
            expect_file_error(rc, &err, t[i].says);
        } else {
            static const float want[] = {0.5f, 1, 0, 0.25f, 1e-3f, 1}; /* clipped */
            size_t sink, recent;
            assert_int_equal(rc, PD_OK);
            assert_memory_equal(pd_press_data_get(d, PD_DATA_DUO_PATTERN), want, sizeof want);
            pd_press_data_duo(d, PD_SET_DUO_PATTERN, &sink, &recent);
            assert_true(sink == 64 && recent == 256);
        }
        pd_press_data_close(d);
    }
}

#define HEAD(type, order, shape) "{'descr': '" type "', 'fortran_order': " order ", 'shape': " shape ", }      \n"

/* n bytes of numbers behind a header of that text. */
static pd_status import_npy(unsigned version, const char *head, size_t width, size_t n, pd_press_data *d, pd_err *err) {
    static unsigned char bytes[32 + 512 + 8 * MOST + 8];
    const size_t len = strlen(head), begin = version == 1 ? 10 : 12;
    memcpy(bytes, "\x93NUMPY", 6);
    bytes[6] = (unsigned char)version;
    bytes[7] = 0;
    for (size_t i = 8; i < begin; i++) bytes[i] = (unsigned char)(len >> 8 * (i - 8));
    memcpy(bytes + begin, head, len);
    for (size_t i = 0; i < MOST; i++) {
        const double x = (double)numbers[i];
        memcpy(bytes + begin + len + i * width, width == 4 ? (const void *)&numbers[i] : (const void *)&x, width);
    }
    write_bytes(bytes, begin + len + n);
    return pd_import_lukv(d, file, err);
}

static void lukv_curves(void **state) {
    (void)state;
    static const struct {
        const char *head;
        unsigned version;
        size_t width, n;
        const char *says;
    } t[] = {
        {HEAD("<f4", "False", "(99, 3, 2)"), 1, 4, 4 * MOST, NULL},
        {HEAD("<f8", "False", "(99, 3, 2)"), 2, 8, 8 * MOST, NULL},
        {HEAD("<f4", "False", "(99, 2, 3)"), 1, 4, 4 * MOST, "shape other than [99, 3, 2]"},
        {HEAD("<f4", "False", "(99, 3, 2, 1)"), 1, 4, 4 * MOST, "shape other than"},
        {HEAD("<f4", "False", "(99, 3)"), 1, 4, 4 * MOST, "shape other than"},
        {HEAD("<f4", "True", "(99, 3, 2)"), 1, 4, 4 * MOST, "C order"},
        {HEAD("<i4", "False", "(99, 3, 2)"), 1, 4, 4 * MOST, "'<f4' or '<f8'"},
        {HEAD(">f4", "False", "(99, 3, 2)"), 1, 4, 4 * MOST, "'<f4' or '<f8'"},
        {HEAD("<f4", "False", "(99, 3, 2)"), 1, 4, 4 * MOST - 1, "has 2375 bytes of numbers, not 2376"},
        {HEAD("<f4", "False", "(99, 3, 2)"), 1, 4, 4 * MOST + 1, "2377 bytes"},
        {"{}", 1, 4, 4 * MOST, "'<f4' or '<f8'"},
        {HEAD("<f4", "False", "(99, 3, 2)"), 4, 4, 4 * MOST, "version 1, 2 or 3"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        pd_press_data *d = fresh();
        pd_err err = {0};
        const pd_status rc = import_npy(t[i].version, t[i].head, t[i].width, t[i].n, d, &err);
        if (t[i].says)
            expect_file_error(rc, &err, t[i].says);
        else
            assert_memory_equal(pd_press_data_get(d, PD_DATA_LUKV_CURVES), numbers, 4 * MOST);
        pd_press_data_close(d);
    }
    /* a header that claims to be longer than the file, and files too short for one */
    static const unsigned char lie[] = {0x93, 'N', 'U', 'M', 'P', 'Y', 2, 0, 0xff, 0xff, 0xff, 0xff, '{'};
    for (size_t n = 0; n <= sizeof lie; n++) {
        write_bytes(lie, n);
        pd_press_data *d = fresh();
        pd_err err = {0};
        expect_file_error(pd_import_lukv(d, file, &err), &err, n < 12 ? "not a .npy" : "header of 4294967295");
        pd_press_data_close(d);
    }
}

/* Every layer's dictionary, and one of another group size. */
static void gates_as_they_are_published(void **state) {
    (void)state;
    static const pd_st_out part[] = {
        {.name = "q_proj.weight", .n_dim = 2, .shape = {HQ * 16, E}}, {.name = "q_proj.bias", .n_dim = 1, .shape = {HQ * 16}},
        {.name = "k_proj.weight", .n_dim = 2, .shape = {HK * 16, E}}, {.name = "q_norm.weight", .n_dim = 1, .shape = {16}},
        {.name = "k_norm.weight", .n_dim = 1, .shape = {16}}, {.name = "k_base", .n_dim = 4, .shape = {HK, 1, 16, 16}},
        {.name = "b", .n_dim = 3, .shape = {HK, 1, HQ / HK}},
    };
    enum { PARTS = sizeof part / sizeof *part };
    write_layers(part, PARTS, NL);
    pd_press_data *d = fresh();
    pd_err err = {0};
    assert_int_equal(pd_import_fastkvzip(d, file, &err), PD_OK);
    assert_int_equal(pd_press_data_check(d, &err), PD_OK);
    assert_int_equal(pd_press_data_have(d), 1u << PD_SET_FASTKVZIP);
    for (size_t l = 0; l < NL; l++) {
        assert_memory_equal(pd_press_data_get(d, PD_DATA_GATE_Q) + l * HQ * 16 * E, numbers + l * PARTS, HQ * 16 * E * sizeof(float));
        assert_memory_equal(pd_press_data_get(d, PD_DATA_GATE_B) + l * HQ, numbers + l * PARTS + PARTS - 1, HQ * sizeof(float));
    }
    pd_press_data_close(d);
    pd_st_out other[PARTS];
    memcpy(other, part, sizeof part);
    other[PARTS - 1].shape[2] = 1;
    write_layers(other, PARTS, NL);
    d = fresh();
    expect_file_error(pd_import_fastkvzip(d, file, &err), &err, "'layers.0.b' has the shape [2, 1, 1]; the model asks for [2, 1, 2]");
    pd_press_data_close(d);
    write_layers(part, PARTS, NL - 1);
    d = fresh();
    err = (pd_err){0};
    expect_file_error(pd_import_fastkvzip(d, file, &err), &err, "has 14 tensors; the gates of 3 layers are 21");
    pd_press_data_close(d);
}

/* ---- restorekv ---- */

enum { ROWS = 8, RANK = 2, LORA_MAX = 2 * NL * PD_PROJ_N };
static char adapter_file[64];

static void columns_and_rows(int p, size_t *n_in, size_t *n_out) {
    const size_t q = HQ * D, k = HK * D, in[] = {E, E, E, q, E, E, FF}, out[] = {q, k, k, E, FF, FF, E};
    *n_in = in[p];
    *n_out = out[p];
}

/* The adapter of `projs` in `n_layer` layers; tensor i's numbers begin at numbers + i. */
static size_t lora(pd_st_out *out, char (*name)[96], unsigned projs, size_t n_layer) {
    static const char *const path[] = {"self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"};
    size_t n = 0, n_in, n_out;
    for (size_t l = 0; l < n_layer; l++)
        for (int p = 0; p < PD_PROJ_N; p++)
            for (int b = 0; b < 2; b++) {
                if (!(projs >> p & 1)) continue;
                columns_and_rows(p, &n_in, &n_out);
                snprintf(name[n], sizeof name[n], "base_model.model.model.layers.%zu.%s_proj.lora_%c.weight", l, path[p], b ? 'B' : 'A');
                out[n] = (pd_st_out){name[n], 2, {b ? n_out : RANK, b ? RANK : n_in}, numbers + n};
                n++;
            }
    return n;
}

static pd_status import_restorekv(pd_press_data *d, const pd_st_out *rows, const pd_st_out *out, size_t n, unsigned targets, pd_err *err) {
    snprintf(adapter_file, sizeof adapter_file, "%s/a", dir);
    assert_int_equal(pd_safetensors_write(file, rows, 1, NULL, 0, NULL), PD_OK);
    assert_int_equal(pd_safetensors_write(adapter_file, out, n, NULL, 0, NULL), PD_OK);
    const pd_status rc = pd_import_restorekv(d, PD_SET_RESTORE, file, adapter_file, &(pd_lora_config){RANK, 1.5, targets}, err);
    unlink(adapter_file);
    return rc;
}

static const pd_st_out rows_out = {"restore_embeddings", 2, {ROWS, E}, numbers};

/* All projections in all layers; then three of them, and a layer that has none. */
static void adapters_as_they_are_published(void **state) {
    (void)state;
    static const unsigned some = 1u << PD_PROJ_K | 1u << PD_PROJ_O | 1u << PD_PROJ_DOWN;
    for (int all = 0; all < 2; all++) {
        pd_st_out out[LORA_MAX];
        char name[LORA_MAX][96];
        const unsigned projs = all ? (1u << PD_PROJ_N) - 1 : some;
        const size_t layers = all ? NL : NL - 1, n = lora(out, name, projs, layers), each = n / layers;
        pd_press_data *d = fresh();
        pd_err err = {0};
        if (import_restorekv(d, &rows_out, out, n, all ? projs : 0, &err) != PD_OK) fail_msg("%s", err.msg);
        assert_int_equal(pd_press_data_check(d, &err), PD_OK);
        assert_int_equal(pd_press_data_have(d), 1u << PD_SET_RESTORE);
        pd_added added;
        pd_press_data_added(d, PD_SET_RESTORE, &added);
        assert_true(added.n == ROWS && added.adapter.rank == RANK);
        assert_memory_equal(added.x, numbers, ROWS * E * sizeof(float));
        size_t at = 0, n_in, n_out;
        for (int p = 0; p < PD_PROJ_N; p++) {
            const float *a = added.adapter.a[p], *b = added.adapter.b[p];
            if (!(projs >> p & 1)) assert_true(!a && !b);
            if (!(projs >> p & 1)) continue;
            columns_and_rows(p, &n_in, &n_out);
            for (size_t l = 0; l < NL; l++) {
                const float *want = numbers + l * each + at;
                for (size_t i = 0; i < RANK * n_in; i++) assert_true(a[l * RANK * n_in + i] == (l < layers ? want[i] : 0.0f));
                for (size_t i = 0; i < n_out * RANK; i++) /* with its scale */
                    assert_true(b[l * n_out * RANK + i] == (l < layers ? (float)(1.5 * (double)want[1 + i]) : 0.0f));
            }
            at += 2;
        }
        pd_press_data_close(d);
    }
}

static void hostile_adapters_are_refused(void **state) {
    (void)state;
    static const struct {
        size_t tensor;    /* of all: which is another, */
        const char *name; /* so called, */
        unsigned n_dim;   /* of this shape */
        size_t shape[3];
        const char *says;
    } t[] = {
        {0, NULL, 2, {RANK + 1, E}, "q_proj.lora_A.weight' has the shape [3, 16]; the model asks for [2, 16]"},
        {1, NULL, 2, {RANK, HQ * D}, "q_proj.lora_B.weight' has the shape [2, 32]; the model asks for [32, 2]"},
        {3, NULL, 2, {HQ * D, RANK}, "k_proj.lora_B.weight' has the shape [32, 2]; the model asks for [16, 2]"},
        {12, NULL, 2, {RANK, E}, "down_proj.lora_A.weight' has the shape [2, 16]; the model asks for [2, 24]"},
        {0, NULL, 1, {RANK * E}, "has the shape [32]"},
        {0, NULL, 3, {1, RANK, E}, "has the shape [1, 2, 16]"},
        {5, "base_model.model.lm_head.lora_A.weight", 0, {0}, "'base_model.model.lm_head.lora_A.weight' is no lora_A or lora_B"},
        {5, "base_model.model.model.layers.0.self_attn.qkv_proj.lora_B.weight", 0, {0}, "is no lora_A or lora_B"},
        {5, "base_model.model.model.layers.0.self_attn.v_proj.lora_magnitude_vector", 0, {0}, "is no lora_A or lora_B"},
        {5, "base_model.model.model.layers.-1.self_attn.v_proj.lora_B.weight", 0, {0}, "is no lora_A or lora_B"},
        {5, "base_model.model.model.layers.x.self_attn.v_proj.lora_B.weight", 0, {0}, "is no lora_A or lora_B"},
        {5, "base_model.model.model.layers.", 0, {0}, "is no lora_A or lora_B"},
        {5, "model.layers.3.self_attn.v_proj.lora_B.weight", 0, {0}, "is of layer 3; the model has 3"},
        {5, "layers.99999999999999999999999.self_attn.v_proj.lora_B.weight", 0, {0}, "; the model has 3"},
        {5, "model.layers.0.self_attn.q_proj.lora_B.weight", 2, {HQ * D, RANK}, "is there twice"},
        {5, "model.layers.00.self_attn.v_proj.lora_A.weight", 2, {RANK, E}, "is there twice"},
    };
    pd_st_out out[LORA_MAX];
    char name[LORA_MAX][96];
    pd_err err;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        const size_t n = lora(out, name, (1u << PD_PROJ_N) - 1, NL);
        if (t[i].name) out[t[i].tensor].name = t[i].name;
        out[t[i].tensor].n_dim = t[i].n_dim ? t[i].n_dim : 2;
        for (size_t k = 0; k < t[i].n_dim; k++) out[t[i].tensor].shape[k] = t[i].shape[k];
        pd_press_data *d = fresh();
        err = (pd_err){0};
        expect_file_error(import_restorekv(d, &rows_out, out, n, 0, &err), &err, t[i].says);
        pd_press_data_close(d);
    }
    /* half a projection, none at all, those of another config; rows that are none, or too many */
    assert_int_equal(lora(out, name, 1u << PD_PROJ_UP, NL), 6);
    const pd_st_out a_only[] = {out[0], out[2], out[4]};
    static const pd_st_out rows[] = {{"restore_embeddings", 2, {ROWS, E + 1}, numbers}, {"restore_embeddings", 1, {ROWS * E}, numbers},
                                     {"restore_embeddings", 2, {0, E}, numbers},        {"restore_embeddings", 2, {65, E}, numbers},
                                     {"embeddings", 2, {ROWS, E}, numbers}};
    const struct {
        const pd_st_out *out;
        size_t n;
        unsigned targets;
        const pd_st_out *rows;
        const char *says;
    } other[] = {
        {out, 5, 0, &rows_out, "layer 2's up_proj has no lora_B"},
        {out + 1, 5, 0, &rows_out, "layer 0's up_proj has no lora_A"},
        {a_only, 3, 0, &rows_out, "layer 0's up_proj has no lora_B"},
        {out, 0, 0, &rows_out, "has no tensors"},
        {out, 6, 1u << PD_PROJ_UP | 1u << PD_PROJ_K, &rows_out, "does not adapt k_proj, which its config names"},
        {out, 6, 1u << PD_PROJ_DOWN, &rows_out, "adapts up_proj, which its config does not name"},
        {out, 6, 0, &rows[0], "has the shape [8, 17]; the model asks for [8, 16]"},
        {out, 6, 0, &rows[1], "is no matrix of 1 to 64 rows"},
        {out, 6, 0, &rows[2], "is no matrix of 1 to 64 rows"},
        {out, 6, 0, &rows[3], "is no matrix of 1 to 64 rows"},
        {out, 6, 0, &rows[4], "has no tensor 'restore_embeddings'"},
    };
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        pd_press_data *d = fresh();
        err = (pd_err){0};
        expect_file_error(import_restorekv(d, other[i].rows, other[i].out, other[i].n, other[i].targets, &err), &err, other[i].says);
        pd_press_data_close(d);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gates_as_they_are_published), cmocka_unit_test(statistics_and_filters), cmocka_unit_test(kvzap_of_both_kinds),
        cmocka_unit_test(duo_patterns),           cmocka_unit_test(lukv_curves),
        cmocka_unit_test(adapters_as_they_are_published), cmocka_unit_test(hostile_adapters_are_refused),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
