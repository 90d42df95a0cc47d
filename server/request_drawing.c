/* SPDX-License-Identifier: Apache-2.0 */
/* The fields that say how a token is drawn and which one ends the answer. */
#include "server/request_int.h"

#include <stdio.h>
#include <sys/random.h>

static pd_status decode_sampling(const json_t *body, pd_request *r, pd_err *err) {
    double temperature = 1.0, top_p = 1.0, min_p = 0.0;
    int64_t top_k = 0, seed = 0;
    PD_TRY(pd_json_real(body, "", "temperature", 0.0, 2.0, &temperature, NULL, err));
    PD_TRY(pd_json_real(body, "", "top_p", 0.0, 1.0, &top_p, NULL, err));
    if (top_p <= 0.0)
        return pd_fail(err, PD_EINVAL, "top_p", "top_p is 0; allowed are values in (0, 1]");
    PD_TRY(pd_json_real(body, "", "min_p", 0.0, 1.0, &min_p, NULL, err));
    PD_TRY(pd_json_int(body, "", "top_k", -1, INT32_MAX, &top_k, NULL, err));
    PD_TRY(pd_json_int(body, "", "seed", INT64_MIN, INT64_MAX, &seed, &r->seed_given, err));
    r->sampling = (pd_sampling){
        .temperature = (float)temperature,
        .top_p = (float)top_p,
        .min_p = (float)min_p,
        .top_k = top_k > 0 ? (int32_t)top_k : 0,
        .seed = (uint64_t)seed,
    };
    if (!r->seed_given &&
        getrandom(&r->sampling.seed, sizeof r->sampling.seed, 0) != sizeof r->sampling.seed)
        return pd_fail(err, PD_EINTERNAL, NULL, "the system gives no random numbers");
    return PD_OK;
}

static pd_status add_stop(const json_t *v, size_t i, bool in_list, pd_request *r, pd_err *err) {
    char at[24] = "stop";
    if (in_list) snprintf(at, sizeof at, "stop[%zu]", i);
    if (!json_is_string(v))
        return pd_fail(err, PD_EINVAL, at, "%s is %s; a string is expected", at,
                       pd_json_type_name(v));
    const size_t len = json_string_length(v);
    if (len == 0) return pd_fail(err, PD_EINVAL, at, "%s is an empty string", at);
    if (len > PD_STOP_BYTES_MAX)
        return pd_fail(err, PD_EINVAL, at, "%s has %zu bytes; at most %d are allowed", at, len,
                       PD_STOP_BYTES_MAX);
    r->stop[r->n_stop].text = json_string_value(v);
    r->stop[r->n_stop++].len = len;
    return PD_OK;
}

static pd_status decode_stop(const json_t *body, pd_request *r, pd_err *err) {
    const json_t *v = pd_json_get(body, "stop");
    if (!v) return PD_OK;
    if (!json_is_array(v)) return add_stop(v, 0, false, r, err);
    const size_t n = json_array_size(v);
    if (n > PD_STOP_MAX)
        return pd_fail(err, PD_EINVAL, "stop", "stop has %zu strings; at most %d are allowed", n,
                       PD_STOP_MAX);
    for (size_t i = 0; i < n; i++) PD_TRY(add_stop(json_array_get(v, i), i, true, r, err));
    return PD_OK;
}

/* Token ids that end the answer. */
static pd_status decode_stop_ids(const json_t *body, const pd_request_env *env, pd_request *r,
                                 pd_err *err) {
    const json_t *v = pd_json_get(body, "stop_token_ids");
    if (!v) return PD_OK;
    const size_t n = json_array_size(v);
    if (!json_is_array(v))
        return pd_fail(err, PD_EINVAL, "stop_token_ids",
                       "stop_token_ids is %s; an array of token ids is expected",
                       pd_json_type_name(v));
    if (n > PD_STOP_IDS_MAX)
        return pd_fail(err, PD_EINVAL, "stop_token_ids",
                       "stop_token_ids has %zu entries; at most %d are allowed", n,
                       PD_STOP_IDS_MAX);
    r->stop_id = PD_ARENA_NEW(&r->arena, n ? n : 1, int32_t);
    if (!r->stop_id) return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu stop tokens", n);
    for (size_t i = 0; i < n; i++) {
        char at[48];
        snprintf(at, sizeof at, "stop_token_ids[%zu]", i);
        PD_TRY(pd__request_id(json_array_get(v, i), at, env, &r->stop_id[r->n_stop_id++], err));
    }
    return PD_OK;
}

/* A key of logit_bias: the decimal digits of a token id. */
static pd_status decode_bias_key(const char *key, const pd_request_env *env, int32_t *ret,
                                 pd_err *err) {
    int64_t id = 0;
    size_t n = 0;
    for (; key[n] >= '0' && key[n] <= '9' && n < 10; n++) id = id * 10 + (key[n] - '0');
    if (n == 0 || key[n])
        return pd_fail(err, PD_EINVAL, "logit_bias",
                       "logit_bias has the key \"%.40s\"; keys are token ids as text", key);
    if ((uint64_t)id >= env->n_vocab)
        return pd_fail(err, PD_EINVAL, "logit_bias",
                       "logit_bias names token %lld; token ids are 0 to %zu", (long long)id,
                       env->n_vocab - 1);
    *ret = (int32_t)id;
    return PD_OK;
}

static pd_status decode_bias(const json_t *body, const pd_request_env *env, pd_request *r,
                             pd_err *err) {
    json_t *v = pd_json_get(body, "logit_bias");
    if (!v) return PD_OK;
    const size_t n = json_object_size(v);
    if (!json_is_object(v))
        return pd_fail(err, PD_EINVAL, "logit_bias",
                       "logit_bias is %s; an object of token ids and numbers is expected",
                       pd_json_type_name(v));
    if (n > PD_BIAS_MAX)
        return pd_fail(err, PD_EINVAL, "logit_bias",
                       "logit_bias has %zu entries; at most %d are allowed", n, PD_BIAS_MAX);
    pd_token_bias *bias = PD_ARENA_NEW(&r->arena, n ? n : 1, pd_token_bias);
    if (!bias) return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu token biases", n);
    const char *key;
    json_t *one;
    json_object_foreach(v, key, one) {
        double b = 0.0;
        bool given = false;
        pd_token_bias *to = &bias[r->adjust.n_bias++];
        PD_TRY(decode_bias_key(key, env, &to->id, err));
        PD_TRY(pd_json_real(v, "logit_bias.", key, -100.0, 100.0, &b, &given, err));
        to->bias = (float)b; /* null: 0 */
    }
    r->adjust.bias = bias;
    return PD_OK;
}

/* What changes the logits before a token is drawn. */
static pd_status decode_adjust(const json_t *body, const pd_request_env *env, pd_request *r,
                               pd_err *err) {
    double repetition = 1.0, frequency = 0.0, presence = 0.0;
    int64_t min_tokens = 0;
    PD_TRY(pd_json_real(body, "", "repetition_penalty", 0.0, 2.0, &repetition, NULL, err));
    if (repetition <= 0.0)
        return pd_fail(err, PD_EINVAL, "repetition_penalty",
                       "repetition_penalty is 0; allowed are values in (0, 2]");
    PD_TRY(pd_json_real(body, "", "frequency_penalty", -2.0, 2.0, &frequency, NULL, err));
    PD_TRY(pd_json_real(body, "", "presence_penalty", -2.0, 2.0, &presence, NULL, err));
    PD_TRY(pd_json_int(body, "", "min_tokens", 0, PD__TOKENS_MAX, &min_tokens, NULL, err));
    if (r->max_given && (size_t)min_tokens > r->max_tokens)
        return pd_fail(err, PD_EINVAL, "min_tokens",
                       "min_tokens is %lld; at most max_tokens, %zu here, are allowed",
                       (long long)min_tokens, r->max_tokens);
    r->adjust.repetition = (float)repetition;
    r->adjust.frequency = (float)frequency;
    r->adjust.presence = (float)presence;
    r->adjust.min_tokens = (size_t)min_tokens;
    return decode_bias(body, env, r, err);
}

pd_status pd__request_drawing(const json_t *body, const pd_request_env *env, pd_request *r,
                              pd_err *err) {
    PD_TRY(decode_sampling(body, r, err));
    PD_TRY(decode_stop(body, r, err));
    PD_TRY(decode_stop_ids(body, env, r, err));
    return decode_adjust(body, env, r, err);
}
