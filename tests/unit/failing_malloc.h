/* SPDX-License-Identifier: Apache-2.0 */
/* The n-th allocation fails, and allocations are counted: malloc and its kin are
 * wrapped at link time (failing_malloc_args in meson.build), which sees the
 * calls of our own code and not those of libraries.  Thread: any. */
#ifndef PD_TESTS_UNIT_FAILING_MALLOC_H
#define PD_TESTS_UNIT_FAILING_MALLOC_H

/* n more allocations succeed, then all fail; negative: all succeed. */
void failing_malloc_after(long n);
unsigned long failing_malloc_failed(void); /* how many failed so far */
unsigned long failing_malloc_count(void);  /* how many were asked for so far */

#endif
