/* SPDX-License-Identifier: Apache-2.0 */
/* Tool calls read from a model's text (see tool_calls.h).
 *
 *   TEXT --mark--> HEAD --> NAME --> CALL, PARAMS --its end--> BETWEEN --another--> ...
 *     ^              |not a call                                  |nothing more
 *     '--------------'--------------------------------------------'
 *
 * A CALL is JSON: an object with name and arguments, or behind a NAME these alone.  PARAMS
 * are names and values between tags, which become the members of an object. */
#include "server/tool_calls.h"

#include "engine/base/utf8.h"
#include "server/tool_forms.h"
#include "server/tool_params.h"
#include "server/tool_text.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

typedef enum { TEXT, HEAD, NAME, CALL, PARAMS, BETWEEN } state;

/* Where the reader of one JSON object stands. */
typedef enum { J_OPEN, J_KEY, J_IN_KEY, J_COLON, J_VALUE, J_IN_STRING, J_IN_NESTED, J_IN_SCALAR, J_DONE, J_BAD } json_state;

struct pd_tool_reader {
    const pd_tools *t;
    pd_buf content, held; /* held: not yet looked at or not yet decided */
    pd_buf raw;           /* the call in progress as it came, marker included */
    pd_tool_call *call;   /* [n_call]; the last may be in progress */
    size_t n_call, cap_call;
    size_t n_done;        /* of them complete or told */
    size_t n_taken, turn; /* pieces: bytes of the content, and calls that are over */
    state at;
    bool bare;            /* the call in progress has no marker: its name must be known */
    bool array;           /* a list of calls */
    bool closed;          /* BETWEEN: a closing mark was there */
    bool only_arguments;  /* the name came before the object */
    bool spoken;          /* something of the content is out */
    bool failed;

    pd_tool_format form;  /* of the call in progress: the template's, or Python's where the answer begins so */
    pd_tool_params params; /* PARAMS */

    json_state json;
    pd_buf key;
    pd_buf early;         /* arguments that came before the name */
    unsigned depth;
    bool in_string, escaped, is_name, is_arguments, named, got_arguments;
    char unicode[5];      /* hex digits of a \u escape so far */
    unsigned n_unicode;   /* 0: none */
    uint32_t high;        /* first half of a surrogate pair */
};

static bool takes_bare(const pd_tool_reader *r) {
    return r->t->format == PD_TOOL_LLAMA3 || r->t->format == PD_TOOL_ANY;
}

/* ---- a call ---- */

static void make_id(const pd_tool_reader *r, char *dst) {
    static const char set[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    /* Mistral's templates take ids of nine letters and digits only. */
    const bool plain = r->t->format == PD_TOOL_MISTRAL;
    const size_t n = plain ? 9 : 24;
    unsigned char random[24] = {0};
    if (getrandom(random, sizeof random, 0) != sizeof random) memcpy(random, &r, sizeof r);
    size_t k = 0;
    if (!plain) {
        memcpy(dst, "call_", 5);
        k = 5;
    }
    for (size_t i = 0; i < n; i++) dst[k++] = set[random[i] % (sizeof set - 1)];
    dst[k] = '\0';
}

static pd_tool_call *current(pd_tool_reader *r) {
    return &r->call[r->n_call - 1];
}

static bool new_call(pd_tool_reader *r) {
    if (r->n_call == PD_TOOL_CALLS_MAX) return false;
    if (r->n_call == r->cap_call) {
        const size_t cap = r->cap_call ? 2 * r->cap_call : 4;
        pd_tool_call *p = realloc(r->call, cap * sizeof *p);
        if (!p) {
            r->failed = true;
            return false;
        }
        r->call = p;
        r->cap_call = cap;
    }
    r->call[r->n_call++] = (pd_tool_call){.before = r->content.len};
    make_id(r, current(r)->id);
    r->json = J_OPEN;
    r->depth = 0;
    r->in_string = r->escaped = r->is_name = r->is_arguments = r->named = r->got_arguments = r->only_arguments = false;
    r->closed = false;
    r->n_unicode = 0;
    r->high = 0;
    pd_buf_clear(&r->key);
    pd_buf_clear(&r->early);
    return true;
}

static void drop_call(pd_tool_reader *r) {
    pd_buf_done(&current(r)->name);
    pd_buf_done(&current(r)->arguments);
    r->n_call--;
}

static void arguments(pd_tool_reader *r, const char *s, size_t n) {
    r->got_arguments = true;
    pd_buf_add(r->named ? &current(r)->arguments : &r->early, s, n);
}

/* The name is whole: the call may be told. */
static bool name_done(pd_tool_reader *r) {
    const pd_buf *name = &current(r)->name;
    if (name->len == 0 || (r->bare && !pd_tools_knows(r->t, name->data, name->len))) return false;
    r->named = true;
    r->n_done = r->n_call;
    if (r->early.len) pd_buf_add(&current(r)->arguments, r->early.data, r->early.len);
    pd_buf_clear(&r->raw); /* it is a call now, whatever comes */
    return true;
}

/* ---- its JSON ---- */

static void string_put(pd_tool_reader *r, const char *s, size_t n) {
    if (r->json == J_IN_KEY) pd_buf_add(&r->key, s, n);
    else if (r->is_name) pd_buf_add(&current(r)->name, s, n);
    else if (r->is_arguments) arguments(r, s, n);
}

/* U+FFFD, for an escape that stands for no character. */
static void string_lost(pd_tool_reader *r) {
    string_put(r, "\xEF\xBF\xBD", 3);
}

/* Half a pair, if there is one, stays alone. */
static void half_lost(pd_tool_reader *r) {
    if (r->high) string_lost(r);
    r->high = 0;
}

static void string_char(pd_tool_reader *r, const char *s, size_t n) {
    half_lost(r);
    string_put(r, s, n);
}

static void unicode_char(pd_tool_reader *r) {
    char text[4];
    uint32_t cp = (uint32_t)strtoul(r->unicode, NULL, 16);
    if (cp >= 0xDC00 && cp < 0xE000) {
        cp = r->high ? 0x10000 + ((r->high - 0xD800) << 10) + (cp - 0xDC00) : 0xFFFD;
        r->high = 0;
    }
    if (cp >= 0xD800 && cp < 0xDC00) {
        half_lost(r);
        r->high = cp;
    } else {
        string_char(r, text, pd_utf8_put(cp, text));
    }
}

/* A byte of a \u escape; false: it is none, and the escape was broken off. */
static bool unicode_byte(pd_tool_reader *r, char c) {
    if (!c || !strchr("0123456789abcdefABCDEF", c)) {
        r->n_unicode = 0;
        half_lost(r);
        string_lost(r);
        return false;
    }
    r->unicode[r->n_unicode - 1] = c;
    if (++r->n_unicode == 5) {
        r->unicode[4] = '\0';
        r->n_unicode = 0;
        unicode_char(r);
    }
    return true;
}

/* A byte inside a string at the object's own level; true at its end. */
static bool string_byte(pd_tool_reader *r, char c) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (r->n_unicode && unicode_byte(r, c)) return false;
    if (r->escaped) {
        const char *k = c ? strchr(from, c) : NULL;
        r->escaped = false;
        if (c == 'u') r->n_unicode = 1;
        else string_char(r, k ? &to[k - from] : &c, 1);
    } else if (c == '\\') {
        r->escaped = true;
    } else if (c == '"') {
        half_lost(r);
        return true;
    } else {
        string_char(r, &c, 1);
    }
    return false;
}

/* A member's name is whole; the first one may be the call's. */
static bool key_done(pd_tool_reader *r) {
    if (r->form != PD_TOOL_KEYED || r->named) return true;
    pd_buf_add(&current(r)->name, r->key.data, r->key.len);
    return name_done(r);
}

static void value_begins(pd_tool_reader *r, char c) {
    /* Of a member that comes twice the first one counts: it may be told already. */
    r->is_name = !r->named && ((r->key.len == 4 && memcmp(r->key.data, "name", 4) == 0) ||
                               (r->form == PD_TOOL_LIST && r->key.len == 9 && memcmp(r->key.data, "tool_name", 9) == 0));
    r->is_arguments = !r->got_arguments && (r->form == PD_TOOL_KEYED || (r->key.len == 9 && memcmp(r->key.data, "arguments", 9) == 0) ||
                                            (r->key.len == 10 && memcmp(r->key.data, "parameters", 10) == 0));
    if (c == '"') {
        r->json = J_IN_STRING;
    } else if (r->is_name) {
        r->json = J_BAD;
    } else if (c == '{' || c == '[') {
        r->json = J_IN_NESTED;
        r->depth = 1;
        if (r->is_arguments) arguments(r, &c, 1);
    } else {
        r->json = J_IN_SCALAR;
        if (r->is_arguments && c != 'n') r->json = J_BAD; /* null is as good as nothing */
    }
}

static void nested_byte(pd_tool_reader *r, char c) {
    if (r->is_arguments) arguments(r, &c, 1);
    if (r->in_string) {
        if (r->escaped) r->escaped = false;
        else if (c == '\\') r->escaped = true;
        else if (c == '"') r->in_string = false;
    } else if (c == '"') {
        r->in_string = true;
    } else if (c == '{' || c == '[') {
        r->depth++;
    } else if ((c == '}' || c == ']') && --r->depth == 0) {
        r->json = J_KEY;
    }
}

static void json_byte(pd_tool_reader *r, char c) {
    switch (r->json) {
    case J_OPEN:
        if (c == '{') r->json = J_KEY;
        else if (!pd_tool_white(c)) r->json = J_BAD;
        break;
    case J_KEY:
        if (c == '"') {
            pd_buf_clear(&r->key);
            r->json = J_IN_KEY;
        } else if (c == '}') {
            r->json = r->named ? J_DONE : J_BAD;
        } else if (!pd_tool_white(c) && c != ',') {
            r->json = J_BAD;
        }
        break;
    case J_IN_KEY:
        if (string_byte(r, c)) r->json = key_done(r) ? J_COLON : J_BAD;
        break;
    case J_COLON:
        if (c == ':') r->json = J_VALUE;
        else if (!pd_tool_white(c)) r->json = J_BAD;
        break;
    case J_VALUE:
        if (!pd_tool_white(c)) value_begins(r, c);
        break;
    case J_IN_STRING:
        if (!string_byte(r, c)) break;
        r->json = J_KEY;
        if (r->is_name && !name_done(r)) r->json = J_BAD;
        break;
    case J_IN_NESTED: nested_byte(r, c); break;
    case J_IN_SCALAR:
        if (c == ',') r->json = J_KEY;
        else if (c == '}') r->json = r->named ? J_DONE : J_BAD;
        break;
    case J_DONE:
    case J_BAD: break;
    }
}

/* ---- the text around ---- */

static void say(pd_tool_reader *r, size_t n) {
    r->spoken = r->spoken || n > 0;
    pd_buf_add(&r->content, r->held.data, n);
    pd_buf_drop(&r->held, n);
}

/* What was no call after all, and how it came. */
static void not_a_call(pd_tool_reader *r) {
    if (r->named) { /* told already: it ends here */
        r->at = BETWEEN;
        return;
    }
    drop_call(r);
    r->spoken = true;
    pd_buf_add(&r->content, r->raw.data, r->raw.len);
    pd_buf_clear(&r->raw);
    r->array = false;
    r->at = TEXT;
}

/* What follows its brace is the arguments, and all of the call. */
static void only_arguments(pd_tool_reader *r) {
    r->is_arguments = r->only_arguments = true;
    arguments(r, "{", 1);
    r->json = J_IN_NESTED;
    r->depth = 1;
    r->at = CALL;
}

static void call_done(pd_tool_reader *r) {
    if (!r->got_arguments) pd_buf_puts(&current(r)->arguments, "{}");
    r->at = BETWEEN;
}

static void begin(pd_tool_reader *r, bool bare) {
    r->bare = bare;
    if (new_call(r)) r->at = CALL;
    else r->at = TEXT;
}

/* The held text (pd_tool_starts). */
static int starts(const pd_tool_reader *r, const char *s) {
    return pd_tool_starts(r->held.data, r->held.len, s);
}

/* Space that is text if no call follows. */
static void keep_white(pd_tool_reader *r) {
    size_t n = 0;
    while (n < r->held.len && pd_tool_white(r->held.data[n])) n++;
    pd_buf_add(&r->raw, r->held.data, n);
    if (n) pd_buf_drop(&r->held, n);
}

static void drop_white(pd_tool_reader *r, const char *more) {
    size_t n = 0;
    while (n < r->held.len && (pd_tool_white(r->held.data[n]) || (r->held.data[n] && strchr(more, r->held.data[n])))) n++;
    if (n) pd_buf_drop(&r->held, n);
}

/* Behind the mark. */
static void marked(pd_tool_reader *r, pd_tool_behind then) {
    switch (then) {
    case PD_TOOL_AT_OBJECT: begin(r, false); break;
    case PD_TOOL_AT_HEAD: r->at = HEAD; break;
    case PD_TOOL_AT_NAME:
        begin(r, false);
        if (r->at == CALL) r->at = NAME;
        break;
    case PD_TOOL_AT_LIST:
        r->array = true;
        r->at = BETWEEN;
        break;
    case PD_TOOL_AT_SECTION: pd_buf_clear(&r->raw); break; /* it is a control token, and no text */
    }
}

/* s begins a list of calls as Python writes them, the first one of a tool (1), may yet (0), does not (-1). */
static int bare_python(const pd_tool_reader *r, const char *s, size_t n) {
    size_t from = 1;
    while (from < n && pd_tool_white(s[from])) from++;
    size_t to = from;
    while (to < n && pd_tools_good_name(s + to, 1)) to++;
    if (to - from > PD_TOOL_NAME_MAX) return -1;
    if (to == n) return 0;
    return s[to] == '(' && pd_tools_knows(r->t, s + from, to - from) ? 1 : -1;
}

/* Up to the next mark; false: more text is needed. */
static bool text_step(pd_tool_reader *r) {
    const char *s = r->held.data;
    size_t n = r->held.len, at = n, len = 0, white = 0;
    pd_tool_behind then = PD_TOOL_AT_OBJECT;
    pd_tool_mark m;
    const bool first = !r->spoken && r->n_call == 0;
    r->form = r->t->format;
    while (white < n && pd_tool_white(s[white])) white++;
    if (white == n) return false;
    if (first && takes_bare(r) && s[white] == '{') {
        pd_buf_add(&r->raw, s, white);
        pd_buf_drop(&r->held, white);
        begin(r, true);
        return true;
    }
    if (first && takes_bare(r) && s[white] == '[') {
        const int is = bare_python(r, s + white, n - white);
        if (is == 0) return false;
        if (is > 0) {
            pd_buf_add(&r->raw, s, white + 1);
            pd_buf_drop(&r->held, white + 1);
            r->form = PD_TOOL_PYTHON;
            r->bare = r->array = true;
            r->at = BETWEEN;
            return true;
        }
    }
    for (size_t i = 0; (m = pd_tool_mark_of(r->t, i)).text; i++) {
        const char *p = memmem(s, n, m.text, strlen(m.text));
        if (p && (size_t)(p - s) < at) {
            at = (size_t)(p - s);
            len = strlen(m.text);
            then = m.then;
        }
    }
    const bool found = at < n;
    if (!found) { /* the longest end that may be the start of one */
        for (size_t i = 0; (m = pd_tool_mark_of(r->t, i)).text; i++)
            for (size_t k = strlen(m.text) - 1; k > 0; k--)
                if (k <= n && memcmp(s + n - k, m.text, k) == 0 && n - k < at) at = n - k;
    }
    size_t said = at;
    while (said > 0 && pd_tool_white(s[said - 1])) said--;
    say(r, said);
    if (!found) return false;
    pd_buf_add(&r->raw, r->held.data, at - said + len);
    pd_buf_drop(&r->held, at - said + len);
    marked(r, then);
    return true;
}

/* What was said behind a mark is no call. */
static bool unmark(pd_tool_reader *r) {
    r->spoken = true;
    pd_buf_add(&r->content, r->raw.data, r->raw.len);
    pd_buf_clear(&r->raw);
    r->array = false;
    r->at = TEXT;
    return true;
}

/* Behind a mark: a list of objects, an object, or a name as the form has it. */
static bool head_step(pd_tool_reader *r) {
    const pd_tool_format f = r->t->format;
    keep_white(r);
    if (r->held.len == 0) return false;
    const char c = *r->held.data;
    if (c == '{') {
        begin(r, false);
        return true;
    }
    if (c == '[' && (f == PD_TOOL_MISTRAL || f == PD_TOOL_ANY || f == PD_TOOL_LIST || f == PD_TOOL_KEYED || f == PD_TOOL_PYTHON)) {
        pd_buf_puts(&r->raw, "[");
        pd_buf_drop(&r->held, 1);
        r->array = true;
        r->at = BETWEEN;
        return true;
    }
    if (f == PD_TOOL_LIST || f == PD_TOOL_KEYED) return unmark(r);
    if (f == PD_TOOL_FUNCTION) {
        const char tag[] = "<function=";
        const int is = starts(r, tag);
        if (is == 0) return false;
        if (is < 0) return unmark(r);
        pd_buf_puts(&r->raw, tag);
        pd_buf_drop(&r->held, sizeof tag - 1);
    }
    marked(r, PD_TOOL_AT_NAME);
    return true;
}

/* name[CALL_ID]id[ARGS]{...} or name{...} or <function=name>{...} ...: the object alone is
 * the arguments.  In the forms with a syntax, what the parameters stand behind. */
static bool name_step(pd_tool_reader *r) {
    enum { HEAD_MAX = 4 * PD_TOOL_NAME_MAX };
    const pd_tool_syntax *syntax = pd_tool_syntax_of(r->form);
    bool stays;
    const char *end = pd_tool_head_end(r->form, &stays);
    const size_t n = r->held.len < HEAD_MAX ? r->held.len : HEAD_MAX;
    const char *p = n ? memmem(r->held.data, n, end, strlen(end)) : NULL;
    if (!p && n < HEAD_MAX) return false;
    const size_t len = p ? (size_t)(p - r->held.data) : n;
    pd_str name;
    if (!p || !pd_tool_name_in(r->form, r->held.data, len, &name) || !pd_tools_good_name(name.data, name.len) ||
        ((r->bare || pd_tool_must_know(r->form)) && !pd_tools_knows(r->t, name.data, name.len))) {
        not_a_call(r);
        return true;
    }
    pd_buf_add(&current(r)->name, name.data, name.len);
    pd_buf_drop(&r->held, len + (stays ? 0 : strlen(end)));
    name_done(r);
    if (syntax) {
        pd_tool_params_begin(&r->params, r->t, syntax, current(r)->name.data);
        r->at = PARAMS;
    } else {
        only_arguments(r);
    }
    return true;
}

static bool params_step(pd_tool_reader *r) {
    size_t taken;
    const pd_params_step step =
        pd_tool_params_read(&r->params, r->held.len ? r->held.data : "", r->held.len, &taken, &current(r)->arguments);
    r->got_arguments = r->got_arguments || r->params.any;
    if (taken) pd_buf_drop(&r->held, taken);
    if (step == PD_PARAMS_OBJECT) only_arguments(r);
    else if (step == PD_PARAMS_DONE) call_done(r);
    return step != PD_PARAMS_MORE;
}

static bool call_step(pd_tool_reader *r) {
    size_t i = 0;
    while (i < r->held.len && r->json != J_DONE && r->json != J_BAD) {
        json_byte(r, r->held.data[i++]);
        if (r->only_arguments && r->json == J_KEY) r->json = J_DONE;
    }
    while (r->json == J_BAD && i < r->held.len && ((unsigned char)r->held.data[i] & 0xC0) == 0x80) i++; /* the whole character is bad */
    if (!r->named) pd_buf_add(&r->raw, r->held.data, i);
    pd_buf_drop(&r->held, i);
    if (r->json == J_DONE) call_done(r);
    else if (r->json == J_BAD) not_a_call(r);
    else return false;
    return true;
}

/* Behind a call of a list. */
static bool array_step(pd_tool_reader *r) {
    if (r->raw.len) keep_white(r); /* no call has come of it */
    else drop_white(r, ",");
    if (r->held.len == 0) return false;
    if (*r->held.data == '{') {
        begin(r, false);
        return true;
    }
    if (r->form == PD_TOOL_PYTHON && *r->held.data != ']') {
        begin(r, r->bare);
        if (r->at == CALL) r->at = NAME;
        return true;
    }
    if (r->raw.len) return unmark(r);
    if (*r->held.data == ']') pd_buf_drop(&r->held, 1);
    r->array = false;
    return true;
}

/* Behind a call: its closing marks, another call, or text.  Space behind the last mark is text's. */
static bool between_step(pd_tool_reader *r) {
    size_t white = 0;
    if (r->array) return array_step(r);
    if (!r->closed) drop_white(r, r->bare ? ";," : "");
    while (white < r->held.len && pd_tool_white(r->held.data[white])) white++;
    if (white == r->held.len) return false;
    const int len = pd_tool_close(r->t->format, r->held.data + white, r->held.len - white);
    if (len < 0) return false;
    if (len > 0) {
        pd_buf_drop(&r->held, white + (size_t)len);
        r->closed = true;
        return true;
    }
    const bool object = r->held.data[white] == '{';
    if (object && !r->closed && takes_bare(r)) begin(r, true);
    else if (object && !r->closed && r->form == PD_TOOL_LIST) begin(r, false);
    else r->at = TEXT;
    return true;
}

static void go(pd_tool_reader *r) {
    bool more = true;
    while (more && !r->failed) {
        switch (r->at) {
        case TEXT: more = r->held.len && text_step(r); break;
        case HEAD: more = head_step(r); break;
        case NAME: more = name_step(r); break;
        case CALL: more = r->held.len && call_step(r); break;
        case PARAMS: more = params_step(r); break;
        case BETWEEN: more = between_step(r); break;
        }
    }
}

/* ---- the outside ---- */

pd_tool_reader *pd_tool_reader_open(const pd_tools *t) {
    pd_tool_reader *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->t = t;
    if (t->begun) pd_tool_reader_add(r, t->begun, strlen(t->begun));
    return r;
}

void pd_tool_reader_close(pd_tool_reader *r) {
    if (!r) return;
    while (r->n_call) drop_call(r);
    free(r->call);
    pd_buf_done(&r->content);
    pd_buf_done(&r->held);
    pd_buf_done(&r->raw);
    pd_buf_done(&r->key);
    pd_buf_done(&r->early);
    pd_tool_params_done(&r->params);
    free(r);
}

void pd_tool_reader_add(pd_tool_reader *r, const char *text, size_t n) {
    pd_buf_add(&r->held, text, n);
    go(r);
}

void pd_tool_reader_end(pd_tool_reader *r) {
    if (r->at == HEAD) {
        pd_buf_add(&r->content, r->raw.data, r->raw.len);
        r->at = TEXT;
    }
    if (r->at == NAME || (r->at == CALL && !r->named)) {
        not_a_call(r); /* cut off before its name */
        if (r->held.len) say(r, r->held.len);
    }
    if (r->at == CALL || r->at == PARAMS) return; /* cut off in its arguments: told as far as they go */
    if (r->at == BETWEEN && !r->raw.len && !r->closed) return; /* a part of its closing mark */
    if (r->at == BETWEEN) unmark(r); /* a list without a call, or text */
    size_t white = 0;
    while (white < r->held.len && pd_tool_white(r->held.data[white])) white++;
    if (r->held.len && (white < r->held.len || r->n_done == 0)) say(r, r->held.len);
}

bool pd_tool_reader_failed(const pd_tool_reader *r) {
    return r->failed || r->content.failed || r->held.failed || r->raw.failed || r->early.failed;
}

/* Calls that are given: all that have a name, or the first. */
size_t pd_tool_reader_calls(const pd_tool_reader *r) {
    return r->n_done > 1 && !r->t->parallel ? 1 : r->n_done;
}

const pd_tool_call *pd_tool_reader_call(const pd_tool_reader *r, size_t i) {
    return &r->call[i];
}

bool pd_tool_reader_take(pd_tool_reader *r, pd_tool_piece *ret) {
    const size_t n = pd_tool_reader_calls(r);
    for (;; r->turn++) {
        pd_tool_call *c = r->turn < n ? &r->call[r->turn] : NULL;
        const size_t end = c ? c->before : r->content.len, from = r->n_taken;
        if (from < end) {
            r->n_taken = end;
            *ret = (pd_tool_piece){.text = r->content.data + from, .len = end - from};
            return true;
        }
        if (!c) return false;
        if (!c->told || c->n_taken < c->arguments.len) {
            *ret = (pd_tool_piece){.call = c, .index = r->turn, .first = !c->told};
            ret->len = c->arguments.len - c->n_taken;
            ret->text = ret->len ? c->arguments.data + c->n_taken : "";
            c->told = true;
            c->n_taken = c->arguments.len;
            return true;
        }
        if (r->turn + 1 == n && r->content.len == c->before) return false; /* it may go on */
    }
}

static void put_text(pd_buf *out, const pd_buf *text) {
    pd_json_str(out, text->data ? text->data : "", text->len);
}

static void head(const pd_tool_call *c, pd_buf *out) {
    pd_buf_printf(out, "\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":", c->id);
    put_text(out, &c->name);
    pd_buf_puts(out, ",\"arguments\":");
}

void pd_tool_reader_message(const pd_tool_reader *r, pd_buf *out) {
    const size_t n = pd_tool_reader_calls(r);
    pd_buf_puts(out, "\"content\":");
    if (n && r->content.len == 0) pd_buf_puts(out, "null");
    else put_text(out, &r->content);
    if (!n) return;
    pd_buf_puts(out, ",\"tool_calls\":[");
    for (size_t i = 0; i < n; i++) {
        pd_buf_puts(out, i ? ",{" : "{");
        head(&r->call[i], out);
        put_text(out, &r->call[i].arguments);
        pd_buf_puts(out, "}}");
    }
    pd_buf_putc(out, ']');
}

bool pd_tool_reader_ready(const pd_tool_reader *r) {
    bool ready = r->content.len > 0;
    for (size_t i = 0; i < pd_tool_reader_calls(r); i++) ready = ready || !r->call[i].told || r->call[i].arguments.len;
    return ready;
}

bool pd_tool_reader_delta(pd_tool_reader *r, pd_buf *out) {
    const size_t n = pd_tool_reader_calls(r);
    bool any_call = false;
    if (r->content.len) {
        pd_buf_puts(out, "\"content\":");
        put_text(out, &r->content);
    }
    const bool said = r->content.len > 0;
    for (size_t i = 0; i < n; i++) {
        pd_tool_call *c = &r->call[i];
        if (c->told && c->arguments.len == 0) continue;
        pd_buf_puts(out, any_call ? ",{" : said ? ",\"tool_calls\":[{" : "\"tool_calls\":[{");
        any_call = true;
        pd_buf_printf(out, "\"index\":%zu,", i);
        if (c->told) pd_buf_puts(out, "\"function\":{\"arguments\":");
        else head(c, out);
        put_text(out, &c->arguments);
        pd_buf_puts(out, "}}");
        c->told = true;
        pd_buf_clear(&c->arguments);
    }
    if (any_call) pd_buf_putc(out, ']');
    pd_buf_clear(&r->content);
    return said || any_call;
}
