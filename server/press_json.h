/* SPDX-License-Identifier: Apache-2.0 */
/* A press of the registry as JSON: one element of GET /v1/presses and of
 * `pressd presses --json`.  Thread: any. */
#ifndef PD_SERVER_PRESS_JSON_H
#define PD_SERVER_PRESS_JSON_H

#include "compression/press.h"

#include <jansson.h>

/* {"name", "reference_class", "kind", "source", "doc",
 *  "params": [{"name", "type": "integer" | "number" | "boolean" | "choice" | "number per layer", "default",
 *              "min", "max", "exclusive_min", "exclusive_max", "nullable", "required", "choices", "doc"}],
 *  "accepts": null | {"min", "max", "must": [...], "ratios": may they carry their own},  children of a wrapper
 *  "can": ["score", ...], "ratio": whose ratio counts, "takes_ratio": false if the parameters say what stays}
 * min and max stand only on numbers with such a bound; exclusive_*, nullable,
 * required and choices only where they say something.  "can" is that of the press
 * with its defaults.  Whether a model can run it ("runnable",
 * "reason") is the caller's to add.  A new reference; NULL = no memory. */
json_t *pd_press_json(const pd_press *p);

#endif
