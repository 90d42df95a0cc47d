/* SPDX-License-Identifier: Apache-2.0 */
/* A template's text to tokens, white space control included.
 *
 *   text {%- tag -%} text       "-" strips the text beside it
 *   {% tag %}\n                 trim_blocks: the line end after a tag goes
 *      {% tag %}                lstrip_blocks: so do blanks before it on its line
 *
 * Linear in the text. */
#include "engine/jinja/ast.h"

#include "engine/base/utf8.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    pd_jheap *h;
    const char *s;
    size_t n, i;
    uint32_t line;
    bool line_starts; /* what is next stands at the start of a line */
    pd__jtokens *out;
    pd_err *err;
} lexer;

static pd_status bad(const lexer *x, const char *what) {
    return pd_fail(x->err, PD_EINVAL, NULL, "line %u: %s", x->line, what);
}

static pd_status push(lexer *x, pd__jtoken t) {
    pd__jtokens *o = x->out;
    if (o->n == o->cap) {
        const size_t cap = o->cap ? 2 * o->cap : 256;
        pd__jtoken *p = PD_JNEW(x->h, cap, pd__jtoken);
        if (!p) return pd_fail(x->err, PD_ENOMEM, NULL, "no memory to read the chat template");
        if (o->n) memcpy(p, o->tok, o->n * sizeof *p);
        o->tok = p;
        o->cap = cap;
    }
    t.line = x->line;
    o->tok[o->n++] = t;
    return PD_OK;
}

static bool at(const lexer *x, const char *text) {
    const size_t n = strlen(text);
    return x->n - x->i >= n && memcmp(x->s + x->i, text, n) == 0;
}

/* On, over n bytes, counting lines. */
static void go(lexer *x, size_t n) {
    for (size_t k = 0; k < n; k++) x->line += x->s[x->i + k] == '\n';
    x->i += n;
}

static size_t space_len(const char *s, size_t n) {
    uint32_t cp = 0;
    const size_t len = pd_utf8_next(s, n, &cp);
    return len && pd__jis_space(cp) ? len : 0;
}

static void skip_space(lexer *x) {
    size_t len;
    while ((len = space_len(x->s + x->i, x->n - x->i)) != 0) go(x, len);
}

/* s[0..n) without the white space at its end. */
static size_t rstripped(const char *s, size_t n) {
    while (n) {
        size_t k = n - 1;
        while (k > 0 && ((unsigned char)s[k] & 0xC0) == 0x80) k--;
        if (space_len(s + k, n - k) != n - k) break;
        n = k;
    }
    return n;
}

/* The end of a tag was at x->i - 2: what goes with it. */
static void after_tag(lexer *x, char sign, bool trims) {
    const size_t from = x->i;
    if (sign == '-') skip_space(x);
    else if (sign == 0 && trims && x->i < x->n && x->s[x->i] == '\n') go(x, 1);
    x->line_starts = x->i > from && x->s[x->i - 1] == '\n';
}

/* Text up to a tag that opens with `sign`. */
static pd_status data(lexer *x, size_t from, size_t to, char sign, bool variable) {
    size_t n = to - from;
    const char *s = x->s + from;
    if (sign == '-') {
        n = rstripped(s, n);
    } else if (sign != '+' && !variable) {
        size_t line = n;
        while (line > 0 && s[line - 1] != '\n') line--;
        if ((line > 0 || x->line_starts) && line < n) {
            size_t k = line, len;
            while (k < n && (len = space_len(s + k, n - k)) != 0) k += len;
            if (k == n) n = line;
        }
    }
    const pd_status rc = n ? push(x, (pd__jtoken){.kind = PD__JT_DATA, .s = s, .n = n}) : PD_OK;
    go(x, to - x->i);
    return rc;
}

/* ---- inside a tag ---- */

static bool name_char(char c, bool first) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (unsigned char)c >= 0x80 ||
           (!first && c >= '0' && c <= '9');
}

static int hex(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* One Python escape at s (behind the backslash): its text to dst, bytes read; 0: none. */
static size_t escape(const char *s, size_t n, char *dst, size_t *len) {
    static const char from[] = "ntr\\'\"abfv", to[] = "\n\t\r\\'\"\a\b\f\v";
    const char *k = strchr(from, s[0]);
    if (k && *k) {
        dst[0] = to[k - from];
        *len = 1;
        return 1;
    }
    if (s[0] == '\n') {
        *len = 0;
        return 1;
    }
    if (s[0] >= '0' && s[0] <= '7') {
        uint32_t v = 0;
        size_t i = 0;
        for (; i < 3 && i < n && s[i] >= '0' && s[i] <= '7'; i++) v = v * 8 + (uint32_t)(s[i] - '0');
        *len = pd_utf8_put(v, dst);
        return i;
    }
    const size_t digits = s[0] == 'x' ? 2 : s[0] == 'u' ? 4 : s[0] == 'U' ? 8 : 0;
    if (digits == 0 || n < 1 + digits) return 0;
    uint32_t v = 0;
    for (size_t i = 1; i <= digits; i++) {
        if (hex(s[i]) < 0) return 0;
        v = v << 4 | (uint32_t)hex(s[i]);
    }
    if (v > 0x10FFFF || (v >= 0xD800 && v < 0xE000)) return 0;
    *len = pd_utf8_put(v, dst);
    return 1 + digits;
}

static pd_status string(lexer *x) {
    const char quote = x->s[x->i];
    size_t end = x->i + 1;
    while (end < x->n && x->s[end] != quote) end += x->s[end] == '\\' ? 2 : 1;
    if (end >= x->n) return bad(x, "a string has no end");
    const char *s = x->s + x->i + 1;
    const size_t n = end - x->i - 1;
    pd__jtoken t = {.kind = PD__JT_STR, .s = s, .n = n};
    if (memchr(s, '\\', n)) {
        char *dst = pd_jheap_alloc(x->h, n, 1);
        if (!dst) return pd_fail(x->err, PD_ENOMEM, NULL, "no memory to read the chat template");
        size_t k = 0;
        for (size_t i = 0; i < n;) {
            char text[4];
            size_t len = 0;
            const size_t used = s[i] == '\\' ? escape(s + i + 1, n - i - 1, text, &len) : 0;
            if (used) {
                memcpy(dst + k, text, len);
                k += len;
                i += 1 + used;
            } else if (s[i] == '\\' && (s[i + 1] == 'x' || s[i + 1] == 'u' || s[i + 1] == 'U' || s[i + 1] == 'N')) {
                return bad(x, "a string has a bad \\ escape");
            } else {
                dst[k++] = s[i++];
            }
        }
        t.s = dst;
        t.n = k;
    }
    const pd_status rc = push(x, t);
    go(x, n + 2);
    return rc;
}

/* Digits with single underscores between them, from `i` on; the end. */
static size_t digits(const lexer *x, size_t i) {
    size_t end = i;
    while (i < x->n && x->s[i] >= '0' && x->s[i] <= '9') {
        end = ++i;
        if (i + 1 < x->n && x->s[i] == '_' && x->s[i + 1] >= '0' && x->s[i + 1] <= '9') i++;
    }
    return end;
}

static pd_status number(lexer *x, bool after_dot) {
    const size_t from = x->i, whole = digits(x, from);
    size_t end = whole;
    int base = 10;
    bool real = false;
    const char kind = x->i + 1 < x->n && x->s[from] == '0' ? (char)(x->s[from + 1] | 0x20) : '0';
    if (kind == 'x' || kind == 'o' || kind == 'b') {
        base = kind == 'x' ? 16 : kind == 'o' ? 8 : 2;
        end = from + 2;
        while (end < x->n && (x->s[end] == '_' || (hex(x->s[end]) >= 0 && hex(x->s[end]) < base))) end++;
    } else if (!after_dot) {
        if (end < x->n && x->s[end] == '.' && digits(x, end + 1) > end + 1) {
            end = digits(x, end + 1);
            real = true;
        }
        if (end < x->n && (x->s[end] == 'e' || x->s[end] == 'E')) {
            size_t k = end + 1;
            if (k < x->n && (x->s[k] == '+' || x->s[k] == '-')) k++;
            if (digits(x, k) > k) {
                end = digits(x, k);
                real = true;
            }
        }
    }
    char text[80];
    size_t k = 0;
    for (size_t i = base == 10 ? from : from + 2; i < end; i++) {
        if (x->s[i] == '_') continue;
        if (k + 1 == sizeof text) return bad(x, "a number has too many digits");
        text[k++] = x->s[i];
    }
    text[k] = '\0';
    pd__jtoken t = {.kind = real ? PD__JT_FLOAT : PD__JT_INT};
    if (real) {
        t.f = strtod(text, NULL);
    } else {
        for (size_t i = 0; i < k; i++) {
            if (__builtin_mul_overflow(t.i, base, &t.i) || __builtin_add_overflow(t.i, hex(text[i]), &t.i))
                return bad(x, "a whole number does not fit 64 bits");
        }
    }
    const pd_status rc = push(x, t);
    go(x, end - from);
    return rc;
}

static pd_status operator(lexer *x, char *nest, size_t *depth) {
    static const char two[][3] = {"**", "//", "==", "!=", ">=", "<="};
    const char c = x->s[x->i];
    unsigned op = 0;
    for (size_t k = 0; k < sizeof two / sizeof *two && !op; k++) {
        if (at(x, two[k])) op = PD__JOP2(two[k][0], two[k][1]);
    }
    if (!op && !strchr("+-/*%~[](){}><=.:|,;", c)) return bad(x, "a character that no expression has");
    if (!op) op = (unsigned char)c;
    if (strchr("([{", c)) {
        if (*depth == PD_JINJA_NESTING_MAX) return bad(x, "brackets are nested too deep");
        nest[(*depth)++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (strchr(")]}", c)) {
        if (*depth == 0 || nest[--*depth] != c) return bad(x, "a closing bracket has no opening one");
    }
    const pd_status rc = push(x, (pd__jtoken){.kind = PD__JT_OP, .op = op});
    go(x, op > 0xFF ? 2 : 1);
    return rc;
}

/* From behind "{{" or "{%" to behind its end. */
static pd_status tag(lexer *x, bool variable) {
    char nest[PD_JINJA_NESTING_MAX];
    size_t depth = 0;
    const char *end = variable ? "}}" : "%}";
    for (;;) {
        if (x->i >= x->n) return bad(x, variable ? "{{ has no }}" : "{% has no %}");
        if (depth == 0) {
            const char c = x->s[x->i];
            const char sign = c == '-' || (c == '+' && !variable) ? c : 0;
            const size_t k = sign ? 1 : 0;
            if (x->n - x->i >= 2 + k && memcmp(x->s + x->i + k, end, 2) == 0) {
                PD_TRY(push(x, (pd__jtoken){.kind = variable ? PD__JT_VAR_END : PD__JT_BLOCK_END}));
                go(x, 2 + k);
                after_tag(x, sign, !variable);
                return PD_OK;
            }
        }
        const char c = x->s[x->i];
        const size_t blank = space_len(x->s + x->i, x->n - x->i);
        if (blank) {
            go(x, blank);
        } else if (name_char(c, true)) {
            size_t k = x->i;
            while (k < x->n && name_char(x->s[k], false)) k++;
            PD_TRY(push(x, (pd__jtoken){.kind = PD__JT_NAME, .s = x->s + x->i, .n = k - x->i}));
            go(x, k - x->i);
        } else if (c >= '0' && c <= '9') {
            PD_TRY(number(x, x->i > 0 && x->s[x->i - 1] == '.'));
        } else if (c == '\'' || c == '"') {
            PD_TRY(string(x));
        } else {
            PD_TRY(operator(x, nest, &depth));
        }
    }
}

static pd_status comment(lexer *x) {
    const char *end = memmem(x->s + x->i, x->n - x->i, "#}", 2);
    if (!end) return bad(x, "{# has no #}");
    const size_t k = (size_t)(end - x->s);
    const char sign = k > x->i && (end[-1] == '-' || end[-1] == '+') ? end[-1] : 0;
    go(x, k + 2 - x->i);
    after_tag(x, sign, true);
    return PD_OK;
}

/* The length of "{% raw %}" (or endraw) at i, 0 if it is not there; its signs. */
static size_t raw_tag(const lexer *x, size_t i, const char *word, char *open, char *close) {
    const size_t from = i, n = strlen(word);
    size_t len;
    if (x->n - i < 2 || memcmp(x->s + i, "{%", 2) != 0) return 0;
    i += 2;
    *open = i < x->n && (x->s[i] == '-' || x->s[i] == '+') ? x->s[i++] : 0;
    while ((len = space_len(x->s + i, x->n - i)) != 0) i += len;
    if (x->n - i < n || memcmp(x->s + i, word, n) != 0) return 0;
    i += n;
    while ((len = space_len(x->s + i, x->n - i)) != 0) i += len;
    *close = i < x->n && (x->s[i] == '-' || x->s[i] == '+') ? x->s[i++] : 0;
    return x->n - i >= 2 && memcmp(x->s + i, "%}", 2) == 0 ? i + 2 - from : 0;
}

static pd_status raw(lexer *x, size_t len, char close) {
    go(x, len);
    after_tag(x, close, false);
    const size_t from = x->i;
    for (size_t i = from; i < x->n; i++) {
        char open = 0;
        if (x->s[i] != '{') continue;
        const size_t end = raw_tag(x, i, "endraw", &open, &close);
        if (!end) continue;
        PD_TRY(data(x, from, i, open, false));
        go(x, end);
        after_tag(x, close, true);
        return PD_OK;
    }
    return bad(x, "{% raw %} has no {% endraw %}");
}

pd_status pd__jlex(pd_jheap *h, const char *text, size_t n, pd__jtokens *ret, pd_err *err) {
    lexer x = {.h = h, .s = text, .n = n, .line = 1, .line_starts = true, .out = ret, .err = err};
    while (x.i < n) {
        size_t k = x.i;
        while (k < n && !(text[k] == '{' && k + 1 < n && strchr("{%#", text[k + 1]) && text[k + 1])) k++;
        if (k == n) {
            PD_TRY(push(&x, (pd__jtoken){.kind = PD__JT_DATA, .s = text + x.i, .n = n - x.i}));
            go(&x, n - x.i);
            break;
        }
        char open = 0, close = 0;
        const size_t len = raw_tag(&x, k, "raw", &open, &close);
        const char c = text[k + 1];
        if (!len) open = k + 2 < n && (text[k + 2] == '-' || text[k + 2] == '+') ? text[k + 2] : 0;
        PD_TRY(data(&x, x.i, k, open, c == '{'));
        if (len) {
            PD_TRY(raw(&x, len, close));
            continue;
        }
        go(&x, open ? 3 : 2);
        if (c == '#') {
            PD_TRY(comment(&x));
            continue;
        }
        PD_TRY(push(&x, (pd__jtoken){.kind = c == '{' ? PD__JT_VAR_BEGIN : PD__JT_BLOCK_BEGIN}));
        PD_TRY(tag(&x, c == '{'));
    }
    return push(&x, (pd__jtoken){.kind = PD__JT_END});
}
