/* SPDX-License-Identifier: Apache-2.0 */
/* How much memory this process may use, and uses.  Thread: any. */
#ifndef PD_ENGINE_BASE_SYSMEM_H
#define PD_ENGINE_BASE_SYSMEM_H

#include <stdint.h>

/* The machine's memory, or the tightest cgroup limit (v2 or v1) above this
 * process if that is less.  Never 0. */
uint64_t pd_sysmem_limit(void);

/* Resident set of this process in bytes; 0 if unknown. */
uint64_t pd_sysmem_rss(void);

#endif
