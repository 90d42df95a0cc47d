/* SPDX-License-Identifier: Apache-2.0 */
/* compression: the presses that work while tokens are generated, by themselves.
 * A stream of tokens through one layer against kvpress' own hooks
 * (tests/golden/decode_walk.py describes the file), cam's merging and dms's rule
 * read plainly, and the tags the engine keeps for them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/press.h"
#include "compression/spec.h"
#include "engine/base/num.h"
#include "engine/run/tags.h"
#include "tests/unit/press_case.h"

#include <cblas.h>
#include <math.h>
#include <stdio.h>

/* ---- one layer's cache, as the engine keeps it ---- */

enum { H_MAX = 2, N_MAX = 160, D = 16 };

typedef struct {
    const test_view *t; /* the whole stream */
    size_t heads;
    size_t n_h[H_MAX];
    int32_t pos[H_MAX][N_MAX];
    float k[H_MAX][N_MAX * D], v[H_MAX][N_MAX * D], tag[H_MAX][N_MAX];
    size_t seen, since;
} layer;

static void append(layer *c, size_t n, float tag) {
    for (size_t h = 0; h < c->heads; h++) {
        for (size_t i = 0; i < n; i++) {
            const size_t at = c->n_h[h]++, token = c->seen + i;
            c->pos[h][at] = (int32_t)token;
            memcpy(c->k[h] + at * D, c->t->k[h] + token * D, D * sizeof(float));
            memcpy(c->v[h] + at * D, c->t->v[h] + token * D, D * sizeof(float));
            c->tag[h][at] = tag;
        }
    }
    c->seen += n;
}

/* Arrays of pointers live in the view's arena. */
static pd_view view_of(layer *c, pd_phase phase, size_t skip[H_MAX], pd_arena *tmp) {
    pd_view view = c->t->view;
    const size_t heads = c->heads;
    size_t *n_h = PD_ARENA_NEW(tmp, heads, size_t);
    const int32_t **pos = PD_ARENA_NEW(tmp, heads, const int32_t *);
    const float **k = PD_ARENA_NEW(tmp, heads, const float *), **v = PD_ARENA_NEW(tmp, heads, const float *);
    float **tag = PD_ARENA_NEW(tmp, heads, float *);
    view.phase = phase;
    view.n = 0;
    for (size_t h = 0; h < heads; h++) {
        const size_t from = skip ? skip[h] : 0;
        n_h[h] = c->n_h[h] - from;
        pos[h] = c->pos[h] + from;
        k[h] = c->k[h] + from * D;
        v[h] = c->v[h] + from * D;
        tag[h] = c->tag[h] + from;
        view.n = pd_max_size(view.n, n_h[h]);
    }
    view.n_h = n_h;
    view.pos = pos;
    view.k = k;
    view.v = v;
    view.tag = tag;
    view.tmp = tmp;
    view.n_seen = c->seen;
    view.n_steps = c->since;
    view.q += (c->seen - 1) * view.n_head * D; /* the newest query */
    view.q_pos += c->seen - 1;
    view.q_rows = 1;
    return view;
}

static void apply(layer *c, const pd_plan *plan) {
    for (size_t h = 0; h < c->heads && !plan->keep_all; h++) {
        for (size_t i = 0; i < plan->n_keep[h]; i++) {
            const size_t from = plan->keep[h][i];
            c->pos[h][i] = c->pos[h][from];
            c->tag[h][i] = c->tag[h][from];
            memmove(c->k[h] + i * D, c->k[h] + from * D, D * sizeof(float));
            memmove(c->v[h] + i * D, plan->v_new ? plan->v_new[h] + i * D : c->v[h] + from * D, D * sizeof(float));
        }
        c->n_h[h] = plan->n_keep[h];
    }
}

/* tag += mean over the group of softmax(q . k / sqrt(D)), plainly. */
static void add_attention(layer *c) {
    const size_t hq = c->t->view.n_head, g = hq / c->heads;
    for (size_t q = 0; q < hq; q++) {
        const size_t h = q / g;
        const float *query = c->t->view.q + ((c->seen - 1) * hq + q) * D;
        double s[N_MAX], max = -INFINITY, sum = 0.0;
        for (size_t i = 0; i < c->n_h[h]; i++) {
            s[i] = 0.0;
            for (size_t e = 0; e < D; e++) s[i] += (double)query[e] * (double)c->k[h][i * D + e];
            s[i] /= sqrt((double)D);
            max = fmax(max, s[i]);
        }
        for (size_t i = 0; i < c->n_h[h]; i++) sum += exp(s[i] - max);
        for (size_t i = 0; i < c->n_h[h]; i++) c->tag[h][i] += (float)(exp(s[i] - max) / sum / (double)g);
    }
}

static void prune(layer *c, const pd_press_inst *inst, const pd_budget *budget, pd_phase phase) {
    pd_arena tmp = {0};
    const pd_view view = view_of(c, phase, NULL, &tmp);
    pd_plan plan;
    pd_err err = {0};
    if (pd_press_plan(inst, &view, budget, &plan, NULL, &err) != PD_OK) fail_msg("%s", err.msg);
    apply(c, &plan);
    c->since = 0;
    pd_arena_done(&tmp);
}

static void score_newest(layer *c, const pd_press_inst *child) {
    pd_arena tmp = {0};
    size_t skip[H_MAX];
    for (size_t h = 0; h < c->heads; h++) skip[h] = c->n_h[h] - 1;
    const pd_view view = view_of(c, PD_PHASE_STEP, skip, &tmp);
    pd_err err = {0};
    if (pd_press_score(child, &view, view.tag, &err) != PD_OK) fail_msg("%s", err.msg);
    pd_arena_done(&tmp);
}

/* One token more, and what the rule says of it. */
static void step(layer *c, const pd_decode_rule *rule) {
    append(c, 1, 0.0f);
    c->since++;
    if (rule->tag == PD_TAG_ATTENTION) add_attention(c);
    if (rule->tag == PD_TAG_SCORE) score_newest(c, rule->prune->child[0]);
    const pd_budget budget = pd_decode_budget(rule, c->seen);
    if (c->since < rule->interval) return;
    if (rule->wait && pd_budget_keep(&budget, c->n_h[0]) == c->n_h[0]) return;
    prune(c, rule->prune, &budget, PD_PHASE_STEP);
}

/* ---- as kvpress ---- */

typedef struct {
    unsigned long long seed;
    size_t n, d, hq, h, prompt;
    char press[128];
} walk;

static void must_read(void *p, size_t n, FILE *f) {
    if (fread(p, 1, n, f) != n) fail_msg("the golden file is cut short");
}

static void compare_held(const walk *w, const layer *c, FILE *f) {
    uint8_t bits[N_MAX / 8 + 1];
    for (size_t h = 0; h < w->h; h++) {
        must_read(bits, (w->n + 7) / 8, f);
        size_t slot = 0;
        for (size_t i = 0; i < w->n; i++) {
            const bool want = bits[i / 8] >> (7 - i % 8) & 1, got = slot < c->n_h[h] && c->pos[h][slot] == (int32_t)i;
            if (want != got)
                fail_msg("%s, seed %llu, after %zu tokens, head %zu, position %zu: %s, kvpress %s it", w->press, w->seed,
                         c->seen, h, i, got ? "held" : "gone", want ? "holds" : "dropped");
            slot += got;
        }
        assert_int_equal(slot, c->n_h[h]);
    }
}

static void compare_values(const walk *w, const layer *c, FILE *f) {
    uint32_t n;
    float want;
    must_read(&n, sizeof n, f);
    size_t n_merged = 0;
    for (size_t h = 0; h < w->h; h++) {
        assert_int_equal(n, c->n_h[h]);
        for (size_t i = 0; i < (size_t)n * D; i++) {
            must_read(&want, sizeof want, f);
            if (!(fabs((double)c->v[h][i] - (double)want) <= 2e-5 * fmax(1.0, fabs((double)want))))
                fail_msg("%s, seed %llu, head %zu, slot %zu: value %.9g, kvpress %.9g", w->press, w->seed, h, i / D,
                         (double)c->v[h][i], (double)want);
            n_merged += want != c->t->v[h][(size_t)c->pos[h][i / D] * D + i % D];
        }
    }
    assert_true(n_merged > n * D / 2); /* merging is what is compared */
}

static void run_walk(const walk *w, const pd_kernels *kern, FILE *f) {
    pd_press_inst *inst = inst_of(w->press);
    test_view *t = tv_open(w->seed, w->n, w->hq, w->h, w->d);
    t->view.kern = kern;
    pd_decode_rule rule;
    const bool decodes = inst->press->decode_rule(inst, &rule), prompt_too = !(inst->press->can & PD_DECODE_ONLY);
    static layer c;
    c = (layer){.t = t, .heads = w->h};
    uint32_t next;
    size_t before[H_MAX];
    must_read(&next, sizeof next, f);
    append(&c, w->prompt, 0.0f);
    if (prompt_too) prune(&c, inst, &(pd_budget){0}, PD_PHASE_PREFILL);
    for (;; step(&c, &rule)) {
        if (c.seen == next) {
            compare_held(w, &c, f);
            must_read(&next, sizeof next, f);
        } else { /* no record: nothing went at this step */
            for (size_t h = 0; h < w->h; h++) assert_int_equal(c.n_h[h], c.seen == w->prompt ? w->prompt : before[h] + 1);
        }
        for (size_t h = 0; h < w->h; h++) before[h] = c.n_h[h];
        if (c.seen == w->n || !decodes) break;
    }
    assert_int_equal(next, 0);
    if (rule.tag == PD_TAG_ATTENTION) compare_values(w, &c, f);
    pd_press_inst_close(inst);
    tv_close(t);
}

static void run_file(const pd_kernels *kern) {
    FILE *f = fopen(PD_SOURCE_DIR "/tests/golden/data/decode_walk.bin", "rb");
    assert_non_null(f);
    char line[256];
    size_t n = 0;
    for (; fgets(line, sizeof line, f); n++) {
        walk w;
        if (sscanf(line, "walk %llu %zu %zu %zu %zu %zu %127s", &w.seed, &w.n, &w.d, &w.hq, &w.h, &w.prompt, w.press) != 7)
            fail_msg("not a walk: %s", line);
        assert_true(w.n <= N_MAX && w.d == D && w.h <= H_MAX);
        run_walk(&w, kern, f);
    }
    fclose(f);
    assert_int_equal(n, 22); /* all of them were there */
}

static void walks_as_kvpress(void **state) {
    (void)state;
    run_file(&tv_kernels);
    pd_kernels kern;
    pd_kernels_init(&kern, pd_cpu_detect());
    run_file(&kern);
}

/* ---- rules ---- */

static void rules_say_when_and_how_much(void **state) {
    (void)state;
    pd_decode_rule r;
    pd_press_inst *inst = inst_of("decoding:hidden_states_buffer_size=0(knorm)");
    assert_true(inst->press->decode_rule(inst, &r));
    assert_ptr_equal(r.prune, inst->child[0]);
    assert_int_equal(r.interval, 512);
    assert_int_equal(r.n_recent, 1);
    assert_false(r.wait);
    assert_int_equal(pd_decode_budget(&r, 1).count, 2048);
    pd_press_inst_close(inst);

    inst = inst_of("compression_ratio_decoding(knorm)");
    assert_true(inst->press->decode_rule(inst, &r));
    assert_int_equal(r.n_recent, 256);
    assert_int_equal(pd_decode_budget(&r, 108).count, 54); /* position 107 at 0.5 */
    assert_int_equal(pd_decode_budget(&r, 1).count, 1);
    pd_press_inst_close(inst);

    inst = inst_of("cam:compression_interval=3,target_size=4(tova)");
    assert_true(inst->press->decode_rule(inst, &r));
    assert_ptr_equal(r.prune, inst);
    assert_true(r.wait && r.tag == PD_TAG_ATTENTION && r.interval == 3 && r.budget.count == 4);
    pd_press_inst_close(inst);

    inst = inst_of("dms:threshold=0(keydiff)");
    assert_false(inst->press->decode_rule(inst, &r));
    assert_int_equal(pd_press_min_tokens(inst), 1);
    pd_press_inst_close(inst);
    inst = inst_of("dms:threshold=0,decoding=true(knorm)");
    assert_true(inst->press->decode_rule(inst, &r));
    assert_true(r.interval == 1 && r.tag == PD_TAG_SCORE);
    assert_int_equal(pd_decode_budget(&r, 77).count, 77); /* a threshold promises nothing */
    pd_press_inst_close(inst);
}

/* ---- cam, corner by corner ---- */

/* A layer of n tokens whose scores under knorm are known: keys (norm, 0, 0 ...). */
static void set_norms(layer *c, size_t n, const double *norm) {
    append(c, n, 0.0f);
    for (size_t h = 0; h < c->heads; h++) {
        memset(c->k[h], 0, n * D * sizeof(float));
        for (size_t i = 0; i < n; i++) {
            c->k[h][i * D] = (float)norm[i];
            for (size_t e = 0; e < D; e++) c->v[h][i * D + e] = (float)(1u << i % 31);
        }
    }
    c->since = 100;
}

static pd_plan cam_plan(layer *c, const char *text, size_t target, const uint8_t *const *protect, pd_arena *tmp) {
    pd_press_inst *inst = inst_of(text);
    pd_view view = view_of(c, PD_PHASE_STEP, NULL, tmp);
    view.protect = protect;
    pd_plan plan;
    pd_err err = {0};
    const pd_budget b = {.by_count = true, .count = target};
    if (pd_press_plan(inst, &view, &b, &plan, NULL, &err) != PD_OK) fail_msg("%s", err.msg);
    pd_press_inst_close(inst);
    return plan;
}

/* Smaller norms stay; 4 and 7 have none after them, or too few. */
static void cam_merges_into_the_next_kept(void **state) {
    (void)state;
    static const double norm[] = {9, 1, 8, 1, 7, 1, 1, 6};
    test_view *t = tv_open(5, 8, 6, 2, D);
    static layer c;
    c = (layer){.t = t, .heads = 2};
    set_norms(&c, 8, norm);
    for (size_t h = 0; h < 2; h++)
        for (size_t i = 0; i < 8; i++) c.tag[h][i] = 1.0f; /* p = 1 */
    for (size_t i = 0; i < 8; i++) c.tag[1][i] = norm[i] > 1 ? 0.0f : 1.0f; /* p = 0 in the other head */
    pd_arena tmp = {0};
    pd_plan plan = cam_plan(&c, "cam:merge_budget=2(knorm)", 4, NULL, &tmp);
    static const uint32_t want_keep[] = {1, 3, 5, 6};
    /* 0 -> {1, 3}, 2 -> {3, 5}, 4 -> {5, 6}, 7 is lost */
    static const double want_v[] = {2 + 0.5, 8 + 0.5 + 2, 32 + 2 + 8, 64 + 8};
    for (size_t h = 0; h < 2; h++) {
        assert_int_equal(plan.n_keep[h], 4);
        for (size_t i = 0; i < 4; i++) {
            assert_int_equal(plan.keep[h][i], want_keep[i]);
            const double v = h ? (double)(1u << want_keep[i]) : want_v[i];
            for (size_t e = 0; e < D; e++) assert_true((double)plan.v_new[h][i * D + e] == v);
        }
    }

    /* n_steps bounds what is merged: the best of the evicted, and of equal ones the later. */
    c.since = 1;
    plan = cam_plan(&c, "cam:merge_budget=2(knorm)", 4, NULL, &tmp); /* 7 (norm 6) is the best, and lost */
    for (size_t i = 0; i < 4; i++) assert_true(plan.v_new[0][i * D] == (float)(1u << want_keep[i]));
    for (size_t h = 0; h < 2; h++) c.k[h][7 * D] = c.k[h][4 * D] = 8.0f; /* as 2: three equal ones */
    c.since = 2;
    plan = cam_plan(&c, "cam:merge_budget=1(knorm)", 4, NULL, &tmp); /* 4 and 7, so 2 stays out */
    assert_true(plan.v_new[0][0] == 2.0f && plan.v_new[0][D] == 8.0f && plan.v_new[0][2 * D] == 32.0f + 16.0f &&
                plan.v_new[0][3 * D] == 64.0f);

    /* What must stay in one head stays in all. */
    static const uint8_t none[8] = {0}, must[8] = {1, 0, 0, 0, 1};
    static const uint8_t *const protect[] = {none, must};
    plan = cam_plan(&c, "cam(knorm)", 1, protect, &tmp);
    for (size_t h = 0; h < 2; h++) {
        assert_int_equal(plan.n_keep[h], 2);
        assert_true(plan.keep[h][0] == 0 && plan.keep[h][1] == 4);
    }
    pd_arena_done(&tmp);
    tv_close(t);
}

/* A chance of one half is taken about half of the time, the same way each time,
 * another way with another seed, layer or time. */
static void cam_draws_are_seeded(void **state) {
    (void)state;
    enum { N = 120, ODD = 60 };
    double norm[N];
    for (size_t i = 0; i < N; i++) norm[i] = i % 2 ? 1 : 5;
    test_view *t = tv_open(6, N, 6, 2, D);
    static layer c;
    float got[5][ODD];
    for (size_t round = 0; round < 5; round++) {
        c = (layer){.t = t, .heads = 2};
        t->view.seed = round == 2 ? 1 : 99;
        t->view.layer = round == 3 ? 7 : 3;
        set_norms(&c, N, norm);
        for (size_t h = 0; h < 2; h++)
            for (size_t i = 0; i < N; i++) {
                for (size_t e = 0; e < D; e++) c.v[h][i * D + e] = 1.0f;
                c.tag[h][i] = i % 2 ? 2.0f : 1.0f;
            }
        pd_arena tmp = {0};
        if (round == 4) c.seen--;
        const pd_plan plan = cam_plan(&c, "cam:merge_budget=1(knorm)", ODD, NULL, &tmp);
        size_t n_merged = 0;
        for (size_t i = 0; i < ODD; i++) {
            assert_true(plan.v_new[0][i * D] == 1.0f || plan.v_new[0][i * D] == 2.0f);
            n_merged += plan.v_new[0][i * D] == 2.0f;
            got[round][i] = plan.v_new[0][i * D];
        }
        assert_in_range(n_merged, 15, 45); /* 60 draws of 1/2: outside once in 30,000 */
        pd_arena_done(&tmp);
    }
    assert_memory_equal(got[0], got[1], sizeof got[0]);
    for (size_t round = 2; round < 5; round++) assert_memory_not_equal(got[0], got[round], sizeof got[0]);
    tv_close(t);
}

/* ---- dms ---- */

static void dms_protects_and_leaves_the_newest(void **state) {
    (void)state;
    static const double norm[] = {5, 5, 1, 5, 5, 5, 5, 5};
    test_view *t = tv_open(7, 8, 6, 2, D);
    static layer c;
    c = (layer){.t = t, .heads = 2};
    set_norms(&c, 8, norm);
    pd_press_inst *inst = inst_of("dms:threshold=-2,sliding_window_size=1(knorm)");
    pd_arena tmp = {0};
    pd_view view = view_of(&c, PD_PHASE_PREFILL, NULL, &tmp);
    uint8_t must[8] = {1, 0, 0, 0, 0, 1}, none[8] = {0};
    const uint8_t *protect[] = {must, none};
    view.protect = protect;
    pd_plan plan;
    const pd_budget open = {0};
    assert_int_equal(pd_press_plan(inst, &view, &open, &plan, NULL, NULL), PD_OK);
    static const uint32_t want[2][4] = {{0, 2, 5, 7}, {2, 7}};
    assert_int_equal(plan.n_keep[0], 4);
    assert_int_equal(plan.n_keep[1], 2);
    assert_memory_equal(plan.keep[0], want[0], 4 * sizeof(uint32_t));
    assert_memory_equal(plan.keep[1], want[1], 2 * sizeof(uint32_t));
    assert_true(c.tag[1][0] == -5.0f && c.tag[1][2] == -1.0f && c.tag[0][0] == INFINITY);
    view.tag = NULL; /* nobody will ask again */
    assert_int_equal(pd_press_plan(inst, &view, &open, &plan, NULL, NULL), PD_OK);
    assert_int_equal(plan.n_keep[1], 2);
    pd_press_inst_close(inst);

    inst = inst_of("dms:threshold=-5,sliding_window_size=1(knorm)"); /* strictly below: none is */
    assert_int_equal(pd_press_plan(inst, &view, &open, &plan, NULL, NULL), PD_OK);
    assert_true(plan.keep_all);
    pd_press_inst_close(inst);
    pd_arena_done(&tmp);
    tv_close(t);
}

/* ---- tags ---- */

/* Against plain sums, in every type, at every tail length: the step's own weights, and the pass over
 * pages beside it. */
static void tags_take_the_models_attention(void **state) {
    (void)state;
    enum { HQ = 6, H = 2, DIM = 32, SLOTS = PD_TAGS_KEYS + 37 }; /* more than is unpacked at a time, and than a chunk */
    static const pd_model model = {.hp = {.n_layer = 2, .n_head = HQ, .n_head_kv = H, .head_dim = DIM, .attn_scale = 0.3f,
                                          .window = {0, 9}}};
    static const pd_tag_kind kinds[] = {PD_TAG_ATTENTION, PD_TAG_SUMS, PD_TAG_SQUARES};
    for (pd_kv_type t = PD_KV_F16; t < PD_KV_TYPES; t++) {
        const pd_codec codec = pd_codec_of(t, t);
        pd_kernels kern;
        pd_kernels_init(&kern, pd_cpu_detect());
        pd_kvpool pool;
        pd_kv kv;
        pd_tags tags[3], step[3];
        pd_attn attn;
        static const size_t slots[] = {SLOTS, SLOTS};
        assert_int_equal(pd_kvpool_init(&pool, pd_codec_page_bytes(&codec, DIM, DIM), 1 << 20, 0, NULL), PD_OK);
        assert_int_equal(pd_kv_init(&kv, &pool, &codec, &kern, 2, H, DIM, slots, NULL), PD_OK);
        assert_int_equal(pd_attn_init(&attn, &model, &kern, NULL, 1, SLOTS, false, NULL), PD_OK);
        for (size_t i = 0; i < 3; i++) {
            assert_int_equal(pd_tags_init(&tags[i], kinds[i], &model.hp, slots, NULL), PD_OK);
            assert_int_equal(pd_tags_init(&step[i], kinds[i], &model.hp, slots, NULL), PD_OK);
            assert_null(pd_tags_layer(&tags[i], 1)); /* has a window */
        }
        pd_rng rng = {8};
        double want[3][H][SLOTS] = {{{0}}};
        for (int32_t n = 1; n <= SLOTS; n++) {
            float row[DIM], q[HQ * DIM], out[HQ * DIM];
            pd_kv *view = &kv;
            for (size_t h = 0; h < H; h++) {
                for (size_t e = 0; e < DIM; e++) row[e] = 2.0f * pd_rng_f32(&rng);
                for (size_t l = 0; l < 2; l++) assert_int_equal(pd_kv_append(&kv, l, h, row, row, DIM, &n, NULL, 1, NULL), PD_OK);
                for (size_t i = 0; i < 3; i++) {
                    pd_tags_fill(&tags[i], 0, h, (size_t)n - 1, 1, 0.0f);
                    pd_tags_fill(&step[i], 0, h, (size_t)n - 1, 1, 0.0f);
                }
            }
            for (size_t e = 0; e < HQ * DIM; e++) q[e] = 2.0f * pd_rng_f32(&rng);
            for (size_t i = 0; i < 3; i++) {
                pd_tags *one = &step[i];
                attn.tags = &one;
                pd_attn_step(&attn, &view, NULL, 1, 0, q, out);
                pd_attn_step(&attn, &view, NULL, 1, 1, q, out); /* nothing to do there */
                attn.tags = NULL;
                pd_tags_attend(&tags[i], &attn, &kv, 0, q);
                pd_tags_attend(&tags[i], &attn, &kv, 1, q);
            }
            for (size_t g = 0; g < HQ; g++) {
                const size_t h = g / (HQ / H);
                static float k[SLOTS * DIM], v[SLOTS * DIM];
                double s[SLOTS], sum = 0.0;
                pd_kv_read(&kv, 0, h, k, v, NULL);
                for (size_t i = 0; i < (size_t)n; i++) {
                    s[i] = 0.0;
                    for (size_t e = 0; e < DIM; e++) s[i] += (double)q[g * DIM + e] * (double)k[i * DIM + e];
                    sum += s[i] = exp(s[i] * (double)0.3f);
                }
                for (size_t i = 0; i < (size_t)n; i++) {
                    want[0][h][i] += s[i] / sum * H / HQ;
                    want[1][h][i] += s[i] / sum;
                    want[2][h][i] += s[i] / sum * s[i] / sum;
                }
            }
            /* A step's query is in few bits where the keys are; the pass beside it reads rows. */
            const double near = pd_kv_type_group(t) > 1 ? 0.1 : 1e-4;
            for (size_t i = 0; i < 6; i++)
                for (size_t h = 0; h < H; h++)
                    for (size_t at = 0; at < (size_t)n; at++) {
                        const double got = (double)(i < 3 ? tags[i] : step[i - 3]).row[h][at];
                        if (!(fabs(got - want[i % 3][h][at]) <= (i < 3 ? 1e-5 * n * HQ / H : near * want[i % 3][h][at] + 1e-6 * n)))
                            fail_msg("codec %s, %d slots, kind %zu%s, head %zu, slot %zu: %g, not %g", pd_kv_type_name(t), n, i % 3,
                                     i < 3 ? "" : " of the step", h, at, got, want[i % 3][h][at]);
                    }
        }
        static const uint32_t keep[] = {0, 3, SLOTS - 1};
        pd_tags_keep(&tags[0], 0, 1, keep, 3);
        for (size_t i = 0; i < 3; i++) assert_true(fabs((double)tags[0].row[1][i] - want[0][1][keep[i]]) < 1e-3);
        for (size_t i = 0; i < 3; i++) {
            pd_tags_done(&step[i]);
            pd_tags_done(&tags[i]);
            pd_tags_done(&tags[i]); /* all-zero is fine */
        }
        pd_attn_done(&attn);
        pd_kv_done(&kv);
        pd_kvpool_done(&pool);
    }
}

int main(void) {
    openblas_set_num_threads(1); /* as the engine does */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(walks_as_kvpress),
        cmocka_unit_test(rules_say_when_and_how_much),
        cmocka_unit_test(cam_merges_into_the_next_kept),
        cmocka_unit_test(cam_draws_are_seeded),
        cmocka_unit_test(dms_protects_and_leaves_the_newest),
        cmocka_unit_test(tags_take_the_models_attention),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
