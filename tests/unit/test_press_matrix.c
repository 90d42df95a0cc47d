/* SPDX-License-Identifier: Apache-2.0 */
/* compression: what holds for every press of the registry, bare and inside every
 * wrapper that takes it.  No press is named here: what each is asked follows from
 * its parameter table and from what it says it can (PD_CAN_*), so a new press is
 * tested the moment it is listed.
 *
 * Each tree is drawn with random parameters from their ranges, and looks at
 * random views that hold what it asked for and nothing more. */
#include "tests/unit/press_case.h"
#include "tests/unit/press_data_case.h"
#include "tests/unit/press_draw.h"

#include <cblas.h>
#include <stdio.h>

enum { N_MAX = 230, N_LAYER = 8, LAYER = 3, LEAST_MAX = 150 };

static const size_t layouts[][3] = {{6, 2, 16}, {4, 4, 32}, {3, 1, 16}, {8, 2, 16}};
enum { N_LAYOUT = sizeof layouts / sizeof *layouts };

typedef struct {
    pd_press_model model[N_LAYOUT];
    pd_press_data *data[N_LAYOUT];
} models;

static int open_models(void **state) {
    models *m = calloc(1, sizeof *m);
    if (!m) return -1;
    for (size_t i = 0; i < N_LAYOUT; i++) {
        const size_t *l = layouts[i];
        m->model[i] = (pd_press_model){N_LAYER, l[0], l[1], l[2], l[0] * l[2], 40, NULL};
        m->data[i] = pd_case_data(77 + i, &m->model[i]);
        m->model[i].data = m->data[i];
    }
    *state = m;
    return 0;
}

static int close_models(void **state) {
    models *m = *state;
    for (size_t i = 0; i < N_LAYOUT; i++) pd_press_data_close(m->data[i]);
    free(m);
    return 0;
}

/* ---- views ---- */

/* n tokens with what the tree asked for, no more; with protected tokens or as
 * decoding would find it. */
static test_view *open_view(const pd_press_inst *inst, const size_t *l, size_t n, uint64_t seed) {
    test_view *t = tv_open(seed, n, l[0], l[1], l[2]);
    pd_view *v = &t->view;
    pd_press_needs needs;
    pd_press_collect_needs(inst, &needs);
    v->layer = LAYER;
    v->n_layer = N_LAYER;
    v->n_moments = 0;
    for (size_t i = 0; i < needs.n_moments; i++) tv_add_moments(t, 0, n, needs.n_sink[i]);
    if (needs.bits & PD_NEEDS_WO) tv_add_wo(t, seed);
    if (needs.bits & PD_NEEDS_ATT_SUM) tv_add_att_sum(t);
    if (needs.bits & PD_NEEDS_X) v->x = t->qp, v->x_rows = n;
    if (!(needs.bits & PD_NEEDS_Q_ALL)) {
        const size_t rows = needs.q_tail < n ? needs.q_tail : n;
        v->q = rows ? v->q + (n - rows) * l[0] * l[2] : NULL;
        v->q_pos += n - rows;
        v->q_rows = rows;
    }
    return t;
}

/* Slots gone, unevenly if the tree stands that; the recent queries are the last 64. */
static test_view *open_step(const pd_press_inst *inst, const size_t *l, size_t n, uint64_t seed, bool ragged) {
    test_view *t = tv_open(seed, n, l[0], l[1], l[2]);
    pd_press_needs needs;
    pd_press_collect_needs(inst, &needs);
    t->view.layer = LAYER;
    t->view.n_layer = N_LAYER;
    tv_make_step(t, seed + 1, ragged ? 0.4 : 0.0, needs.q_tail > 64 ? needs.q_tail : 64);
    if (needs.bits & PD_NEEDS_WO) tv_add_wo(t, seed);
    if (!needs.n_moments) t->view.n_moments = 0;
    return t;
}

/* ---- what must hold of a plan ---- */

typedef struct {
    const char *text;
    const pd_press_inst *inst;
    const test_view *t;
    pd_budget b;
    unsigned can;
} question;

static pd_plan ask(const question *q, test_view *t, float *const *scores) {
    pd_plan plan;
    pd_err err = {0};
    if (pd_press_plan(q->inst, &t->view, &q->b, &plan, scores, &err) != PD_OK)
        fail_msg("%s, n %zu, ratio %g, count %zu: %s", q->text, t->view.n, q->b.ratio, q->b.count, err.msg);
    return plan;
}

static bool own_say(const pd_press_inst *inst) {
    bool yes = inst->press->own_budget || inst->press->child_ratio;
    for (size_t i = 0; i < inst->n_child; i++) yes = yes || own_say(inst->child[i]);
    return yes;
}

static bool has_most(const pd_press_inst *inst) {
    bool yes = inst->press->most != NULL;
    for (size_t i = 0; i < inst->n_child; i++) yes = yes || has_most(inst->child[i]);
    return yes;
}

static void check(const question *q, const pd_plan *plan) {
    const pd_view *v = &q->t->view;
    const size_t heads = v->n_head_kv;
    size_t sum = 0, n_protected = 0, promised = 0;
    bool uneven = false;
    pd_budget b = q->b;
    for (size_t i = 0; v->protect && i < v->n; i++) b.n_protected += v->protect[0][i]; /* all heads alike */
    for (size_t h = 0; h < heads; h++) {
        const size_t n = v->n_h[h], k = plan->keep_all ? n : plan->n_keep[h];
        uneven = uneven || n != v->n;
        promised += pd_budget_keep(&q->b, n);
        sum += k;
        if (k < 1 || k > n) fail_msg("%s: head %zu keeps %zu of %zu", q->text, h, k, n);
        size_t held = 0, all = 0;
        for (size_t i = 0; !plan->keep_all && i < k; i++) {
            const uint32_t slot = plan->keep[h][i];
            if (slot >= n || (i && slot <= plan->keep[h][i - 1]))
                fail_msg("%s: head %zu, place %zu: slot %u", q->text, h, i, slot);
            held += v->protect && v->protect[h][slot];
        }
        for (size_t i = 0; v->protect && i < n; i++) all += v->protect[h][i];
        if (!plan->keep_all && held != all) fail_msg("%s: head %zu keeps %zu of %zu protected slots", q->text, h, held, all);
        n_protected += all;
        if (plan->keep_all) continue;
        for (size_t i = 0; plan->v_new && i < k * v->head_dim; i++)
            if (!isfinite(plan->v_new[h][i])) fail_msg("%s: head %zu: a value is %g", q->text, h, (double)plan->v_new[h][i]);
        const bool even = q->can & PD_CAN_COMPOSE || plan->rerotate;
        if (even && !v->protect && v->n_h[0] == n && k != plan->n_keep[0])
            fail_msg("%s says heads stay even; they keep %zu and %zu", q->text, plan->n_keep[0], k);
        if (plan->rerotate) assert_int_equal(k, plan->n_keep[0]);
    }
    /* what admission reserves, and what the ratio promises (where heads share a budget, all together) */
    const size_t most = heads * pd_press_most(q->inst, &b, LAYER, v->n);
    if (sum > most + n_protected) fail_msg("%s, n %zu, ratio %g: %zu kept, %zu reserved", q->text, v->n, q->b.ratio, sum, most);
    if (!v->protect && !uneven && !own_say(q->inst) && !has_most(q->inst) && sum != promised)
        fail_msg("%s, n %zu, ratio %g, count %zu: %zu kept, %zu promised", q->text, v->n, q->b.ratio, q->b.count, sum, promised);
}

/* The shared plan: kept are exactly the best of each head, of equal ones the first. */
static void check_best(const question *q, const pd_plan *plan, float *const *s) {
    for (size_t h = 0; !plan->keep_all && h < q->t->view.n_head_kv; h++) {
        const size_t n = q->t->view.n_h[h];
        bool kept[N_MAX + 1] = {false};
        float worst = INFINITY;
        size_t last = 0;
        for (size_t i = 0; i < plan->n_keep[h]; i++) {
            kept[plan->keep[h][i]] = true;
            worst = fminf(worst, s[h][plan->keep[h][i]]);
        }
        for (size_t i = 0; i < n; i++)
            if (kept[i] && s[h][i] == worst) last = i;
        for (size_t i = 0; i < n; i++)
            if (!kept[i] && !(s[h][i] < worst || (s[h][i] == worst && i > last)))
                fail_msg("%s: head %zu: slot %zu (%g) is better than a kept one (%g)", q->text, h, i, (double)s[h][i], (double)worst);
    }
}

/* A slot's score is the same whatever stands beside it. */
static void check_alone(const question *q, float *const *s) {
    test_view part = *q->t;
    const size_t n = part.view.n, first = n / 3, count = n - first - n / 4;
    size_t n_h[TV_H_MAX];
    const int32_t *pos[TV_H_MAX];
    const float *k[TV_H_MAX], *v[TV_H_MAX];
    for (size_t h = 0; h < part.view.n_head_kv; h++) {
        n_h[h] = count;
        pos[h] = q->t->pos[h] + first;
        k[h] = q->t->k[h] + first * part.view.head_dim;
        v[h] = q->t->v[h] + first * part.view.head_dim;
    }
    part.view.n = count;
    part.view.n_h = n_h;
    part.view.pos = pos;
    part.view.k = k;
    part.view.v = v;
    if (part.view.x) part.view.x += first * part.view.n_embd, part.view.x_rows = count;
    float **got = pd_scores_new(&part.view);
    pd_err err = {0};
    if (pd_press_score(q->inst, &part.view, got, &err) != PD_OK) fail_msg("%s: %s", q->text, err.msg);
    for (size_t h = 0; h < part.view.n_head_kv; h++)
        for (size_t i = 0; i < count; i++)
            if (fabs((double)got[h][i] - (double)s[h][first + i]) > 1e-5 * fmax(1.0, fabs((double)got[h][i])))
                fail_msg("%s: slot %zu alone scores %g, not %g", q->text, first + i, (double)got[h][i], (double)s[h][first + i]);
}

static void same(const question *q, test_view *t, const pd_plan *plan) {
    const pd_plan again = ask(q, t, NULL);
    same_plan(q->text, plan, &again, t->view.n_head_kv, t->view.head_dim);
}

/* ---- one tree ---- */

static void try_prefill(const char *text, pd_press_inst *inst, const size_t *l, size_t round, pd_rng *rng) {
    const size_t least = pd_press_min_tokens(inst), n = least + pd_rng_u64(rng) % (N_MAX - least);
    test_view *t = open_view(inst, l, n, pd_rng_u64(rng));
    question q = {.text = text, .inst = inst, .t = t, .can = pd_press_inst_can(inst)};
    if (!pd_press_inst_takes_ratio(inst))
        q.b.ratio = 0.0; /* what such a request says */
    else if (round % 3 == 2)
        q.b = (pd_budget){.by_count = true, .count = 1 + pd_rng_u64(rng) % (n + 2)};
    else
        q.b.ratio = round % 5 == 4 ? 1.0 : 0.02 + 0.97 * pd_rng_f64(rng);
    uint8_t flag[N_MAX] = {0};
    if (round % 4 == 1) {
        for (size_t i = 0; i < n; i++) flag[i] = pd_rng_f64(rng) < 0.2;
        for (size_t h = 0; h < l[1]; h++) t->protect[h] = flag;
        t->view.protect = t->protect;
    }
    float **s = inst->press->score ? pd_scores_new(&t->view) : NULL;
    const pd_plan plan = ask(&q, t, s);
    check(&q, &plan);
    if (s && !inst->press->plan) check_best(&q, &plan, s);
    if (s && q.can & PD_CAN_SCORE_ALONE && !plan.keep_all && !t->view.protect) check_alone(&q, s);
    same(&q, t, &plan);
    assert_int_equal(pd_workers_open(&t->view.workers, 3, NULL), PD_OK);
    same(&q, t, &plan); /* whatever the number of threads */
    pd_workers_close(t->view.workers);
    t->view.workers = NULL;
    pd_press_reset(inst);
    same(&q, t, &plan); /* and nothing left of the calls before */
    if (!own_say(inst)) {
        q.b = (pd_budget){.ratio = 0.0};
        assert_true(ask(&q, t, NULL).keep_all);
        q.b = (pd_budget){.by_count = true, .count = n};
        assert_true(ask(&q, t, NULL).keep_all);
    }
    tv_close(t);
}

/* While tokens are generated: what PRUNE_STEP and the decode rules promise. */
static void try_step(const char *text, pd_press_inst *inst, const size_t *l, pd_rng *rng) {
    const pd_press_inst *prune = inst;
    pd_decode_rule rule = {0};
    if (inst->press->decode_rule) {
        if (!inst->press->decode_rule(inst, &rule)) return;
        prune = rule.prune;
        assert_true(rule.interval >= 1 || prune->press->running);
        if (rule.tag != PD_TAG_NONE) return; /* reads tags that only the engine writes: test_decode_press */
    } else if (!(pd_press_inst_can(inst) & PD_CAN_PRUNE_STEP)) {
        return;
    }
    const unsigned can = pd_press_inst_can(prune);
    if (!(can & PD_CAN_PRUNE_STEP)) fail_msg("%s prunes while decoding, what is inside cannot", text);
    test_view *t = open_step(prune, l, N_MAX, pd_rng_u64(rng), can & PD_CAN_SCORE_RAGGED);
    question q = {.text = text, .inst = prune, .t = t, .can = can};
    q.b = inst->press->decode_rule ? pd_decode_budget(&rule, N_MAX) : (pd_budget){.ratio = 0.05 + 0.9 * pd_rng_f64(rng)};
    const pd_plan plan = ask(&q, t, NULL);
    check(&q, &plan);
    same(&q, t, &plan);
    tv_close(t);
}

static bool has_decode(const pd_press_inst *inst) {
    bool yes = inst->press->can & PD_CAN_DECODE;
    for (size_t i = 0; i < inst->n_child; i++) yes = yes || has_decode(inst->child[i]);
    return yes;
}

/* Draws until the checks of the presses are content; the defaults in the end. */
static pd_press_inst *draw_tree(const pd_press *p, const char *child, const pd_press_model *model, pd_rng *rng, char *text) {
    for (int tries = 0; tries < 24; tries++) {
        pd_err err;
        around(p, child, model, tries < 23, rng, text, TEXT_MAX);
        pd_press_inst *inst = resolve(text, model, &err);
        if (!inst) continue;
        if (pd_press_min_tokens(inst) <= LEAST_MAX) return inst;
        pd_press_inst_close(inst);
    }
    return NULL;
}

/* Rounds of one tree; the number of trees that could be drawn. */
static size_t try_tree(const models *m, const pd_press *p, const char *child, size_t rounds, pd_rng *rng) {
    size_t tried = 0;
    for (size_t round = 0; round < rounds; round++) {
        const size_t which = pd_rng_u64(rng) % N_LAYOUT;
        char text[TEXT_MAX];
        pd_press_inst *inst = draw_tree(p, child, &m->model[which], rng, text);
        if (!inst) continue;
        tried++;
        bool below = false;
        for (size_t i = 0; i < inst->n_child; i++) below = below || has_decode(inst->child[i]);
        if (!below && !(inst->press->can & PD_DECODE_ONLY) && (inst->press->plan || inst->press->score))
            try_prefill(text, inst, layouts[which], round, rng);
        if (!below) try_step(text, inst, layouts[which], rng);
        pd_press_inst_close(inst);
    }
    return tried;
}

static void every_press_keeps_its_promises(void **state) {
    const models *m = *state;
    for (size_t i = 0; i < pd_press_count(); i++) {
        const pd_press *p = pd_press_at(i);
        pd_rng rng = {1000 + i};
        const char *child = any_child(p, &m->model[0], &rng);
        if (try_tree(m, p, child, 24, &rng) != 24) fail_msg("'%s' could not be drawn", p->name);
    }
}

/* A child is taken if it can what it must, and for no other reason refused
 * (unless the wrapper has a check of its own, which knows more). */
static void every_wrapper_over_every_press(void **state) {
    const models *m = *state;
    size_t taken = 0, refused = 0;
    for (size_t w = 0; w < pd_press_count(); w++) {
        const pd_press *wrapper = pd_press_at(w);
        if (!wrapper->max_child) continue;
        for (size_t i = 0; i < pd_press_count(); i++) {
            const pd_press *p = pd_press_at(i);
            pd_rng rng = {5000 + 100 * w + i};
            char inner[TEXT_MAX], text[TEXT_MAX];
            pd_err err;
            around(p, any_child(p, &m->model[0], &rng), &m->model[0], false, &rng, inner, sizeof inner);
            pd_press_inst *inst = resolve(inner, &m->model[0], &err);
            if (!inst) fail_msg("%s: %s", inner, err.msg);
            const unsigned can = pd_press_inst_can(inst);
            pd_press_inst_close(inst);
            around(wrapper, inner, &m->model[0], false, &rng, text, sizeof text);
            inst = resolve(text, &m->model[0], &err);
            const bool may = (can & wrapper->child_must) == wrapper->child_must;
            if (inst ? !may : may && !wrapper->check) fail_msg("%s is %s: %s", text, inst ? "taken" : "refused", err.msg);
            if (!inst) {
                if (!may && (!strstr(err.msg, "does not") || !strstr(err.msg, p->name))) fail_msg("%s: %s", text, err.msg);
                refused++;
                continue;
            }
            pd_press_inst_close(inst);
            taken++;
            if (p->can & PD_CAN_DECODE) continue; /* refused where requests are put together: test_compress */
            if (try_tree(m, wrapper, inner, 3, &rng) == 0) fail_msg("%s could not be drawn", text);
        }
    }
    assert_true(taken > 200 && refused > 50);
    print_message("%zu pairs taken, %zu refused\n", taken, refused);
}

int main(void) {
    openblas_set_num_threads(1); /* as the engine does */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_press_keeps_its_promises),
        cmocka_unit_test(every_wrapper_over_every_press),
    };
    return cmocka_run_group_tests(tests, open_models, close_models);
}
