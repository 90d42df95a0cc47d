/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks of another API's replies (see dialect.h). */
#include "server/dialect.h"

#include "server/generate.h"

static const pd_dialect *dialect_of(const pd_answer *a) {
    return a->gen->shape->dialect;
}

/* The next piece: the reader's, or the text once. */
static bool take(const pd_answer *a, pd_tool_piece *p, bool *told) {
    if (a->reader) return pd_tool_reader_take(a->reader, p);
    if (*told || !p->len) return false;
    return *told = true;
}

void pd_dialect_blocks(pd_answer *a, pd_buf *out) {
    pd_tool_piece p = {.text = a->text.data, .len = a->text.len};
    bool told = false, more = take(a, &p, &told);
    if (!more) p = (pd_tool_piece){.text = ""};
    pd_block b = {0};
    for (; !b.last; b.index++) {
        b.call = p.call;
        b.text = p.text;
        b.len = p.len;
        b.last = !more || !(more = take(a, &p, &told));
        if (b.index) pd_buf_putc(out, ',');
        dialect_of(a)->block(a, out, &b);
    }
}

static void close_block(pd_answer *a, pd_buf *out, bool last) {
    if (!a->blocks.n) return;
    pd_block b = {.index = a->blocks.n - 1, .text = "", .last = last};
    if (a->blocks.in_call) {
        b.call = pd_tool_reader_call(a->reader, a->blocks.call);
        b.len = b.call->arguments.len;
        if (b.len) b.text = b.call->arguments.data;
    }
    dialect_of(a)->close(a, out, &b);
}

/* A piece opens a block of its own unless it goes on with the one that is open. */
static void stream_piece(pd_answer *a, pd_buf *out, const pd_tool_piece *p) {
    pd_block b = {.call = p->call, .text = p->text, .len = p->len};
    if (p->call ? p->first : !a->blocks.n || a->blocks.in_call) {
        close_block(a, out, false);
        b.index = a->blocks.n++;
        a->blocks.in_call = p->call != NULL;
        a->blocks.call = p->index;
        dialect_of(a)->open(a, out, &b);
    }
    b.index = a->blocks.n - 1;
    if (b.len) dialect_of(a)->more(a, out, &b);
}

void pd_dialect_stream(pd_answer *a, pd_buf *out, const char *text, size_t len) {
    pd_tool_piece p = {.text = text, .len = len};
    for (bool told = false; take(a, &p, &told);) stream_piece(a, out, &p);
}

void pd_dialect_end(pd_answer *a, pd_buf *out) {
    const pd_tool_piece nothing = {.text = ""};
    if (a->reader) pd_tool_reader_end(a->reader);
    pd_dialect_stream(a, out, "", 0);
    if (!a->blocks.n) stream_piece(a, out, &nothing);
    close_block(a, out, true);
    dialect_of(a)->end(a, out);
}
