/* SPDX-License-Identifier: Apache-2.0 */
/* Bodies of requests, decoded or refused.  The tokenizer is the fake engine's; include
 * cmocka first. */
#ifndef PD_TESTS_UNIT_REQUEST_CASE_H
#define PD_TESTS_UNIT_REQUEST_CASE_H

#include "server/request.h"

#include <string.h>

static const pd_press_model model = {
    .n_layer = 2, .n_head = 4, .n_head_kv = 2, .head_dim = 64, .n_embd = 256};

static inline pd_status decode_env(const char *text, pd_request_kind kind, const pd_request_env *env,
                            pd_request *r, pd_err *err) {
    json_t *body;
    PD_TRY(pd_json_parse(&body, text, strlen(text), err));
    return pd_request_decode(body, kind, false, env, r, err);
}

static inline pd_status decode(const char *text, pd_request_kind kind, pd_request *r, pd_err *err) {
    const pd_request_env env = {.model_id = "m@x", .press_model = &model, .n_vocab = 260};
    return decode_env(text, kind, &env, r, err);
}

static inline void completion(const char *text, pd_request *r) {
    pd_err err = {0};
    if (decode(text, PD_REQUEST_COMPLETION, r, &err) != PD_OK) fail_msg("%s: %s", text, err.msg);
}

static inline void refuse(const char *text, pd_request_kind kind, const char *param) {
    pd_err err = {0};
    pd_request r = {.n_msg = 4242};
    if (decode(text, kind, &r, &err) == PD_OK) fail_msg("accepted: %s", text);
    assert_int_equal(r.n_msg, 4242); /* untouched on failure */
    assert_int_equal(pd_status_http(err.code), 400);
    if (strcmp(err.param, param) != 0)
        fail_msg("%s: param '%s', expected '%s' (%s)", text, err.param, param, err.msg);
    assert_true(strlen(err.msg) > 0);
}

#endif
