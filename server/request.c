/* SPDX-License-Identifier: Apache-2.0 */
/* Requests decoded (see request.h). */
#include "server/request.h"

#include "server/compression_json.h"
#include "server/request_int.h"
#include "server/structured.h"
#include "server/unserved.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- the prompt ---- */

pd_status pd__request_id(const json_t *v, const char *at, const pd_request_env *env, int32_t *ret,
                         pd_err *err) {
    int64_t id;
    if (!pd_json_integral(v, &id))
        return pd_fail(err, PD_EINVAL, at, "%s is %s; a token id is expected", at,
                       pd_json_type_name(v));
    if (id < 0 || (uint64_t)id >= env->n_vocab)
        return pd_fail(err, PD_EINVAL, at, "%s is %lld; token ids are 0 to %zu", at, (long long)id,
                       env->n_vocab - 1);
    *ret = (int32_t)id;
    return PD_OK;
}

/* `of` is where the array stands: "prompt" or "prompt[3]". */
static pd_status decode_ids(const json_t *array, const char *of, const pd_request_env *env,
                            pd_ids *ret, pd_err *err) {
    const size_t n = json_array_size(array);
    if (n == 0) return pd_fail(err, PD_EINVAL, of, "%s is an empty array; token ids are expected", of);
    ret->id = malloc(n * sizeof *ret->id);
    if (!ret->id) return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu token ids", n);
    ret->cap = n;
    for (size_t i = 0; i < n; i++) {
        char at[64];
        snprintf(at, sizeof at, "%s[%zu]", of, i);
        PD_TRY(pd__request_id(json_array_get(array, i), at, env, &ret->id[ret->n++], err));
    }
    return PD_OK;
}

static pd_status decode_one_prompt(const json_t *v, const char *at, const pd_request_env *env,
                                   pd_prompt *p, pd_err *err) {
    if (json_is_array(v)) return decode_ids(v, at, env, &p->ids, err);
    if (!json_is_string(v))
        return pd_fail(err, PD_EINVAL, at, "%s is %s; a string or an array of token ids is expected",
                       at, pd_json_type_name(v));
    p->text = json_string_value(v);
    p->text_len = json_string_length(v);
    return PD_OK;
}

pd_status pd_request_prompts(pd_request *r, size_t n, pd_err *err) {
    r->prompt = pd_arena_zalloc(&r->arena, n, sizeof *r->prompt);
    if (!r->prompt) return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu prompts", n);
    r->n_prompt = n;
    return PD_OK;
}

pd_status pd_request_texts(const json_t *body, const char *key, size_t max,
                           const pd_request_env *env, pd_request *r, pd_err *err) {
    const json_t *v = pd_json_get(body, key);
    if (!v) return pd_fail(err, PD_EINVAL, key, "%s is missing", key);
    const size_t n = json_array_size(v);
    const json_t *first = json_array_get(v, 0);
    if (!json_is_string(first) && !json_is_array(first)) {
        PD_TRY(pd_request_prompts(r, 1, err));
        return decode_one_prompt(v, key, env, r->prompt, err);
    }
    if (n > max)
        return pd_fail(err, PD_EINVAL, key, "%s holds %zu prompts; at most %zu are allowed", key, n,
                       max);
    PD_TRY(pd_request_prompts(r, n, err));
    for (size_t i = 0; i < n; i++) {
        char at[32];
        snprintf(at, sizeof at, "%s[%zu]", key, i);
        PD_TRY(decode_one_prompt(json_array_get(v, i), at, env, &r->prompt[i], err));
    }
    return PD_OK;
}

/* ---- fields ---- */

/* How many answers: n given per prompt, the best of best_of made. */
static pd_status decode_choices(const json_t *body, pd_request *r, pd_err *err) {
    int64_t n = 1, best_of = 1;
    bool given = false;
    PD_TRY(pd_json_int(body, "", "n", 1, PD_CHOICES_MAX, &n, NULL, err));
    if (r->kind == PD_REQUEST_COMPLETION)
        PD_TRY(pd_json_int(body, "", "best_of", 1, PD_REQUEST_BEST_OF_MAX, &best_of, &given, err));
    if (!given) best_of = n;
    if (best_of < n)
        return pd_fail(err, PD_EINVAL, "best_of", "best_of is %lld; at least n, %lld here, is needed",
                       (long long)best_of, (long long)n);
    if (best_of > n && r->stream)
        return pd_fail(err, PD_EINVAL, "best_of",
                       "best_of is %lld with n %lld: the best are known at the end, so there is no "
                       "stream of them",
                       (long long)best_of, (long long)n);
    r->n = (size_t)n;
    r->best_of = (size_t)best_of;
    if (r->n_prompt * r->best_of > PD_CHOICES_MAX)
        return pd_fail(err, PD_EINVAL, given ? "best_of" : "n",
                       "%zu prompts with %zu answers each are %zu answers; at most %d are allowed",
                       r->n_prompt, r->best_of, r->n_prompt * r->best_of, PD_CHOICES_MAX);
    return PD_OK;
}

static pd_status decode_length(const json_t *body, pd_request *r, pd_err *err) {
    int64_t n = PD_COMPLETION_MAX_TOKENS;
    const bool chat = r->kind == PD_REQUEST_CHAT;
    bool given = false, newer = false;
    PD_TRY(pd_json_int(body, "", "max_tokens", chat ? 1 : 0, PD__TOKENS_MAX, &n, &given, err));
    PD_TRY(pd_json_int(body, "", "max_completion_tokens", chat ? 1 : 0, PD__TOKENS_MAX, &n, &newer,
                       err)); /* wins */
    r->max_given = given || newer || !chat;
    r->max_tokens = r->max_given ? (size_t)n : 0;
    return PD_OK;
}

static pd_status decode_logprobs(const json_t *body, pd_request *r, pd_err *err) {
    int64_t n = -1;
    bool given = false;
    if (r->kind == PD_REQUEST_COMPLETION) {
        PD_TRY(pd_json_int(body, "", "logprobs", 0, PD_LOGPROBS_MAX, &n, &given, err));
        r->n_logprobs = given ? (int)n : -1;
        return PD_OK;
    }
    bool wanted = false;
    PD_TRY(pd_json_bool(body, "", "logprobs", &wanted, err));
    PD_TRY(pd_json_int(body, "", "top_logprobs", 0, PD_LOGPROBS_MAX, &n, &given, err));
    if (given && n > 0 && !wanted)
        return pd_fail(err, PD_EINVAL, "top_logprobs", "top_logprobs needs \"logprobs\": true");
    r->n_logprobs = !wanted ? -1 : given ? (int)n : 0;
    return PD_OK;
}

/* The prompt given back, and what its tokens were worth.  After the stream's fields. */
static pd_status decode_echo(const json_t *body, pd_request *r, pd_err *err) {
    int64_t n = -1;
    bool given = false;
    if (r->kind == PD_REQUEST_COMPLETION) PD_TRY(pd_json_bool(body, "", "echo", &r->echo, err));
    PD_TRY(pd_json_int(body, "", "prompt_logprobs", 0, PD_LOGPROBS_MAX, &n, &given, err));
    if (given && r->stream)
        return pd_fail(err, PD_EINVAL, "prompt_logprobs",
                       "prompt_logprobs is %lld; there are none in a stream (echo with logprobs has "
                       "them)",
                       (long long)n);
    r->n_prompt_logprobs = given ? (int)n : -1;
    return PD_OK;
}

static pd_status decode_stream(const json_t *body, pd_request *r, pd_err *err) {
    PD_TRY(pd_json_bool(body, "", "stream", &r->stream, err));
    const json_t *o = pd_json_get(body, "stream_options");
    if (!o) return PD_OK;
    if (!json_is_object(o))
        return pd_fail(err, PD_EINVAL, "stream_options",
                       "stream_options is %s; an object is expected", pd_json_type_name(o));
    if (!r->stream)
        return pd_fail(err, PD_EINVAL, "stream_options",
                       "stream_options is allowed only with \"stream\": true");
    PD_TRY(pd_json_bool(o, "stream_options.", "include_usage", &r->include_usage, err));
    return pd_json_bool(o, "stream_options.", "continuous_usage_stats", &r->continuous_usage, err);
}

pd_status pd__request_model(const json_t *body, const pd_request_env *env, const char **suffix,
                            pd_err *err) {
    const json_t *v = pd_json_get(body, "model");
    *suffix = NULL;
    if (!v) return PD_OK;
    if (!json_is_string(v))
        return pd_fail(err, PD_EINVAL, "model", "model is %s; a string is expected",
                       pd_json_type_name(v));
    const char *name = json_string_value(v);
    const size_t n = strlen(env->model_id);
    /* An alias may hold '@' itself. */
    const char *at = strncmp(name, env->model_id, n) == 0 && (name[n] == '@' || !name[n])
                         ? name + n
                         : strchr(name, '@');
    if (at && *at) *suffix = at + 1;
    return PD_OK;
}

static pd_status decode_compression(const json_t *body, const pd_request_env *env, pd_request *r,
                                    pd_compression **ret, pd_err *err) {
    const bool chat = r->kind == PD_REQUEST_CHAT;
    const json_t *v = pd_json_get(body, "compression");
    const char *suffix;
    PD_TRY(pd__request_model(body, env, &suffix, err));
    if (v && suffix)
        return pd_fail(err, PD_EINVAL, "compression",
                       "compression is given twice: here and behind '@' in model");
    if (suffix)
        return pd_compression_decode_text(suffix, "model", true, env->press_model, ret, err);
    if (v)
        return pd_compression_decode(v, "compression", env->press_model, chat, ret, &r->verbose,
                                     err);
    if (env->compression && *env->compression)
        return pd_compression_decode_default(env->compression, env->press_model, chat, ret, err);
    return PD_OK;
}

/* "compare": what each of several presses would keep.  What a member may hold is
 * the engine's to say (pd_job_params.compare). */
static pd_status decode_compare(const json_t *body, const pd_request_env *env, pd_request *r,
                                pd_err *err) {
    const json_t *v = pd_json_get(body, "compare");
    if (!v) return PD_OK;
    const size_t n = json_array_size(v);
    if (!json_is_array(v) || n == 0 || n > PD_COMPARE_MAX)
        return pd_fail(err, PD_EINVAL, "compare", "compare must be an array of 1 to %d compressions",
                       PD_COMPARE_MAX);
    if (pd_json_get(body, "compression"))
        return pd_fail(err, PD_EINVAL, "compare",
                       "give compression or compare, not both: a comparison applies none");
    for (size_t i = 0; i < n; i++) {
        char at[24];
        snprintf(at, sizeof at, "compare[%zu]", i);
        PD_TRY(pd_compression_decode(json_array_get(v, i), at, env->press_model,
                                     r->kind == PD_REQUEST_CHAT, &r->compare[i], NULL, err));
        if (!r->compare[i])
            return pd_fail(err, PD_EINVAL, at, "%s names no press; \"none\" keeps everything", at);
        r->n_compare++;
    }
    return PD_OK;
}

static pd_status decode_explain(const json_t *body, const pd_request_env *env, pd_request *r,
                                pd_err *err) {
    if (r->n_prompt * r->best_of != 1)
        return pd_fail(err, PD_EINVAL, r->n_prompt > 1 ? "prompt" : "n",
                       "an explanation has one prompt and one answer, not %zu and %zu", r->n_prompt,
                       r->best_of);
    PD_TRY(pd_json_bool(body, "", "scores", &r->scores, err));
    PD_TRY(decode_compare(body, env, r, err));
    const json_t *v = pd_json_get(body, "ratios");
    if (!v) return PD_OK;
    const size_t n = json_array_size(v);
    if (!json_is_array(v) || n > PD_REQUEST_RATIOS_MAX)
        return pd_fail(err, PD_EINVAL, "ratios", "ratios must be an array of at most %d numbers",
                       PD_REQUEST_RATIOS_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_array_get(v, i);
        const double x = json_number_value(one);
        char at[24];
        snprintf(at, sizeof at, "ratios[%zu]", i);
        if (!json_is_number(one) || !(x >= 0.0 && x < 1.0))
            return pd_fail(err, PD_EINVAL, at, "%s must be a number in [0, 1)", at);
        r->ratio[r->n_ratio++] = x;
    }
    return PD_OK;
}

static pd_status decode(const json_t *body, bool explain, const pd_request_env *env, pd_request *r,
                        pd_err *err) {
    PD_TRY(pd_unserved_check(body, r->kind == PD_REQUEST_CHAT, err));
    if (r->kind == PD_REQUEST_CHAT) {
        PD_TRY(pd_request_prompts(r, 1, err));
        PD_TRY(pd_request_messages(body, r, err));
        PD_TRY(pd__request_template(body, r, err));
    } else {
        PD_TRY(pd_request_texts(body, "prompt", PD_REQUEST_PROMPTS_MAX, env, r, err));
    }
    PD_TRY(decode_length(body, r, err));
    PD_TRY(pd__request_drawing(body, env, r, err));
    PD_TRY(decode_logprobs(body, r, err));
    PD_TRY(decode_stream(body, r, err));
    PD_TRY(decode_echo(body, r, err));
    PD_TRY(decode_choices(body, r, err));
    PD_TRY(pd_json_bool(body, "", "ignore_eos", &r->ignore_eos, err));
    PD_TRY(pd_json_bool(body, "", "verbose", &r->verbose, err));
    PD_TRY(pd_structured_decode(body, &r->grammar, err));
    if (explain) { /* nothing is drawn; a form that is wrong is refused there too */
        pd_grammar_unref(r->grammar);
        r->grammar = NULL;
    }
    if (explain) PD_TRY(decode_explain(body, env, r, err));
    for (size_t i = 0; i < r->n_prompt && !r->n_compare; i++)
        PD_TRY(decode_compression(body, env, r, &r->prompt[i].compression, err));
    return PD_OK;
}

pd_status pd_request_decode(json_t *body, pd_request_kind kind, bool explain,
                            const pd_request_env *env, pd_request *ret, pd_err *err) {
    pd_request r = {.body = body, .kind = kind, .n_logprobs = -1, .n_prompt_logprobs = -1};
    const pd_status st = decode(body, explain, env, &r, err);
    if (st == PD_OK) *ret = r;
    else pd_request_done(&r);
    return st;
}

/* Alternatives of each prompt token that the answer lists; -1 = no scores. */
static int score_top(const pd_request *r) {
    const int of_echo = r->echo ? r->n_logprobs : -1;
    return of_echo > r->n_prompt_logprobs ? of_echo : r->n_prompt_logprobs;
}

/* A reply must fit in memory. */
static pd_status check_scores(const pd_request *r, pd_err *err) {
    const int top = score_top(r);
    size_t n = 0;
    for (size_t i = 0; i < r->n_prompt; i++) n += r->prompt[i].ids.n * r->n;
    if (top < 0 || n <= PD_SCORED_MAX / (1 + (size_t)top)) return PD_OK;
    return pd_fail(err, PD_EINVAL, r->n_prompt_logprobs >= 0 ? "prompt_logprobs" : "logprobs",
                   "%zu prompt tokens, answers counted, with %d alternatives each; at most %d log "
                   "probabilities are given",
                   n, top, PD_SCORED_MAX);
}

static pd_status make_echoes(pd_request *r, const pd_request_env *env, pd_err *err) {
    r->echoed = calloc(r->n_prompt, sizeof *r->echoed);
    if (!r->echoed) return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu prompts", r->n_prompt);
    r->n_echoed = r->n_prompt;
    for (size_t i = 0; i < r->n_prompt; i++)
        PD_TRY(pd_echo_make(&r->echoed[i], env->tok, &r->prompt[i].ids, r->prompt[i].text != NULL,
                            err));
    return PD_OK;
}

pd_status pd_request_tokenize(pd_request *r, const pd_request_env *env, pd_err *err) {
    if (r->kind == PD_REQUEST_CHAT) {
        if (!env->chat)
            return pd_fail(err, PD_EINVAL, "messages",
                           "this model has no chat template; use /v1/completions or start with "
                           "--chat-template");
        if (r->tools) PD_TRY(pd_tools_fit(r->tools, env->chat, env->tool_schema, err));
        if (!pd_chat_uses(env->chat, "tools")) PD_TRY(pd__request_plain_tools(r, err));
        const pd_chat_talk talk = {
            .msg = r->msg,
            .n_msg = r->n_msg,
            .value = r->msg_value,
            .vars = &r->vars,
            .add_generation_prompt = r->add_generation_prompt,
            .continue_final = r->continue_final,
            .now = (int64_t)time(NULL),
        };
        PD_TRY(pd_chat_encode(env->chat, env->tok, &talk, &r->prompt->ids, &r->marks, err));
        r->has_marks = true;
        if (r->tools && r->tools->begun)
            PD_TRY(pd_tokenize(env->tok, r->tools->begun, strlen(r->tools->begun),
                               PD_TOK_SPECIAL | PD_TOK_CONTINUE, &r->prompt->ids, err));
    }
    for (size_t i = 0; i < r->n_prompt; i++) {
        pd_prompt *p = &r->prompt[i];
        if (p->text)
            PD_TRY(pd_tokenize(env->tok, p->text, p->text_len, PD_TOK_BOS | PD_TOK_SPECIAL, &p->ids,
                               err));
        if (p->ids.n == 0)
            return pd_fail(err, PD_EINVAL, "prompt", "prompt %zu is empty: it gives no tokens", i);
    }
    PD_TRY(check_scores(r, err));
    return r->echo ? make_echoes(r, env, err) : PD_OK;
}

/* A call that must be made is the whole answer, another form has no part in it; one that
 * may be made stands beside the form. */
pd_status pd_request_constrain(pd_request *r, pd_err *err) {
    const json_t *form = pd_structured_form(r->body);
    if (!r->tools || !(r->tools->begun || form)) return PD_OK;
    pd_grammar_unref(r->grammar);
    r->grammar = NULL;
    return pd_tools_grammar(r->tools, pd_json_get(r->body, "tools"), form, &r->grammar, err);
}

void pd_request_params(const pd_request *r, size_t i_prompt, pd_job_params *ret) {
    const pd_prompt *prompt = &r->prompt[i_prompt];
    *ret = (pd_job_params){
        /* A whole reply waits for its end: the loop then looks in for the counters alone, and
         * leaves the compute threads their processors meanwhile. */
        .notify_tokens = r->stream ? 1 : 16,
        .tokens = prompt->ids.id,
        .n_tokens = prompt->ids.n,
        .follows = i_prompt > 0,
        .score = score_top(r) >= 0,
        .score_top = score_top(r) > 0 ? (size_t)score_top(r) : 0,
        .marks = r->marks,
        .has_marks = r->has_marks,
        .continues = r->continue_final || (r->tools && r->tools->begun),
        .max_tokens = r->max_tokens,
        .max_given = r->max_given,
        .sampling = r->sampling,
        .n_stop = r->n_stop,
        .stop_id = r->stop_id,
        .n_stop_id = r->n_stop_id,
        .adjust = r->adjust,
        .grammar = r->grammar,
        /* the best are told by their log probabilities */
        .n_logprobs = r->best_of > r->n && r->n_logprobs < 0 ? 0 : r->n_logprobs,
        .ignore_eos = r->ignore_eos,
        .verbose = r->verbose,
        .compression = prompt->compression,
        .compare = r->compare,
        .n_compare = r->n_compare,
    };
    for (size_t i = 0; i < r->n_stop; i++) {
        ret->stop[i].text = r->stop[i].text;
        ret->stop[i].len = r->stop[i].len;
    }
}

void pd_request_taken(pd_request *r, size_t i) {
    r->prompt[i].compression = NULL;
    r->n_compare = 0;
}

void pd_request_trim(pd_request *r) {
    json_decref(r->body);
    r->body = NULL;
    for (size_t i = 0; i < r->n_prompt; i++) {
        pd_ids_done(&r->prompt[i].ids);
        pd_compression_close(r->prompt[i].compression);
    }
    pd_arena_done(&r->arena);
    pd_jheap_done(&r->values);
    pd_grammar_unref(r->grammar);
    r->grammar = NULL;
    r->prompt = NULL;
    r->n_prompt = 0;
    r->msg = NULL;
    r->msg_value = NULL;
    r->stop_id = NULL;
    r->adjust.bias = NULL;
    r->n_msg = r->n_stop = r->n_stop_id = r->adjust.n_bias = 0;
}

void pd_request_done(pd_request *r) {
    if (!r) return;
    pd_request_trim(r);
    pd_tools_close(r->tools);
    r->tools = NULL;
    for (size_t i = 0; i < r->n_compare; i++) pd_compression_close(r->compare[i]);
    r->n_compare = 0;
    for (size_t i = 0; i < r->n_echoed; i++) pd_echo_done(&r->echoed[i]);
    free(r->echoed);
    r->echoed = NULL;
    r->n_echoed = 0;
}
