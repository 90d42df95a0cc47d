/* SPDX-License-Identifier: Apache-2.0 */
/* quest: a decode step looks only into the pages whose keys may matter to its query.
 *
 * Tang et al. 2024 (Quest, arXiv 2406.10774).  Of each page the least and the largest
 * number m, M of every channel of its keys are kept, as they are cached: rotated.  No key
 * in it can score more for the query q than
 *     bound = sum over channels of max(q_c m_c, q_c M_c)
 * and the pages with the highest bounds, token_budget / 16 of them, are attended to
 * exactly.  Anew in every layer and step: nothing is dropped.  The first skip_layers
 * layers read everything, as does a head that has no more pages than the budget.
 * Prompts are read whole.  engine/cache/bounds.h and engine/run/select.h do it.
 *
 * DIFFERS: The reference chooses for each query head and always adds the last page; here
 * the query heads of a KV head share its pages, ordered by their highest bound, and the
 * first page (sinks) and the last two are always among them.  Its pages are of a cache
 * that is never pruned; ours may be what another press left, with bounds of what is left.
 * Cost: 4 * head_dim bytes a page, of which a step reads half for each query head: a
 * sixteenth of the keys for one head; rows not read are memory traffic saved. */
#include "compression/press.h"

#include "engine/base/num.h"

enum { TOKEN_BUDGET, SKIP_LAYERS, PAGE_ORDER };

static void read_rule(const pd_press_inst *inst, pd_read_rule *rule) {
    rule->page_budget = pd_div_up((size_t)inst->p[TOKEN_BUDGET], PD_PAGE_TOKENS);
    rule->skip_layers = (size_t)inst->p[SKIP_LAYERS];
    rule->page_order = (pd_page_order)inst->p[PAGE_ORDER];
}

static const char *const orders[] = {[PD_PAGES_BOUND] = "bound", [PD_PAGES_RANDOM] = "random", [PD_PAGES_RECENT] = "recent", NULL};

static const pd_param params[] = {
    [TOKEN_BUDGET] = {.name = "token_budget", .type = PD_PARAM_INT, .def = 1024, .min = (PD_PAGES_ALWAYS + 1) * PD_PAGE_TOKENS,
                      .max = 1 << 30, .doc = "tokens per head that a step looks at, in whole pages of 16"},
    [SKIP_LAYERS] = {.name = "skip_layers", .type = PD_PARAM_INT, .def = 2, .max = 1 << 16,
                     .doc = "first layers that read everything"},
    [PAGE_ORDER] = {.name = "page_order", .type = PD_PARAM_CHOICE, .def = PD_PAGES_BOUND, .max = PD_PAGES_RECENT, .choices = orders,
                    .doc = "which pages come first; random and recent are there to compare with"},
};

const pd_press pd_press_quest = {
    .name = "quest",
    .reference_class = "none",
    .kind = "reading",
    .source = "arXiv 2406.10774",
    .doc = "Drops nothing: each decode step looks into the pages whose keys may score highest.",
    .ratio_doc = "that of the press inside, if there is one; nothing is dropped for it",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_READ,
    .max_child = 1,
    .child_ratio = true,
    .child_may_be_none = true,
    .own_budget = true,
    .read_rule = read_rule,
};
