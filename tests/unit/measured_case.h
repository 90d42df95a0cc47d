/* SPDX-License-Identifier: Apache-2.0 */
/* Engines on tiny models for presses that need press data, measured on a text of the model's own bytes. */
#ifndef PD_TESTS_UNIT_MEASURED_CASE_H
#define PD_TESTS_UNIT_MEASURED_CASE_H

#include "compression/calibrate.h"
#include "engine/run/calibrate.h"
#include "tests/unit/engine_case.h"

typedef struct {
    tiny_arch arch;
    unsigned sets;
    size_t tokens, chunk;
} case_measures;

static inline pd_press_data *case_measure(const pd_press_model *model, uint64_t key, const pd_gguf *g, const void *arg) {
    (void)g;
    enum { TEXT = 3000 };
    static char text[TEXT];
    const case_measures *m = arg;
    for (size_t i = 0; i < TEXT; i++) text[i] = (char)('a' + (i * i + i / 7) % 23);
    const pd_calibrate_opts o = {.text = text, .len = TEXT, .sets = m->sets, .tokens = m->tokens, .chunk = m->chunk};
    pd_err err = {0};
    pd_press_data *d = NULL;
    pd_engine *e = case_open(m->arch, TINY_Q8_0, &(case_opts){.ctx = 1024});
    if (pd_press_data_new(&d, model, key, &err) != PD_OK || pd_calibrate(e, &o, d, NULL, NULL, &err) != PD_OK) fail_msg("%s", err.msg);
    pd_engine_close(e);
    return d;
}

/* `sets` of `tokens` tokens in prompts of `chunk`; kv_bytes 0 = 16 MiB. */
static inline pd_engine *case_open_measured(unsigned sets, size_t tokens, size_t chunk, tiny_arch arch, pd_compute compute, unsigned threads,
                                            uint64_t kv_bytes, unsigned draft_tokens) {
    const case_measures m = {.arch = arch, .sets = sets, .tokens = tokens, .chunk = chunk};
    return case_open(arch, TINY_Q8_0, &(case_opts){.compute = compute, .threads = threads, .draft_tokens = draft_tokens,
                                                   .kv_bytes = kv_bytes ? kv_bytes : 16u << 20, .data = case_measure, .data_arg = &m});
}

/* With the bases of eigen_attention and sals. */
static inline pd_engine *case_open_bases(tiny_arch arch, pd_compute compute, unsigned threads, uint64_t kv_bytes, unsigned draft_tokens) {
    return case_open_measured(PD_CALIB_BASES, 3000, 200, arch, compute, threads, kv_bytes, draft_tokens);
}

#endif
