/* SPDX-License-Identifier: Apache-2.0 */
/* What a reply says about its cost: integers in `usage`, the `kv_cache` object,
 * `timings`, headers.  Each function appends one JSON value.  Thread: any. */
#ifndef PD_SERVER_META_H
#define PD_SERVER_META_H

#include "engine/run/engine.h"
#include "server/http.h"

/* `,"kv_type":...,"bits_per_value":...`: as a request may ask for it; the steps of few bits
 * count. */
void pd_meta_kv_type(pd_buf *out, const pd_kv_report *kv, const pd_engine_info *info);

/* kv NULL: the counts alone (running usage of a stream). */
void pd_meta_usage(pd_buf *out, size_t n_prompt, size_t n_out, const pd_kv_report *kv);
void pd_meta_timings(pd_buf *out, const pd_job_timing *t, const pd_kv_report *kv);

/* `"usage":...,"kv_cache":...,"timings":...`; usage only if asked.  With several
 * results bytes, pages, tokens and times are their sums (predicted_ms the longest: they run
 * side by side), ratios their means over tokens, and kv_cache has each one's own
 * in "sequences". */
void pd_meta_members(pd_buf *out, const pd_job_result *const *r, size_t n,
                     const pd_engine_info *info, bool usage, size_t n_prompt, size_t n_out);

/* X-KV-Press, X-KV-Cache-Bytes, -Dense, -Peak. */
void pd_meta_headers(pd_req *q, const pd_job_result *const *r, size_t n);

#endif
