/* SPDX-License-Identifier: Apache-2.0 */
/* Fast KVzip's gates, trained on the repeat prompts (see calibrate.h).
 *
 * fastkvzip.c has the gate's formula.  Each KV head's is trained by itself on rows of the
 * attention input x and the head's KVzip scores s (calibrate_repeat.c), towards the least
 * mean of
 *
 *     (logit y - logit s)^2 / 2,   y the gate's score of x, logit p = ln p - ln(1 - p)
 *
 * by Adam (Kingma, Ba 2015): STEPS steps of BATCH rows drawn without putting back, warmed
 * up and let go by a cosine.
 *
 * DIFFERS: Kim, Han, Yun 2026 (arXiv 2601.17668) train on a GPU: SGD, 5,000 steps of 1,000
 * rows of 300,000, cross-entropy.  On the some thousand rows of a calibration that ranks
 * text it never saw worse (SmolLM2, twelve heads, rank correlation with KVzip's scores: .63
 * by cross-entropy, .66 by logits, .62 by kvzap's regressors; .62 by logits with the
 * channels of x brought to one size: large ones are those that tell).
 * DIFFERS: the norms' weights, which all heads of a layer share, are not trained but fixed
 * (norm_q for queries, 1 for keys), so that heads are independent tasks; what a norm would
 * scale, the base keys and b can.
 *
 * Memory: f16 of x, d numbers for each layer and row kept, GATE_ROWS of a layer at most.
 * Cost per layer: STEPS * BATCH * 32 d (Hq + Hk) multiply-adds. */
#include "compression/calibrate_int.h"
#include "engine/base/num.h"
#include "engine/base/rng.h"

#include <cblas.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { G = PD_GATE_DIM, GATE_ROWS = 8192, BATCH = 256, STEPS = 400, WARM = 20 };

static const float norm_q = 2.0f, rate = 1e-2f, beta1 = 0.9f, beta2 = 0.99f, tiny = 1e-8f;
static const float least = 1e-6f, most_f16 = 65504.0f; /* scores stay so far from 0 and 1 */

struct pd__gates {
    size_t n_layer, n_head_kv, group, d;
    size_t capacity;   /* rows of a layer */
    size_t seen, all;  /* tokens shown to the first layer, and to come in all */
    size_t *n;         /* [NL] rows kept */
    uint16_t *x;       /* [NL][capacity][d] f16 */
    float *score;      /* [NL][Hk][capacity] */
    const pd_kernels *kern;
    float *out[PD_DATA_N]; /* GATE_Q .. GATE_B of the data, once training began */
};

static pd_status no_memory(pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory to train gates");
}

/* ---- rows ---- */

pd_status pd__gates_open(pd__gates **ret, const pd_press_model *m, size_t tokens, pd_err *err) {
    pd__gates *g = calloc(1, sizeof *g);
    if (!g) return no_memory(err);
    *g = (pd__gates){.n_layer = m->n_layer, .n_head_kv = m->n_head_kv, .group = m->n_head / m->n_head_kv, .d = m->n_embd,
                     .capacity = pd_min_size(tokens, GATE_ROWS), .all = tokens};
    size_t rows;
    const bool fits = pd_mul_size(m->n_layer, g->capacity, &rows) && rows <= SIZE_MAX / m->n_embd;
    g->n = calloc(m->n_layer, sizeof *g->n);
    g->x = fits ? calloc(rows * m->n_embd, sizeof *g->x) : NULL;
    g->score = fits ? calloc(rows * m->n_head_kv, sizeof *g->score) : NULL;
    if (!g->n || !g->x || !g->score) {
        pd__gates_close(g);
        return no_memory(err);
    }
    *ret = g;
    return PD_OK;
}

void pd__gates_close(pd__gates *g) {
    if (!g) return;
    free(g->n);
    free(g->x);
    free(g->score);
    free(g);
}

pd_status pd__gates_add(pd__gates *g, const pd_view *view, size_t first, size_t n, size_t before, const float *score,
                        pd_err *err) {
    const size_t l = (size_t)view->layer, d = g->d;
    const float *x = view->x + first * d;
    float *row = PD_ARENA_NEW(view->tmp, d, float);
    if (!row) return no_memory(err);
    g->kern = view->kern;
    for (size_t t = 0; t < n; t++) {
        /* capacity of all tokens, evenly; never a sink, which the press keeps without asking */
        const size_t at = before + t;
        if (at * g->capacity / g->all == (at + 1) * g->capacity / g->all || first + t < PD_CALIB_SINK) continue;
        for (size_t i = 0; i < d; i++) row[i] = fminf(fmaxf(x[t * d + i], -most_f16), most_f16);
        view->kern->f32_to_f16(row, g->x + (l * g->capacity + g->n[l]) * d, d);
        for (size_t h = 0; h < g->n_head_kv; h++) g->score[(l * g->n_head_kv + h) * g->capacity + g->n[l]] = score[h * n + t];
        g->n[l]++;
    }
    return PD_OK;
}

/* ---- one head's gate ---- */

/* Parts of one block of numbers: the gate, its gradient, Adam's moments. */
typedef struct {
    float *w;    /* [group + 1][G][d] the queries' projections, then the key's */
    float *bias; /* [group][G] of the queries */
    float *base; /* [G][G] */
    float *b;    /* [group] */
} gate;

static size_t n_weights(const pd__gates *g) {
    return (g->group + 1) * G * g->d;
}

static size_t n_params(const pd__gates *g) {
    return n_weights(g) + g->group * G + G * G + g->group;
}

static gate parts(const pd__gates *g, float *p) {
    float *bias = p + n_weights(g), *base = bias + g->group * G;
    return (gate){p, bias, base, base + G * G};
}

static float dot(const float *a, const float *b) {
    float sum = 0.0f;
    for (size_t i = 0; i < G; i++) sum += a[i] * b[i];
    return sum;
}

static float log_odds(float p) {
    const float in = fminf(fmaxf(p, least), 1.0f - least);
    return logf(in) - logf(1.0f - in);
}

/* y = x / root mean square of x; returns the factor. */
static float unit(const float *x, float *y) {
    const float inv = 1.0f / sqrtf(dot(x, x) / G + 1e-6f);
    for (size_t i = 0; i < G; i++) y[i] = x[i] * inv;
    return inv;
}

/* dy by y -> by x, y = x inv. */
static void unit_back(const float *y, float inv, const float *dy, float *dx) {
    const float along = dot(dy, y) / G;
    for (size_t i = 0; i < G; i++) dx[i] = inv * (dy[i] - along * y[i]);
}

/* A query's terms: softmax over its base logits to share[G], returns u - ln sum_j exp(e_j). */
static float logit(const gate *p, size_t g, const float *q, const float *k, float *share) {
    float max = -INFINITY, sum = 0.0f;
    for (size_t j = 0; j < G; j++) max = fmaxf(max, share[j] = dot(q, p->base + j * G) / 4.0f);
    for (size_t j = 0; j < G; j++) sum += share[j] = expf(share[j] - max);
    for (size_t j = 0; j < G; j++) share[j] /= sum;
    return dot(q, k) / 4.0f + p->b[g] - max - logf(sum);
}

/* One row, its target a logit: z [group + 1][G] are its projections, and become the gradient by them; the rest
 * of the gradient is added to *to.  tmp: [group][2 G + 2]. */
static void one_row(const gate *p, size_t group, float target, float weight, float *z, const gate *to, float *tmp) {
    float k[G], dk[G] = {0}, *q = tmp, *share = q + group * G, *inv = share + group * G, *y = inv + group, mean = 0.0f;
    const float inv_k = unit(z + group * G, k);
    for (size_t g = 0; g < group; g++) {
        inv[g] = unit(z + g * G, q + g * G);
        for (size_t i = 0; i < G; i++) q[g * G + i] *= norm_q;
        y[g] = 1.0f / (1.0f + expf(-logit(p, g, q + g * G, k, share + g * G)));
        mean += y[g] / (float)group;
    }
    mean = fminf(fmaxf(mean, least), 1.0f - least);
    const float d_mean = weight * (log_odds(mean) - target) / (mean * (1.0f - mean));
    for (size_t g = 0; g < group; g++) {
        const float d_logit = d_mean / (float)group * y[g] * (1.0f - y[g]), d4 = d_logit / 4.0f;
        float *qg = q + g * G, dq[G];
        to->b[g] += d_logit;
        for (size_t i = 0; i < G; i++) {
            dq[i] = d4 * k[i];
            dk[i] += d4 * qg[i];
        }
        for (size_t j = 0; j < G; j++) {
            const float s = d4 * share[g * G + j];
            for (size_t i = 0; i < G; i++) {
                dq[i] -= s * p->base[j * G + i];
                to->base[j * G + i] -= s * qg[i];
            }
        }
        for (size_t i = 0; i < G; i++) {
            qg[i] /= norm_q;
            dq[i] *= norm_q;
        }
        unit_back(qg, inv[g], dq, z + g * G);
        for (size_t i = 0; i < G; i++) to->bias[g * G + i] += z[g * G + i];
    }
    unit_back(k, inv_k, dk, z + group * G);
}

/* ---- training ---- */

typedef struct {
    const pd__gates *g;
    size_t first; /* layer of task 0 */
    float *const *out; /* [PD_DATA_N] */
    float *tmp;        /* [thread][scratch_floats] */
    uint32_t *order;   /* [thread][capacity] */
} train_job;

static size_t scratch_floats(const pd__gates *g) {
    return 4 * n_params(g) + BATCH * (g->d + (g->group + 1) * G) + g->group * (2 * G + 2);
}

/* Uniform with the variance 1 / d for projections; the first answer is the mean logit. */
static void begin(const pd__gates *g, const float *score, size_t n, pd_rng *rng, float *p) {
    const gate x = parts(g, p);
    double mean = 0.0;
    for (size_t i = 0; i < n; i++) mean += (double)log_odds(score[i]) / (double)n;
    memset(p, 0, n_params(g) * sizeof *p);
    for (size_t i = 0; i < n_weights(g); i++) x.w[i] = sqrtf(3.0f / (float)g->d) * pd_rng_f32(rng);
    for (size_t i = 0; i < G * G; i++) x.base[i] = 0.1f * pd_rng_f32(rng);
    for (size_t i = 0; i < g->group; i++) x.b[i] = (float)(mean + log((double)G));
}

static void shuffle(uint32_t *order, size_t n, pd_rng *rng) {
    for (size_t i = n; i > 1; i--) {
        const size_t k = (size_t)(pd_rng_u64(rng) % i);
        const uint32_t x = order[i - 1];
        order[i - 1] = order[k];
        order[k] = x;
    }
}

/* The gradient over rows order[0..n): x and z are scratch. */
static void gradient(const pd__gates *g, const gate *p, const uint16_t *rows, const float *score, const uint32_t *order,
                     size_t n, const gate *to, float *x, float *z, float *tmp) {
    const size_t d = g->d, width = (g->group + 1) * G;
    for (size_t r = 0; r < n; r++) {
        g->kern->f16_to_f32(rows + order[r] * d, x + r * d, d);
        memcpy(z + r * width, p->bias, g->group * G * sizeof *z);
        memset(z + r * width + g->group * G, 0, G * sizeof *z);
    }
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)width, (int)d, 1.0f, x, (int)d, p->w, (int)d, 1.0f, z,
                (int)width);
    memset(to->w, 0, n_params(g) * sizeof *to->w);
    for (size_t r = 0; r < n; r++) one_row(p, g->group, log_odds(score[order[r]]), 1.0f / (float)n, z + r * width, to, tmp);
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)width, (int)d, (int)n, 1.0f, z, (int)width, x, (int)d, 0.0f,
                to->w, (int)d);
}

static void adam(size_t step, size_t n, const float *grad, float *m, float *v, float *p) {
    const double done = (double)step / STEPS, turn = 3.141592653589793;
    const double lr = (double)rate * fmin(1.0, (double)(step + 1) / WARM) * 0.5 * (1.0 + cos(turn * done));
    const float size = (float)(lr / (1.0 - pow((double)beta1, (double)(step + 1))));
    const float fade = (float)(1.0 / (1.0 - pow((double)beta2, (double)(step + 1))));
    for (size_t i = 0; i < n; i++) {
        m[i] = beta1 * m[i] + (1.0f - beta1) * grad[i];
        v[i] = beta2 * v[i] + (1.0f - beta2) * grad[i] * grad[i];
        p[i] -= size * m[i] / (sqrtf(v[i] * fade) + tiny);
    }
}

static void put(const train_job *j, size_t l, size_t h, const gate *p) {
    const pd__gates *g = j->g;
    const size_t d = g->d, group = g->group, head = l * g->n_head_kv + h, q = head * group;
    memcpy(j->out[PD_DATA_GATE_Q] + q * G * d, p->w, group * G * d * sizeof(float));
    memcpy(j->out[PD_DATA_GATE_K] + head * G * d, p->w + group * G * d, G * d * sizeof(float));
    memcpy(j->out[PD_DATA_GATE_Q_BIAS] + q * G, p->bias, group * G * sizeof(float));
    memcpy(j->out[PD_DATA_GATE_BASE] + head * G * G, p->base, G * G * sizeof(float));
    memcpy(j->out[PD_DATA_GATE_B] + q, p->b, group * sizeof(float));
}

static void train_head(void *ctx, size_t task, unsigned thread) {
    const train_job *j = ctx;
    const pd__gates *g = j->g;
    const size_t l = j->first + task / g->n_head_kv, h = task % g->n_head_kv, n = g->n[l], n_param = n_params(g);
    if (n == 0) return; /* a layer with a window */
    const uint16_t *rows = g->x + l * g->capacity * g->d;
    const float *score = g->score + (l * g->n_head_kv + h) * g->capacity;
    float *p = j->tmp + thread * scratch_floats(g), *grad = p + n_param, *m = grad + n_param, *v = m + n_param;
    float *x = v + n_param, *z = x + BATCH * g->d, *tmp = z + BATCH * (g->group + 1) * G;
    uint32_t *order = j->order + thread * g->capacity;
    const gate at = parts(g, p), to = parts(g, grad);
    pd_rng rng = {l * g->n_head_kv + h};
    begin(g, score, n, &rng, p);
    memset(m, 0, 2 * n_param * sizeof *m);
    for (size_t i = 0; i < n; i++) order[i] = (uint32_t)i;
    const size_t batch = pd_min_size(BATCH, n);
    for (size_t step = 0, next = n; step < STEPS; step++, next += batch) {
        if (next + batch > n) {
            shuffle(order, n, &rng);
            next = 0;
        }
        gradient(g, &at, rows, score, order + next, batch, &to, x, z, tmp);
        adam(step, n_param, grad, m, v, p);
    }
    put(j, l, h, &at);
}

static pd_status begin_data(pd__gates *g, pd_press_data *d, pd_err *err) {
    for (int id = PD_DATA_GATE_Q; id <= PD_DATA_GATE_B; id++)
        if (!(g->out[id] = pd_press_data_put(d, (pd_data_id)id))) return no_memory(err);
    for (size_t i = 0; i < g->n_layer * G; i++) {
        g->out[PD_DATA_GATE_Q_NORM][i] = norm_q;
        g->out[PD_DATA_GATE_K_NORM][i] = 1.0f;
    }
    return PD_OK;
}

pd_status pd__gates_train(pd__gates *g, size_t first, size_t n, pd_workers *workers, pd_press_data *d, pd_err *err) {
    const size_t threads = pd_workers_count(workers);
    if (!g->out[PD_DATA_GATE_Q]) PD_TRY(begin_data(g, d, err));
    train_job j = {.g = g, .first = first, .out = g->out};
    j.tmp = calloc(threads * scratch_floats(g), sizeof *j.tmp);
    j.order = calloc(threads * pd_max_size(g->capacity, 1), sizeof *j.order);
    const pd_status rc = j.tmp && j.order ? PD_OK : no_memory(err);
    if (rc == PD_OK) pd_workers_run(workers, train_head, &j, n * g->n_head_kv);
    free(j.tmp);
    free(j.order);
    return rc;
}
