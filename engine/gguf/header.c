/* SPDX-License-Identifier: Apache-2.0 */
/* The header of one GGUF file: bytes in memory -> key/values and tensors.
 *
 * A header does not say how long it is, so the file's start is read in growing
 * pieces (doubling: all in all at most twice the work) and parsed anew each time
 * until the parse ends inside what is there.  Every step goes through take(),
 * which knows three answers: here, not loaded yet, not in the file.  Counts are
 * checked against the bytes that are left before anything is allocated, so
 * memory stays within a small multiple of the file's size. */
#include "engine/gguf/internal.h"

#include "engine/base/num.h"
#include "engine/gguf/le.h"

#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

enum { LOAD_FIRST = 4 << 20, DEFAULT_ALIGN = 32 };

typedef struct {
    pd__part *part;
    size_t pos, len; /* of part->head */
    size_t limit;    /* most a header may take: the file's size, or the cap */
    size_t want;     /* > 0: stopped for lack of bytes; go on with so many */
    pd_err *err;
} cursor;

#define FAIL(c, ...) pd__source_fail(&(c)->part->src, (c)->err, __VA_ARGS__)

static pd_status no_memory(cursor *c) {
    return pd_fail(c->err, PD_ENOMEM, NULL, "no memory for the header of a GGUF file");
}

static size_t left(const cursor *c) {
    return c->limit - c->pos;
}

/* The next n bytes, which hold `what` of `who`. */
static pd_status take(cursor *c, uint64_t n, const char *what, pd_str who, const uint8_t **ret) {
    if (n > left(c)) {
        if (c->limit < c->part->src.size)
            return FAIL(c, "%s '%s' needs %llu bytes at %zu, past the header limit of %d", what,
                        pd__quote(who).text, (ull)n, c->pos, PD__GGUF_HEADER_MAX);
        return FAIL(c, "truncated: %s '%s' needs %llu bytes at %zu, the file has %zu", what,
                    pd__quote(who).text, (ull)n, c->pos, c->limit);
    }
    if (n > c->len - c->pos) {
        c->want = c->pos + (size_t)n;
        return PD_EUNAVAIL;
    }
    *ret = c->part->head + c->pos;
    c->pos += (size_t)n;
    return PD_OK;
}

static pd_status take_u32(cursor *c, const char *what, pd_str who, uint32_t *ret) {
    const uint8_t *p = NULL;
    PD_TRY(take(c, 4, what, who, &p));
    *ret = pd_le32(p);
    return PD_OK;
}

static pd_status take_u64(cursor *c, const char *what, pd_str who, uint64_t *ret) {
    const uint8_t *p = NULL;
    PD_TRY(take(c, 8, what, who, &p));
    *ret = pd_le64(p);
    return PD_OK;
}

static pd_status take_str(cursor *c, const char *what, pd_str who, uint64_t max, pd_str *ret) {
    uint64_t len = 0;
    const uint8_t *p = NULL;
    PD_TRY(take_u64(c, what, who, &len));
    if (len > max)
        return FAIL(c, "%s '%s' at %zu is %llu bytes long, at most %llu are allowed", what,
                    pd__quote(who).text, c->pos, (ull)len, (ull)max);
    PD_TRY(take(c, len, what, who, &p));
    *ret = (pd_str){(const char *)p, (size_t)len};
    return PD_OK;
}

/* ---- key/values ---- */

static const uint8_t type_bytes[] = {
    [PD_GGUF_U8] = 1,  [PD_GGUF_I8] = 1,  [PD_GGUF_U16] = 2,  [PD_GGUF_I16] = 2,
    [PD_GGUF_U32] = 4, [PD_GGUF_I32] = 4, [PD_GGUF_F32] = 4,  [PD_GGUF_BOOL] = 1,
    [PD_GGUF_U64] = 8, [PD_GGUF_I64] = 8, [PD_GGUF_F64] = 8, /* strings, arrays: 0 */
};

static pd_status check_type(cursor *c, pd_str key, const char *what, uint32_t type) {
    if (type <= PD_GGUF_F64) return PD_OK;
    return FAIL(c, "%s of key '%s' is %u, the format has 0 to %d", what, pd__quote(key).text, type,
                PD_GGUF_F64);
}

static pd_status check_bool(cursor *c, pd_str key, uint8_t v) {
    if (v <= 1) return PD_OK;
    return FAIL(c, "key '%s' holds the boolean %u, must be 0 or 1", pd__quote(key).text, v);
}

static void load_number(const uint8_t *p, pd_gguf_kv *kv) {
    float f;
    switch (kv->type) {
    case PD_GGUF_U8:
    case PD_GGUF_BOOL: kv->v.u = p[0]; break;
    case PD_GGUF_I8: kv->v.i = (int8_t)p[0]; break;
    case PD_GGUF_U16: kv->v.u = pd_le16(p); break;
    case PD_GGUF_I16: kv->v.i = (int16_t)pd_le16(p); break;
    case PD_GGUF_U32: kv->v.u = pd_le32(p); break;
    case PD_GGUF_I32: kv->v.i = (int32_t)pd_le32(p); break;
    case PD_GGUF_U64: kv->v.u = pd_le64(p); break;
    case PD_GGUF_I64: kv->v.i = (int64_t)pd_le64(p); break;
    case PD_GGUF_F32:
        memcpy(&f, p, sizeof f);
        kv->v.f = (double)f;
        break;
    case PD_GGUF_F64: memcpy(&kv->v.f, p, sizeof kv->v.f); break;
    case PD_GGUF_STRING:
    case PD_GGUF_ARRAY: break; /* not numbers */
    }
}

static pd_status read_array(cursor *c, pd_gguf_kv *kv) {
    uint32_t elem = 0;
    PD_TRY(take_u32(c, "array type of key", kv->key, &elem));
    PD_TRY(check_type(c, kv->key, "array type", elem));
    if (elem == PD_GGUF_ARRAY)
        return FAIL(c, "key '%s' is an array of arrays, which is not served",
                    pd__quote(kv->key).text);
    PD_TRY(take_u64(c, "array length of key", kv->key, &kv->n));
    kv->elem = (pd_gguf_type)elem;

    const size_t each = elem == PD_GGUF_STRING ? 8 : type_bytes[elem]; /* least bytes of one */
    if (kv->n > left(c) / each)
        return FAIL(c, "key '%s' claims %llu array elements, only %zu bytes are left",
                    pd__quote(kv->key).text, (ull)kv->n, left(c));
    if (elem == PD_GGUF_STRING) {
        pd_str *s = PD_ARENA_NEW(&c->part->arena, (size_t)kv->n, pd_str);
        if (!s) return no_memory(c);
        for (size_t i = 0; i < kv->n; i++)
            PD_TRY(take_str(c, "array string of key", kv->key, UINT64_MAX, &s[i]));
        kv->v.array = s;
        return PD_OK;
    }
    const uint8_t *p = NULL;
    PD_TRY(take(c, kv->n * each, "array of key", kv->key, &p));
    if (elem == PD_GGUF_BOOL)
        for (size_t i = 0; i < kv->n; i++) PD_TRY(check_bool(c, kv->key, p[i]));
    kv->v.array = p;
    return PD_OK;
}

static pd_status read_kv(cursor *c, pd_gguf_kv *kv) {
    uint32_t type = 0;
    const pd_str none = {"", 0};
    PD_TRY(take_str(c, "a key", none, PD__GGUF_KEY_MAX, &kv->key));
    if (kv->key.len == 0) return FAIL(c, "an empty key at %zu", c->pos);
    PD_TRY(take_u32(c, "type of key", kv->key, &type));
    PD_TRY(check_type(c, kv->key, "type", type));
    kv->type = kv->elem = (pd_gguf_type)type;
    kv->n = 1;
    if (type == PD_GGUF_ARRAY) return read_array(c, kv);
    if (type == PD_GGUF_STRING)
        return take_str(c, "string of key", kv->key, UINT64_MAX, &kv->v.s);
    const uint8_t *p = NULL;
    PD_TRY(take(c, type_bytes[type], "value of key", kv->key, &p));
    if (type == PD_GGUF_BOOL) PD_TRY(check_bool(c, kv->key, p[0]));
    load_number(p, kv);
    return PD_OK;
}

static pd_status read_kvs(cursor *c, pd__part *part) {
    for (size_t i = 0; i < part->n_kv; i++) PD_TRY(read_kv(c, &part->kv[i]));
    const size_t twice =
        pd__index_sort(part->kv, sizeof *part->kv, part->kv_order, part->n_kv);
    if (twice < part->n_kv)
        return FAIL(c, "key '%s' occurs twice", pd__quote(part->kv[twice].key).text);
    return PD_OK;
}

/* ---- tensors ---- */

/* Shape and type -> element, row and tensor sizes, or the first one that does not
 * fit.  INT64_MAX is kept as the bound so that file offsets (off_t) hold it. */
static pd_status size_tensor(cursor *c, pd_gguf_tensor *t) {
    const pd_qtype *ty = t->type;
    const pd__quoted name = pd__quote(t->name);
    uint64_t rows = 1, whole;
    for (unsigned i = 0; i < t->n_dims; i++) {
        if (t->ne[i] == 0 || t->ne[i] > INT64_MAX)
            return FAIL(c, "tensor '%s': dimension %u is %llu", name.text, i, (ull)t->ne[i]);
        if (i > 0 && !pd_mul_u64(rows, t->ne[i], &rows))
            return FAIL(c, "tensor '%s': its dimensions overflow", name.text);
    }
    if (t->ne[0] % ty->block != 0)
        return FAIL(c,
                    "tensor '%s': rows of %llu elements are not a multiple of %zu, the block of %s",
                    name.text, (ull)t->ne[0], ty->block, ty->name);
    if (!pd_mul_u64(t->ne[0] / ty->block, ty->bytes, &t->row_bytes) ||
        !pd_mul_u64(t->row_bytes, rows, &whole) || whole > INT64_MAX ||
        !pd_mul_u64(t->ne[0], rows, &t->n_elem) || t->n_elem > INT64_MAX)
        return FAIL(c, "tensor '%s': its size overflows", name.text);
    t->n_bytes = whole;
    return PD_OK;
}

static pd_status read_tensor(cursor *c, pd_gguf_tensor *t) {
    uint32_t type = 0;
    const pd_str none = {"", 0};
    PD_TRY(take_str(c, "a tensor name", none, PD__GGUF_NAME_MAX, &t->name));
    if (t->name.len == 0) return FAIL(c, "an empty tensor name at %zu", c->pos);
    PD_TRY(take_u32(c, "dimension count of tensor", t->name, &t->n_dims));
    if (t->n_dims < 1 || t->n_dims > 4)
        return FAIL(c, "tensor '%s' has %u dimensions, must have 1 to 4", pd__quote(t->name).text,
                    t->n_dims);
    for (unsigned i = 0; i < 4; i++) {
        t->ne[i] = 1;
        if (i < t->n_dims) PD_TRY(take_u64(c, "dimensions of tensor", t->name, &t->ne[i]));
    }
    PD_TRY(take_u32(c, "type of tensor", t->name, &type));
    PD_TRY(take_u64(c, "offset of tensor", t->name, &t->offset));
    t->type = pd_qtype_find(type);
    if (!t->type) {
        const char *known = pd__qtype_unserved_name(type);
        return FAIL(c, "tensor '%s' has type %u (%s), which is not served", pd__quote(t->name).text,
                    type, known ? known : "unknown");
    }
    t->file = 0;
    return size_tensor(c, t);
}

static int by_offset(const void *a, const void *b, void *ctx) {
    const pd_gguf_tensor *t = ctx;
    const uint64_t x = t[*(const uint32_t *)a].offset, y = t[*(const uint32_t *)b].offset;
    return x < y ? -1 : x > y;
}

/* Offsets become absolute; each tensor lies in the file and none on another. */
static pd_status place_tensors(cursor *c, uint64_t align) {
    pd__part *part = c->part;
    const uint64_t size = part->src.size, data = (c->pos + align - 1) / align * align;
    uint32_t *order = PD_ARENA_NEW(&part->arena, part->n_tensors, uint32_t);
    if (!order) return no_memory(c);
    for (size_t i = 0; i < part->n_tensors; i++) {
        pd_gguf_tensor *t = &part->tensors[i];
        const pd__quoted name = pd__quote(t->name);
        if (t->offset % align != 0)
            return FAIL(c, "tensor '%s': offset %llu is not a multiple of the alignment %llu",
                        name.text, (ull)t->offset, (ull)align);
        uint64_t end;
        if (!pd_add_u64(data, t->offset, &t->offset) || !pd_add_u64(t->offset, t->n_bytes, &end) ||
            end > size)
            return FAIL(c,
                        "tensor '%s': %llu bytes at %llu are past the end of the file (%llu bytes)",
                        name.text, (ull)t->n_bytes, (ull)t->offset, (ull)size);
        order[i] = (uint32_t)i;
    }
    qsort_r(order, part->n_tensors, sizeof *order, by_offset, part->tensors);
    for (size_t i = 1; i < part->n_tensors; i++) {
        const pd_gguf_tensor *a = &part->tensors[order[i - 1]], *b = &part->tensors[order[i]];
        if (a->offset + a->n_bytes > b->offset)
            return FAIL(c, "tensors '%s' and '%s' overlap at %llu", pd__quote(a->name).text,
                        pd__quote(b->name).text, (ull)b->offset);
    }
    return PD_OK;
}

/* ---- the whole ---- */

/* Least bytes of one entry: key of one byte, type, a one-byte value; name of one
 * byte, dimension count, one dimension, type, offset. */
enum { KV_LEAST = 8 + 1 + 4 + 1, TENSOR_LEAST = 8 + 1 + 4 + 8 + 4 + 8 };

static pd_status read_count(cursor *c, const char *what, size_t least, size_t max, size_t *ret) {
    uint64_t n = 0;
    PD_TRY(take_u64(c, "the number of", (pd_str){what, strlen(what)}, &n));
    if (n > max) return FAIL(c, "claims %llu %s, at most %zu are served", (ull)n, what, max);
    if (n > left(c) / least)
        return FAIL(c, "truncated: claims %llu %s, only %zu bytes are left", (ull)n, what, left(c));
    *ret = (size_t)n;
    return PD_OK;
}

static pd_status check_version(cursor *c, uint32_t version) {
    if (version == 2 || version == 3) return PD_OK;
    if (__builtin_bswap32(version) == 2 || __builtin_bswap32(version) == 3)
        return FAIL(c, "is a big-endian GGUF file, only little-endian ones are served");
    return FAIL(c, "has GGUF version %u, only 2 and 3 are served", version);
}

static pd_status parse(cursor *c) {
    pd__part *part = c->part;
    const pd_str whole = {"header", 6};
    const uint8_t *magic = NULL;
    PD_TRY(take(c, 4, "the magic of the", whole, &magic));
    if (memcmp(magic, "GGUF", 4) != 0) return FAIL(c, "is not a GGUF file (wrong magic)");
    PD_TRY(take_u32(c, "version in the", whole, &part->version));
    PD_TRY(check_version(c, part->version));
    PD_TRY(read_count(c, "tensors", TENSOR_LEAST, PD__GGUF_TENSORS_MAX, &part->n_tensors));
    PD_TRY(read_count(c, "key/values", KV_LEAST, PD__GGUF_KV_MAX, &part->n_kv));

    pd_arena_reset(&part->arena); /* of the attempt before */
    part->kv = PD_ARENA_NEW(&part->arena, part->n_kv, pd_gguf_kv);
    part->kv_order = PD_ARENA_NEW(&part->arena, part->n_kv, uint32_t);
    part->tensors = PD_ARENA_NEW(&part->arena, part->n_tensors, pd_gguf_tensor);
    if (!part->kv || !part->kv_order || !part->tensors) return no_memory(c);

    PD_TRY(read_kvs(c, part));
    uint64_t align = DEFAULT_ALIGN;
    PD_TRY(pd__part_uint(part, "general.alignment", 1, PD__GGUF_ALIGN_MAX, DEFAULT_ALIGN, &align,
                         c->err));
    if ((align & (align - 1)) != 0)
        return FAIL(c, "key 'general.alignment' is %llu, must be a power of two", (ull)align);
    for (size_t i = 0; i < part->n_tensors; i++) PD_TRY(read_tensor(c, &part->tensors[i]));
    return place_tensors(c, align);
}

pd_status pd__part_read(pd__part *p, pd_err *err) {
    const uint64_t size = p->src.size;
    cursor c = {.part = p, .err = err, .want = LOAD_FIRST};
    c.limit = size < PD__GGUF_HEADER_MAX ? (size_t)size : PD__GGUF_HEADER_MAX;
    for (;;) {
        const size_t len = pd_min_size(pd_max_size(c.want, 2 * c.len), c.limit);
        uint8_t *head = realloc(p->head, len ? len : 1);
        if (!head) return no_memory(&c);
        p->head = head;
        PD_TRY(pd__source_read(&p->src, c.len, head + c.len, len - c.len, err));
        c.len = p->head_len = len;
        c.pos = c.want = 0;
        const pd_status rc = parse(&c);
        if (c.want == 0) return rc;
    }
}

void pd__part_close(pd__part *p) {
    pd__source_close(&p->src);
    free(p->head);
    pd_arena_done(&p->arena);
    *p = (pd__part){.src.fd = -1};
}
