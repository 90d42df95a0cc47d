/* SPDX-License-Identifier: Apache-2.0 */
/* What each press costs on one layer, one thread: scores and plan of a prompt.
 *
 *     bench_presses [--heads QUERY,KV,DIM,WIDTH] [--rounds N] TOKENS[,TOKENS...] [PRESS...]
 *
 * Prints CSV: press, tokens, milliseconds of CPU time (best of N rounds, default 25).
 * Without PRESS (text form) every press of the registry with its defaults, wrappers
 * around knorm.  The layer is synthetic (tests/unit/press_view.h) in the shape of
 * SmolLM2-135M unless said otherwise; the ratio is 0.5.  What prefill collects
 * (moments, queries, attention sums) is there already and not counted.  A text
 * shorter than a press needs is left out. */
#include "compression/spec.h"
#include "tests/unit/press_view.h"

#include <cblas.h>
#include <stdio.h>
#include <time.h>

enum { ROUNDS = 25 };

typedef struct {
    size_t hq, h, d, width, rounds;
} layer;

static double cpu_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static int fail(const char *what, const char *why) {
    fprintf(stderr, "bench_presses: %s: %s\n", what, why);
    return 1;
}

/* The default of every parameter; what must be given is given something plain. */
static void default_text(const pd_press *p, char *text, size_t size) {
    size_t n = (size_t)snprintf(text, size, "%s", p->name);
    char before = ':';
    for (size_t i = 0; i < p->n_params && n < size; i++) {
        const pd_param *q = &p->params[i];
        if (!(q->flags & PD_PARAM_REQUIRED)) continue;
        n += (size_t)snprintf(text + n, size - n, "%c%s=%s", before, q->name,
                              q->type == PD_PARAM_FLOAT_LIST ? "0.5*30" : "32");
        before = ',';
    }
    if (n < size) snprintf(text + n, size - n, "%s", p->min_child ? "(knorm)" : "");
}

/* What prefill collects for this press, no more: wrappers pass on what they find. */
static pd_view as_asked(const pd_view *full, const pd_press_inst *inst) {
    pd_view v = *full;
    pd_press_needs needs;
    pd_press_collect_needs(inst, &needs);
    if (!needs.n_moments) v.n_moments = 0;
    if (!(needs.bits & (PD_NEEDS_Q_TAIL | PD_NEEDS_Q_ALL))) v.q_rows = 0;
    if (!(needs.bits & PD_NEEDS_Q_ALL) && needs.q_tail < v.q_rows) {
        v.q += (v.q_rows - needs.q_tail) * v.n_head * v.head_dim;
        v.q_pos += v.q_rows - needs.q_tail;
        v.q_rows = needs.q_tail;
    }
    if (v.q_rows == 0) v.q = NULL;
    if (!(needs.bits & PD_NEEDS_X)) v.x = NULL, v.x_rows = 0;
    if (!(needs.bits & PD_NEEDS_WO)) v.wo = NULL;
    if (!(needs.bits & PD_NEEDS_ATT_SUM)) v.att_sum = NULL;
    return v;
}

static int measure(const layer *l, const char *text, test_view *t) {
    const pd_press_model model = {30, l->hq, l->h, l->d, l->width, NULL};
    const pd_budget half = {.ratio = 0.5};
    pd_arena a = {0};
    pd_spec *spec;
    double ratio, best = 1e30;
    pd_err err = {0};
    pd_press_inst *inst = NULL;
    pd_status rc = pd_spec_parse_text(text, "press", &a, &spec, &ratio, &err);
    if (rc == PD_OK) rc = pd_spec_resolve(spec, &model, &inst, &err);
    pd_arena_done(&a);
    if (rc != PD_OK) return fail(text, err.msg);
    if (!inst) return fail(text, "no press");
    if (inst->press->deferred) {
        pd_press_inst_close(inst);
        return fail(text, "decides over all layers: no layer of it can be measured");
    }
    if (pd_press_min_tokens(inst) <= t->view.n) {
        const pd_view view = as_asked(&t->view, inst);
        for (size_t i = 0; i < l->rounds && rc == PD_OK; i++) {
            pd_plan plan;
            pd_arena_reset(&t->tmp);
            const double t0 = cpu_ms();
            rc = pd_press_plan(inst, &view, &half, &plan, NULL, &err);
            const double ms = cpu_ms() - t0;
            if (ms < best) best = ms;
        }
        if (rc == PD_OK) printf("%s,%zu,%.3g\n", text, t->view.n, best);
        fflush(stdout);
    }
    pd_press_inst_close(inst);
    return rc == PD_OK ? 0 : fail(text, err.msg);
}

/* As prefill would leave it.  The attention sums are any: summing them up is
 * prefill's work. */
static test_view *open_layer(const layer *l, const pd_kernels *kern, size_t n) {
    test_view *t = tv_open(1, n, l->hq, l->h, l->d);
    t->view.kern = kern;
    t->view.n_layer = 30;
    t->view.n_embd = l->width;
    tv_add_wo(t, 1);
    pd_rng rng = {2};
    float *sums = tv_floats(t, l->hq * n);
    for (size_t i = 0; i < l->hq * n; i++) sums[i] = (float)pd_rng_f64(&rng);
    t->view.att_sum = sums;
    t->view.x = tv_floats(t, n * l->width);
    t->view.x_rows = n;
    for (size_t i = 0; i < n * l->width; i++) ((float *)(uintptr_t)t->view.x)[i] = pd_rng_f32(&rng);
    return t;
}

int main(int argc, char **argv) {
    layer l = {9, 3, 64, 576, ROUNDS};
    int at = 1;
    for (; at + 1 < argc && strncmp(argv[at], "--", 2) == 0; at += 2) {
        if (strcmp(argv[at], "--rounds") == 0 && sscanf(argv[at + 1], "%zu", &l.rounds) == 1)
            continue;
        if (strcmp(argv[at], "--heads") == 0 &&
            sscanf(argv[at + 1], "%zu,%zu,%zu,%zu", &l.hq, &l.h, &l.d, &l.width) == 4)
            continue;
        return fail(argv[at], "not an option, or not its value");
    }
    if (l.h == 0 || l.h > TV_H_MAX || l.hq % l.h || l.d == 0 || l.d % 16 || l.width == 0)
        return fail("--heads", "no such layer");
    if (at >= argc) return fail("usage", "bench_presses [--heads Q,KV,D,W] [--rounds N] TOKENS[,...] [PRESS...]");
    openblas_set_num_threads(1); /* as the engine does */
    pd_kernels kern;
    pd_kernels_init(&kern, pd_cpu_detect());
    int rc = 0;
    printf("press,tokens,ms\n");
    for (char *p = argv[at], *end; *p; p = *end ? end + 1 : end) {
        const size_t n = strtoul(p, &end, 10);
        if (n == 0 || end == p || (*end && *end != ',')) return fail(argv[at], "not a list of token counts");
        test_view *t = open_layer(&l, &kern, n);
        for (int i = at + 1; i < argc; i++) rc |= measure(&l, argv[i], t);
        for (size_t i = 0; i < pd_press_count() && at + 1 == argc; i++) {
            char text[256];
            if (pd_press_at(i)->deferred || pd_press_at(i)->unserved) continue;
            default_text(pd_press_at(i), text, sizeof text);
            rc |= measure(&l, text, t);
        }
        tv_close(t);
    }
    return rc;
}
