/* SPDX-License-Identifier: Apache-2.0 */
/* The prompt as text (see echo.h). */
#include "server/echo.h"

#include <stdlib.h>

static void add(pd_echo *e, uint32_t *chars, const char *piece, size_t n) {
    pd_buf_add(&e->text, piece, n);
    for (size_t i = 0; i < n; i++) *chars += ((unsigned char)piece[i] & 0xC0) != 0x80;
}

pd_status pd_echo_make(pd_echo *e, const pd_tokenizer *tok, const pd_ids *ids, bool from_text,
                       pd_err *err) {
    const pd_tokenizer_info *info = pd_tokenizer_get_info(tok);
    const size_t cap = pd_detok_max(tok) > 16 ? pd_detok_max(tok) : 16;
    char *piece = malloc(cap);
    e->cut = malloc((ids->n + 1) * sizeof *e->cut);
    if (!piece || !e->cut) {
        free(piece);
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to echo %zu tokens", ids->n);
    }
    e->n = ids->n;
    pd_detok d = {0};
    uint32_t chars = 0;
    for (size_t i = 0; i < ids->n; i++) {
        const bool added = i == 0 && from_text && info->add_bos && ids->id[0] == info->bos;
        e->cut[i] = (pd_echo_cut){(uint32_t)e->text.len, chars};
        if (!added) add(e, &chars, piece, pd_detok_next(tok, &d, ids->id[i], true, piece, cap));
    }
    add(e, &chars, piece, pd_detok_end(&d, piece, cap));
    e->cut[e->n] = (pd_echo_cut){(uint32_t)e->text.len, chars};
    free(piece);
    if (e->text.failed) return pd_fail(err, PD_ENOMEM, NULL, "no memory to echo %zu tokens", ids->n);
    return PD_OK;
}

void pd_echo_done(pd_echo *e) {
    pd_buf_done(&e->text);
    free(e->cut);
    *e = (pd_echo){0};
}
