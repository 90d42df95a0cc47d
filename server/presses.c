/* SPDX-License-Identifier: Apache-2.0 */
/* GET /v1/presses: the registry as it is (press_json.c), and whether this model
 * can run each press with its default parameters. */
#include "compression/press_data.h"
#include "server/json.h"
#include "server/press_json.h"
#include "server/reply.h"
#include "server/router.h"
#include "server/server.h"

#include <stdlib.h>

/* A leaf is checked with its defaults; a wrapper runs when what is put inside does. */
static pd_status runnable(const pd_press *p, const pd_press_model *model, pd_err *err) {
    pd_press_inst inst = {.press = p, .data = model->data};
    for (size_t i = 0; i < p->n_params; i++) inst.p[i] = p->params[i].def;
    PD_TRY(pd_press_check_data(&inst, NULL, err));
    if (!p->check || p->max_child) return PD_OK;
    return p->check(&inst, model, "params", err);
}

/* One element, or false when memory ran out. */
static bool write_press(pd_buf *out, const pd_press *p, const pd_press_model *model) {
    json_t *o = pd_press_json(p);
    if (!o) return false;
    pd_err err = {0};
    const bool ok = runnable(p, model, &err) == PD_OK;
    bool set = json_object_set_new(o, "runnable", json_boolean(ok)) == 0;
    if (!ok && json_object_set_new(o, "reason", json_string(err.msg)) != 0) set = false;
    char *text = set ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(15)) : NULL;
    json_decref(o);
    if (!text) return false;
    pd_buf_puts(out, text);
    free(text);
    return true;
}

static void run_presses(pd_req *q) {
    pd_buf *out = &q->out;
    pd_buf_puts(out, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < pd_press_count(); i++) {
        if (i) pd_buf_putc(out, ',');
        if (!write_press(out, pd_press_at(i), &q->srv->info->press_model)) out->failed = true;
    }
    pd_buf_puts(out, "]}");
    pd_reply_json(q);
}

const pd_route pd_route_presses = {.method = "GET",
                                   .path = "/v1/presses",
                                   .label = "/v1/presses",
                                   .flags = PD_ROUTE_CHEAP,
                                   .run = run_presses};
