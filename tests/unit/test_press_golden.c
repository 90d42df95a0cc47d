/* SPDX-License-Identifier: Apache-2.0 */
/* compression: every press against kvpress' own scores and kept sets on the same
 * seeded inputs (tests/golden/presses_unit.py and press_data.py describe the files). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/press.h"
#include "compression/shared.h"
#include "compression/spec.h"
#include "tests/unit/press_data_case.h"
#include "tests/unit/press_view.h"

#include <cblas.h>
#include <stdio.h>

/* Both sides compute in f32; their sums run in other orders. */
static const double score_rel = 1e-4;

typedef struct {
    unsigned long long seed;
    size_t n, d, hq, h;
    double ratio;
    int holds; /* 1 scores, 2 the kept values, 4 the key channels */
    char press[128];
    bool with_data;
} golden_case;

static void must_read(void *p, size_t n, FILE *f) {
    if (fread(p, 1, n, f) != n) fail_msg("the golden file is cut short");
}

static bool crosses_zero(const char *press) {
    static const char *const names[] = {"keydiff", "non_causal_attention", "leverage", "compactor",
                                        "critical:first_stage_ratio=1(keydiff)", "qfilter", "kvzap"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strncmp(press, names[i], strlen(names[i])) == 0) return true;
    return false;
}

static void compare_scores(const golden_case *c, float *const *got, FILE *f) {
    float want;
    for (size_t h = 0; h < c->h; h++)
        for (size_t i = 0; i < c->n; i++) {
            must_read(&want, sizeof want, f);
            /* cosines and standardized scores cross zero: the bound is relative to
               their scale, 1 */
            const double scale =
                crosses_zero(c->press) ? fmax(1.0, fabs((double)want)) : fabs((double)want);
            if (!(fabs((double)got[h][i] - (double)want) <= score_rel * scale))
                fail_msg("%s, seed %llu, head %zu, slot %zu: %.9g, kvpress %.9g", c->press, c->seed,
                         h, i, (double)got[h][i], (double)want);
        }
}

static void compare_kept(const golden_case *c, const pd_plan *plan, FILE *f) {
    const size_t bytes = (c->n + 7) / 8;
    uint8_t bits[64];
    assert_true(bytes <= sizeof bits);
    for (size_t h = 0; h < c->h; h++) {
        must_read(bits, bytes, f);
        size_t k = 0;
        for (size_t i = 0; i < c->n; i++) {
            const bool want = bits[i / 8] >> (7 - i % 8) & 1,
                       got = k < plan->n_keep[h] && plan->keep[h][k] == i;
            if (want != got)
                fail_msg("%s, seed %llu, head %zu, slot %zu: %s, kvpress %s it", c->press, c->seed,
                         h, i, got ? "kept" : "dropped", want ? "keeps" : "drops");
            k += got;
        }
        assert_int_equal(k, plan->n_keep[h]);
    }
}

static void compare_values(const golden_case *c, const test_view *t, const pd_plan *plan, FILE *f) {
    float want;
    for (size_t h = 0; h < c->h; h++)
        for (size_t i = 0; i < plan->n_keep[h]; i++)
            for (size_t e = 0; e < c->d; e++) {
                const float got = plan->v_new ? plan->v_new[h][i * c->d + e]
                                              : t->v[h][plan->keep[h][i] * c->d + e];
                must_read(&want, sizeof want, f);
                /* values are of size 1 */
                if (!(fabs((double)got - (double)want) <= 1e-5))
                    fail_msg("%s, seed %llu, head %zu, slot %u: value %zu is %.9g, kvpress %.9g",
                             c->press, c->seed, h, plan->keep[h][i], e, (double)got, (double)want);
            }
}

static void compare_channels(const golden_case *c, const pd_plan *plan, FILE *f) {
    const size_t bytes = (c->d + 7) / 8;
    uint8_t bits[64];
    for (size_t h = 0; h < c->h; h++) {
        must_read(bits, bytes, f);
        size_t k = 0;
        for (size_t i = 0; i < c->d; i++) {
            const bool want = bits[i / 8] >> (7 - i % 8) & 1,
                       got = !plan->channel || (k < plan->n_channel && plan->channel[h][k] == i);
            if (want != got)
                fail_msg("%s, seed %llu, head %zu, channel %zu: %s, kvpress %s it", c->press, c->seed,
                         h, i, got ? "kept" : "dropped", want ? "keeps" : "drops");
            k += got;
        }
        assert_int_equal(k, plan->n_channel);
    }
}

/* A plan that keeps all, slot by slot. */
static void spell_out(const golden_case *c, test_view *t, pd_plan *plan) {
    if (!plan->keep_all) return;
    const pd_plan before = *plan;
    pd_err err = {0};
    size_t n_keep[TV_H_MAX];
    for (size_t h = 0; h < c->h; h++) n_keep[h] = c->n;
    assert_int_equal(pd__plan_new(&t->view, n_keep, plan, &err), PD_OK);
    for (size_t h = 0; h < c->h; h++)
        for (size_t i = 0; i < c->n; i++) plan->keep[h][i] = (uint32_t)i;
    plan->channel = before.channel;
    plan->n_channel = before.n_channel;
}

static void run_case(const golden_case *c, const pd_kernels *kern, FILE *f) {
    pd_press_model model = {30, c->hq, c->h, c->d, c->hq * c->d, 40, NULL};
    pd_press_data *data = NULL;
    if (c->with_data) {
        model.n_layer = 8;
        model.data = data = pd_case_data(c->seed, &model);
    }
    pd_err err = {0};
    pd_spec *spec;
    double ratio;
    pd_press_inst *inst = NULL;
    test_view *t = tv_open(c->seed, c->n, c->hq, c->h, c->d);
    t->view.kern = kern;
    t->view.x = t->qp; /* the script's projection is the identity */
    t->view.x_rows = c->n;
    tv_add_wo(t, c->seed);
    if (strstr(c->press, "observed_attention")) tv_add_att_sum(t);
    float **scores = pd_scores_new(&t->view);
    pd_plan plan;
    const pd_budget budget = {.ratio = c->ratio};
    if (pd_spec_parse_text(c->press, "press", &t->data, &spec, &ratio, &err) != PD_OK ||
        pd_spec_resolve(spec, &model, &inst, &err) != PD_OK ||
        pd_press_plan(inst, &t->view, &budget, &plan, scores, &err) != PD_OK)
        fail_msg("%s: %s", c->press, err.msg);
    if (c->holds & 1) compare_scores(c, scores, f);
    spell_out(c, t, &plan);
    compare_kept(c, &plan, f);
    if (c->holds & 2) compare_values(c, t, &plan, f);
    if (c->holds & 4) compare_channels(c, &plan, f);
    pd_press_inst_close(inst);
    tv_close(t);
    pd_press_data_close(data);
}

static void run_file(const pd_kernels *kern, const char *path, bool with_data, size_t least) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char line[256];
    size_t n = 0;
    for (; fgets(line, sizeof line, f); n++) {
        golden_case c = {.with_data = with_data};
        if (sscanf(line, "case %llu %zu %zu %zu %zu %lf %d %127s", &c.seed, &c.n, &c.d, &c.hq, &c.h,
                   &c.ratio, &c.holds, c.press) != 8)
            fail_msg("not a case: %s", line);
        run_case(&c, kern, f);
    }
    fclose(f);
    assert_true(n >= least); /* all of them were there */
}

static const char unit_file[] = PD_SOURCE_DIR "/tests/golden/data/presses_unit.bin";
static const char data_file[] = PD_SOURCE_DIR "/tests/golden/data/press_data.bin";

static void as_kvpress(void **state) {
    (void)state;
    run_file(&tv_kernels, unit_file, false, 357);
}

/* Presses that read press data: the same random tensors on both sides. */
static void with_data_as_kvpress(void **state) {
    (void)state;
    run_file(&tv_kernels, data_file, true, 150);
}

static void as_kvpress_with_this_cpu(void **state) {
    (void)state;
    pd_kernels kern;
    pd_kernels_init(&kern, pd_cpu_detect());
    run_file(&kern, unit_file, false, 357);
    run_file(&kern, data_file, true, 150);
}

/* What says that it scores a slot from itself alone says so of a view of one slot, which is
 * how dms asks while decoding. */
static void alone_is_as_in_company(void **state) {
    (void)state;
    enum { L = 40, HQ = 6, H = 3, D = 16, EMBD = HQ * D };
    pd_press_model model = {8, HQ, H, D, EMBD, 2 * EMBD, NULL};
    pd_press_data *data = pd_case_data(5, &model);
    model.data = data;
    pd_err err = {0};
    size_t n_alone = 0;
    for (size_t p = 0; p < pd_press_count(); p++) {
        const pd_press *press = pd_press_at(p);
        if (!(press->can & PD_CAN_SCORE_ALONE)) continue;
        n_alone++;
        test_view *t = tv_open(3, L, HQ, H, D);
        pd_spec *spec;
        double ratio;
        pd_press_inst *inst = NULL;
        t->view.x = t->qp;
        t->view.x_rows = L;
        float **whole = pd_scores_new(&t->view), **part = pd_scores_new(&t->view);
        if (pd_spec_parse_text(press->name, "press", &t->data, &spec, &ratio, &err) != PD_OK ||
            pd_spec_resolve(spec, &model, &inst, &err) != PD_OK ||
            pd_press_score(inst, &t->view, whole, &err) != PD_OK)
            fail_msg("%s: %s", press->name, err.msg);
        for (size_t i = 0; i < L; i++) {
            size_t one[H];
            const int32_t *pos[H];
            const float *k[H], *v[H];
            for (size_t h = 0; h < H; h++) {
                one[h] = 1;
                pos[h] = t->pos[h] + i;
                k[h] = t->k[h] + i * D;
                v[h] = t->v[h] + i * D;
            }
            pd_view view = t->view;
            view.phase = PD_PHASE_STEP;
            view.n = view.x_rows = 1;
            view.n_h = one;
            view.pos = pos;
            view.k = k;
            view.v = v;
            view.x = t->qp + i * EMBD;
            if (pd_press_score(inst, &view, part, &err) != PD_OK) fail_msg("%s: %s", press->name, err.msg);
            for (size_t h = 0; h < H; h++)
                if (!(fabsf(part[h][0] - whole[h][i]) <= 1e-5f * fmaxf(1.0f, fabsf(whole[h][i]))))
                    fail_msg("%s, head %zu, slot %zu: %g alone, %g in company", press->name, h, i,
                             (double)part[h][0], (double)whole[h][i]);
        }
        pd_press_inst_close(inst);
        tv_close(t);
    }
    assert_true(n_alone >= 3);
    pd_press_data_close(data);
}

int main(void) {
    openblas_set_num_threads(1); /* as the engine does */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_kvpress),
        cmocka_unit_test(with_data_as_kvpress),
        cmocka_unit_test(as_kvpress_with_this_cpu),
        cmocka_unit_test(alone_is_as_in_company),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
