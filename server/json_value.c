/* SPDX-License-Identifier: Apache-2.0 */
/* JSON to template values (see json_value.h).  Depth is the parser's: PD_JSON_DEPTH_MAX. */
#include "server/json_value.h"

#include <string.h>

static pd_jval list(pd_jheap *h, const json_t *v, uint16_t origin) {
    const size_t n = json_array_size(v);
    const pd_jval to = pd_jlist(h, n, origin);
    for (size_t i = 0; i < n; i++) pd_jlist_add(h, to, pd_json_value(h, json_array_get(v, i), origin));
    return to;
}

static pd_jval dict(pd_jheap *h, const json_t *v, uint16_t origin) {
    const pd_jval to = pd_jdict(h, json_object_size(v), origin);
    const char *key;
    json_t *one;
    json_object_foreach((json_t *)(uintptr_t)v, key, one)
        pd_jdict_add(h, to, pd_jstr(h, key, strlen(key), origin), pd_json_value(h, one, origin));
    return to;
}

pd_jval pd_json_value(pd_jheap *h, const json_t *v, uint16_t origin) {
    pd_jval to = pd_jnone();
    switch (v ? json_typeof(v) : JSON_NULL) {
    case JSON_OBJECT: return dict(h, v, origin);
    case JSON_ARRAY: return list(h, v, origin);
    case JSON_STRING: return pd_jstr(h, json_string_value(v), json_string_length(v), origin);
    case JSON_INTEGER: to = pd_jint(json_integer_value(v)); break;
    case JSON_REAL: to = pd_jfloat(json_real_value(v)); break;
    case JSON_TRUE:
    case JSON_FALSE: to = pd_jbool(json_is_true(v)); break;
    case JSON_NULL: break;
    }
    to.origin = origin;
    return to;
}
