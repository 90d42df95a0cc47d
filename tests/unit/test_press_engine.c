/* SPDX-License-Identifier: Apache-2.0 */
/* run: what holds for every press of the registry on a model, with press data at
 * hand: at ratio 0 the answer is the dense one bit by bit, a request repeats, and
 * every page comes back.  No press is named (see test_press_matrix). */
#include "tests/unit/press_data_case.h"
#include "tests/unit/press_draw.h"

#include "engine/run/engine.h"
#include "tests/unit/engine_case.h"

enum { N_PROMPT = 210, N_NEW = 40 };

/* Random press data of every set. */
static pd_press_data *drawn(const pd_press_model *model, uint64_t key, const pd_gguf *g, const void *arg) {
    (void)g, (void)arg;
    return pd_case_data_of(5, model, key);
}

static void expect_pages(const char *text, const answer *a) {
    const size_t heads = a->r->kv.n_layer * a->r->kv.n_head_kv;
    for (size_t h = 0; h < heads; h++)
        if (a->r->kv.kept[h] < 1 || a->r->kv.kept[h] > N_PROMPT + N_NEW ||
            16 * (size_t)a->r->kv.head_pages[h] < a->r->kv.kept[h])
            fail_msg("%s: head %zu holds %u slots in %u pages", text, h, a->r->kv.kept[h], a->r->kv.head_pages[h]);
}

static void every_press_serves(void **state) {
    (void)state;
    static const tiny_arch archs[] = {TINY_LLAMA, TINY_GEMMA3};
    int32_t prompt[N_PROMPT];
    case_prompt(prompt, N_PROMPT, 31);
    for (size_t m = 0; m < 2; m++) {
        pd_engine *e = case_open(archs[m], TINY_Q8_0, &(case_opts){.threads = 2, .data = drawn});
        const pd_press_model *model = &pd_engine_get_info(e)->press_model;
        ask q = {.tokens = prompt, .n = N_PROMPT, .max_tokens = N_NEW, .logprobs = 10, .press_seed = 9};
        answer *dense = case_run(e, &q);
        size_t pressed = 0, reading = 0;
        for (size_t i = 0; i < pd_press_count(); i++) {
            const pd_press *p = pd_press_at(i);
            pd_rng rng = {900 + i};
            char name[TEXT_MAX], text[TEXT_MAX + 16];
            pd_err err;
            around(p, any_child(p, model, &rng), model, false, &rng, name, sizeof name);
            pd_press_inst *inst = resolve(name, model, &err);
            if (!inst) fail_msg("%s: %s", name, err.msg);
            const bool by_ratio = pd_press_inst_takes_ratio(inst);
            pd_press_inst_close(inst);
            q.press = text;
            if (by_ratio) {
                snprintf(text, sizeof text, "%s@0", name);
                answer *a = case_run(e, &q);
                if (a->r->kv.ratio != 0.0 || a->r->kv.bytes != dense->r->kv.bytes) fail_msg("%s is not dense", text);
                case_expect_same(a, dense);
                case_drop(a);
                case_expect_idle(e);
            }
            snprintf(text, sizeof text, by_ratio ? "%s@%.2f" : "%s", name, 0.3 + 0.6 * pd_rng_f64(&rng));
            answer *a = case_run(e, &q), *b = case_run(e, &q);
            case_expect_same(a, b);
            assert_int_equal(a->r->kv.bytes, b->r->kv.bytes);
            expect_pages(text, a);
            if (a->r->kv.skipped == NULL && by_ratio && a->r->kv.bytes >= dense->r->kv.bytes) fail_msg("%s frees nothing", text);
            pressed += a->r->kv.tokens_evicted > 0;
            reading += (p->can & PD_CAN_READ) != 0; /* those drop nothing */
            case_drop(a);
            case_drop(b);
            case_expect_idle(e);
        }
        print_message("%zu of %zu presses evicted something\n", pressed, pd_press_count());
        assert_true(4 * pressed > 3 * (pd_press_count() - reading));
        case_drop(dense);
        pd_engine_close(e);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_press_serves)};
    const int rc = cmocka_run_group_tests(tests, NULL, NULL);
    case_cleanup();
    return rc;
}
