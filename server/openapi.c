/* SPDX-License-Identifier: Apache-2.0 */
/* GET /openapi.json: openapi.json (OpenAPI 3.1) with what the server itself knows
 * put in: its version, the names of the presses, the bounds that are constants of
 * the engine, and no route that is not served. */
#include "compression/press.h"
#include "server/json.h"
#include "server/reply.h"
#include "server/request.h"
#include "server/router.h"
#include "server/server.h"

#include <stdlib.h>
#include <string.h>

#include "openapi_json.h" /* static const char openapi_json[] */

/* The member at a path of names; NULL if one is not there. */
static json_t *at(json_t *v, const char *const *name, size_t n) {
    for (size_t i = 0; i < n && v; i++) v = json_object_get(v, name[i]);
    return v;
}

#define AT(v, ...)                                                                                 \
    at((v), (const char *const[]){__VA_ARGS__},                                                    \
       sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *))

static bool put_presses(json_t *doc) {
    json_t *names = AT(doc, "components", "schemas", "PressName", "enum");
    bool ok = names != NULL;
    for (size_t i = 0; i < pd_press_count() && ok; i++)
        ok = json_array_append_new(names, json_string(pd_press_at(i)->name)) == 0;
    return ok;
}

/* Bounds that stand in the engine's and the request's headers. */
static bool put_bounds(json_t *doc) {
    static const struct { const char *schema, *field, *keyword; long long bound; } t[] = {
        {"Completion", "n", "maximum", PD_CHOICES_MAX},
        {"Chat", "n", "maximum", PD_CHOICES_MAX},
        {"Completion", "best_of", "maximum", PD_REQUEST_BEST_OF_MAX},
        {"Completion", "logprobs", "maximum", PD_LOGPROBS_MAX},
        {"Chat", "top_logprobs", "maximum", PD_LOGPROBS_MAX},
        {"Completion", "prompt_logprobs", "maximum", PD_LOGPROBS_MAX},
        {"Chat", "prompt_logprobs", "maximum", PD_LOGPROBS_MAX},
        {"Completion", "logit_bias", "maxProperties", PD_BIAS_MAX},
        {"Chat", "logit_bias", "maxProperties", PD_BIAS_MAX},
        {"Completion", "stop_token_ids", "maxItems", PD_STOP_IDS_MAX},
        {"Chat", "stop_token_ids", "maxItems", PD_STOP_IDS_MAX},
        {"Chat", "messages", "maxItems", PD_REQUEST_MESSAGES_MAX},
    };
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
        json_t *field =
            AT(doc, "components", "schemas", t[i].schema, "properties", t[i].field);
        if (json_object_set_new(field, t[i].keyword, json_integer(t[i].bound)) != 0) return false;
    }
    return true;
}

static bool drop_unserved(json_t *doc, const pd_server *s) {
    json_t *paths = json_object_get(doc, "paths");
    for (size_t i = 0; i < pd_n_routes; i++)
        if (pd_routes[i]->flags & PD_ROUTE_METRICS && !s->cfg->metrics)
            json_object_del(paths, pd_routes[i]->label);
    return paths != NULL;
}

static void run_openapi(pd_req *q) {
    json_t *doc = json_loads(openapi_json, 0, NULL);
    const bool ok = doc &&
                    json_object_set_new(json_object_get(doc, "info"), "version",
                                        json_string(PD_VERSION)) == 0 &&
                    put_presses(doc) && put_bounds(doc) && drop_unserved(doc, q->srv);
    char *text = ok ? json_dumps(doc, JSON_COMPACT | JSON_REAL_PRECISION(15)) : NULL;
    json_decref(doc);
    if (text) pd_buf_puts(&q->out, text);
    else q->out.failed = true;
    free(text);
    pd_reply_json(q);
}

const pd_route pd_route_openapi = {.method = "GET",
                                   .path = "/openapi.json",
                                   .label = "/openapi.json",
                                   .flags = PD_ROUTE_CHEAP,
                                   .run = run_openapi};
