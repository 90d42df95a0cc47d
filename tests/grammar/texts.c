/* SPDX-License-Identifier: Apache-2.0 */
/* What a schema's grammar accepts and derives, for tests/grammar/test_schemas.py.  A
 * line on stdin is {"schema": ..., "texts": [...], "samples": n, "seed": n}, or with
 * "regex" for "schema"; the line
 * that answers it is {"error": message, "param": path} or {"accepts": [...],
 * "samples": [...], "cut": n}, both with "us", the microseconds of schema to grammar.
 * With "loose" the schema is followed as far as it can be, as a tool's is. */
#include "engine/base/clock.h"
#include "engine/grammar/grammar.h"
#include "server/schema_grammar.h"
#include "server/structured.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLE_MAX = 6000 };

static uint64_t draw(uint64_t *x) { /* SplitMix64 (Steele et al. 2014) */
    uint64_t z = *x += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* A random walk over the bytes that fit, closing things more often than not. */
static bool sample(pd_grammar *g, uint64_t *seed, pd_buf *out) {
    pd_matcher *m;
    pd_err err = {0};
    if (pd_matcher_open(&m, g, &err) != PD_OK) abort();
    bool whole = false;
    while (out->len < SAMPLE_MAX) {
        if (pd_matcher_must_end(m) || (pd_matcher_may_end(m) && draw(seed) % 2)) {
            whole = true;
            break;
        }
        char fit[256];
        size_t n = 0;
        for (int b = 0; b < 256; b++) {
            const char c = (char)b;
            if (pd_matcher_fits(m, &c, 1)) fit[n++] = c;
        }
        if (pd_matcher_failed(m) || n == 0) abort(); /* a grammar never leads nowhere */
        char c = fit[draw(seed) % n];
        for (size_t i = 0; i < n && draw(seed) % 8 < 3; i++) {
            const char k = fit[draw(seed) % n];
            if (strchr("\"}]", fit[i]) || (k && strchr("\"}],:0 ", k))) c = strchr("\"}]", fit[i]) ? fit[i] : k;
        }
        if (!pd_matcher_take(m, &c, 1)) abort();
        pd_buf_putc(out, c);
    }
    pd_matcher_close(m);
    return whole;
}

static bool accepts(pd_grammar *g, const json_t *text) {
    pd_matcher *m;
    pd_err err = {0};
    if (pd_matcher_open(&m, g, &err) != PD_OK) abort();
    const bool ok = pd_matcher_take(m, json_string_value(text), json_string_length(text)) && pd_matcher_may_end(m);
    pd_matcher_close(m);
    return ok;
}

static pd_status loose(const json_t *schema, pd_grammar **ret, pd_err *err) {
    pd_buf gbnf = {0};
    pd_buf_init(&gbnf, PD_GRAMMAR_TEXT_MAX);
    pd_json_rules(&gbnf);
    size_t next = 7; /* as behind others */
    pd_buf_puts(&gbnf, "root ::= s7\n");
    pd_status rc = pd_schema_rules(schema, "schema", &next, true, &gbnf, err);
    if (rc == PD_OK) rc = pd_grammar_parse(ret, gbnf.data, gbnf.len, "schema", err);
    pd_buf_done(&gbnf);
    return rc;
}

static void answer(const json_t *ask, pd_buf *out) {
    pd_grammar *g;
    pd_err err = {0};
    const uint64_t t0 = pd_now_ns();
    const json_t *schema = json_object_get(ask, "schema"), *regex = json_object_get(ask, "regex");
    json_t *body = regex ? json_pack("{s:O}", "guided_regex", regex) : NULL;
    pd_status rc;
    if (body) rc = pd_structured_decode(body, &g, &err);
    else if (json_is_true(json_object_get(ask, "loose"))) rc = loose(schema, &g, &err);
    else rc = pd_structured_schema(schema, "schema", &g, &err);
    json_decref(body);
    const uint64_t us = (pd_now_ns() - t0) / 1000;
    if (rc != PD_OK) {
        pd_buf_puts(out, "{\"error\":");
        pd_json_cstr(out, err.msg);
        pd_buf_puts(out, ",\"param\":");
        pd_json_cstr(out, err.param);
        pd_buf_printf(out, ",\"us\":%llu}\n", (unsigned long long)us);
        return;
    }
    pd_buf_puts(out, "{\"accepts\":[");
    const json_t *texts = json_object_get(ask, "texts");
    for (size_t i = 0; i < json_array_size(texts); i++)
        pd_buf_printf(out, "%s%s", i ? "," : "", accepts(g, json_array_get(texts, i)) ? "true" : "false");
    pd_buf_puts(out, "],\"samples\":[");
    uint64_t seed = (uint64_t)json_integer_value(json_object_get(ask, "seed"));
    size_t n = 0, cut = 0;
    for (json_int_t i = 0; i < json_integer_value(json_object_get(ask, "samples")); i++) {
        pd_buf text = {0};
        pd_buf_init(&text, 1 << 20);
        if (sample(g, &seed, &text)) {
            if (n++) pd_buf_putc(out, ',');
            pd_json_str(out, text.data ? text.data : "", text.len);
        } else {
            cut++;
        }
        pd_buf_done(&text);
    }
    pd_buf_printf(out, "],\"cut\":%zu,\"us\":%llu}\n", cut, (unsigned long long)us);
    pd_grammar_unref(g);
}

int main(void) {
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    while ((n = getline(&line, &cap, stdin)) > 0) {
        json_t *ask = json_loadb(line, (size_t)n, JSON_DECODE_ANY, NULL);
        if (!ask) abort();
        pd_buf out = {0};
        pd_buf_init(&out, (size_t)64 << 20);
        answer(ask, &out);
        fwrite(out.data, 1, out.len, stdout);
        fflush(stdout);
        pd_buf_done(&out);
        json_decref(ask);
    }
    free(line);
    return 0;
}
