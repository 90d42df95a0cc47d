/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's own state, shared by engine.c (callers' side) and scheduler.c
 * (the engine thread). */
#ifndef PD_ENGINE_RUN_STATE_H
#define PD_ENGINE_RUN_STATE_H

#include "compression/press_data.h"
#include "engine/run/seq.h"

struct pd_engine {
    pd_engine_info info;
    pd_tokenizer *tok;
    pd_chat *chat; /* NULL: the model has none */
    pd_model *model;
    pd_kernels kern;
    pd_workers *workers;
    pd_press_data *press_data; /* NULL = none; info.press_model borrows it */
    char warning[500];

    pthread_t thread;
    bool thread_started, sync_ready;

    /* `lock` guards the inbox, n_waiting's growth and stop; held for a few
     * instructions only.  `wake` tells the engine thread of any of them. */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pd_job *inbox, **inbox_end;
    bool stop;
    _Atomic bool nudge; /* a cancel came: look at the lists again */

    /* Taken while pd_engine_prepare_grammar makes run.tree, which the engine thread
     * reads for jobs that came after. */
    pthread_mutex_t tree_lock;
    _Atomic uint64_t c_tree; /* its bytes */

    /* engine thread only */
    pd_run run;
    pd_job *wait;       /* FCFS */
    pd_seq **seq;       /* [parallel] decoding */
    size_t n_seq;
    pd_seq *ready, **ready_end; /* sequences that wait for a place in the batch, in order */
    pd_seq *filling;    /* the one in prefill, or NULL */
    pd_prefill prefill;
    uint64_t reserved;  /* bytes of pages promised to running sequences */
    double step_ns, row_ns, end_ns; /* what a decode step, a prefill row and a layer's end took lately */

    /* counters: written by the engine thread, read by anyone, relaxed */
    _Atomic unsigned n_running, n_waiting;
    _Atomic uint64_t c_staging, c_dense, c_peak, c_scratch, c_prompt, c_generated, c_drafted, c_draft_taken, c_steps, c_units, c_alive;
};

void *pd__engine_main(void *engine); /* scheduler.c */

#endif
