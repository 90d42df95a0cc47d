/* SPDX-License-Identifier: Apache-2.0 */
/* Engines on tiny models for presses that need press data, measured on a text of the model's own bytes. */
#ifndef PD_TESTS_UNIT_MEASURED_CASE_H
#define PD_TESTS_UNIT_MEASURED_CASE_H

#include "compression/calibrate.h"
#include "engine/run/calibrate.h"
#include "tests/unit/engine_case.h"

#include <stdlib.h>
#include <unistd.h>

/* `sets` of `tokens` tokens in prompts of `chunk`; kv_bytes 0 = 16 MiB. */
static inline pd_engine *case_open_measured(unsigned sets, size_t tokens, size_t chunk, tiny_arch arch, pd_compute compute, unsigned threads,
                                            uint64_t kv_bytes, unsigned draft_tokens) {
    enum { TEXT = 3000 };
    char path[] = "/tmp/pressd-test-data-XXXXXX", text[TEXT];
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    for (size_t i = 0; i < TEXT; i++) text[i] = (char)('a' + (i * i + i / 7) % 23);
    const pd_calibrate_opts o = {.text = text, .len = TEXT, .sets = sets, .tokens = tokens, .chunk = chunk};
    pd_err err = {0};
    pd_gguf *g;
    uint64_t key = 0;
    pd_press_data *d = NULL;
    pd_engine *e = case_open(arch, TINY_Q8_0, &(case_opts){.ctx = 1024});
    if (pd_gguf_open(&g, case_model(arch, TINY_Q8_0), &err) != PD_OK || pd_model_key(g, &key, &err) != PD_OK ||
        pd_press_data_new(&d, &pd_engine_get_info(e)->press_model, key, &err) != PD_OK ||
        pd_calibrate(e, &o, d, NULL, NULL, &err) != PD_OK || pd_press_data_save(d, path, "tiny", &err) != PD_OK)
        fail_msg("%s", err.msg);
    pd_gguf_close(g);
    pd_press_data_close(d);
    pd_engine_close(e);
    const pd_engine_opts opts = {.model_path = case_model(arch, TINY_Q8_0), .press_data = path, .compute = compute, .n_threads = threads,
                                 .cpu_mask = ~0u, .draft_tokens = draft_tokens, .parallel = 16, .kv_bytes = kv_bytes ? kv_bytes : 16u << 20};
    if (pd_engine_open(&e, &opts, NULL, NULL, &err) != PD_OK) fail_msg("%s", err.msg);
    unlink(path);
    return e;
}

/* With the bases of eigen_attention and sals. */
static inline pd_engine *case_open_bases(tiny_arch arch, pd_compute compute, unsigned threads, uint64_t kv_bytes, unsigned draft_tokens) {
    return case_open_measured(PD_CALIB_BASES, 3000, 200, arch, compute, threads, kv_bytes, draft_tokens);
}

#endif
