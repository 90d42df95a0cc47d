/* SPDX-License-Identifier: Apache-2.0 */
/* Which pages go: evictions chosen a page at a time over many heads (page_choice.c). */
#ifndef PD_COMPRESSION_PAGE_CHOICE_H
#define PD_COMPRESSION_PAGE_CHOICE_H

#include "engine/base/arena.h"
#include "engine/base/err.h"

#include <stddef.h>

/* n_keep[i] = slots that stay of the n[i] of head i (metric[i], no NaN; +inf: stays in any case),
 * pages of `page` slots, when n_free pages are to be freed of all heads together; fewer are if no
 * more can be.  Every head keeps a page; of equal pages the one of the first head goes.  What goes
 * of a head are its lowest metrics.  Scratch from tmp.  Errors: ENOMEM. */
pd_status pd__choose_pages(const float *const *metric, const size_t *n, size_t n_head, size_t page, size_t n_free,
                           size_t *n_keep, pd_arena *tmp, pd_err *err);

#endif
