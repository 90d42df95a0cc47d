/* SPDX-License-Identifier: Apache-2.0 */
/* From a text to prompts to press data (see calibrate.h).  Everything goes through
 * the engine's front door: a prompt is a job like any other. */
#include "engine/run/calibrate.h"

#include "compression/calibrate.h"
#include "engine/base/num.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_MIN = 32, ERROR_PROMPTS = 4, TRAIN_LAYERS = 4 };

static const char ask[] = "\n\nRepeat the previous context exactly.";

typedef struct {
    pd_engine *e;
    const pd_calibrate_opts *o;
    pd_calib *calib;
    pd_ids text, begin, middle; /* before a text; between it and its copy */
    size_t chunk, n_chunk, n_error, n_repeat, n_book;
    pthread_mutex_t lock;
    pthread_cond_t wake;
} run;

/* ---- one prompt ---- */

static void on_job(void *arg, pd_job *job) {
    (void)job;
    run *r = arg;
    pthread_mutex_lock(&r->lock);
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
}

static pd_status wait_for(run *r, pd_job *job, pd_err *err) {
    pthread_mutex_lock(&r->lock);
    while (pd_job_get_state(job) != PD_JOB_DONE) pthread_cond_wait(&r->wake, &r->lock);
    pthread_mutex_unlock(&r->lock);
    const pd_job_result *res = pd_job_get_result(job);
    if (res->finish == PD_FINISH_ERROR)
        return pd_fail(err, res->err.code, res->err.param, "%s", res->err.msg);
    return PD_OK;
}

/* Read the prompt under `press`, which is taken. */
static pd_status read_prompt(run *r, const pd_ids *ids, pd_press_inst *press, pd_err *err) {
    pd_compression *c = press ? calloc(1, sizeof *c) : NULL;
    if (!c) {
        pd_press_inst_close(press);
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for a prompt");
    }
    c->press = press;
    const pd_job_params p = {
        .tokens = ids->id,
        .n_tokens = ids->n,
        .max_tokens = 0,
        .max_given = true,
        .n_logprobs = -1,
        .sampling = {.top_p = 1.0f},
        .compression = c,
        .notify = on_job,
        .notify_arg = r,
    };
    pd_job *job;
    const pd_status rc = pd_engine_submit(r->e, &p, &job, err);
    if (rc != PD_OK) {
        pd_compression_close(c);
        return rc;
    }
    const pd_status end = wait_for(r, job, err);
    pd_job_unref(job);
    return end;
}

/* ---- prompts ---- */

static pd_status add(pd_ids *to, const int32_t *id, size_t n, pd_err *err) {
    for (size_t i = 0; i < n; i++) PD_TRY(pd_ids_push(to, id[i], err));
    return PD_OK;
}

static pd_status read_text(run *r, size_t chunk, pd_press_inst *(*press)(pd_calib *), pd_err *err) {
    const pd_tokenizer *t = pd_engine_tokenizer(r->e);
    const pd_tokenizer_info *info = pd_tokenizer_get_info(t);
    pd_ids ids = {0};
    pd_status rc = info->add_bos && info->bos >= 0 ? pd_ids_push(&ids, info->bos, err) : PD_OK;
    if (rc == PD_OK) rc = add(&ids, r->text.id + chunk * r->chunk, r->chunk, err);
    if (rc == PD_OK) rc = read_prompt(r, &ids, press(r->calib), err);
    pd_ids_done(&ids);
    return rc;
}

static pd_status read_repeat(run *r, size_t chunk, pd_err *err) {
    pd_ids ids = {0};
    const int32_t *text = r->text.id + chunk * r->chunk;
    pd_status rc = add(&ids, r->begin.id, r->begin.n, err);
    if (rc == PD_OK) rc = add(&ids, text, r->chunk, err);
    if (rc == PD_OK) rc = add(&ids, r->middle.id, r->middle.n, err);
    const size_t again = ids.n;
    if (rc == PD_OK) rc = add(&ids, text, r->chunk, err);
    if (rc == PD_OK)
        rc = read_prompt(r, &ids, pd_calib_repeat(r->calib, r->begin.n, r->chunk, again), err);
    if (rc == PD_OK) rc = pd_calib_repeat_end(r->calib, err);
    pd_ids_done(&ids);
    return rc;
}

/* What the template puts before a user's message and between it and the answer. */
static pd_status split_template(run *r, const pd_chat *chat, pd_buf *before, pd_buf *after,
                                pd_err *err) {
    static const char mark[] = "CONTEXT-STANDS-HERE";
    pd_buf text = {0};
    const pd_chat_msg msg = {"user", mark};
    const pd_chat_talk talk = {.msg = &msg, .n_msg = 1, .add_generation_prompt = true};
    pd_status rc = pd_chat_render(chat, pd_engine_tokenizer(r->e), &talk, &text, err);
    const char *at = rc == PD_OK && text.data ? strstr(text.data, mark) : NULL;
    if (at) {
        pd_buf_add(before, text.data, (size_t)(at - text.data));
        pd_buf_puts(after, at + sizeof mark - 1);
    } else if (rc == PD_OK) {
        rc = pd_fail(err, PD_EINTERNAL, NULL, "the chat template swallows the message");
    }
    pd_buf_done(&text);
    return rc;
}

static pd_status make_frame(run *r, pd_err *err) {
    const pd_tokenizer *t = pd_engine_tokenizer(r->e);
    const pd_chat *chat = pd_engine_chat(r->e);
    pd_buf before = {0}, after = {0};
    pd_status rc = PD_OK;
    if (chat)
        rc = split_template(r, chat, &before, &after, err);
    else
        pd_buf_puts(&after, "\n");
    if (rc == PD_OK)
        rc = pd_tokenize(t, before.data ? before.data : "", before.len, PD_TOK_SPECIAL | PD_TOK_BOS,
                         &r->begin, err);
    if (rc == PD_OK) rc = pd_tokenize(t, ask, sizeof ask - 1, PD_TOK_CONTINUE, &r->middle, err);
    if (rc == PD_OK)
        rc = pd_tokenize(t, after.data ? after.data : "", after.len,
                         PD_TOK_SPECIAL | PD_TOK_CONTINUE, &r->middle, err);
    pd_buf_done(&before);
    pd_buf_done(&after);
    if (rc == PD_OK && r->begin.n > 1 && r->begin.id[0] == r->begin.id[1] &&
        r->begin.id[0] == pd_tokenizer_get_info(t)->bos)
        memmove(r->begin.id, r->begin.id + 1,
                --r->begin.n * sizeof *r->begin.id); /* the template's and the model's */
    return rc;
}

/* ---- all of them ---- */

static pd_status cut(run *r, pd_err *err) {
    const pd_calibrate_opts *o = r->o;
    PD_TRY(pd_tokenize(pd_engine_tokenizer(r->e), o->text, o->len, 0, &r->text, err));
    PD_TRY(make_frame(r, err));
    const size_t n = pd_min_size(r->text.n, o->tokens), ctx = pd_engine_get_info(r->e)->ctx_size;
    r->chunk = pd_min_size(o->chunk, n);
    if (r->chunk < CHUNK_MIN)
        return pd_fail(err, PD_EINVAL, NULL,
                       "the text has %zu tokens; prompts of at least %d are needed", n, CHUNK_MIN);
    const bool repeats = o->sets & PD_CALIB_REPEAT;
    const size_t need = repeats ? 2 * r->chunk + r->begin.n + r->middle.n : r->chunk + 1;
    if (need > ctx)
        return pd_fail(
            err, PD_EINVAL, NULL,
            "prompts of %zu tokens do not fit the model's context of %zu: use a smaller chunk",
            need, ctx);
    r->n_chunk = n / r->chunk;
    if (o->sets & PD_CALIB_BASES) r->n_error = pd_min_size(ERROR_PROMPTS, r->n_chunk);
    if (o->sets & PD_CALIB_CODES) r->n_book = pd_engine_get_info(r->e)->press_model.n_layer;
    if (repeats) r->n_repeat = pd_max_size(1, pd_min_size(o->repeat_tokens / r->chunk, r->n_chunk));
    return PD_OK;
}

/* When all prompts were read, `done` steps: codebooks layer by layer, gates some layers at a time.  The
 * engine's own threads sleep meanwhile. */
static pd_status make_books(run *r, pd_press_data *d, pd_workers *workers, size_t *done, size_t all,
                            void (*progress)(void *, size_t, size_t), void *arg, pd_err *err) {
    for (size_t l = 0; l < r->n_book; l++) {
        PD_TRY(pd_calib_codes(r->calib, l, pd_engine_get_info(r->e)->ctx_size, d, workers, err));
        if (progress) progress(arg, ++*done, all);
    }
    return PD_OK;
}

static pd_status train_all(run *r, pd_press_data *d, pd_workers *workers, size_t done, size_t all,
                           void (*progress)(void *, size_t, size_t), void *arg, pd_err *err) {
    const size_t n_layer = pd_engine_get_info(r->e)->press_model.n_layer;
    for (size_t l = 0; l < n_layer && r->o->sets & 1u << PD_SET_FASTKVZIP; l += TRAIN_LAYERS) {
        PD_TRY(pd_calib_train(r->calib, l, pd_min_size(TRAIN_LAYERS, n_layer - l), workers, d, err));
        if (progress) progress(arg, ++done, all);
    }
    return PD_OK;
}

static pd_status make_late(run *r, pd_press_data *d, size_t done, size_t all, void (*progress)(void *, size_t, size_t),
                           void *arg, pd_err *err) {
    pd_workers *workers = NULL;
    PD_TRY(pd_workers_open(&workers, pd_engine_get_info(r->e)->n_threads, err));
    pd_status rc = make_books(r, d, workers, &done, all, progress, arg, err);
    if (rc == PD_OK) rc = train_all(r, d, workers, done, all, progress, arg, err);
    pd_workers_close(workers);
    return rc;
}

static pd_status read_all(run *r, pd_press_data *d, void (*progress)(void *, size_t, size_t),
                          void *arg, pd_err *err) {
    PD_TRY(cut(r, err));
    const pd_press_model *model = &pd_engine_get_info(r->e)->press_model;
    PD_TRY(pd_calib_open(&r->calib, model, r->o->sets, r->n_repeat * r->chunk, err));
    const size_t trained = r->o->sets & 1u << PD_SET_FASTKVZIP ? pd_div_up(model->n_layer, TRAIN_LAYERS) : 0;
    const size_t n_text = r->o->sets & PD_CALIB_TEXT ? r->n_chunk : 0, twice = n_text + r->n_error,
                 prompts = twice + r->n_repeat, all = prompts + r->n_book + trained;
    for (size_t i = 0; i < prompts; i++) {
        if (i == n_text && r->n_error) PD_TRY(pd_calib_bases(r->calib, d, err));
        if (i < n_text)
            PD_TRY(read_text(r, i, pd_calib_text, err));
        else if (i < twice)
            PD_TRY(read_text(r, (i - n_text) * r->n_chunk / r->n_error, pd_calib_errors, err));
        else
            PD_TRY(read_repeat(r, (i - twice) * r->n_chunk / r->n_repeat, err));
        if (progress) progress(arg, i + 1, all);
    }
    if (r->n_book || trained) PD_TRY(make_late(r, d, prompts, all, progress, arg, err));
    return pd_calib_finish(r->calib, d, err);
}

pd_status pd_calibrate(pd_engine *e, const pd_calibrate_opts *o, pd_press_data *d,
                       void (*progress)(void *arg, size_t done, size_t all), void *arg,
                       pd_err *err) {
    run r = {.e = e, .o = o};
    pthread_mutex_init(&r.lock, NULL);
    pthread_cond_init(&r.wake, NULL);
    const pd_status rc = read_all(&r, d, progress, arg, err);
    pd_calib_close(r.calib);
    pd_ids_done(&r.text);
    pd_ids_done(&r.begin);
    pd_ids_done(&r.middle);
    pthread_cond_destroy(&r.wake);
    pthread_mutex_destroy(&r.lock);
    return rc;
}
