/* SPDX-License-Identifier: Apache-2.0 */
/* hcattention: a decode step reads only the value rows that its query looks at, and may find them by
 * keys that are product codes.
 *
 * Yang et al. 2025 (HCAttention, arXiv 2507.19823), its dynamic value selection.
 * All keys are read, so each query head has its exact softmax weights a.  Of each
 * head the fewest rows are taken whose weights come to tau; the value rows read are
 * those that any query head of the KV head took, and of a row that is read every
 * head's own weight counts.  Anew in every layer and step: nothing is dropped, and
 * what one token does not look at the next one may.
 *     out = sum of a_i v_i over the rows read, divided by the sum of their a_i
 * Prompts are read whole.  engine/run/select.h does it.
 *
 * With sub_vector, keys older than the last `window` tokens are stored as codes: a rotated key in parts of
 * sub_vector numbers, each the nearest of its part's centroids, which calibration found by k-means (press
 * data).  A key takes head_dim / sub_vector bytes, half of that with 16 centroids; its score is a sum of
 * look-ups in a table of the query's products (engine/cache/codes.h).
 *
 * DIFFERS: The paper does not divide, which leaves the output too small by up to
 * 1 - tau; with tau = 0.9 that costs half as much again in KL (renormalize false is
 * the paper's).  Its default is 0.9, ours 0.97: a tenth of the KL.  It selects per
 * query head; here rows are shared by the heads of a group, as they are stored.
 * DIFFERS: Product codes are asked for (sub_vector), since q4 keys (5.5 bits a number; codes of
 * two numbers 4) cost less KL. Keys of the first `sinks` tokens and of the last `window` stay whole, a part is found by what queries
 * make of an error in it, and values stay in memory: the paper's 25% of the cache counts none of them,
 * which is 62.5% where keys and values are in one.
 * Cost: per query head and slot one comparison in each of some 25 halvings of the
 * threshold's range; rows not read are memory traffic saved.  Codes: see cache/codes.h. */
#include "compression/press_data.h"
#include "compression/shared.h"
#include "compression/spec.h"
#include "engine/base/num.h"

enum { TAU, RENORMALIZE, SUB_VECTOR, CENTROIDS, CODES, EXACT, WINDOW, SINKS };
enum { STORE, INDEX };

/* The book that is asked for; PD_BOOKS: none. */
static size_t book_of(const pd_press_inst *inst) {
    size_t i = 0;
    while (i < PD_BOOKS && !((size_t)inst->p[SUB_VECTOR] == pd_books[i].sub && (size_t)inst->p[CENTROIDS] == pd_books[i].n_centroid)) i++;
    return i;
}

static void read_rule(const pd_press_inst *inst, pd_read_rule *rule) {
    rule->tau = inst->p[TAU];
    rule->renormalize = inst->p[RENORMALIZE] != 0.0;
    if (inst->p[SUB_VECTOR] == 0.0 || inst->p[CODES] != INDEX) return;
    const size_t b = book_of(inst);
    rule->exact = inst->p[EXACT];
    rule->sub = pd_books[b].sub;
    rule->n_centroid = pd_books[b].n_centroid;
    rule->book = pd_press_data_get(inst->data, (pd_data_id)(PD_DATA_BOOK + b));
    rule->weight = pd_press_data_get(inst->data, PD_DATA_BOOK_WEIGHT);
}

static pd_status check(const pd_press_inst *inst, const pd_press_model *model, const char *path, pd_err *err) {
    if (inst->p[SUB_VECTOR] == 0.0) return PD_OK;
    if (book_of(inst) == PD_BOOKS)
        return pd_fail(err, PD_EINVAL, path, "%s: sub_vector is %.9g and centroids %.9g; codebooks have parts of 2, 4 or 8 numbers and 16 or 256 centroids",
                       path, inst->p[SUB_VECTOR], inst->p[CENTROIDS]);
    return PD_OK;
}

static int data_set(const pd_press_inst *inst, unsigned have) {
    (void)have;
    return inst->p[SUB_VECTOR] == 0.0 ? PD_SET_N : PD_SET_CODES;
}

static bool latents(const pd_press_inst *inst, const pd_press_model *model, pd_latent_rule *ret) {
    if (inst->p[SUB_VECTOR] == 0.0 || inst->p[CODES] != STORE) return false;
    const size_t b = book_of(inst), sub = pd_books[b].sub;
    *ret = (pd_latent_rule){.rank = model->head_dim / sub,
                            .rank_v = model->head_dim,
                            .window = (size_t)inst->p[WINDOW],
                            .n_sink = (size_t)inst->p[SINKS],
                            .rotated = true,
                            .sub = sub,
                            .n_centroid = pd_books[b].n_centroid,
                            .book = pd_press_data_get(inst->data, (pd_data_id)(PD_DATA_BOOK + b)),
                            .weight = pd_press_data_get(inst->data, PD_DATA_BOOK_WEIGHT)};
    for (size_t l = 0; l < model->n_layer; l++) {
        ret->layer[l] = (uint16_t)ret->rank;
        ret->value[l] = (uint16_t)ret->rank_v;
    }
    return true;
}

static const char *const places[] = {"store", "index", NULL};

static const pd_param params[] = {
    [TAU] = {.name = "tau", .type = PD_PARAM_FLOAT, .def = 0.97, .min = 0, .max = 1, .flags = PD_PARAM_OPEN_MIN,
             .doc = "share of each query head's softmax weights whose value rows are read; 1 = all"},
    [RENORMALIZE] = {.name = "renormalize", .type = PD_PARAM_BOOL, .def = 1, .max = 1,
                     .doc = "let the weights of what is read sum to 1; false is the paper's"},
    [SUB_VECTOR] = {.name = "sub_vector", .type = PD_PARAM_INT, .def = 0, .max = 8,
                    .doc = "store older keys as codes of 2, 4 or 8 numbers each (press data); 0: as kv_type says"},
    [CENTROIDS] = {.name = "centroids", .type = PD_PARAM_INT, .def = 256, .min = 16, .max = 256,
                   .doc = "that a code chooses from: 256, a byte, or 16, half a byte"},
    [CODES] = {.name = "codes", .type = PD_PARAM_CHOICE, .def = STORE, .max = INDEX, .choices = places,
               .doc = "store: in place of the keys; index: beside them, to find those worth reading"},
    [EXACT] = {.name = "exact", .type = PD_PARAM_FLOAT, .def = 0.25, .min = 0, .max = 1, .flags = PD_PARAM_OPEN_MIN,
               .doc = "index: share of a head's pages whose keys are read after their codes"},
    [WINDOW] = {.name = "window", .type = PD_PARAM_INT, .def = 64, .min = 0, .max = 65536, .doc = "most recent tokens, whose keys are never codes"},
    [SINKS] = {.name = "sinks", .type = PD_PARAM_INT, .def = 4, .min = 0, .max = 16, .doc = "first tokens, whose keys stay whole"},
};

const pd_press pd_press_hcattention = {
    .name = "hcattention",
    .reference_class = "none",
    .kind = "reading",
    .source = "arXiv 2507.19823",
    .doc = "Drops nothing: each decode step reads the value rows that hold most of its attention.",
    .ratio_doc = "that of the press inside, if there is one; nothing is dropped for it",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_READ,
    .max_child = 1,
    .child_ratio = true,
    .child_may_be_none = true,
    .own_budget = true,
    .check = check,
    .data_set = data_set,
    .latents = latents,
    .read_rule = read_rule,
};
