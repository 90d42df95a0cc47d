/* SPDX-License-Identifier: Apache-2.0 */
/* What each press costs on one layer, one thread: scores and plan of a prompt, or,
 * for presses that work while tokens are generated, of one pruning.
 *
 *     bench_presses [--heads QUERY,KV,DIM,WIDTH] [--rounds N] [--layer-ms MS[,MS...]] TOKENS[,TOKENS...] [PRESS...]
 *
 * Prints CSV: press, tokens, "prompt" or "pruning", milliseconds of CPU time (best
 * of N rounds, default 25) and, with --layer-ms (CPU milliseconds of one layer's
 * prefill, for each TOKENS), their share of it in per cent.
 * Without PRESS (text form) every press of the registry with its defaults, wrappers
 * around knorm, tensors of press data at random.  The layer is synthetic (tests/unit/press_view.h) in the shape of
 * SmolLM2-135M unless said otherwise; the ratio is 0.5.  What prefill collects
 * (moments, queries, attention sums) is there already and not counted.  A text
 * shorter than a press needs is left out. */
#include "compression/spec.h"
#include "tests/unit/press_data_case.h"
#include "tests/unit/press_view.h"

#include <cblas.h>
#include <stdio.h>
#include <time.h>

enum { ROUNDS = 25 };

typedef struct {
    size_t hq, h, d, width, rounds;
    double prefill_ms; /* 0 = not known */
    pd_press_data *data;
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

/* Best of the rounds, in *ms. */
static pd_status best_of(const pd_press_inst *inst, const pd_view *view, const pd_budget *b, size_t rounds, double *ms,
                         pd_err *err) {
    *ms = 1e30;
    for (size_t i = 0; i < rounds; i++) {
        pd_plan plan;
        pd_arena_reset(view->tmp);
        const double t0 = cpu_ms();
        PD_TRY(pd_press_plan(inst, view, b, &plan, NULL, err));
        *ms = fmin(*ms, cpu_ms() - t0);
    }
    return PD_OK;
}

/* The view as a decode press finds it: recent queries alone, a tag beside each slot. */
static pd_view while_decoding(const test_view *t, float *const *tag, size_t n_recent, const pd_decode_rule *rule) {
    pd_view v = t->view;
    v.phase = PD_PHASE_STEP;
    v.n_steps = rule->interval;
    v.tag = tag;
    const size_t rows = n_recent < v.q_rows ? n_recent : v.q_rows;
    v.q += (v.q_rows - rows) * v.n_head * v.head_dim;
    v.q_pos += v.q_rows - rows;
    v.q_rows = v.stat_rows = rows;
    v.moments++; /* n_sink 0; any numbers do */
    v.n_moments = 1;
    v.att_sum = NULL;
    return v;
}

static int measure(const layer *l, const char *text, test_view *t, float *const *tag) {
    const pd_press_model model = {30, l->hq, l->h, l->d, l->width, 40, l->data};
    pd_budget b = {.ratio = 0.5};
    pd_arena a = {0};
    pd_spec *spec;
    double ratio, ms = 0.0;
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
    const pd_press_inst *prune = inst;
    pd_decode_rule rule;
    pd_view view = t->view;
    const bool decodes = inst->press->decode_rule && inst->press->decode_rule(inst, &rule);
    if (decodes) {
        prune = rule.prune;
        view = while_decoding(t, tag, rule.n_recent, &rule);
        b = pd_decode_budget(&rule, t->view.n);
        if (b.by_count && b.count >= t->view.n) b.count = t->view.n / 2;
    } else {
        view = as_asked(&t->view, inst);
        view.tag = tag;
    }
    /* prefill_decoding is no work of its own: its presses are */
    if (pd_press_min_tokens(inst) <= t->view.n && (prune->press->plan || prune->press->score)) {
        rc = best_of(prune, &view, &b, l->rounds, &ms, &err);
        if (rc == PD_OK) printf("%s,%zu,%s,%.3g,", text, t->view.n, decodes ? "pruning" : "prompt", ms);
        if (rc == PD_OK && l->prefill_ms > 0.0) printf("%.2f", 100.0 * ms / l->prefill_ms);
        if (rc == PD_OK) printf("\n");
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
    layer l = {.hq = 9, .h = 3, .d = 64, .width = 576, .rounds = ROUNDS};
    char *layer_ms = NULL;
    int at = 1;
    for (; at + 1 < argc && strncmp(argv[at], "--", 2) == 0; at += 2) {
        if (strcmp(argv[at], "--rounds") == 0 && sscanf(argv[at + 1], "%zu", &l.rounds) == 1)
            continue;
        if (strcmp(argv[at], "--heads") == 0 &&
            sscanf(argv[at + 1], "%zu,%zu,%zu,%zu", &l.hq, &l.h, &l.d, &l.width) == 4)
            continue;
        if (strcmp(argv[at], "--layer-ms") == 0) {
            layer_ms = argv[at + 1];
            continue;
        }
        return fail(argv[at], "not an option, or not its value");
    }
    if (l.h == 0 || l.h > TV_H_MAX || l.hq % l.h || l.d == 0 || l.d % 16 || l.width == 0)
        return fail("--heads", "no such layer");
    if (at >= argc) return fail("usage", "bench_presses [--heads Q,KV,D,W] [--rounds N] [--layer-ms MS[,...]] TOKENS[,...] [PRESS...]");
    openblas_set_num_threads(1); /* as the engine does */
    pd_kernels kern;
    pd_kernels_init(&kern, pd_cpu_detect());
    const pd_press_model model = {30, l.hq, l.h, l.d, l.width, 40, NULL};
    l.data = pd_case_data(3, &model);
    pd_press_data_set_hidden(l.data, 512); /* as the published regressors */
    for (int id = PD_DATA_KVZAP_W1; id <= PD_DATA_KVZAP_B2; id++) {
        pd_rng rng = {(uint64_t)id};
        float *x = pd_press_data_put(l.data, (pd_data_id)id);
        if (!x) return fail("press data", "no memory");
        for (size_t i = 0; i < pd_press_data_elems(l.data, (pd_data_id)id); i++) x[i] = 0.1f * pd_rng_f32(&rng);
    }
    int rc = 0;
    printf("press,tokens,what,ms,percent of prefill\n");
    for (char *p = argv[at], *end; *p; p = *end ? end + 1 : end) {
        const size_t n = strtoul(p, &end, 10);
        if (n == 0 || end == p || (*end && *end != ',')) return fail(argv[at], "not a list of token counts");
        if (layer_ms) l.prefill_ms = strtod(layer_ms, &layer_ms);
        if (layer_ms && *layer_ms == ',') layer_ms++;
        test_view *t = open_layer(&l, &kern, n);
        float *tag[TV_H_MAX];
        for (size_t h = 0; h < l.h; h++) {
            tag[h] = tv_floats(t, n);
            for (size_t i = 0; i < n; i++) tag[h][i] = (float)(i % 97);
        }
        for (int i = at + 1; i < argc; i++) rc |= measure(&l, argv[i], t, tag);
        for (size_t i = 0; i < pd_press_count() && at + 1 == argc; i++) {
            char text[256];
            if (pd_press_at(i)->deferred) continue;
            default_text(pd_press_at(i), text, sizeof text);
            rc |= measure(&l, text, t, tag);
        }
        tv_close(t);
    }
    pd_press_data_close(l.data);
    return rc;
}
