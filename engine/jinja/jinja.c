/* SPDX-License-Identifier: Apache-2.0 */
/* Compiling and rendering (see jinja.h). */
#include "engine/jinja/jinja.h"

#include "engine/base/utf8.h"
#include "engine/jinja/eval.h"

#include <stdlib.h>
#include <string.h>

/* ---- compiling ---- */

/* Line ends as \n, and the last one gone, as Jinja reads a file. */
static size_t unify_lines(const char *text, size_t n, char *dst) {
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '\r') {
            if (i + 1 < n && text[i + 1] == '\n') i++;
            dst[k++] = '\n';
        } else {
            dst[k++] = text[i];
        }
    }
    return k && dst[k - 1] == '\n' ? k - 1 : k;
}

static pd_status compile(pd_jinja *t, const char *text, size_t n, pd_err *err) {
    pd__jtokens tokens = {0};
    char *copy = pd_jheap_alloc(&t->heap, n + 1, 1);
    if (!copy) return pd_fail(err, PD_ENOMEM, NULL, "no memory to read the chat template");
    n = unify_lines(text, n, copy);
    copy[n] = '\0';
    PD_TRY(pd__jlex(&t->heap, copy, n, &tokens, err));
    PD_TRY(pd__jparse(t, &tokens, err));
    t->word_loop = pd__jname_find(t, "loop", 4);
    t->word_caller = pd__jname_find(t, "caller", 6);
    t->word_varargs = pd__jname_find(t, "varargs", 7);
    t->word_kwargs = pd__jname_find(t, "kwargs", 6);
    return PD_OK;
}

pd_status pd_jinja_compile(pd_jinja **ret, const char *text, size_t n, pd_err *err) {
    if (n > PD_JINJA_TEXT_MAX)
        return pd_fail(err, PD_EINVAL, NULL, "the template has %zu bytes; at most %zu are read", n, PD_JINJA_TEXT_MAX);
    if (!pd_utf8_valid(text, n) || memchr(text, 0, n))
        return pd_fail(err, PD_EINVAL, NULL, "the template is not UTF-8 without NUL");
    pd_jinja *t = calloc(1, sizeof *t);
    if (!t) return pd_fail(err, PD_ENOMEM, NULL, "no memory to read the chat template");
    pd_err e = {0};
    pd_status rc = compile(t, text, n, &e);
    if (rc == PD_OK) {
        *ret = t;
        return PD_OK;
    }
    if (t->heap.failed) pd_fail(err, PD_ENOMEM, NULL, "no memory to read the chat template");
    else pd_fail(err, e.code, NULL, "%s", e.msg);
    rc = t->heap.failed ? PD_ENOMEM : rc;
    pd_jinja_close(t);
    return rc;
}

void pd_jinja_close(pd_jinja *t) {
    if (!t) return;
    pd_jheap_done(&t->heap);
    free(t);
}

bool pd_jinja_uses(const pd_jinja *t, const char *name) {
    const int i = pd__jname_find(t, name, strlen(name));
    return i >= 0 && t->read[i];
}

/* ---- rendering ---- */

/* The stretches that are not the template's own. */
static pd_status find_client(pd__jev *e, pd_jout *out, pd_err *err) {
    const pd__jbuf *b = &e->page;
    pd_jspan *span = NULL;
    size_t n = 0, cap = 0;
    for (size_t i = 0; i < b->n;) {
        const uint16_t origin = b->org ? b->org[i] : b->uniform;
        const size_t from = i;
        if (b->org)
            while (i < b->n && b->org[i] == origin) i++;
        else
            i = b->n;
        if (origin == PD_JORIGIN_TEMPLATE) continue;
        if (n == cap) {
            cap = cap ? 2 * cap : 16;
            pd_jspan *p = PD_JNEW(e->h, cap, pd_jspan);
            if (!p) return pd_fail(err, PD_ENOMEM, NULL, "no memory to render the messages");
            if (n) memcpy(p, span, n * sizeof *p);
            span = p;
        }
        span[n++] = (pd_jspan){from, i, origin};
    }
    out->client = span;
    out->n_client = n;
    return PD_OK;
}

pd_status pd_jinja_render(const pd_jinja *t, pd_jheap *h, pd_jval vars, int64_t now, pd_jout *out, pd_err *err) {
    pd_err none = {0};
    pd__jev e = {.t = t, .h = h, .vars = vars, .err = err ? err : &none, .now = now, .page = {.h = h}};
    pd__jscope root = {0};
    e.scope = &root;
    e.out = &e.page;
    if (vars.kind != PD_JDICT || h->failed) return pd_fail(err, PD_ENOMEM, NULL, "no memory to render the messages");
    pd__jexec(&e, t->root->kid, t->root->n_kid);
    pd__jwork(&e, 0);
    if (e.rc != PD_OK) return e.rc;
    *out = (pd_jout){.turn = e.turns, .n_turn = e.n_turn, .len = e.page.n};
    char *text = pd_jheap_alloc(h, e.page.n + 1, 1);
    if (!text) return pd_fail(err, PD_ENOMEM, NULL, "no memory to render the messages");
    if (e.page.n) memcpy(text, e.page.s, e.page.n);
    text[e.page.n] = '\0';
    out->text = text;
    return find_client(&e, out, err);
}
