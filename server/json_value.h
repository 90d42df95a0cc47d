/* SPDX-License-Identifier: Apache-2.0 */
/* JSON of a request as values for the chat template.  Thread: any. */
#ifndef PD_SERVER_JSON_VALUE_H
#define PD_SERVER_JSON_VALUE_H

#include "engine/jinja/jinja.h"

#include <jansson.h>

/* Borrows the strings of `v`; all of it gets `origin`.  h->failed if memory ends. */
pd_jval pd_json_value(pd_jheap *h, const json_t *v, uint16_t origin);

#endif
