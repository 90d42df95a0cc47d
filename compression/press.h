/* SPDX-License-Identifier: Apache-2.0 */
/* A press decides which cached (key, value) pairs of an attention layer stay.
 *
 * One press = one file with one `const pd_press pd_press_<name>` + one word in
 * compression/meson.build.  Names and parameters are kvpress's in snake_case.
 * A press looks at a borrowed view of one layer and returns a plan; it never
 * frees, moves or writes KV memory: the engine applies the plan.
 *
 * Words: L slots in the view, H KV heads, Hq query heads (Hq % H == 0,
 * G = Hq / H, query head h reads KV head h / G), D head_dim, d model width.
 * "slot" = index in the view; "position" = where the token stands in the text
 * (they differ once something was evicted: always read pos[]).  Slots are in
 * time order.  RoPE is the half-split form (pairs i, i + D/2) for every model.
 * ratio = fraction of pairs REMOVED.  Scores are f32, larger = keep, NaN is a
 * bug; of equal scores the lower slot wins.  Arrays are row-major, last axis
 * dense.  Thread of every hook: engine. */
#ifndef PD_COMPRESSION_PRESS_H
#define PD_COMPRESSION_PRESS_H

#include "engine/base/arena.h"
#include "engine/base/err.h"
#include "engine/base/workers.h"
#include "engine/kernels/kernels.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- what prefill has to collect for a press ---- */

enum {
    PD_NEEDS_Q_TAIL = 1u << 0, /* the last q_tail rotated queries */
    PD_NEEDS_Q_MEAN = 1u << 1, /* mean of pre-RoPE queries, rows >= n_sink */
    PD_NEEDS_Q_COV = 1u << 2,  /* and their covariance (implies Q_MEAN) */
    PD_NEEDS_Q_ALL = 1u << 3,  /* every rotated query (q_tail = all rows) */
    PD_NEEDS_X = 1u << 4,      /* every row of the attention input */
    PD_NEEDS_WO = 1u << 5,     /* the output projection as f32 */
    PD_NEEDS_ATT_SUM = 1u << 6, /* column sums of the attention weights (PREFILL only; one more pass over Q K^T) */
    PD_NEEDS_TOO_MANY = 1u << 30, /* more than PD_MOMENTS_MAX sets; pd_spec_resolve refuses such a tree */
};

enum { PD_MOMENTS_MAX = 4 };

typedef struct pd_press_needs {
    unsigned bits;
    size_t q_tail;                /* rows, largest of all children */
    size_t n_sink[PD_MOMENTS_MAX]; /* one set of moments per distinct n_sink */
    size_t n_moments;
} pd_press_needs;

/* Moments of pre-RoPE queries (after q-norm) over rows row >= n_sink, divided
 * by their count (population). */
typedef struct pd_moments {
    size_t n_sink, count; /* count of rows used; mean and cov are NULL if 0 */
    const float *mean;    /* [Hq][D] */
    const float *cov;     /* [Hq][D][D], NULL unless Q_COV */
} pd_moments;

typedef enum { PD_PHASE_PREFILL, PD_PHASE_STEP } pd_phase;

/* What to keep of a view: `ratio`, or a count when by_count. */
typedef struct pd_budget {
    double ratio;   /* [0, 1] */
    bool by_count;
    size_t count;   /* tokens per head */
    size_t n_protected; /* most protected slots of a head; for `most` alone, plans see which they are */
} pd_budget;

/* max(1, (int)(n * (1 - ratio))) in double, as kvpress' ScorerPress; or min(count, n). */
size_t pd_budget_keep(const pd_budget *b, size_t n);
double pd_budget_ratio(const pd_budget *b, size_t n); /* the ratio, or the one that a count of n comes to */

/* One layer at one moment.  Everything is borrowed for the call. */
typedef struct pd_view {
    pd_phase phase;
    int layer, n_layer;
    size_t n_head, n_head_kv, head_dim, n_embd;

    size_t n;                  /* L; the longest head when heads differ */
    const size_t *n_h;         /* [H] slots of each head */
    const int32_t *const *pos; /* [H][n_h] position of each slot */
    const float *const *k;     /* [H] -> [n_h][D], rotated */
    const float *const *v;     /* [H] -> [n_h][D] */
    const uint8_t *const *protect; /* [H][n_h] 1 = must stay, or NULL */

    size_t n_seen;             /* the next position: tokens so far, less what a re-rotation closed up */
    size_t n_steps;            /* STEP: tokens since this layer was pruned last */
    float *const *tag;         /* [H][n_h] one number beside each slot (pd_tag_kind); the press may write it in
                                  PREFILL; NULL unless its decode_rule asks for tags */
    size_t q_rows;             /* rows in q, the last ones seen (PREFILL: of the scope) */
    const float *q;            /* [q_rows][Hq][D] rotated at their own positions, unscaled; NULL unless needed */
    const int32_t *q_pos;      /* [q_rows] */
    const pd_moments *moments; /* [n_moments]: PREFILL one per needs.n_sink; STEP one with n_sink 0, of
                                  the recent queries (the sinks are long gone from them) */
    size_t n_moments;
    size_t stat_rows;          /* rows the moments were taken over, sinks included (PREFILL: L) */
    size_t x_rows;
    const float *x;            /* [x_rows][d] attention input after its norm; row i is slot i's token in every head */
    const float *wo;           /* [d][Hq * D] output projection; NULL unless needed */
    const float *att_sum;      /* [Hq][n] sum over the scope's query rows of the softmax weight of each slot; NULL unless needed */

    const float *inv_freq; /* [D/2] this layer's RoPE frequencies */
    float rope_scale;      /* what its cos and sin were multiplied by (1 but for YaRN and LongRoPE) */

    const pd_kernels *kern;
    pd_workers *workers;   /* may be NULL */
    pd_arena *tmp;         /* scratch of the call; plans live in it */
    uint64_t seed;         /* of the request; the same for every layer */

    pd_budget budget;      /* what the plan under way may keep, set by pd_press_plan: for the few scores that
                              depend on it (critical, compactor).  All zero = ratio 0 */
} pd_view;

/* ---- what a press answers ---- */

/* n_keep[h] slots keep[h][] of each head stay, ascending, distinct, >= 1 each.
 * Memory comes from view->tmp. */
typedef struct pd_plan {
    bool keep_all;      /* no slot goes; n_keep, keep, rerotate and v_new are unset */
    size_t *n_keep;     /* [H] */
    uint32_t **keep;    /* [H][n_keep] */
    bool rerotate;      /* move kept keys to positions 0..n_keep-1; later tokens follow on.
                           Needs n_keep equal for all heads. */
    float *const *v_new; /* [H][n_keep][D] replaces the kept values; NULL = unchanged */
    /* Key channels that stay, ascending, [H][n_channel]: the others of every kept slot are 0
     * from now on and take no memory.  n_channel is pd_press_key_channels; NULL = all stay. */
    uint32_t *const *channel;
    size_t n_channel;
} pd_plan;

enum { PD_LATENT_LAYERS = 512 }; /* as many as any model has */

/* Which come first: those whose keys may score highest; for comparison, any, or the last. */
typedef enum { PD_PAGES_BOUND, PD_PAGES_RANDOM, PD_PAGES_RECENT } pd_page_order;

/* What a decode step reads of a layer's joint latents; those below n_sink are among them. */
typedef struct pd_latent_read {
    double share;    /* of the projected tokens; >= 1: all */
    uint16_t score;  /* the first numbers of a token, by which it is chosen */
    bool pages;      /* whole pages are chosen, or single tokens */
    size_t reuse;    /* steps in a row that read the same tokens, >= 1 */
    pd_page_order order;
} pd_latent_read;

/* How the keys and values of full layers are stored that left the last `window` slots: projected
 * (engine/cache/latent.h), some numbers each. */
typedef struct pd_latent_rule {
    size_t rank, rank_v;  /* the most numbers of a key and of a value in all layers; 0 = nothing is projected */
    uint16_t layer[PD_LATENT_LAYERS]; /* a layer's numbers of a key, head_dim = keys stay as they are; 0 = the layer does */
    uint16_t value[PD_LATENT_LAYERS]; /* and of a value, likewise; not read where layer is 0 */
    size_t window;
    size_t n_sink;        /* positions below it stay whole */
    size_t sub, n_centroid; /* product codes instead, of sub-vectors so long (cache/codes.h); 0 = bases */
    const float *book;    /* [n_layer][n_head_kv][D][n_centroid] */
    const float *weight;  /* [n_layer][n_head_kv][D/2] */
    bool rotated;         /* the bases are of keys after RoPE */
    size_t n_basis;       /* of a layer: 1 for all its heads, or n_head_kv */
    const float *project, *rebuild; /* [n_layer][n_basis][D][D], the first rows count; of the press data */
    const float *value_basis;       /* [n_layer][n_head_kv][D][D], likewise */
    /* Joint latents (engine/cache/joint.h): one basis for all heads of a layer, each of which stores layer[]
     * of the numbers: project [n_layer][H D][H D], rebuild and n_basis are not used. */
    bool joint;
    size_t whole;         /* a head's keys stay as they are until it holds more slots than this */
    pd_latent_read read;
} pd_latent_rule;

enum { PD_LATENT_PIECE = 16 }; /* slots are projected so many at a time */

/* Of a head's n slots, n_pack of them projected, how many more are to be. */
static inline size_t pd_latent_due(const pd_latent_rule *r, size_t layer, size_t n, size_t n_pack) {
    const size_t open = n - n_pack;
    return r->layer[layer] && open > r->window && n > r->whole ? (open - r->window) / PD_LATENT_PIECE * PD_LATENT_PIECE : 0;
}

/* Of n slots that came to an empty head of the layer, how many are projected. */
static inline size_t pd_latent_packed(const pd_latent_rule *r, size_t layer, size_t n) {
    return pd_latent_due(r, layer, n, 0);
}

/* What those n pairs count, as pairs, when a projected one counts by its numbers, and a code by its
 * share of 16 bits. */
static inline double pd_latent_pairs(const pd_latent_rule *r, size_t layer, size_t n, size_t head_dim) {
    const double number = !r->n_centroid ? 1.0 : r->n_centroid > 16 ? 0.5 : 0.25;
    const double left = number * r->layer[layer] + r->value[layer];
    return (double)n - (double)pd_latent_packed(r, layer, n) * (2.0 * (double)head_dim - left) / (double)(2 * head_dim);
}

/* What n pairs that a plan keeps count, as pairs: one whose key lost channels by its numbers. */
static inline double pd_plan_pairs(const pd_plan *plan, size_t n, size_t head_dim) {
    const size_t k_dim = plan->channel ? plan->n_channel : head_dim;
    return (double)n * (double)(head_dim + k_dim) / (double)(2 * head_dim);
}

/* ---- parameters ---- */

/* FLOAT_LIST: one number per layer of the model, each in the range. */
typedef enum { PD_PARAM_INT, PD_PARAM_FLOAT, PD_PARAM_BOOL, PD_PARAM_CHOICE, PD_PARAM_FLOAT_LIST } pd_param_type;

enum {
    PD_PARAM_NULLABLE = 1u << 0,
    PD_PARAM_OPEN_MIN = 1u << 1,
    PD_PARAM_OPEN_MAX = 1u << 2,
    PD_PARAM_REQUIRED = 1u << 3, /* has no default: a request must give it (def is NaN) */
};

typedef struct pd_param {
    const char *name; /* as in kvpress, snake_case */
    pd_param_type type;
    double def;       /* booleans 0/1, choices their index, NaN = null */
    double min, max;  /* inclusive unless OPEN_ */
    unsigned flags;
    const char *const *choices; /* NULL-terminated, for CHOICE */
    const char *doc;
} pd_param;

enum { PD_PRESS_PARAMS_MAX = 12, PD_PRESS_CHILDREN_MAX = 8, PD_PRESS_DEPTH_MAX = 6 };

/* A press with its parameters, as one request asked for it.  `state` is what
 * the press keeps between calls of one request (NULL for most). */
typedef struct pd_press pd_press;
typedef struct pd_press_inst pd_press_inst;
struct pd_press_data; /* press_data.h */
struct pd_press_inst {
    const pd_press *press;
    double p[PD_PRESS_PARAMS_MAX]; /* in the order of press->params */
    double *list[PD_PRESS_PARAMS_MAX]; /* FLOAT_LIST: [n_list], ours; NULL for the others */
    size_t n_list;                 /* layers of the model */
    bool has_ratio;                /* a child with a ratio of its own (press->child_ratio) */
    double ratio;
    pd_press_inst *child[PD_PRESS_CHILDREN_MAX];
    size_t n_child;
    const struct pd_press_data *data; /* the model's trained tensors, or NULL; borrowed */
    void *state;
};

/* ---- while tokens are generated ---- */

/* One number beside each cached slot, kept by the engine and pruned with it. */
typedef enum {
    PD_TAG_NONE,
    PD_TAG_ATTENTION, /* the weights that the query of each step so far gave the slot, mean over
                         the G query heads, summed; 0 for a slot that was new after the last step */
    PD_TAG_SCORE,     /* what the first child said of the slot when it was new; +inf for slots no
                         child was asked about */
    PD_TAG_SUMS,      /* as ATTENTION, summed over the G query heads; a deferred press of the prompt that
                         prunes later as well begins it with its scores */
    PD_TAG_SQUARES,   /* the same of the weights squared */
} pd_tag_kind;

/* It adds up what the slot was looked at. */
static inline bool pd_tag_attends(pd_tag_kind kind) {
    return kind != PD_TAG_NONE && kind != PD_TAG_SCORE;
}

enum { PD_RECENT_MAX = 1024 }; /* most recent queries a sequence keeps for its decode press */

/* When a decode press prunes, and down to what. */
typedef struct pd_decode_rule {
    const pd_press_inst *prune; /* whose plan is applied to each layer, or to all (press->running) */
    size_t interval;  /* decode steps between two prunings, >= 1; 0: not by itself, but when another
                         request waits for memory (press->running alone) */
    pd_budget budget; /* what is left of each head; a ratio is one of all tokens seen */
    bool by_request;  /* the request's budget, `budget` is not read */
    bool keep_prompt; /* plans are shown generated tokens alone, and the budget is of these */
    bool wait;        /* past the interval, wait until there is something to take */
    size_t n_recent;  /* recent queries worth keeping for statistics, if `prune` needs any */
    pd_tag_kind tag;  /* SCORE: plans read tags and positions alone, views have no K and V */
} pd_decode_rule;

enum { PD_PAGES_ALWAYS = 3 }; /* the first page and the last two are read in any case */

/* What a decode step reads of a full-attention layer; nothing is dropped. */
typedef struct pd_read_rule {
    double tau;       /* of each query head, the fewest value rows whose softmax weights come to this; 1 = all */
    bool renormalize; /* and their weights are made to sum to 1 */
    size_t page_budget; /* most pages of a head whose keys and values are looked at; 0 = all */
    size_t skip_layers; /* the first layers, which page_budget does not hold for */
    pd_page_order page_order;
    /* Scores first by codes beside the keys, of parts of `sub` numbers (cache/codes.h), then by the keys
     * themselves in this share of a head's pages, those of the highest; 0 = by all keys. */
    double exact;
    size_t sub, n_centroid;
    const float *book;   /* [n_layer][n_head_kv][D][n_centroid] */
    const float *weight; /* [n_layer][n_head_kv][D/2] */
} pd_read_rule;

static inline bool pd_read_all(const pd_read_rule *r) {
    return r->tau >= 1.0 && r->page_budget == 0 && r->exact == 0.0;
}

/* The size after a pruning when n_seen tokens were seen. */
pd_budget pd_decode_budget(const pd_decode_rule *rule, size_t n_seen);

struct pd_press_model; /* spec.h */

/* ---- the press itself ---- */

/* What it can do; wrappers ask it of their children. */
enum {
    PD_CAN_SCORE = 1u << 0,       /* has score() */
    PD_CAN_SCORE_STEP = 1u << 1,  /* score() is right on PHASE_STEP views */
    PD_CAN_SCORE_RAGGED = 1u << 2, /* score(), and plan() if there is one, accept heads of different lengths */
    PD_CAN_PRUNE_STEP = 1u << 3,  /* plan() works while decoding (scorers by the driver, adakv) */
    PD_CAN_COMPOSE = 1u << 4,     /* heads that hold as many slots still do after plan().  Declared by presses
                                     with a plan(); the shared plan can */
    /* Worked out by pd_press_inst_can, never declared: a scorer that needs nothing collected. */
    PD_CAN_SCORE_PART = 1u << 5,  /* score() reads keys, values and positions alone: some of the slots are a
                                     view to it as good as all */
    PD_CAN_SCORE_ALONE = 1u << 8, /* a slot's score asks for nothing but the slot: right on any part of a view */
    PD_CAN_DECODE = 1u << 9,      /* acts while tokens are generated, by a rule of its own */
    PD_DECODE_ONLY = 1u << 10,    /* and does nothing to the prompt */
    PD_CAN_DEFER = 1u << 11,       /* decides at the context's end over all layers: has `deferred`; stands alone */
    PD_CAN_READ = 1u << 12,        /* drops nothing, but says what a decode step reads: has read_rule; stands around
                                      the press that drops, if there is one */
    PD_STANDS_ALONE = 1u << 13,    /* nothing may prune what it stores, while tokens are generated either */
};

struct pd_deferred; /* deferred.h */
struct pd_running;  /* running.h */

struct pd_press {
    const char *name;            /* wire name */
    const char *reference_class; /* kvpress class, "ExpectedAttentionPress" */
    const char *kind;            /* "scorer", "wrapper", "planner" (neither scores for others nor wraps),
                                    "decoding" (has a decode_rule, or sends its children to one),
                                    "reading" (has a read_rule) */
    const char *source;          /* paper */
    const char *doc;             /* one sentence for people */
    const char *ratio_doc;       /* whose ratio counts */
    const pd_param *params;
    size_t n_params;
    unsigned can;                /* PD_CAN_* of the press itself (a wrapper: at most what its child can) */
    size_t min_child, max_child; /* 0, 0 for a leaf */
    unsigned child_must;         /* PD_CAN_* every child must have */
    bool child_ratio;            /* its children may carry ratios of their own */
    bool child_may_be_none;      /* the name "none" may stand for a child: it is left out */
    bool own_budget;             /* its parameters say what stays: a request gives neither ratio nor budget,
                                    and plan() is asked whatever the budget says */

    /* What no table can say of one parameter (its kinship with others or with the
     * model).  `path` names the object of the parameters in errors.  NULL = nothing.
     * Errors: EINVAL. */
    pd_status (*check)(const pd_press_inst *inst, const struct pd_press_model *model, const char *path, pd_err *err);

    /* The set of press data (pd_data_set) the instance works with; `have` = the
     * sets there are (1 << set), for a press that can do with one or another.  One
     * that is not there refuses the request.  NULL = needs no data. */
    int (*data_set)(const pd_press_inst *inst, unsigned have);

    /* Add what this press (not its children) needs to *n. */
    void (*needs)(const pd_press_inst *inst, pd_press_needs *n);

    /* Shortest view this press works on; below it the request is served unpressed
     * and told so (`skipped`).  NULL = 1. */
    size_t (*min_tokens)(const pd_press_inst *inst);

    /* score[h][slot] for every head; larger = keep.  Protection is applied by
     * pd_press_score, not here.  Errors: ENOMEM. */
    pd_status (*score)(const pd_press_inst *inst, const pd_view *view, float *const *score, pd_err *err);

    /* The plan for this layer.  NULL = the shared one: keep the best
     * pd_budget_keep() slots of each head by score().  Errors: ENOMEM. */
    pd_status (*plan)(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget, pd_plan *ret, pd_err *err);

    /* Instead of score and plan: the hooks of a press that decides over all layers
     * when the whole context is in the cache (deferred.h). */
    const struct pd_deferred *deferred;

    /* Instead of plan while decoding (PD_CAN_PRUNE_STEP): plan[n_layer] over all layers at once, from
     * positions and tags of the kind `running_tag` alone (running.h); keep_all in all of them, or full
     * pages.  Budget: a count.  Errors: ENOMEM. */
    pd_status (*running)(const pd_press_inst *inst, const struct pd_running *r, const pd_budget *budget, pd_plan *plan, pd_err *err);
    pd_tag_kind (*running_tag)(const pd_press_inst *inst);

    /* Most slots per head (mean over the heads of `layer`) the plan leaves of n,
     * above budget->n_protected: admission reserves both.  NULL = pd_budget_keep. */
    size_t (*most)(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n);

    /* Key channels of head_dim that its plans leave.  NULL = all. */
    size_t (*key_channels)(const pd_press_inst *inst, size_t head_dim);

    /* How older keys and values are stored; false: as all others, with these parameters.  NULL = as all
     * others.  Asked of the request's press alone, not of one inside another, and of the reading
     * ones around it. */
    bool (*latents)(const pd_press_inst *inst, const struct pd_press_model *model, pd_latent_rule *ret);

    /* What it does while tokens are generated; false: nothing, with these
     * parameters.  NULL unless PD_CAN_DECODE. */
    bool (*decode_rule)(const pd_press_inst *inst, pd_decode_rule *ret);

    /* Put into *rule what a decode step reads.  NULL unless PD_CAN_READ. */
    void (*read_rule)(const pd_press_inst *inst, pd_read_rule *rule);

    /* Forget state before another sequence; free state.  NULL = stateless. */
    void (*reset)(pd_press_inst *inst);
    void (*close)(pd_press_inst *inst);
};

/* ---- registry: from the list in meson.build ---- */

const pd_press *pd_press_find(const char *name); /* NULL if unknown; borrowed, lives forever */
size_t pd_press_count(void);
const pd_press *pd_press_at(size_t index);       /* in list order */
const char *pd_press_names(void);                /* "random, knorm, ..." for errors */
const pd_param *pd_press_param(const pd_press *p, const char *name, size_t *index); /* NULL if unknown */

/* ---- driver: the only way wrappers and the engine call a press ---- */

/* Union of inst's and its children's needs; _add joins them to what *n asks already. */
void pd_press_collect_needs(const pd_press_inst *inst, pd_press_needs *ret);
void pd_press_add_needs(const pd_press_inst *inst, pd_press_needs *n);
size_t pd_press_min_tokens(const pd_press_inst *inst); /* largest of inst and children */

/* What the instance can do, children considered (PD_CAN_*): a press that is to
 * prune while decoding must have PD_CAN_PRUNE_STEP here, and PD_CAN_SCORE_RAGGED
 * if heads may differ in length by then. */
unsigned pd_press_inst_can(const pd_press_inst *inst);

/* Whether a request for inst gives a ratio (or another budget): it must, or it must not. */
bool pd_press_inst_takes_ratio(const pd_press_inst *inst);

/* press->most with the rules of pd_press_plan around it; at most n. */
size_t pd_press_most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n);

/* Key channels that are left by inst and its children; head_dim = all, always the same. */
size_t pd_press_key_channels(const pd_press_inst *inst, size_t head_dim);

/* The reset hooks of inst and its children; NULL is fine. */
void pd_press_reset(pd_press_inst *inst);

/* inst->press->score, then protected slots = +inf.  Errors: ENOMEM, EINTERNAL
 * (a NaN: names press, layer, head and slot). */
pd_status pd_press_score(const pd_press_inst *inst, const pd_view *view, float *const *score, pd_err *err);

/* The plan of the layer.  Ratio 0 or a count >= L gives keep_all before any
 * scoring (unless the press, or one inside it, has a budget of its own).  At least one slot per head stays, and every protected one: a head
 * with more protected slots than its budget keeps more.
 * `scores` (may be NULL, [H][n_h]) receives what ranked the slots, when the
 * press ranks by scores and something goes (a wrapper: its child's scores).
 * Hooks see the view with `budget` in it. */
pd_status pd_press_plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                        pd_plan *ret, float *const *scores, pd_err *err);

/* Helpers for presses. */
const pd_moments *pd_view_moments(const pd_view *view, size_t n_sink); /* NULL if not collected */
float **pd_scores_new(const pd_view *view); /* [H][n_h] from view->tmp; NULL = no memory */
/* The k best slots of s[0..n), ascending, to keep[k]; ties: lower slot.
 * O(n); +inf and -inf are fine.  1 <= k <= n.  Needs no scratch today. */
pd_status pd_top_k(const float *s, size_t n, size_t k, uint32_t *keep, pd_arena *tmp, pd_err *err);

#endif
