/* SPDX-License-Identifier: Apache-2.0 */
/* Reading safetensors (see safetensors.h).
 *
 * The header is JSON, but only of one shape, so a cursor that knows that shape
 * reads it: no tree, no recursion, every number checked for overflow as it is
 * read.  Names go to an array sorted once, which finds doubles and makes look-ups
 * O(log n) whatever names the file chose.  Cost: linear in the header. */
#include "compression/safetensors.h"

#include "engine/base/arena.h"
#include "engine/base/file.h"
#include "engine/base/num.h"
#include "engine/base/utf8.h"
#include "engine/gguf/quant.h"

#include <stdlib.h>
#include <string.h>

#define FILE_MAX ((size_t)64 << 30) /* bytes; a bound for what a broken disk may claim */

struct pd_safetensors {
    char *owned; /* the file's bytes; NULL = borrowed */
    pd_arena arena;
    pd_st_tensor *tensor; /* sorted by name */
    pd_st_meta *meta;     /* likewise by key */
    size_t n_tensor, n_meta;
};

typedef struct {
    const char *p, *end, *begin;
    const char *name; /* of the file */
    pd_arena *arena;
    pd_err *err;
} cursor;

#define FAIL(c, ...) pd_file_fail((c)->name, (c)->err, __VA_ARGS__)

/* ---- JSON, as much as the format has ---- */

static pd_status unexpected(const cursor *c, const char *want) {
    return FAIL(c, "the header has no %s at byte %zu", want, (size_t)(c->p - c->begin));
}

static pd_status no_memory(const cursor *c) {
    return pd_fail(c->err, PD_ENOMEM, NULL, "no memory for the header of a safetensors file");
}

static void blanks(cursor *c) {
    while (c->p < c->end && (*c->p == ' ' || *c->p == '\t' || *c->p == '\n' || *c->p == '\r'))
        c->p++;
}

/* The next sign after blanks, if it is `want`. */
static bool take(cursor *c, char want) {
    blanks(c);
    if (c->p == c->end || *c->p != want) return false;
    c->p++;
    return true;
}

static pd_status hex4(cursor *c, uint32_t *ret) {
    uint32_t v = 0;
    for (int i = 0; i < 4; i++) {
        const char h = c->p < c->end ? *c->p : '\0';
        const int digit = h >= '0' && h <= '9'   ? h - '0'
                          : h >= 'a' && h <= 'f' ? h - 'a' + 10
                          : h >= 'A' && h <= 'F' ? h - 'A' + 10
                                                 : -1;
        if (digit < 0) return unexpected(c, "hexadecimal digit");
        v = v << 4 | (uint32_t)digit;
        c->p++;
    }
    *ret = v;
    return PD_OK;
}

/* What stands behind a backslash, as UTF-8 to dst; *n its length. */
static pd_status escape(cursor *c, char *dst, size_t *n) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char e = c->p < c->end ? *c->p : '\0';
    const char *at = e ? strchr(from, e) : NULL;
    if (at) {
        c->p++;
        *dst = to[at - from];
        *n = 1;
        return PD_OK;
    }
    if (e != 'u') return unexpected(c, "known escape");
    c->p++;
    uint32_t cp = 0, low = 0;
    PD_TRY(hex4(c, &cp));
    if (cp >= 0xD800 && cp < 0xDC00) { /* the first half of a pair */
        if (c->end - c->p < 6 || c->p[0] != '\\' || c->p[1] != 'u')
            return unexpected(c, "second half of a surrogate pair");
        c->p += 2;
        PD_TRY(hex4(c, &low));
        if (low < 0xDC00 || low > 0xDFFF) return unexpected(c, "second half of a surrogate pair");
        cp = 0x10000 + ((cp - 0xD800) << 10 | (low - 0xDC00));
    }
    if (cp == 0 || (cp >= 0xDC00 && cp < 0xE000))
        return unexpected(c, "character that text may hold");
    *n = pd_utf8_put(cp, dst);
    return PD_OK;
}

/* A string, decoded, in the arena. */
static pd_status string(cursor *c, const char *what, const char **ret) {
    if (!take(c, '"')) return unexpected(c, what);
    const size_t left = (size_t)(c->end - c->p);
    size_t raw = 0; /* an escape never gets longer, so the raw length is enough */
    while (raw < left && c->p[raw] != '"') raw += c->p[raw] == '\\' ? 2 : 1;
    if (raw >= left) return unexpected(c, "end of a string");
    char *s = pd_arena_alloc(c->arena, raw + 1, 1), *out = s;
    if (!s) return no_memory(c);
    while (*c->p != '"') {
        if ((unsigned char)*c->p < 0x20) return unexpected(c, "character that text may hold");
        size_t n = 1;
        if (*c->p != '\\') {
            *out = *c->p++;
        } else {
            c->p++;
            PD_TRY(escape(c, out, &n));
        }
        out += n;
    }
    c->p++;
    *out = '\0';
    if (!pd_utf8_valid(s, (size_t)(out - s))) return unexpected(c, "UTF-8 before it");
    *ret = s;
    return PD_OK;
}

/* A whole number without sign, fraction or leading zero. */
static pd_status whole(cursor *c, const char *what, size_t *ret) {
    blanks(c);
    size_t v = 0;
    const char *first = c->p;
    for (; c->p < c->end && *c->p >= '0' && *c->p <= '9'; c->p++) {
        if (!pd_mul_size(v, 10, &v) || !pd_add_size(v, (size_t)(*c->p - '0'), &v))
            return FAIL(c, "the %s at byte %zu is too large", what, (size_t)(first - c->begin));
    }
    if (c->p == first || (*first == '0' && c->p - first > 1)) return unexpected(c, what);
    *ret = v;
    return PD_OK;
}

/* [n, n, ...], at most `max` numbers. */
static pd_status numbers(cursor *c, const char *what, size_t max, size_t *v, unsigned *n) {
    if (!take(c, '[')) return unexpected(c, what);
    *n = 0;
    if (take(c, ']')) return PD_OK;
    do {
        if (*n == max) return FAIL(c, "a %s has more than %zu numbers", what, max);
        PD_TRY(whole(c, what, &v[*n]));
        ++*n;
    } while (take(c, ','));
    return take(c, ']') ? PD_OK : unexpected(c, "end of an array");
}

/* ---- entries ---- */

static const struct {
    const char *name;
    size_t bytes;
} types[] = {[PD_ST_F32] = {"F32", 4}, [PD_ST_F16] = {"F16", 2}, [PD_ST_BF16] = {"BF16", 2}};

static pd_status parse_type(cursor *c, pd_st_tensor *t) {
    const char *s = NULL;
    PD_TRY(string(c, "dtype", &s));
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(types[i].name, s) != 0) continue;
        t->type = (pd_st_type)i;
        return PD_OK;
    }
    return FAIL(c, "tensor '%.60s' has elements of type '%.16s'; F32, F16 and BF16 are read",
                t->name, s);
}

enum { HAS_TYPE = 1, HAS_SHAPE = 2, HAS_OFFSETS = 4, HAS_ALL = 7 };

static pd_status parse_member(cursor *c, pd_st_tensor *t, size_t offsets[2], unsigned *seen) {
    const char *key = NULL;
    unsigned bit, n;
    PD_TRY(string(c, "key of a tensor", &key));
    if (!take(c, ':')) return unexpected(c, "colon");
    if (strcmp(key, "dtype") == 0) {
        bit = HAS_TYPE;
        PD_TRY(parse_type(c, t));
    } else if (strcmp(key, "shape") == 0) {
        bit = HAS_SHAPE;
        PD_TRY(numbers(c, "shape", PD_ST_DIMS_MAX, t->shape, &t->n_dim));
    } else if (strcmp(key, "data_offsets") == 0) {
        bit = HAS_OFFSETS;
        PD_TRY(numbers(c, "data_offsets", 2, offsets, &n));
        if (n != 2) return FAIL(c, "tensor '%.60s' has %u data_offsets, not 2", t->name, n);
    } else {
        return FAIL(c, "tensor '%.60s' has a key '%.40s' that the format has not", t->name, key);
    }
    if (*seen & bit) return FAIL(c, "tensor '%.60s' has its %s twice", t->name, key);
    *seen |= bit;
    return PD_OK;
}

/* The offsets against the shape; data_len bytes follow the header. */
static pd_status check_extent(const cursor *c, pd_st_tensor *t, const size_t offsets[2],
                              const uint8_t *data, size_t data_len) {
    size_t n = 1;
    for (unsigned i = 0; i < t->n_dim; i++)
        if (!pd_mul_size(n, t->shape[i], &n))
            return FAIL(c, "the shape of tensor '%.60s' is too large", t->name);
    if (!pd_mul_size(n, types[t->type].bytes, &t->n_bytes))
        return FAIL(c, "the shape of tensor '%.60s' is too large", t->name);
    if (offsets[0] > offsets[1] || offsets[1] > data_len)
        return FAIL(c, "tensor '%.60s' lies at bytes %zu to %zu of %zu", t->name, offsets[0],
                    offsets[1], data_len);
    if (offsets[1] - offsets[0] != t->n_bytes)
        return FAIL(c, "tensor '%.60s' has %zu bytes, its shape and type ask for %zu", t->name,
                    offsets[1] - offsets[0], t->n_bytes);
    t->n_elem = n;
    t->offset = offsets[0];
    t->data = data + offsets[0];
    return PD_OK;
}

static pd_status parse_tensor(cursor *c, const char *name, const uint8_t *data, size_t data_len,
                              pd_st_tensor *t) {
    size_t offsets[2] = {0, 0};
    unsigned seen = 0;
    t->name = name;
    if (!take(c, '{')) return unexpected(c, "object of a tensor");
    do PD_TRY(parse_member(c, t, offsets, &seen));
    while (take(c, ','));
    if (!take(c, '}')) return unexpected(c, "end of an object");
    if (seen != HAS_ALL) return FAIL(c, "tensor '%.60s' lacks dtype, shape or data_offsets", name);
    return check_extent(c, t, offsets, data, data_len);
}

/* ---- growing lists in the arena ---- */

/* Room for one more element of `size` bytes behind n; NULL = no memory.  What it
 * outgrows stays in the arena: at most as much again. */
static void *room(pd_arena *a, void *list, size_t n, size_t size) {
    if (n && (n & (n - 1))) return list;
    void *more = pd_arena_alloc(a, n ? 2 * n : 1, size);
    if (more && n) memcpy(more, list, n * size);
    return more;
}

static pd_status parse_meta(cursor *c, pd_safetensors *f) {
    if (!take(c, '{')) return unexpected(c, "object of __metadata__");
    if (take(c, '}')) return PD_OK;
    do {
        if (f->n_meta == PD_ST_META_MAX)
            return FAIL(c, "__metadata__ has more than %d entries", PD_ST_META_MAX);
        f->meta = room(c->arena, f->meta, f->n_meta, sizeof *f->meta);
        if (!f->meta) return no_memory(c);
        pd_st_meta *m = &f->meta[f->n_meta];
        PD_TRY(string(c, "key of __metadata__", &m->key));
        if (!take(c, ':')) return unexpected(c, "colon");
        PD_TRY(string(c, "text of __metadata__", &m->value));
        f->n_meta++;
    } while (take(c, ','));
    return take(c, '}') ? PD_OK : unexpected(c, "end of an object");
}

static pd_status parse_entry(cursor *c, pd_safetensors *f, const uint8_t *data, size_t data_len,
                             bool *seen_meta) {
    const char *name = NULL;
    PD_TRY(string(c, "name of a tensor", &name));
    if (!take(c, ':')) return unexpected(c, "colon");
    if (strcmp(name, "__metadata__") == 0) {
        if (*seen_meta) return FAIL(c, "__metadata__ stands in the header twice");
        *seen_meta = true;
        return parse_meta(c, f);
    }
    if (f->n_tensor == PD_ST_TENSORS_MAX)
        return FAIL(c, "the file has more than %d tensors", PD_ST_TENSORS_MAX);
    f->tensor = room(c->arena, f->tensor, f->n_tensor, sizeof *f->tensor);
    if (!f->tensor) return no_memory(c);
    f->tensor[f->n_tensor] = (pd_st_tensor){0};
    PD_TRY(parse_tensor(c, name, data, data_len, &f->tensor[f->n_tensor]));
    f->n_tensor++;
    return PD_OK;
}

/* ---- the whole ---- */

static int by_name(const void *a, const void *b) {
    return strcmp(((const pd_st_tensor *)a)->name, ((const pd_st_tensor *)b)->name);
}

static int by_key(const void *a, const void *b) {
    return strcmp(((const pd_st_meta *)a)->key, ((const pd_st_meta *)b)->key);
}

static int by_offset(const void *a, const void *b) {
    const pd_st_tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes); /* an empty one first */
}

/* No hole, no overlap, no doubles. */
static pd_status check_all(const cursor *c, pd_safetensors *f, size_t data_len) {
    size_t at = 0;
    if (f->n_tensor) qsort(f->tensor, f->n_tensor, sizeof *f->tensor, by_offset);
    for (size_t i = 0; i < f->n_tensor; at += f->tensor[i++].n_bytes)
        if (f->tensor[i].offset != at)
            return FAIL(c,
                        "tensor '%.60s' begins at byte %zu of the data, not at %zu where the one "
                        "before it ends",
                        f->tensor[i].name, f->tensor[i].offset, at);
    if (at != data_len) return FAIL(c, "the tensors take %zu of %zu bytes of data", at, data_len);
    if (f->n_tensor) qsort(f->tensor, f->n_tensor, sizeof *f->tensor, by_name);
    if (f->n_meta) qsort(f->meta, f->n_meta, sizeof *f->meta, by_key);
    for (size_t i = 1; i < f->n_tensor; i++)
        if (strcmp(f->tensor[i - 1].name, f->tensor[i].name) == 0)
            return FAIL(c, "tensor '%.60s' stands in the header twice", f->tensor[i].name);
    for (size_t i = 1; i < f->n_meta; i++)
        if (strcmp(f->meta[i - 1].key, f->meta[i].key) == 0)
            return FAIL(c, "the key '%.60s' stands in __metadata__ twice", f->meta[i].key);
    return PD_OK;
}

static pd_status parse(pd_safetensors *f, const char *bytes, size_t n, const char *name,
                       pd_err *err) {
    cursor c = {.name = name, .arena = &f->arena, .err = err};
    if (n < 8) return FAIL(&c, "is not a safetensors file: it has %zu bytes", n);
    uint64_t len = 0; /* little-endian */
    for (int i = 7; i >= 0; i--) len = len << 8 | (unsigned char)bytes[i];
    if (len > PD_ST_HEADER_MAX)
        return FAIL(
            &c, "is not a safetensors file: its header would have %llu bytes, at most %d are read",
            (unsigned long long)len, PD_ST_HEADER_MAX);
    if (len > n - 8)
        return FAIL(&c, "is cut short: its header has %llu bytes, the file %zu",
                    (unsigned long long)len, n);
    c.p = c.begin = bytes + 8;
    c.end = c.p + len;
    const uint8_t *data = (const uint8_t *)c.end;
    const size_t data_len = n - 8 - (size_t)len;
    bool seen_meta = false;
    if (!take(&c, '{')) return unexpected(&c, "JSON object");
    if (!take(&c, '}')) {
        do PD_TRY(parse_entry(&c, f, data, data_len, &seen_meta));
        while (take(&c, ','));
        if (!take(&c, '}')) return unexpected(&c, "end of the object");
    }
    blanks(&c);
    if (c.p != c.end) return unexpected(&c, "end");
    return check_all(&c, f, data_len);
}

pd_status pd_safetensors_parse(pd_safetensors **ret, const void *data, size_t n, const char *name,
                               pd_err *err) {
    pd_safetensors *f = calloc(1, sizeof *f);
    if (!f) return pd_fail(err, PD_ENOMEM, NULL, "no memory to read a safetensors file");
    const pd_status rc = parse(f, data, n, name, err);
    if (rc != PD_OK) {
        pd_safetensors_close(f);
        return rc;
    }
    *ret = f;
    return PD_OK;
}

pd_status pd_safetensors_open(pd_safetensors **ret, const char *path, pd_err *err) {
    char *data;
    size_t n;
    PD_TRY(pd_file_read(path, FILE_MAX, &data, &n, err));
    const pd_status rc = pd_safetensors_parse(ret, data, n, path, err);
    if (rc == PD_OK)
        (*ret)->owned = data;
    else
        free(data);
    return rc;
}

void pd_safetensors_close(pd_safetensors *f) {
    if (!f) return;
    pd_arena_done(&f->arena);
    free(f->owned);
    free(f);
}

/* ---- look ---- */

size_t pd_safetensors_count(const pd_safetensors *f) {
    return f->n_tensor;
}

const pd_st_tensor *pd_safetensors_at(const pd_safetensors *f, size_t index) {
    return &f->tensor[index];
}

const pd_st_tensor *pd_safetensors_find(const pd_safetensors *f, const char *name) {
    const pd_st_tensor key = {.name = name};
    return f->n_tensor ? bsearch(&key, f->tensor, f->n_tensor, sizeof key, by_name) : NULL;
}

size_t pd_safetensors_meta_count(const pd_safetensors *f) {
    return f->n_meta;
}

const pd_st_meta *pd_safetensors_meta_at(const pd_safetensors *f, size_t index) {
    return &f->meta[index];
}

const char *pd_safetensors_meta(const pd_safetensors *f, const char *key) {
    const pd_st_meta want = {.key = key};
    const pd_st_meta *m =
        f->n_meta ? bsearch(&want, f->meta, f->n_meta, sizeof want, by_key) : NULL;
    return m ? m->value : NULL;
}

void pd_st_read(const pd_st_tensor *t, float *dst) {
    for (size_t i = 0; i < t->n_elem; i++) {
        const uint8_t *p = t->data + i * types[t->type].bytes;
        const uint16_t half = (uint16_t)(p[0] | p[1] << 8);
        if (t->type == PD_ST_F16) {
            dst[i] = pd_f16_to_f32(half);
        } else if (t->type == PD_ST_BF16) {
            dst[i] = pd_bf16_to_f32(half);
        } else {
            const uint32_t u = (uint32_t)half | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
            memcpy(&dst[i], &u, sizeof u);
        }
    }
}
