/* SPDX-License-Identifier: Apache-2.0 */
/* UTF-8 as bytes: validity, and where a stream may be cut.  Well-formed means
 * the Unicode standard's table 3-7 (no overlong forms, no surrogates, at most
 * U+10FFFF).  Thread: any. */
#ifndef PD_ENGINE_BASE_UTF8_H
#define PD_ENGINE_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Length 1..4 of the well-formed sequence at s (n bytes readable), or 0 if none
 * starts there.  *cp gets the code point when not NULL. */
size_t pd_utf8_next(const char *s, size_t n, uint32_t *cp);

/* True if s[0..n) is well-formed. */
bool pd_utf8_valid(const char *s, size_t n);

/* How many bytes at the end of s[0..n) are the start of a sequence that more
 * bytes could complete: 0..3. */
size_t pd_utf8_incomplete_tail(const char *s, size_t n);

/* Replace every byte that is not part of a well-formed sequence by '?', in
 * place, and drop a sequence cut at the end.  Returns the new length (<= n). */
size_t pd_utf8_sanitize(char *s, size_t n);

/* Write cp (<= 0x10FFFF) to dst (4 bytes); returns its length. */
size_t pd_utf8_put(uint32_t cp, char *dst);

#endif
