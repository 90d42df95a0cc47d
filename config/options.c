/* SPDX-License-Identifier: Apache-2.0 */
/* The one table of options.
 *
 * A row makes the flag, the PRESSD_* variable, the key of the JSON file, the
 * default, the check, the line in --help, the man page and the README's table.
 * To add an option: a field in config.h and a row here. */
#include "config/options.h"

#include <ctype.h>
#include <stdio.h>

#define FIELD(name) .offset = offsetof(pd_config, name)

enum { K = 1 << 10, M = 1 << 20 };

static const char *const compute_names[] = {"int8", "f32", NULL};
static const char *const log_names[] = {"error", "warn", "info", "debug", NULL};

const pd__option pd__options[] = {
    {"Model", "model", "m", "FILE", PD__STRING, FIELD(model),
     .doc = "The GGUF file to serve."},
    {"Model", "alias", "a", "NAME", PD__STRING, FIELD(alias),
     .doc = "Name of the model in the API. Without it the file's name is used."},
    {"Model", "ctx-size", "c", "N", PD__UINT, FIELD(ctx_size), .max = 1 << 24,
     .zero = "the model's own",
     .doc = "Most tokens one request may see, prompt and answer together."},
    {"Model", "chat-template", NULL, "TEMPLATE", PD__STRING, FIELD(chat_template),
     .doc = "Chat template to use instead of the model file's: Jinja text, a file of it, or a name such "
            "as chatml, llama3 or gemma."},
    {"Model", "press-data", NULL, "FILE", PD__STRING, FIELD(press_data),
     .doc = "Trained tensors for the presses that need them, made for this model by pressd calibrate "
            "or pressd import-press-data."},

    {"Compute", "threads", "t", "N", PD__UINT, FIELD(threads), .max = 256,
     .zero = "chosen from the processors we may use",
     .doc = "Compute threads."},
    {"Compute", "parallel", "np", "N", PD__UINT, FIELD(parallel), .def = 16, .min = 1, .max = 1024,
     .doc = "Most requests that run at the same time; further ones wait in the queue."},
    {"Compute", "draft-tokens", NULL, "N", PD__UINT, FIELD(draft_tokens), .def = 8, .max = 8, .zero = "off",
     .doc = "Most tokens that a request alone at work guesses per step, from what its text said before in "
            "the same place; its answer stays the same, and it stops guessing where that is slower."},
    {"Compute", "compute", NULL, "TYPE", PD__CHOICE, FIELD(compute), .def_text = "int8",
     .choices = compute_names,
     .doc = "Arithmetic: int8 multiplies quantised blocks, f32 is exact and slow and keeps K and V "
            "in 32 bits."},
    {"Compute", "cpu-mask", NULL, "LIST", PD__STRING, FIELD(cpu_mask),
     .doc = "Processor features that may be used, such as avx2,avx512; scalar for none, or all. "
            "An unknown word is answered with the list."},

    {"KV cache", "kv-cache-bytes", NULL, "SIZE", PD__BYTES, FIELD(kv_cache_bytes),
     .max = (uint64_t)1 << 50, .zero = "chosen from the memory we may use",
     .doc = "Bound of the KV cache of all requests together."},
    {"KV cache", "compression", NULL, "JSON", PD__STRING, FIELD(compression),
     .flags = PD__JSON_TEXT,
     .doc = "Compression of requests that do not ask for one: an object as in a request, "
            "{\"kv_type\": \"q8_0\"} among them, or text such as snapkv@0.5. Without it they are "
            "served dense."},

    {"Server", "host", NULL, "ADDRESS", PD__STRING, FIELD(host), .def_text = "127.0.0.1",
     .doc = "Address to listen on; 0.0.0.0 listens on all."},
    {"Server", "port", NULL, "N", PD__UINT, FIELD(port), .def = 8080, .max = 65535,
     .zero = "any free one, printed at start", .doc = "Port to listen on."},
    {"Server", "api-key", NULL, "KEY[,KEY...]", PD__STRING, FIELD(api_key),
     .flags = PD__SECRET | PD__KEYS,
     .doc = "Keys of which every request must carry one. Without it no key is asked for."},
    {"Server", "metrics", NULL, NULL, PD__BOOL, FIELD(metrics), .def = 1,
     .doc = "Serve GET /metrics in the Prometheus text format."},
    {"Server", "log-level", NULL, "LEVEL", PD__CHOICE, FIELD(log_level), .def_text = "info",
     .choices = log_names, .doc = "Least important records that are logged."},
    {"Server", "config", NULL, "FILE", PD__STRING, FIELD(config_file), .flags = PD__NO_FILE,
     .doc = "JSON file with settings."},

    {"Limits", "queue", NULL, "N", PD__UINT, FIELD(queue), .def = 128, .min = 1, .max = 65536,
     .doc = "Most waiting requests; one more is answered with 429."},
    {"Limits", "max-body-bytes", NULL, "SIZE", PD__BYTES, FIELD(max_body_bytes), .def = 1 * M,
     .min = 1 * K, .max = 256 * M, .doc = "Largest request body; a larger one is answered with 413."},
    {"Limits", "max-connections", NULL, "N", PD__UINT, FIELD(max_connections), .def = 1024, .min = 1,
     .max = 65536, .doc = "Most open connections."},
    /* 256, not less: a proxy or a load test is one address and may hold 100 and
     * more streams, while four addresses are still needed to fill the table. */
    {"Limits", "max-connections-per-ip", NULL, "N", PD__UINT, FIELD(max_connections_per_ip),
     .def = 256, .max = 65536, .zero = "no bound",
     .doc = "Most open connections of one client address. A proxy in front of the server counts as "
            "one address."},
    {"Limits", "header-timeout", NULL, "SECONDS", PD__SECONDS, FIELD(header_timeout), .def = 10,
     .min = 1, .max = 3600, .doc = "Longest time a client may take to send the header."},
    {"Limits", "body-timeout", NULL, "SECONDS", PD__SECONDS, FIELD(body_timeout), .def = 30,
     .min = 1, .max = 3600, .doc = "Longest time a client may take to send the body."},
    {"Limits", "idle-timeout", NULL, "SECONDS", PD__SECONDS, FIELD(idle_timeout), .def = 60,
     .min = 1, .max = 86400, .doc = "Longest time a connection stays open between two requests."},
    {"Limits", "write-timeout", NULL, "SECONDS", PD__SECONDS, FIELD(write_timeout), .def = 30,
     .min = 1, .max = 3600,
     .doc = "Longest time a client may leave its answer unread before its request is cancelled."},
    {"Limits", "request-timeout", NULL, "SECONDS", PD__SECONDS, FIELD(request_timeout), .def = 600,
     .min = 1, .max = 86400, .doc = "Longest time one request may take."},
    {"Limits", "drain-timeout", NULL, "SECONDS", PD__SECONDS, FIELD(drain_timeout), .def = 45,
     .max = 3600, .zero = "at once",
     .doc = "After SIGTERM running requests may finish for this long."},
};
const size_t pd__n_options = sizeof pd__options / sizeof *pd__options;

const char *pd__option_key(const pd__option *o, char *buf) {
    snprintf(buf, PD__NAME_MAX, "%s", o->name);
    for (char *p = buf; *p; p++) {
        if (*p == '-') *p = '_';
    }
    return buf;
}

const char *pd__option_env(const pd__option *o, char *buf) {
    snprintf(buf, PD__NAME_MAX, "PRESSD_%s", o->name);
    for (char *p = buf; *p; p++) *p = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
    return buf;
}

static void *field(const pd__option *o, pd_config *c) {
    return (char *)c + o->offset;
}

char **pd__field_text(const pd__option *o, pd_config *c) {
    return field(o, c);
}

uint64_t *pd__field_uint(const pd__option *o, pd_config *c) {
    return field(o, c);
}

bool *pd__field_bool(const pd__option *o, pd_config *c) {
    return field(o, c);
}

void pd__put_bytes(pd_buf *out, uint64_t n) {
    static const char suffix[] = "\0KMGT";
    int power = 0;
    while (n != 0 && n % 1024 == 0 && power < 4) {
        n /= 1024;
        power++;
    }
    pd_buf_printf(out, "%llu%.1s", (unsigned long long)n, power ? &suffix[power] : "");
}

void pd__put_default(pd_buf *out, const pd__option *o) {
    switch (o->kind) {
    case PD__STRING:
    case PD__CHOICE:
        pd_buf_puts(out, o->def_text ? o->def_text : "");
        break;
    case PD__BOOL:
        pd_buf_puts(out, o->def ? "on" : "off");
        break;
    case PD__BYTES:
        pd__put_bytes(out, o->def);
        break;
    case PD__UINT:
    case PD__SECONDS:
        pd_buf_printf(out, "%llu", (unsigned long long)o->def);
        break;
    }
}
