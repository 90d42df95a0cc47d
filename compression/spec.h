/* SPDX-License-Identifier: Apache-2.0 */
/* From what a request says to press instances.
 *
 * JSON is decoded by server/ and text by pd_spec_parse_text into one neutral
 * tree; pd_spec_resolve checks it against the registry: unknown press or
 * parameter, wrong type, value out of range, wrong number or kind of children
 * give EINVAL with the JSON path in err->param, the value and what is allowed. */
#ifndef PD_COMPRESSION_SPEC_H
#define PD_COMPRESSION_SPEC_H

#include "compression/press.h"
#include "engine/base/arena.h"
#include "engine/base/buf.h"

/* What the model offers; a press it cannot serve is refused at resolve. */
typedef struct pd_press_model {
    size_t n_layer, n_head, n_head_kv, head_dim, n_embd, n_ff;
    const struct pd_press_data *data; /* its trained tensors (press_data.h), NULL = none; outlives the instances */
} pd_press_model;

typedef enum { PD_SPEC_NULL, PD_SPEC_BOOL, PD_SPEC_NUMBER, PD_SPEC_STRING, PD_SPEC_LIST } pd_spec_kind;

enum { PD_SPEC_LIST_MAX = 512 }; /* numbers of a list; more layers than any model we load */

typedef struct pd_spec_param {
    const char *name;
    pd_spec_kind kind;
    double number; /* BOOL: 0/1 */
    bool integral; /* the number was written without fraction or exponent, or is integral */
    const char *string;
    const double *list; /* LIST: [n_list] */
    size_t n_list;
} pd_spec_param;

/* One node: a press, its parameters, its children.  Lives in an arena. */
typedef struct pd_spec pd_spec;
struct pd_spec {
    const char *name;
    const char *path; /* JSON path of this node for errors: "compression.press" */
    const char *params_path; /* JSON path of the parameters' object; NULL = path + ".params".  The
                                same pointer as `path` (text form): err->param names the text. */
    pd_spec_param *param;
    size_t n_param;
    pd_spec **child;
    size_t n_child;
    bool has_ratio; /* this node, inside another, was given a ratio of its own */
    double ratio;   /* in [0, 1) */
};

enum { PD_SPEC_TEXT_MAX = 2048 }; /* bytes of the text form */

/* "name", "name:param=value,param=value", "wrapper:param=value(child:param=value,child)", and
 * at the very end "@ratio".  E.g. adakv:alpha_safeguard=0.2(expected_attention:epsilon=0.01)@0.5
 * Values: JSON numbers, true, false, null, words, and lists of numbers with ';'
 * between them, in which "v*n" says v n times: compression_ratios=0;0.5*28;0.25.
 * No blanks.  A "," inside parentheses begins a parameter if a name and "=" follow,
 * else a press.  A press inside another may end in "@ratio" too where the outer one
 * takes that (composed).  *ratio is in [0, 1), NaN when none is given.  The tree and its strings live in `arena`
 * (`path` is borrowed as long as the tree).  Errors: EINVAL names `path` and the
 * column (byte, from 1), ENOMEM. */
pd_status pd_spec_parse_text(const char *text, const char *path, pd_arena *arena, pd_spec **ret, double *ratio, pd_err *err);

/* NULL *ret for the name "none".  The instance is the caller's: pd_press_inst_close;
 * it borrows nothing from the spec.  Errors: EINVAL, ENOMEM. */
pd_status pd_spec_resolve(const pd_spec *spec, const pd_press_model *model, pd_press_inst **ret, pd_err *err);
void pd_press_inst_close(pd_press_inst *inst); /* children too; NULL is fine */

/* Canonical text: parameters that differ from their defaults, in table order;
 * "none" for NULL.  pd_spec_parse_text of it gives the same instance. */
void pd_press_inst_text(const pd_press_inst *inst, pd_buf *out);

#endif
