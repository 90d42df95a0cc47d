/* SPDX-License-Identifier: Apache-2.0 */
/* Asking an engine on a tiny model and waiting for the answer. */
#ifndef PD_TESTS_UNIT_ENGINE_CASE_H
#define PD_TESTS_UNIT_ENGINE_CASE_H

#include "compression/press_data.h"
#include "engine/gguf/gguf.h"
#include "engine/run/engine.h"
#include "tests/unit/tiny_model.h"

enum { CASE_TOKENS_MAX = 1024 };

/* Seeded model of that kind in a file of its own, made once per process; removed
 * by case_cleanup. */
const char *case_model(tiny_arch arch, tiny_type type);
void case_cleanup(void);
int case_group_end(void **state); /* the same, for cmocka */

/* New press data of that model in file g. */
typedef pd_press_data *(*case_data)(const pd_press_model *model, uint64_t key, const pd_gguf *g, const void *arg);

/* parallel 16, pool 8 MiB, 1 thread, whatever the CPU has, no press data, unless `o` says more
 * (0 = as here; a mask of 0 is asked for by `scalar`). */
typedef struct {
    pd_compute compute;
    unsigned threads, parallel, queue, draft_tokens;
    bool scalar;
    uint64_t kv_bytes;
    size_t ctx;
    case_data data;
    const void *data_arg;
} case_opts;
pd_engine *case_open(tiny_arch arch, tiny_type type, const case_opts *o);

/* n seeded token ids of that model; the first 256 ids only. */
void case_prompt(int32_t *ids, size_t n, uint64_t seed);

typedef struct {
    const int32_t *tokens;
    size_t n, max_tokens;
    const char *press;       /* text with @ratio, or NULL */
    pd_budget_kind budget;
    uint64_t amount;
    size_t scope;            /* tokens; 0 = the prompt */
    size_t min_tokens;
    bool protect;            /* with system = [begin, end) */
    size_t system_begin, system_end;
    const char *decode;      /* text, or NULL */
    size_t interval, target;
    pd_kv_type kv_key, kv_value;
    pd_compression *comp;    /* instead of all that; the engine takes it */
    int logprobs;            /* 0 = none asked for */
    bool explain, scores, keep_eos;
    bool score;              /* the prompt, with score_top alternatives */
    size_t score_top;
    pd_pooling pool;
    const char *const *compare; /* texts up to NULL, or NULL */
    const char *stop;
    const int32_t *stop_id;
    size_t n_stop_id;
    pd_adjust adjust;
    pd_grammar *grammar;
    float temperature;
    uint64_t seed, press_seed;
} ask;

/* What pd_engine_submit says; on PD_OK *job is the caller's. */
pd_status case_submit(pd_engine *e, const ask *a, pd_job **job, pd_err *err);
/* n answers, choice i with seed a->seed + i; the same in job[n]. */
pd_status case_submit_n(pd_engine *e, const ask *a, size_t n, pd_job **job, pd_err *err);
extern void (*case_before_submit)(void); /* called when all is ready to submit; NULL = nothing */

typedef struct {
    pd_job *job; /* one reference: case_drop */
    const pd_job_result *r;
    size_t n;
    int32_t id[CASE_TOKENS_MAX];
    float logprob[CASE_TOKENS_MAX];
    const pd_token_prob *top[CASE_TOKENS_MAX];
    size_t n_top[CASE_TOKENS_MAX];
    pd_buf text;
} answer;

answer *case_wait(pd_job *job);                  /* until DONE, at most a minute or two */
answer *case_run(pd_engine *e, const ask *a);    /* submit and wait; fails the test on a refusal */
void case_drop(answer *a);
void case_expect_same(const answer *a, const answer *b); /* ids, log probabilities, text */

/* Each of n presses alone, on `three` (the same model, more threads), and all of them at once with two answers
 * each: the answer, its bytes and its ratio are the same.  Every other press works on like->scope tokens, the
 * others on the whole prompt.  like->press is not read. */
enum { CASE_COMPANY_MAX = 16 };
void case_expect_company(pd_engine *e, pd_engine *three, const ask *like, const char *const *press, size_t n);

/* With like->press less is reserved than dense, by more than a `part`th of what is left; a pool between the two, which
 * `open` is asked for (0 = any), takes the one and refuses the other.  like->press is not NULL. */
typedef pd_engine *(*case_opener)(uint64_t kv_bytes);
void case_expect_less_reserved(case_opener open, const ask *like, uint64_t part);

/* The answer and its bytes are the same from an engine that guesses.  How many guesses came true. */
size_t case_expect_same_guessed(pd_engine *none, pd_engine *guess, const ask *q);

/* The counting equation, and nothing held: what must be true once all is done. */
void case_expect_idle(const pd_engine *e);

#endif
