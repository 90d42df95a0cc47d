/* SPDX-License-Identifier: Apache-2.0 */
/* RoPE's frequencies (see read.h), in f32 and in the order of operations of
 * transformers' modeling_rope_utils.
 *
 *   plain     base^(-2i/D)                                   RoFormer
 *   linear    that divided by the factor                     position interpolation
 *   yarn      between the two, by a ramp over i               YaRN (Peng et al. 2023)
 *   factors   divided by one number per frequency: rope_freqs (Llama 3.1), or
 *             rope_factors_short/_long (LongRoPE, Ding et al. 2024)
 *
 * YaRN and LongRoPE also multiply cos and sin by a number (pd_rope.scale).
 *
 * DIFFERS: LongRoPE has one set of factors for sequences up to the original
 * context and one for longer ones.  transformers chooses by the length of each
 * sequence, and throws the cache away when it grows past the border; here the
 * server's context decides for all sequences (as in llama.cpp), so that cached
 * keys never change their meaning.  Tested by tests/golden: phi3 and phi3-short. */
#include "engine/model/read.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static pd_status f32_or(const pd_gguf *g, const char *prefix, const char *key, float min, float max,
                        float fallback, float *ret, pd_err *err) {
    char name[96];
    snprintf(name, sizeof name, "%s.rope.scaling.%s", prefix, key);
    return pd_gguf_f32_or(g, name, min, max, fallback, ret, err);
}

static pd_status read_yarn(const pd_gguf *g, const char *prefix, pd_rope_spec *s, pd_err *err) {
    float ext, attn, log_mul;
    PD_TRY(f32_or(g, prefix, "yarn_beta_fast", 1e-3f, 1e6f, 32.0f, &s->beta_fast, err));
    PD_TRY(f32_or(g, prefix, "yarn_beta_slow", 1e-3f, 1e6f, 1.0f, &s->beta_slow, err));
    PD_TRY(f32_or(g, prefix, "yarn_ext_factor", -1.0f, 1.0f, 1.0f, &ext, err)); /* -1: default */
    PD_TRY(f32_or(g, prefix, "yarn_attn_factor", 1e-3f, 1e3f, 1.0f, &attn, err));
    PD_TRY(f32_or(g, prefix, "yarn_log_multiplier", 0.0f, 1e3f, 0.0f, &log_mul, err));
    if (fabsf(ext) != 1.0f || log_mul != 0.0f)
        return pd_fail(err, PD_EFILE, NULL,
                       "%s.rope.scaling: yarn_ext_factor %g and yarn_log_multiplier %g; only 1 and 0 are served",
                       prefix, (double)ext, (double)log_mul);
    s->yarn = s->div;
    s->div = 1.0;
    s->scale *= attn;
    if (s->yarn > 1.0) s->scale *= (float)(0.1 * log(s->yarn) + 1.0);
    return PD_OK;
}

pd_status pd__rope_read(const pd_gguf *g, const char *prefix, pd_hparams *hp, pd_err *err) {
    char key[96];
    pd_rope_spec *s = &hp->rope_spec[0];
    for (size_t r = 0; r < PD_ROPE_MAX; r++)
        hp->rope_spec[r] = (pd_rope_spec){.base = 10000.0, .div = 1.0, .scale = 1.0f};
    float base, factor;
    snprintf(key, sizeof key, "%s.rope.freq_base", prefix);
    PD_TRY(pd_gguf_f32_or(g, key, 1.0f, 1e12f, 10000.0f, &base, err));
    s->base = base;
    uint32_t orig;
    snprintf(key, sizeof key, "%s.rope.scaling.original_context_length", prefix);
    PD_TRY(pd_gguf_u32_or(g, key, 1, 1u << 24, (uint32_t)hp->ctx_train, &orig, err));
    s->orig_ctx = orig;
    PD_TRY(f32_or(g, prefix, "attn_factor", 1e-3f, 1e3f, 1.0f, &s->scale, err));
    snprintf(key, sizeof key, "%s.rope.scale_linear", prefix); /* older files */
    PD_TRY(pd_gguf_f32_or(g, key, 1e-3f, 1e3f, 1.0f, &factor, err));
    PD_TRY(f32_or(g, prefix, "factor", 1e-3f, 1e3f, factor, &factor, err));
    snprintf(key, sizeof key, "%s.rope.scaling.type", prefix);
    pd_str type = {"linear", 6}; /* what a file means that states a factor alone */
    if (pd_gguf_find(g, key)) PD_TRY(pd_gguf_str(g, key, &type, err));
    s->longrope = pd_str_eq(type, "longrope");
    if (s->longrope || pd_str_eq(type, "none")) return PD_OK;
    s->div = factor;
    if (pd_str_eq(type, "linear")) return PD_OK;
    if (pd_str_eq(type, "yarn")) return read_yarn(g, prefix, s, err);
    return pd_fail(err, PD_EFILE, NULL, "%s is '%.*s'; none, linear, yarn and longrope are served", key,
                   (int)(type.len < 40 ? type.len : 40), type.data);
}

/* The frequency index whose wave turns `turns` times in the original context. */
static double turning_index(const pd_rope_spec *s, size_t dim, double turns) {
    return (double)dim * log((double)s->orig_ctx / (turns * 2.0 * 3.14159265358979323846)) /
           (2.0 * log(s->base));
}

/* YaRN: fast waves stay, slow ones are interpolated, a ramp between. */
static void ramp(const pd_rope_spec *s, size_t half, float *f) {
    const double low = fmax(floor(turning_index(s, 2 * half, (double)s->beta_fast)), 0.0);
    double high = fmin(ceil(turning_index(s, 2 * half, (double)s->beta_slow)), (double)(2 * half - 1));
    if (high == low) high += 0.001;
    for (size_t i = 0; i < half; i++) {
        const float t = ((float)i - (float)low) / (float)(high - low);
        const float slow = t < 0.0f ? 0.0f : t > 1.0f ? 1.0f : t;
        f[i] = f[i] / (float)s->yarn * slow + f[i] * (1.0f - slow);
    }
}

static pd_status divide(float *f, const float *by, size_t half, const char *name, pd_err *err) {
    for (size_t i = 0; by && i < half; i++) {
        if (!(by[i] > 0.0f))
            return pd_fail(err, PD_EFILE, NULL, "%s.weight[%zu] is %g, not positive", name, i, (double)by[i]);
        f[i] /= by[i];
    }
    return PD_OK;
}

pd_status pd__rope_make(const pd_hparams *hp, size_t r, const pd__rope_factors *factors, size_t ctx,
                        pd_rope *ret, pd_err *err) {
    const pd_rope_spec *s = &hp->rope_spec[r];
    const size_t half = hp->head_dim / 2;
    float *f = malloc(half * sizeof *f);
    if (!f) return pd_fail(err, PD_ENOMEM, NULL, "no memory for RoPE frequencies");
    *ret = (pd_rope){.inv_freq = f, .scale = s->scale}; /* the caller's to free, whatever follows */
    for (size_t i = 0; i < half; i++) {
        f[i] = 1.0f / (float)pow(s->base, (double)(2 * i) / (double)hp->head_dim);
        f[i] /= (float)s->div;
    }
    if (s->yarn > 0.0) ramp(s, half, f);
    if (r > 0) return PD_OK; /* factors are of the RoPE that sees everything */
    PD_TRY(divide(f, factors->all, half, "rope_freqs", err));
    if (ctx > s->orig_ctx) return divide(f, factors->long_, half, "rope_factors_long", err);
    return divide(f, factors->short_, half, "rope_factors_short", err);
}
