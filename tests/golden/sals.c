/* SPDX-License-Identifier: Apache-2.0 */
/* What joint latents cost and what choosing by them finds, on a real model.
 *
 *     golden_sals MODEL DATA TEXT...
 *
 * Of each text 1,536 tokens are read and 512 more are forced (forced.h), with one older token in sixteen
 * read by what the press chooses, by as many random ones and by the last ones.  Prints CSV (mean and 99th
 * percentile of KL(all || some) in nats, how often the likeliest token is the same, the share of keys
 * read, bytes over the native bytes) and judges: mean KL and what it is of the random one's; what 4 bits of
 * the values add; and the share of the attention that the chosen tokens held at calibration, by layer:
 * 0.9 on average over the layers that min_overlap leaves, which must be most of them.  With PRESSD_TEST_LONG=1
 * variants too.  Ends in `N passed, N failed`.  A minute or two a text. */
#include "tests/golden/forced.h"

#include <stdio.h>
#include <stdlib.h>

/* The specification's 0.12 and 0.7 of random ones.  Pages hold chosen tokens and others, a choice grows old
 * within a few steps, and a fourth of the numbers is little for so small a model: their limits are what they cost
 * here, and a half more. */
enum { ALL, DENSE, SALS, RANDOM, RECENT, FEW_BITS, BY_OVERLAP, SHORT, PAGES = SHORT, REUSE, QUARTER, KINDS };

static const forced_kind kind[KINDS] = {
    [ALL] = {.name = "all"},
    [DENSE] = {.name = "latents, all read", .press = "sals:token_share=1", .limit = 0.09},
    [SALS] = {.name = "sals", .press = "sals", .limit = 0.12},
    [RANDOM] = {.name = "random", .press = "sals:order=random"},
    [RECENT] = {.name = "recent", .press = "sals:order=recent"},
    [FEW_BITS] = {.name = "sals, values in q4", .press = "sals", .value = PD_KV_Q4, .limit = 0.125},
    [BY_OVERLAP] = {.name = "sals, min_overlap", .press = "sals:min_overlap=0.85", .limit = 0.12},
    [PAGES] = {.name = "sals by page", .press = "sals:granularity=page", .limit = 0.11},
    [REUSE] = {.name = "sals, reuse 4", .press = "sals:reuse=4", .limit = 0.13},
    [QUARTER] = {.name = "sals 4", .press = "sals:rank=4", .limit = 0.153},
};

static int passed, failed;

static void judge(bool good, const char *text, const char *what) {
    *(good ? &passed : &failed) += 1;
    if (!good) printf("%s: %s is out of its limits\n", text, what);
}

/* By layer, of the first fourth of the numbers, which are half of rank 8. */
static void judge_overlap(const pd_engine *e) {
    const pd_engine_info *info = pd_engine_get_info(e);
    const float *overlap = pd_press_data_get(info->press_model.data, PD_DATA_JOINT_OVERLAP);
    const size_t n = info->press_model.n_layer;
    double sum = 0.0, all = 0.0;
    size_t left = 0;
    printf("layer,overlap_4,overlap_2,overlap_1\n");
    for (size_t l = 0; l < n; l++) {
        const float *o = overlap + l * PD_OVERLAP_SETUPS;
        printf("%zu,%.4f,%.4f,%.4f\n", l, (double)o[0], (double)o[1], (double)o[2]);
        if (l < 2 || l + 1 == n) continue;
        all += (double)o[0];
        if (o[0] < 0.85f) continue;
        sum += (double)o[0];
        left++;
    }
    printf("mean of all but the first two and the last: %.4f; of the %zu that min_overlap leaves: %.4f\n", all / (double)(n - 3), left,
           sum / (double)left);
    judge(sum >= 0.9 * (double)left && 4 * left >= 3 * (n - 3), "calibration", "the mean overlap");
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: golden_sals MODEL DATA TEXT...\n");
        return 2;
    }
    const char *longer = getenv("PRESSD_TEST_LONG");
    const size_t kinds = longer && *longer ? KINDS : SHORT;
    pd_engine *e = forced_open(argv[1], argv[2], 1536, 512, KINDS);
    judge_overlap(e);
    printf("text,press,kl_mean,kl_p99,same_top,key_share,bytes\n");
    for (int i = 3; i < argc; i++) {
        forced_result r[KINDS];
        forced_run(e, argv[i], 1536, 512, kind, kinds, r);
        for (size_t k = 1; k < kinds; k++) {
            printf("%s,%s,%.6f,%.6f,%.3f,%.4f,%.4f\n", argv[i], kind[k].name, r[k].kl_mean, r[k].kl_p99, r[k].same_top,
                   r[k].rows ? (double)r[k].rows_key / (double)r[k].rows : 1.0, (double)r[k].bytes / (double)r[0].bytes);
            if (kind[k].limit > 0.0) judge(r[k].kl_mean <= kind[k].limit, argv[i], kind[k].name);
        }
        judge(r[SALS].kl_mean <= 0.7 * r[RANDOM].kl_mean, argv[i], "sals over random");
        judge(r[FEW_BITS].kl_mean - r[SALS].kl_mean < 0.005, argv[i], "what values in q4 add");
        judge(r[RANDOM].rows_key == r[SALS].rows_key && r[RECENT].rows_key == r[SALS].rows_key, argv[i], "the count of tokens");
        fflush(stdout);
    }
    pd_engine_close(e);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
