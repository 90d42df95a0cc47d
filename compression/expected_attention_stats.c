/* SPDX-License-Identifier: Apache-2.0 */
/* expected_attention_stats: expected attention with the statistics of a
 * calibration text in place of the prompt's own.
 *
 * Devoto, Jeblick, Jegou 2025 (arXiv 2510.00636); kvpress'
 * ExpectedAttentionStatsPress.  Mean and covariance of the queries before RoPE
 * come from press data, per layer and query head; the rest, the rotation over
 * the positions that follow this prompt included, is expected_attention.c.
 * Prefill collects nothing, so short prompts, whose own statistics are poor, and
 * pruning while decoding cost less and rank better.
 * kvpress' parameters that choose a published file (dataset_name, num_samples,
 * sample_seq_len, stats_folder) are the server's --press-data here.
 * Cost: as expected_attention, without its share of prefill. */
#include "compression/expected_attention.h"
#include "compression/press_data.h"

static int data_set(const pd_press_inst *inst, unsigned have) {
    (void)inst;
    (void)have;
    return PD_SET_STATS;
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    const size_t d = view->head_dim, at = (size_t)view->layer * view->n_head * d;
    const pd_moments m = {
        .n_sink = (size_t)inst->p[PD__EA_N_SINK],
        .count = 1, /* not looked at: the data's tokens were counted when it was made */
        .mean = pd_press_data_get(inst->data, PD_DATA_QUERY_MEAN) + at,
        .cov = pd_press_data_get(inst->data, PD_DATA_QUERY_COV) + at * d,
    };
    return pd__ea_score(inst, view, &m, score, err);
}

const pd_press pd_press_expected_attention_stats = {
    .name = "expected_attention_stats",
    .reference_class = "ExpectedAttentionStatsPress",
    .kind = "scorer",
    .source = "arXiv 2510.00636",
    .doc =
        "Keeps the pairs that future queries are expected to attend to, from the statistics of a "
        "calibration text (press data).",
    .ratio_doc = "its own",
    .params = pd__ea_params,
    .n_params = PD__EA_PARAMS,
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP,
    .data_set = data_set,
    .min_tokens = pd__ea_min_tokens,
    .score = score,
};
