/* SPDX-License-Identifier: Apache-2.0 */
/* A press as JSON (see press_json.h).  jansson's setters take the new value even
 * when they fail, and fail on a NULL value: so one flag collects every failure. */
#include "server/press_json.h"

#include <math.h>

/* o[key] = v, which is taken. */
static void set(json_t *o, const char *key, json_t *v, bool *ok) {
    if (json_object_set_new(o, key, v) != 0) *ok = false;
}

static json_t *text(const char *s) {
    return s ? json_string(s) : json_null();
}

static json_t *can_words(unsigned can, bool *ok) {
    static const struct {
        unsigned bit;
        const char *word;
    } words[] = {
        {PD_CAN_SCORE, "score"},
        {PD_CAN_SCORE_STEP, "score_step"},
        {PD_CAN_SCORE_RAGGED, "score_ragged"},
        {PD_CAN_PRUNE_STEP, "prune_step"},
        {PD_CAN_COMPOSE, "compose"},
        {PD_CAN_SCORE_PART, "score_part"},
        {PD_CAN_SCORE_ALONE, "score_alone"},
        {PD_CAN_DECODE, "decode"},
        {PD_DECODE_ONLY, "decode_only"},
        {PD_CAN_DEFER, "defer"},
        {PD_CAN_READ, "read"},
        {PD_STANDS_ALONE, "stands_alone"},
    };
    json_t *list = json_array();
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (can & words[i].bit && json_array_append_new(list, json_string(words[i].word)) != 0) *ok = false;
    }
    return list;
}

/* Of a press with its default parameters and nothing inside. */
static unsigned default_can(const pd_press *p) {
    pd_press_inst inst = {.press = p};
    for (size_t i = 0; i < p->n_params; i++) inst.p[i] = p->params[i].def;
    return pd_press_inst_can(&inst);
}

/* A value of the parameter's own type. */
static json_t *value(const pd_param *p, double v) {
    if (isnan(v)) return json_null();
    switch (p->type) {
    case PD_PARAM_BOOL:
        return json_boolean(v != 0);
    case PD_PARAM_INT:
        return json_integer((json_int_t)v);
    case PD_PARAM_CHOICE:
        return json_string(p->choices[(size_t)v]);
    case PD_PARAM_FLOAT:
    case PD_PARAM_FLOAT_LIST:
        break;
    }
    return json_real(v);
}

static json_t *param(const pd_param *p, bool *ok) {
    static const char *const type[] = {
        [PD_PARAM_INT] = "integer",
        [PD_PARAM_FLOAT] = "number",
        [PD_PARAM_BOOL] = "boolean",
        [PD_PARAM_CHOICE] = "choice",
        [PD_PARAM_FLOAT_LIST] = "number per layer",
    };
    json_t *o = json_object();
    set(o, "name", json_string(p->name), ok);
    set(o, "type", json_string(type[p->type]), ok);
    set(o, "default", value(p, p->def), ok);
    if (p->type == PD_PARAM_INT || p->type == PD_PARAM_FLOAT || p->type == PD_PARAM_FLOAT_LIST) {
        if (isfinite(p->min)) set(o, "min", value(p, p->min), ok);
        if (isfinite(p->max)) set(o, "max", value(p, p->max), ok);
        if (p->flags & PD_PARAM_OPEN_MIN) set(o, "exclusive_min", json_true(), ok);
        if (p->flags & PD_PARAM_OPEN_MAX) set(o, "exclusive_max", json_true(), ok);
    }
    if (p->flags & PD_PARAM_NULLABLE) set(o, "nullable", json_true(), ok);
    if (p->flags & PD_PARAM_REQUIRED) set(o, "required", json_true(), ok);
    if (p->type == PD_PARAM_CHOICE) {
        json_t *list = json_array();
        for (const char *const *c = p->choices; *c; c++) {
            if (json_array_append_new(list, json_string(*c)) != 0) *ok = false;
        }
        set(o, "choices", list, ok);
    }
    set(o, "doc", text(p->doc), ok);
    return o;
}

json_t *pd_press_json(const pd_press *p) {
    bool ok = true;
    json_t *o = json_object();
    set(o, "name", json_string(p->name), &ok);
    set(o, "reference_class", text(p->reference_class), &ok);
    set(o, "kind", text(p->kind), &ok);
    set(o, "source", text(p->source), &ok);
    set(o, "doc", text(p->doc), &ok);
    json_t *params = json_array();
    for (size_t i = 0; i < p->n_params; i++) {
        if (json_array_append_new(params, param(&p->params[i], &ok)) != 0) ok = false;
    }
    set(o, "params", params, &ok);
    if (p->max_child) {
        json_t *accepts = json_object();
        set(accepts, "min", json_integer((json_int_t)p->min_child), &ok);
        set(accepts, "max", json_integer((json_int_t)p->max_child), &ok);
        set(accepts, "must", can_words(p->child_must, &ok), &ok);
        set(accepts, "ratios", json_boolean(p->child_ratio), &ok);
        set(o, "accepts", accepts, &ok);
    } else {
        set(o, "accepts", json_null(), &ok);
    }
    set(o, "can", can_words(default_can(p), &ok), &ok);
    set(o, "ratio", text(p->ratio_doc), &ok);
    set(o, "takes_ratio", json_boolean(!p->own_budget), &ok);
    if (ok) return o;
    json_decref(o);
    return NULL;
}
