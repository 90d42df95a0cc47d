/* SPDX-License-Identifier: Apache-2.0 */
/* A request's compression wish: its presses put where they work (see compress.h).
 *
 * There is one mechanism for pressing while tokens are generated, and two ways to
 * ask for it: a decode press among the presses, and the object `decode`, which is
 * made into one here. */
#include "compression/compress.h"

#include <math.h>
#include <stdlib.h>

extern const pd_press pd_press_prefill_decoding, pd_press_decoding, pd_press_compression_ratio_decoding;

/* ---- what goes together ---- */

/* A press that acts while tokens are generated has no place below another one; one that leaves
 * that to the other, with these parameters, has. */
static pd_status no_decode_below(const pd_press_inst *inst, const char *path, pd_err *err) {
    for (size_t i = 0; i < inst->n_child; i++) {
        const pd_press *p = inst->child[i]->press;
        pd_decode_rule rule;
        if (p->can & PD_CAN_DECODE && (!p->running || p->decode_rule(inst->child[i], &rule)))
            return pd_fail(err, PD_EINVAL, path, "%s: '%s' works while tokens are generated; it cannot stand inside '%s'",
                           path, p->name, inst->press->name);
        PD_TRY(no_decode_below(inst->child[i], path, err));
    }
    return PD_OK;
}

/* Its heads may differ in length afterwards. */
static bool uneven(const pd_press_inst *inst) {
    return !(pd_press_inst_can(inst) & PD_CAN_COMPOSE);
}

static pd_status check_pair(const pd_compression *c, const char *path, pd_err *err) {
    pd_decode_rule rule;
    if (c->press && c->decode && c->press->press->can & PD_STANDS_ALONE)
        return pd_fail(err, PD_EINVAL, path, "%s: '%s' keeps all heads' tokens together, which '%s' would prune; it stands alone",
                       path, c->press->press->name, c->decode->press->name);
    if (!c->decode || c->decode == c->press || !c->decode->press->decode_rule(c->decode, &rule)) return PD_OK;
    const pd_press_inst *cause = c->press && uneven(c->press) ? c->press : uneven(rule.prune) ? rule.prune : NULL;
    if (!cause || pd_press_inst_can(rule.prune) & PD_CAN_SCORE_RAGGED) return PD_OK;
    return pd_fail(err, PD_EINVAL, path, "%s: '%s' leaves the heads of a layer unequally long, which '%s' cannot prune",
                   path, cause->press->name, rule.prune->press->name);
}

/* ---- to their places ---- */

/* One press that is not prefill_decoding. */
static pd_status place(pd_compression *c, pd_press_inst *inst, const char *path, pd_err *err) {
    const pd_press *p = inst->press;
    pd_decode_rule rule;
    const bool decodes = p->decode_rule && p->decode_rule(inst, &rule);
    pd_status rc = no_decode_below(inst, path, err);
    if (rc == PD_OK && decodes && c->decode)
        rc = pd_fail(err, PD_EINVAL, path, "%s: '%s' prunes while tokens are generated, and so does '%s': give one of them",
                     path, p->name, c->decode->press->name);
    if (rc != PD_OK) {
        pd_press_inst_close(inst);
        return rc;
    }
    if (decodes) c->decode = inst;
    if (p->can & PD_DECODE_ONLY) return PD_OK;
    c->press = inst;
    if (!inst->has_ratio) return PD_OK;
    c->has_ratio = true;
    c->ratio = inst->ratio;
    inst->has_ratio = false; /* the outermost again */
    return PD_OK;
}

/* What stands inside goes on its way. */
static pd_status place_reading(pd_compression *c, pd_press_inst *inst, const char *path, pd_err *err) {
    pd_press_inst *child = inst->n_child ? inst->child[0] : NULL;
    inst->n_child = 0;
    bool twice = c->n_read == PD_READ_MAX;
    for (size_t i = 0; i < c->n_read; i++) twice = twice || c->read[i]->press == inst->press;
    if (twice) {
        const pd_status rc = pd_fail(err, PD_EINVAL, path, "%s: '%s' is given twice", path, inst->press->name);
        pd_press_inst_close(inst);
        pd_press_inst_close(child);
        return rc;
    }
    c->read[c->n_read++] = inst;
    return pd_compression_take(c, child, path, err);
}

pd_status pd_compression_take(pd_compression *c, pd_press_inst *inst, const char *path, pd_err *err) {
    if (!inst) return PD_OK;
    if (inst->press->read_rule) return place_reading(c, inst, path, err);
    if (inst->press != &pd_press_prefill_decoding) {
        PD_TRY(place(c, inst, path, err));
        return check_pair(c, path, err);
    }
    const size_t n = inst->n_child;
    pd_press_inst *child[PD_PRESS_CHILDREN_MAX];
    for (size_t i = 0; i < n; i++) child[i] = inst->child[i];
    inst->n_child = 0;
    pd_press_inst_close(inst);
    pd_status rc = PD_OK;
    for (size_t i = 0; i < n; i++) {
        if (rc == PD_OK)
            rc = place(c, child[i], path, err);
        else
            pd_press_inst_close(child[i]);
    }
    return rc == PD_OK ? check_pair(c, path, err) : rc;
}

/* A parameter by its name; the table has it. */
static void set(pd_press_inst *inst, const char *name, double value) {
    size_t i = 0;
    if (pd_press_param(inst->press, name, &i)) inst->p[i] = value;
}

pd_status pd_compression_decode_every(pd_compression *c, pd_press_inst *prune, size_t interval, size_t target,
                                      double ratio, const char *path, pd_err *err) {
    const bool by_ratio = !isnan(ratio);
    const pd_press *p = by_ratio ? &pd_press_compression_ratio_decoding : &pd_press_decoding;
    pd_press_inst *inst = calloc(1, sizeof *inst);
    if (!inst || !(pd_press_inst_can(prune) & PD_CAN_PRUNE_STEP)) {
        const pd_status rc = !inst ? pd_fail(err, PD_ENOMEM, NULL, "no memory for a press")
                                   : pd_fail(err, PD_EINVAL, path, "%s: press '%s' works on prompts only, not while generating",
                                             path, prune->press->name);
        free(inst);
        pd_press_inst_close(prune);
        return rc;
    }
    inst->press = p;
    for (size_t i = 0; i < p->n_params; i++) inst->p[i] = p->params[i].def;
    set(inst, "compression_interval", (double)interval);
    if (by_ratio)
        set(inst, "target_compression_ratio", ratio);
    else
        set(inst, "target_size", (double)target);
    inst->child[0] = prune;
    inst->n_child = 1;
    return pd_compression_take(c, inst, path, err);
}

pd_read_rule pd_compression_read(const pd_compression *c) {
    pd_read_rule rule = {.tau = 1.0};
    for (size_t i = 0; c && i < c->n_read; i++) c->read[i]->press->read_rule(c->read[i], &rule);
    return rule;
}

/* ---- as people read it ---- */

static void dropping_text(const pd_compression *c, pd_buf *out) {
    const bool both = c && c->press && c->decode && c->decode != c->press;
    if (both) pd_buf_printf(out, "%s(", pd_press_prefill_decoding.name);
    pd_press_inst_text(c ? c->press ? c->press : c->decode : NULL, out);
    if (!both) return;
    pd_buf_putc(out, ',');
    pd_press_inst_text(c->decode, out);
    pd_buf_putc(out, ')');
}

void pd_compression_text(const pd_compression *c, pd_buf *out) {
    const size_t n = c ? c->n_read : 0;
    const bool drops = !n || c->press || c->decode;
    for (size_t i = 0; i < n; i++) {
        pd_press_inst_text(c->read[i], out);
        if (i + 1 < n || drops) pd_buf_putc(out, '(');
    }
    if (drops) dropping_text(c, out);
    for (size_t i = 1; i < n + drops; i++) pd_buf_putc(out, ')');
}

const char *pd_compression_name(const pd_compression *c) {
    if (c && c->n_read) return c->read[0]->press->name;
    if (!c || (!c->press && !c->decode)) return "none";
    if (c->press && c->decode && c->decode != c->press) return pd_press_prefill_decoding.name;
    return (c->press ? c->press : c->decode)->press->name;
}

void pd_compression_close(pd_compression *c) {
    if (!c) return;
    if (c->decode != c->press) pd_press_inst_close(c->decode);
    pd_press_inst_close(c->press);
    for (size_t i = 0; i < c->n_read; i++) pd_press_inst_close(c->read[i]);
    free(c);
}
