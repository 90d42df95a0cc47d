/* SPDX-License-Identifier: Apache-2.0 */
/* streaming_llm: keep the first n_sink tokens and the most recent ones.
 *
 * Xiao et al. 2023 (arXiv 2309.17453); kvpress' StreamingLLMPress.
 * DIFFERS: the reference scores 1 (stays) or 0 (goes) and so has to know the
 * ratio; ours scores by age, (0, 1] for a token's place in the text and 2 for a
 * sink.  The kept set is the same for every ratio, and a score without ties
 * means something to wrappers.  The paper's cache also moves keys to their new
 * places: that is key_rerotation(streaming_llm).
 * Cost: nothing but the scores. */
#include "compression/shared.h"

enum { N_SINK };

typedef struct {
    int32_t n_sink;
    float per_token;
    float *const *score;
} job;

static void tile(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                 unsigned thread) {
    const job *j = ctx;
    for (size_t i = first; i < first + n; i++) {
        const int32_t pos = view->pos[h][i];
        j->score[h][i] = pos < j->n_sink ? 2.0f : (float)(pos + 1) * j->per_token;
    }
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    /* Positions are below n_seen; strictly rising in f32 up to 2^22 tokens. */
    job j = {(int32_t)inst->p[N_SINK], 1.0f / (float)view->n_seen, score};
    pd__for_tiles(view, tile, &j);
    return PD_OK;
}

static size_t min_tokens(const pd_press_inst *inst) {
    return (size_t)inst->p[N_SINK] + 1;
}

static const pd_param params[] = {
    [N_SINK] = {.name = "n_sink",
                .type = PD_PARAM_INT,
                .def = 4,
                .min = 0,
                .max = 65536,
                .doc = "first tokens that stay (attention sinks)"},
};

const pd_press pd_press_streaming_llm = {
    .name = "streaming_llm",
    .reference_class = "StreamingLLMPress",
    .kind = "scorer",
    .source = "arXiv 2309.17453",
    .doc = "Keeps the first n_sink tokens and the most recent ones.",
    .ratio_doc = "its own",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP,
    .min_tokens = min_tokens,
    .score = score,
};
