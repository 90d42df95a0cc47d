/* SPDX-License-Identifier: Apache-2.0 */
/* compression/press_data: the file belongs to one model and holds whole sets of
 * sound values; a press without its tensors is refused and says how to get them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/deferred.h"
#include "compression/press_data.h"
#include "compression/safetensors.h"
#include "compression/spec.h"
#include "tests/unit/press_data_case.h"
#include "tests/unit/press_view.h"
#include "tests/unit/tiny_model.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const pd_press_model model = {3, 4, 2, 8, 32, 48, NULL};
static char dir[] = "/tmp/pressd-data-XXXXXX", file[64];

static int make_dir(void **state) {
    (void)state;
    if (!mkdtemp(dir)) return -1;
    snprintf(file, sizeof file, "%s/data", dir);
    return 0;
}

static int drop_dir(void **state) {
    (void)state;
    unlink(file);
    return rmdir(dir);
}

static void save(const pd_press_data *d) {
    pd_err err = {0};
    if (pd_press_data_save(d, file, "a \"model\"", &err) != PD_OK) fail_msg("%s", err.msg);
}

static pd_press_data *load(void) {
    pd_press_data *d = NULL;
    pd_err err = {0};
    if (pd_press_data_load(&d, file, &model, 0x0123456789abcdefu, &err) != PD_OK) fail_msg("%s", err.msg);
    return d;
}

static void what_is_saved_is_loaded(void **state) {
    (void)state;
    pd_press_data *d = pd_case_data(5, &model);
    save(d);
    pd_press_data *back = load();
    assert_int_equal(pd_press_data_have(back), (1u << PD_SET_N) - 1);
    assert_int_equal(pd_press_data_hidden(back), PD_CASE_HIDDEN);
    size_t sink, recent;
    pd_press_data_duo(back, PD_SET_DUO_PATTERN, &sink, &recent);
    assert_true(sink == PD_CASE_SINK && recent == PD_CASE_RECENT);
    pd_press_data_duo(back, PD_SET_DUO_CALIBRATED, &sink, &recent);
    assert_true(sink == 1 && recent == 7);
    for (int id = 0; id < PD_DATA_N; id++)
        assert_memory_equal(pd_press_data_get(d, (pd_data_id)id), pd_press_data_get(back, (pd_data_id)id),
                            pd_press_data_elems(d, (pd_data_id)id) * sizeof(float));
    pd_press_data_close(back);
    pd_press_data_close(d);
    assert_int_equal(pd_press_data_have(NULL), 0);
    assert_null(pd_press_data_get(NULL, PD_DATA_QFILTERS));

    /* one set alone */
    assert_int_equal(pd_press_data_new(&d, &model, 0x0123456789abcdefu, NULL), PD_OK);
    pd_press_data_put(d, PD_DATA_QFILTERS)[1] = 3.0f;
    save(d);
    pd_press_data_close(d);
    back = load();
    assert_int_equal(pd_press_data_have(back), 1u << PD_SET_QFILTER);
    assert_true(pd_press_data_get(back, PD_DATA_QFILTERS)[1] == 3.0f);
    pd_press_data_close(back);
}

static void expect_refusal(uint64_t key, const pd_press_model *m, const char *says) {
    pd_press_data *d = NULL;
    pd_err err = {0};
    const pd_status rc = pd_press_data_load(&d, file, m, key, &err);
    if (rc != PD_EFILE || d || !strstr(err.msg, says) || strncmp(err.msg, dir, strlen(dir)) != 0)
        fail_msg("%d '%s' should say '%s'", (int)rc, err.msg, says);
}

static void another_models_file_is_refused(void **state) {
    (void)state;
    pd_press_data *d = pd_case_data(5, &model);
    save(d);
    pd_press_data_close(d);
    expect_refusal(0x0123456789abcdeeu, &model,
                   "another model: of 'a \"model\"' (key 0123456789abcdef), this one's key is 0123456789abcdee");
    pd_press_model other = model; /* a key that is right and a shape that is not: a broken file */
    other.head_dim = 16;
    expect_refusal(0x0123456789abcdefu, &other, "'eigen_attention.per_head' has a shape other than [3, 2, 16, 16]");
}

/* A file written by hand: a few tensors and their metadata. */
static void wrong_files_are_refused(void **state) {
    (void)state;
    static float x[3 * 2 * 8];
    static const pd_st_meta plain[] = {{"format", "pt"}};
    static const pd_st_meta mine[] = {{"format", "pressd press data 1"}, {"model_key", "0123456789abcdef"}};
    static const pd_st_meta sizes[] = {{"format", "pressd press data 1"}, {"model_key", "0123456789abcdef"},
        {"duo_attention.pattern.sink_size", "4"}, {"duo_attention.pattern.recent_size", "0"}};
    static const pd_st_meta bad_size[] = {{"format", "pressd press data 1"}, {"model_key", "0123456789abcdef"},
        {"duo_attention.pattern.sink_size", "4x"}, {"duo_attention.pattern.recent_size", "1"}};
    static const struct {
        pd_st_out out;
        const pd_st_meta *meta;
        size_t n_meta;
        float first;
        const char *says;
    } t[] = {
        {{"qfilter.filters", 3, {3, 2, 8}, x}, plain, 1, 0, "not a file of press data"},
        {{"qfilter.filters", 3, {3, 2, 8}, x}, mine, 1, 0, "not a file of press data"},
        {{"qfilter.filters", 3, {3, 2, 8}, x}, mine, 2, NAN, "qfilter.filters[0] is no number"},
        {{"qfilter.filters", 3, {2, 3, 8}, x}, mine, 2, 0, "shape other than [3, 2, 8]"},
        {{"qfilter.filters", 2, {6, 8}, x}, mine, 2, 0, "shape other than [3, 2, 8]"},
        {{"qfilter.filter", 3, {3, 2, 8}, x}, mine, 2, 0, "'qfilter.filter' is not one that a press reads"},
        {{"kvzap.linear.bias", 2, {3, 2}, x}, mine, 2, 0, "kvzap.linear.weight is missing"},
        {{"duo_attention.pattern", 2, {3, 2}, x}, sizes, 4, 1.5f, "is 1.5; it must be in [0, 1]"},
        {{"duo_attention.pattern", 2, {3, 2}, x}, sizes, 4, 0, "recent_size 0"},
        {{"duo_attention.pattern", 2, {3, 2}, x}, mine, 2, 0, "sink_size 18446744073709551615"},
        {{"duo_attention.pattern", 2, {3, 2}, x}, bad_size, 4, 0, "sink_size 18446744073709551615"},
        {{"kvzap.mlp.0.weight", 3, {3, 0, 32}, x}, mine, 2, 0, "0 hidden units"},
        {{"restorekv.embeddings", 2, {0, 32}, x}, mine, 2, 0, "has 0 rows; 1 to 64 are allowed"},
        {{"restorekv.embeddings", 2, {1, 31}, x}, mine, 2, 0, "shape other than [1, 32]"},
        {{"restorekv.embeddings", 2, {1, 32}, x}, mine, 2, NAN, "restorekv.embeddings[0] is no number"},
        {{"restorekv_plus.up_proj.lora_A", 3, {3, 0, 32}, x}, mine, 2, 0, "has rank 0; 1 to 512 are allowed"},
        {{"restorekv_plus.k_proj.lora_B", 3, {3, 16, 1}, x}, mine, 2, 0, "restorekv_plus.embeddings is missing"},
        {{"restorekv.k_proj.lora_B", 3, {3, 8, 2}, x}, mine, 2, 0, "shape other than [3, 16, 1]"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        x[0] = t[i].first;
        assert_int_equal(pd_safetensors_write(file, &t[i].out, 1, t[i].meta, t[i].n_meta, NULL), PD_OK);
        expect_refusal(0x0123456789abcdefu, &model, t[i].says);
    }
    x[0] = 0;
}

static void half_a_set_is_not_saved(void **state) {
    (void)state;
    pd_press_data *d = NULL;
    pd_err err = {0};
    assert_int_equal(pd_press_data_new(&d, &model, 1, &err), PD_OK);
    assert_non_null(pd_press_data_put(d, PD_DATA_QUERY_MEAN));
    assert_int_equal(pd_press_data_save(d, file, "m", &err), PD_EINVAL);
    assert_non_null(strstr(err.msg, "expected_attention.query_cov is missing"));
    pd_press_data_close(d);
}

/* Half a projection's adapter is none; a projection without is fine, and rows without any. */
static void an_adapter_has_both_halves(void **state) {
    (void)state;
    for (int without = 0; without < 4; without++) {
        pd_press_data *d = NULL;
        pd_err err = {0};
        pd_added added;
        assert_int_equal(pd_press_data_new(&d, &model, 0x0123456789abcdefu, &err), PD_OK);
        pd_press_data_added(d, PD_SET_RESTORE, &added);
        assert_true(added.n == 0 && !added.x);
        pd_press_data_set_added(d, PD_SET_RESTORE, 5, 2);
        assert_non_null(pd_press_data_put(d, PD_DATA_RESTORE));
        if (without != 0 && without != 3) assert_non_null(pd_press_data_put(d, PD_DATA_RESTORE_A + PD_PROJ_DOWN));
        if (without != 1 && without != 3) assert_non_null(pd_press_data_put(d, PD_DATA_RESTORE_B + PD_PROJ_DOWN));
        if (without < 2) {
            assert_int_equal(pd_press_data_save(d, file, "m", &err), PD_EINVAL);
            assert_non_null(strstr(err.msg, without ? "restorekv.down_proj.lora_B is missing" : "restorekv.down_proj.lora_A is missing"));
        } else {
            save(d);
            pd_press_data *back = load();
            pd_press_data_added(back, PD_SET_RESTORE, &added);
            assert_true(added.n == 5 && added.x && !added.adapter.a[PD_PROJ_Q]);
            assert_true(without == 3 || (added.adapter.rank == 2 && added.adapter.a[PD_PROJ_DOWN] && added.adapter.b[PD_PROJ_DOWN]));
            pd_press_data_close(back);
        }
        pd_press_data_close(d);
    }
}

static uint64_t key_of(tiny_arch arch, tiny_type type, uint64_t seed) {
    pd_gguf *g = NULL;
    uint64_t key = 0;
    assert_true(tiny_model_write(file, arch, type, seed));
    assert_int_equal(pd_gguf_open(&g, file, NULL), PD_OK);
    assert_int_equal(pd_model_key(g, &key, NULL), PD_OK);
    pd_gguf_close(g);
    return key;
}

static void a_key_is_one_models(void **state) {
    (void)state;
    const uint64_t key = key_of(TINY_LLAMA, TINY_Q8_0, 1);
    assert_true(key == key_of(TINY_LLAMA, TINY_Q8_0, 1));
    assert_true(key != key_of(TINY_LLAMA, TINY_Q8_0, 2)); /* other weights, the same shapes */
    assert_true(key != key_of(TINY_LLAMA, TINY_Q4_1, 1));
    assert_true(key != key_of(TINY_GEMMA3, TINY_Q8_0, 1));
}

static pd_status resolve(const char *text, const pd_press_data *d, pd_press_inst **inst, pd_err *err) {
    pd_press_model m = model;
    m.data = d;
    pd_arena a = {0};
    pd_spec *spec;
    double ratio;
    pd_status rc = pd_spec_parse_text(text, "compression.press", &a, &spec, &ratio, err);
    if (rc == PD_OK) rc = pd_spec_resolve(spec, &m, inst, err);
    pd_arena_done(&a);
    return rc;
}

static void a_press_says_what_it_lacks(void **state) {
    (void)state;
    static const struct {
        const char *press, *says;
    } t[] = {
        {"qfilter", "press 'qfilter' needs filters of this model"},
        {"adakv(qfilter)", "pressd calibrate -m MODEL --text FILE --only qfilter -o DATA"},
        {"expected_attention_stats", "--only stats"},
        {"kvzap", "import-press-data -m MODEL --kind kvzap FILE"},
        {"kvzap:model_type=linear", "--only kvzap"},
        {"duo_attention", "--only duo"},
        {"lukv(knorm)", "--only lukv"},
        {"eigen_attention", "calibrate -m MODEL --text FILE --only eigen -o DATA"},
        {"fastkvzip", "needs gates of this model"},
        {"fastkvzip:layerwise=true", "calibrate -m MODEL --text FILE --only fastkvzip"},
        {"restorekv", "needs restore embeddings and their adapter of this model, which are not loaded: "
                      "`pressd import-press-data -m MODEL --kind restorekv FILE... -o DATA`"},
        {"restorekv:kvzip_plus_normalization=true", "import-press-data -m MODEL --kind restorekv_plus FILE... -o DATA"},
    };
    pd_press_data *all = pd_case_data(5, &model);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        pd_press_inst *inst = NULL;
        pd_err err = {0};
        if (resolve(t[i].press, NULL, &inst, &err) != PD_EINVAL || !strstr(err.msg, t[i].says) ||
            strncmp(err.msg, "compression.press", 17) != 0 || strncmp(err.param, "compression.press", 17) != 0)
            fail_msg("%s: '%s' should say '%s'", t[i].press, err.msg, t[i].says);
        if (resolve(t[i].press, all, &inst, &(pd_err){0}) != PD_OK) fail_msg("%s", t[i].press);
        pd_press_inst_close(inst);
    }
    pd_press_data_close(all);
}

/* A budget in tokens: the first row whose mean over all heads fits, and no layer
 * keeps more than `most` told admission. */
static void lukv_keeps_within_a_count(void **state) {
    (void)state;
    const pd_press_model m = {8, 6, 2, 16, 96, 192, NULL};
    test_view *t = tv_open(3, 200, 6, 2, 16);
    pd_press_data *d = pd_case_data(9, &m);
    pd_press_inst *inst = NULL;
    assert_int_equal(resolve("lukv(knorm)", d, &inst, NULL), PD_OK);
    size_t before = SIZE_MAX;
    for (size_t count = 199; count > 0; count -= count > 9 ? 9 : 1) {
        const pd_budget b = {.by_count = true, .count = count};
        size_t total = 0;
        for (size_t l = 0; l < 8; l++) {
            pd_plan plan;
            t->view.layer = (int)l;
            assert_int_equal(pd_press_plan(inst, &t->view, &b, &plan, NULL, NULL), PD_OK);
            size_t layer = 0;
            for (size_t h = 0; h < 2; h++) layer += plan.n_keep[h];
            assert_true((layer + 1) / 2 == pd_press_most(inst, &b, l, 200));
            total += layer;
            pd_arena_reset(&t->tmp);
        }
        if (count >= 20) assert_true(total <= count * 16);
        assert_true(total <= before);
        before = total;
    }
    pd_press_inst_close(inst);
    pd_press_data_close(d);
    tv_close(t);
}

/* Protected slots stay in streaming heads, and heads of windowed layers (< 0) are
 * neither counted nor chosen. */
static void duo_protects_and_counts(void **state) {
    (void)state;
    const pd_press_model m = {8, 6, 2, 16, 96, 192, NULL};
    test_view *t = tv_open(3, 100, 6, 2, 16);
    pd_press_data *d = NULL;
    assert_int_equal(pd_press_data_new(&d, &m, 1, NULL), PD_OK);
    float *s = pd_press_data_put(d, PD_DATA_DUO_CALIBRATED);
    for (int i = 0; i < 16; i++) s[i] = i == 6 || i == 7 ? 0.1f * (float)(i - 5) : -1.0f; /* layer 3 alone */
    pd_press_data_set_duo(d, PD_SET_DUO_CALIBRATED, 3, 10);
    static uint8_t mask[100];
    mask[50] = 1;
    for (size_t h = 0; h < 2; h++) t->protect[h] = mask;
    t->view.protect = t->protect;
    pd_press_inst *inst = NULL;
    assert_int_equal(resolve("duo_attention:head_compression_ratio=0.5", d, &inst, NULL), PD_OK);
    pd_plan plan;
    const pd_budget none = {0};
    assert_int_equal(pd_press_plan(inst, &t->view, &none, &plan, NULL, NULL), PD_OK);
    assert_false(plan.keep_all);
    assert_int_equal(plan.n_keep[0], 14); /* one of the two heads that count */
    assert_int_equal(plan.n_keep[1], 100);
    assert_int_equal(plan.keep[0][2], 2);
    assert_int_equal(plan.keep[0][3], 50);
    assert_int_equal(plan.keep[0][4], 90);
    assert_int_equal(pd_press_most(inst, &none, 3, 100), (13 + 100 + 1) / 2);
    assert_int_equal(pd_press_most(inst, &none, 2, 100), 100);
    pd_press_inst_close(inst);
    pd_press_data_close(d);
    tv_close(t);
}

/* rms(x) * w of 16 numbers. */
static void rms(const double *x, const float *w, double *y) {
    double sum = 0.0;
    for (size_t i = 0; i < 16; i++) sum += x[i] * x[i];
    for (size_t i = 0; i < 16; i++) y[i] = x[i] / sqrt(sum / 16.0 + 1e-6) * w[i];
}

/* Rows of a product, [16], of head `head` and input x. */
static void rows16(const float *w, const float *bias, size_t head, const float *x, size_t d, double *y) {
    for (size_t i = 0; i < 16; i++) {
        y[i] = bias ? bias[head * 16 + i] : 0.0;
        for (size_t e = 0; e < d; e++) y[i] += (double)w[(head * 16 + i) * d + e] * x[e];
    }
}

/* Fast KVzip's gate in double, over more rows than one task has. */
static void gates_follow_their_formula(void **state) {
    (void)state;
    const pd_press_model m = {8, 6, 2, 16, 96, 192, NULL};
    enum { N = 300, L = 3, HQ = 6, H = 2, E = 96 };
    test_view *t = tv_open(4, N, HQ, H, 16);
    pd_press_data *d = pd_case_data(9, &m);
    pd_press_inst *inst = NULL;
    assert_int_equal(resolve("fastkvzip", d, &inst, NULL), PD_OK);
    float *x = tv_floats(t, N * E), **score = pd_scores_new(&t->view);
    pd_rng rng = {77};
    for (size_t i = 0; i < N * E; i++) x[i] = pd_rng_f32(&rng);
    pd_err err = {0};
    assert_int_equal(inst->press->deferred->score(inst, &t->view, score, &err), PD_EINTERNAL); /* without its input */
    t->view.x = x;
    t->view.x_rows = N;
    assert_int_equal(inst->press->deferred->score(inst, &t->view, score, &err), PD_OK);
    const float *layer[PD_DATA_N];
    for (int id = PD_DATA_GATE_Q; id <= PD_DATA_GATE_B; id++)
        layer[id] = pd_press_data_get(d, (pd_data_id)id) + L * (pd_press_data_elems(d, (pd_data_id)id) / 8);
    double least = 1.0, most = 0.0;
    for (size_t i = 0; i < N; i += i < 250 ? 25 : 1)
        for (size_t h = 0; h < H; h++) {
            double raw[16], k[16], q[16], want = 0.0;
            rows16(layer[PD_DATA_GATE_K], NULL, h, x + i * E, E, raw);
            rms(raw, layer[PD_DATA_GATE_K_NORM], k);
            for (size_t g = h * 3; g < h * 3 + 3; g++) {
                rows16(layer[PD_DATA_GATE_Q], layer[PD_DATA_GATE_Q_BIAS], g, x + i * E, E, raw);
                rms(raw, layer[PD_DATA_GATE_Q_NORM], q);
                double u = layer[PD_DATA_GATE_B][g], sum = 0.0;
                for (size_t e = 0; e < 16; e++) u += q[e] * k[e] / 4.0;
                for (size_t b = 0; b < 16; b++) {
                    double z = 0.0;
                    for (size_t e = 0; e < 16; e++) z += q[e] * (double)layer[PD_DATA_GATE_BASE][(h * 16 + b) * 16 + e] / 4.0;
                    sum += exp(z - u);
                }
                want += 1.0 / (1.0 + sum) / 3.0;
            }
            if (!(fabs(score[h][i] - want) <= 1e-5 * want)) fail_msg("row %zu head %zu: %g, not %g", i, h, (double)score[h][i], want);
            least = fmin(least, want);
            most = fmax(most, want);
        }
    assert_true(most > 2.0 * least); /* the gates tell rows apart */
    pd_press_inst_close(inst);
    pd_press_data_close(d);
    tv_close(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_saved_is_loaded),    cmocka_unit_test(another_models_file_is_refused),
        cmocka_unit_test(wrong_files_are_refused),    cmocka_unit_test(half_a_set_is_not_saved),
        cmocka_unit_test(a_key_is_one_models),        cmocka_unit_test(a_press_says_what_it_lacks),
        cmocka_unit_test(lukv_keeps_within_a_count),  cmocka_unit_test(duo_protects_and_counts),
        cmocka_unit_test(gates_follow_their_formula), cmocka_unit_test(an_adapter_has_both_halves),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
