/* SPDX-License-Identifier: Apache-2.0 */
/* config/: every source, every kind of value, every error, and that nothing an
 * operator writes can do more than be refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "config/config.h"
#include "config/options.h"
#include "config/suggest.h"
#include "engine/base/rng.h"
#include "engine/base/utf8.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ARGS_MAX = 12 };

/* One load from words separated by '|' (NULL = none). */
static pd_status load(pd_config *c, const char *args, const char *env, pd_err *err) {
    char name[] = "serve", *argv[ARGS_MAX + 1] = {name}, *envv[ARGS_MAX + 1] = {NULL};
    char *a = strdup(args ? args : ""), *e = strdup(env ? env : "");
    int argc = 1, envc = 0;
    for (char *p = a; args && p && argc < ARGS_MAX;) argv[argc++] = strsep(&p, "|");
    for (char *p = e; env && p && envc < ARGS_MAX;) envv[envc++] = strsep(&p, "|");
    bool help = false;
    *err = (pd_err){0};
    const pd_status rc = pd_config_load(c, argc, argv, envv, &help, err);
    free(a);
    free(e);
    return rc;
}

/* A file with this text; its name is in path[]. */
static void write_file(char path[64], const char *text, size_t n) {
    snprintf(path, 64, "/tmp/pd_config_XXXXXX");
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, n), (ssize_t)n);
    close(fd);
}

static pd_status load_json(pd_config *c, const char *json, const char *args, const char *env, pd_err *err) {
    char path[64], all[400];
    write_file(path, json, strlen(json));
    snprintf(all, sizeof all, "--config|%s%s%s", path, args ? "|" : "", args ? args : "");
    const pd_status rc = load(c, all, env, err);
    unlink(path);
    return rc;
}

static void defaults(void **state) {
    (void)state;
    pd_config c;
    pd_err err;
    assert_int_equal(load(&c, NULL, NULL, &err), PD_OK);
    assert_null(c.model);
    assert_null(c.alias);
    assert_null(c.api_key);
    assert_null(c.compression);
    assert_null(c.config_file);
    assert_string_equal(c.host, "127.0.0.1");
    assert_string_equal(c.compute, "int8");
    assert_string_equal(c.log_level, "info");
    assert_true(c.metrics);
    assert_int_equal(c.port, 8080);
    assert_int_equal(c.parallel, 16);
    assert_int_equal(c.queue, 128);
    assert_int_equal(c.max_body_bytes, 1048576);
    assert_int_equal(c.max_connections, 1024);
    assert_true(c.max_connections_per_ip == 0 || c.max_connections_per_ip > 100);
    assert_int_equal(c.header_timeout, 10);
    assert_int_equal(c.body_timeout, 30);
    assert_int_equal(c.write_timeout, 30);
    assert_int_equal(c.idle_timeout, 60);
    assert_int_equal(c.request_timeout, 600);
    assert_int_equal(c.drain_timeout, 45);
    pd_config_done(&c);
    pd_config_done(&c); /* a second time is fine */
    pd_config_done(NULL);
}

/* Every field of pd_config has exactly one row, and rows are well made: a field
 * added without a row would never be set. */
static void rows_cover_the_struct(void **state) {
    (void)state;
    unsigned char used[sizeof(pd_config)] = {0};
    for (size_t i = 0; i < pd__n_options; i++) {
        const pd__option *o = &pd__options[i];
        const size_t size = o->kind == PD__BOOL                             ? sizeof(bool)
                            : o->kind == PD__STRING || o->kind == PD__CHOICE ? sizeof(char *)
                                                                            : sizeof(uint64_t);
        for (size_t b = 0; b < size; b++) assert_int_equal(used[o->offset + b]++, 0);
        assert_true(strlen(o->name) + sizeof "PRESSD_" <= PD__NAME_MAX);
        assert_true(o->doc[strlen(o->doc) - 1] == '.');
        assert_true((o->arg == NULL) == (o->kind == PD__BOOL));
        assert_true((o->choices != NULL) == (o->kind == PD__CHOICE));
        if (o->kind == PD__UINT || o->kind == PD__BYTES || o->kind == PD__SECONDS)
            assert_true(o->min <= o->def && o->def <= o->max && o->max <= (uint64_t)1 << 62);
        for (size_t j = 0; j < i; j++) {
            assert_string_not_equal(o->name, pd__options[j].name);
            if (o->letter && pd__options[j].letter)
                assert_string_not_equal(o->letter, pd__options[j].letter);
        }
    }
    size_t holes = 0;
    for (size_t b = 0; b < sizeof used; b++) holes += used[b] == 0;
    assert_true(holes <= sizeof(uint64_t) - sizeof(bool)); /* padding after the one bool */
}

static void flags_in_all_forms(void **state) {
    (void)state;
    pd_config c;
    pd_err err;
    assert_int_equal(load(&c, "-m|a.gguf|-np|7|-c=4096|--port=0|--no-metrics|--kv-cache-bytes|3GiB", NULL, &err), PD_OK);
    assert_string_equal(c.model, "a.gguf");
    assert_int_equal(c.parallel, 7);
    assert_int_equal(c.ctx_size, 4096);
    assert_int_equal(c.port, 0);
    assert_false(c.metrics);
    assert_int_equal(c.kv_cache_bytes, 3ull << 30);
    pd_config_done(&c);

    /* the last one counts, and an earlier string is not leaked */
    assert_int_equal(load(&c, "--alias|x|-a|y|--no-metrics|--metrics|--alias=z=1", NULL, &err), PD_OK);
    assert_string_equal(c.alias, "z=1");
    assert_true(c.metrics);
    pd_config_done(&c);

    assert_int_equal(load(&c, "--metrics=off|--model=-odd.gguf|--alias|-x", NULL, &err), PD_OK);
    assert_false(c.metrics);
    assert_string_equal(c.model, "-odd.gguf");
    assert_string_equal(c.alias, "-x"); /* no option has this name, so it is a value */
    pd_config_done(&c);
}

static void help_beats_everything(void **state) {
    (void)state;
    static char words[][16] = {"serve", "--nonsense", "--port=abc", "-h"};
    char *argv[] = {words[0], words[1], words[2], words[3], NULL};
    pd_config c;
    bool help = false;
    pd_err err = {0};
    assert_int_equal(pd_config_load(&c, 3, argv, NULL, &help, &err), PD_EINVAL);
    assert_false(help);
    err = (pd_err){0};
    assert_int_equal(pd_config_load(&c, 4, argv, NULL, &help, &err), PD_OK);
    assert_true(help);
    pd_config_done(&c);
}

static void sizes(void **state) {
    (void)state;
    static const struct {
        const char *text;
        uint64_t want; /* UINT64_MAX: refused */
    } t[] = {
        {"0", 0},
        {"1", 1},
        {"007", 7},
        {"1K", 1024},
        {"1k", 1024},
        {"1KiB", 1024},
        {"5M", 5 << 20},
        {"2g", 2ull << 30},
        {"1T", 1ull << 40},
        {"1024T", 1ull << 50},
        {"1125899906842624", 1ull << 50},
        {"1125899906842625", UINT64_MAX},
        {"1025T", UINT64_MAX},
        {"18446744073709551615", UINT64_MAX},
        {"18446744073709551616", UINT64_MAX},
        {"99999999999999999999999999", UINT64_MAX},
        {"18014398509481985K", UINT64_MAX}, /* wraps to 1024 without the check */
        {"1KB", UINT64_MAX},
        {"1Ki", UINT64_MAX},
        {"1P", UINT64_MAX},
        {"1 K", UINT64_MAX},
        {"1.5G", UINT64_MAX},
        {"-1", UINT64_MAX},
        {"+1", UINT64_MAX},
        {"0x10", UINT64_MAX},
        {" 1", UINT64_MAX},
        {"1 ", UINT64_MAX},
        {"K", UINT64_MAX},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        char arg[80];
        pd_config c;
        pd_err err;
        snprintf(arg, sizeof arg, "--kv-cache-bytes=%s", t[i].text);
        const pd_status rc = load(&c, arg, NULL, &err);
        if (t[i].want == UINT64_MAX) {
            if (rc != PD_EINVAL) fail_msg("%s was accepted", t[i].text);
            assert_non_null(strstr(err.msg, "0..1024T"));
            continue;
        }
        if (rc != PD_OK) fail_msg("%s: %s", t[i].text, err.msg);
        assert_int_equal(c.kv_cache_bytes, t[i].want);
        pd_config_done(&c);
    }
}

/* Both ends of every numeric row are accepted and one step past them is not, as
 * a flag, a variable and a key. */
static void ranges_of_every_row(void **state) {
    (void)state;
    for (size_t i = 0; i < pd__n_options; i++) {
        const pd__option *o = &pd__options[i];
        if (o->kind != PD__UINT && o->kind != PD__BYTES && o->kind != PD__SECONDS) continue;
        const int64_t try[] = {(int64_t)o->min, (int64_t)o->max, (int64_t)o->min - 1, (int64_t)o->max + 1};
        for (int k = 0; k < 4; k++) {
            char text[200], name[PD__NAME_MAX];
            pd_config c;
            pd_err err;
            for (int source = 0; source < 3; source++) {
                pd_status rc;
                const long long v = try[k];
                if (source == 0) {
                    snprintf(text, sizeof text, "--%s=%lld", o->name, v);
                    rc = load(&c, text, NULL, &err);
                } else if (source == 1) {
                    snprintf(text, sizeof text, "%s=%lld", pd__option_env(o, name), v);
                    rc = load(&c, NULL, text, &err);
                } else {
                    snprintf(text, sizeof text, "{\"%s\": %lld}", pd__option_key(o, name), v);
                    rc = load_json(&c, text, NULL, NULL, &err);
                }
                if (rc != (k < 2 ? PD_OK : PD_EINVAL)) fail_msg("%s: %d %s", text, rc, err.msg);
                if (rc != PD_OK) continue;
                assert_int_equal(*pd__field_uint(o, &c), (uint64_t)v);
                pd_config_done(&c);
            }
        }
    }
}

static void precedence(void **state) {
    (void)state;
    static const struct {
        const char *file, *env, *flag;
        uint64_t want;
    } t[] = {
        {"{}", NULL, NULL, 8080},
        {"{\"port\": 1}", NULL, NULL, 1},
        {"{\"port\": 1}", "PRESSD_PORT=2", NULL, 2},
        {"{\"port\": 1}", "PRESSD_PORT=2", "--port=3", 3},
        {"{\"port\": 1}", NULL, "--port=3", 3},
        {"{}", "PRESSD_PORT=2", "--port=3", 3},
        {"{\"port\": 1}", NULL, "--port=8080", 8080}, /* the default, asked for */
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        pd_config c;
        pd_err err;
        assert_int_equal(load_json(&c, t[i].file, t[i].flag, t[i].env, &err), PD_OK);
        assert_int_equal(c.port, t[i].want);
        pd_config_done(&c);
    }
    /* strings and booleans follow the same rule */
    pd_config c;
    pd_err err;
    assert_int_equal(load_json(&c, "{\"alias\": \"f\", \"metrics\": true, \"host\": \"::1\"}", "--no-metrics",
                               "PRESSD_ALIAS=e|PRESSD_METRICS=1", &err), PD_OK);
    assert_string_equal(c.alias, "e");
    assert_string_equal(c.host, "::1");
    assert_false(c.metrics);
    pd_config_done(&c);

    /* the file may be named by the environment */
    char path[64], env[100];
    write_file(path, "{\"port\": 9}", 11);
    snprintf(env, sizeof env, "HOME=/x|PRESSD_CONFIG=%s", path);
    assert_int_equal(load(&c, NULL, env, &err), PD_OK);
    assert_int_equal(c.port, 9);
    assert_string_equal(c.config_file, path);
    pd_config_done(&c);
    unlink(path);
}

/* What is written, which name and which words the message must hold. */
static void every_error_names_its_place(void **state) {
    (void)state;
    static const struct {
        const char *args, *env, *file;
        const char *param, *words[3];
    } t[] = {
        {"--ctx-sise=1", NULL, NULL, "--ctx-sise", {"unknown option", "--ctx-size?", "command line"}},
        {"--ctx|1", NULL, NULL, "--ctx", {"did you mean --ctx-size?"}},
        {"--ctx_size=1", NULL, NULL, "--ctx_size", {"did you mean --ctx-size?"}},
        {"-model|x", NULL, NULL, "-model", {"did you mean --model?"}},
        {"--n-parallel|2", NULL, NULL, "--n-parallel", {"did you mean --parallel?"}},
        {"--no-metric", NULL, NULL, "--no-metric", {"did you mean --no-metrics?"}},
        {"--no-port", NULL, NULL, "--no-port", {"unknown option"}},
        {"--hlep", NULL, NULL, "--hlep", {"did you mean --help?"}},
        {"--zzzzzzzz", NULL, NULL, "--zzzzzzzz", {"--help lists"}},
        {"-x", NULL, NULL, "-x", {"unknown option"}},
        {"--", NULL, NULL, "--", {"unknown option"}},
        {"--=3", NULL, NULL, "--", {"unknown option"}},
        {"--no-", NULL, NULL, "--no-", {"unknown option"}},
        {"model.gguf", NULL, NULL, "", {"unexpected argument 'model.gguf'", "command line"}},
        {"-", NULL, NULL, "", {"unexpected argument '-'"}},
        {"", NULL, NULL, "", {"unexpected argument ''"}},
        {"--port", NULL, NULL, "--port", {"needs a value (N)"}},
        {"-np", NULL, NULL, "--parallel", {"needs a value (N)"}},
        {"--model|--port|80", NULL, NULL, "--model", {"needs a value (FILE)", "--port", "--model=--port"}},
        {"--model|-np=2", NULL, NULL, "--model", {"needs a value (FILE)", "-np=2"}},
        {"--no-metrics=1", NULL, NULL, "--no-metrics", {"takes no value", "--metrics=VALUE"}},
        {"--metrics=maybe", NULL, NULL, "--metrics", {"'maybe'", "true, false, on, off"}},
        {"--metrics=", NULL, NULL, "--metrics", {"''", "true, false"}},
        {"--port=65536", NULL, NULL, "--port", {"65536", "0..65535", "command line"}},
        {"--port=http", NULL, NULL, "--port", {"'http'", "whole number", "0..65535"}},
        {"--port=1K", NULL, NULL, "--port", {"'1K'", "whole number"}},
        {"--port=", NULL, NULL, "--port", {"''", "whole number"}},
        {"--parallel=0", NULL, NULL, "--parallel", {"1..1024"}},
        {"--threads=257", NULL, NULL, "--threads", {"0..256"}},
        {"--max-body-bytes=1G", NULL, NULL, "--max-body-bytes", {"1G", "1K..256M"}},
        {"--compute=f16", NULL, NULL, "--compute", {"'f16'", "int8, f32"}},
        {"--log-level=warning", NULL, NULL, "--log-level", {"error, warn, info, debug", "did you mean warn?"}},
        {"--alias=", NULL, NULL, "--alias", {"empty"}},
        {"--alias=a\nb", NULL, NULL, "--alias", {"control character 0x0a"}},
        {"--alias=\xFF", NULL, NULL, "--alias", {"UTF-8"}},
        {"--api-key=a,,b", NULL, NULL, "--api-key", {"key 2", "empty"}},
        {"--api-key=se cret", NULL, NULL, "--api-key", {"key 1", "blank"}},
        {"--compression={\"ratio\": }", NULL, NULL, "--compression", {"bad JSON", "line 1"}},
        {"--compression={\"a\":1,\"a\":2}", NULL, NULL, "--compression", {"bad JSON", "duplicate"}},
        {"--compression={} x", NULL, NULL, "--compression", {"bad JSON"}},
        {"--config=/no/such/file", NULL, NULL, "--config", {"/no/such/file", "No such file"}},
        {"--config=/", NULL, NULL, "--config", {"cannot read", "directory"}},
        {NULL, "PRESSD_PRT=1", NULL, "PRESSD_PRT", {"environment", "did you mean PRESSD_PORT?"}},
        {NULL, "PRESSD_=1", NULL, "PRESSD_", {"environment", "no setting"}},
        {NULL, "PRESSD_HELP=1", NULL, "PRESSD_HELP", {"no setting"}},
        {NULL, "PRESSD_CTX-SIZE=1", NULL, "PRESSD_CTX-SIZE", {"did you mean PRESSD_CTX_SIZE?"}},
        {NULL, "PRESSD_port=1", NULL, "PRESSD_port", {"did you mean PRESSD_PORT?"}},
        {NULL, "PRESSD_PORT=x", NULL, "PRESSD_PORT", {"environment", "'x'", "0..65535"}},
        {NULL, "PRESSD_MODEL=", NULL, "PRESSD_MODEL", {"environment", "empty"}},
        {"--port=1", "PRESSD_PORT=x", NULL, "PRESSD_PORT", {"environment", "'x'"}}, /* hidden, still wrong */
        {NULL, NULL, "{\"prot\": 1}", "prot", {"file ", "did you mean port?"}},
        {NULL, NULL, "{\"ctx-size\": 1}", "ctx-size", {"did you mean ctx_size?"}},
        {NULL, NULL, "{\"config\": \"x\"}", "config", {"no setting"}},
        {NULL, NULL, "{\"\": 1}", "", {"no setting"}},
        {NULL, NULL, "{\"port\": \"80\"}", "port", {"must be a whole number, not a string", "file "}},
        {NULL, NULL, "{\"port\": 80.0}", "port", {"must be a whole number, not a number with"}},
        {NULL, NULL, "{\"port\": -1}", "port", {"'-1'", "0..65535"}},
        {NULL, NULL, "{\"port\": null}", "port", {"not null"}},
        {NULL, NULL, "{\"port\": true}", "port", {"not a truth value"}},
        {NULL, NULL, "{\"port\": [1]}", "port", {"not a list"}},
        {NULL, NULL, "{\"port\": {}}", "port", {"not an object"}},
        {NULL, NULL, "{\"metrics\": \"on\"}", "metrics", {"must be true or false, not a string"}},
        {NULL, NULL, "{\"alias\": 3}", "alias", {"must be a string, not a whole number"}},
        {NULL, NULL, "{\"compression\": 3}", "compression", {"must be an object or a string"}},
        {NULL, NULL, "{\"kv_cache_bytes\": \"1X\"}", "kv_cache_bytes", {"'1X'", "0..1024T"}},
        {NULL, NULL, "{\"kv_cache_bytes\": 1.5}", "kv_cache_bytes", {"\"512M\""}},
        {NULL, NULL, "{\"port\": 1, \"port\": 2}", "--config", {"bad JSON", "duplicate", ":1:"}},
        {NULL, NULL, "{\n\"port\": 1,\n}", "--config", {":3:", "bad JSON"}},
        {NULL, NULL, "{\"port\": 99999999999999999999}", "--config", {"too big"}},
        {NULL, NULL, "{\"alias\": \"a\\u0000b\"}", "--config", {"bad JSON"}},
        {NULL, NULL, "[]", "--config", {"one JSON object, not a list"}},
        {NULL, NULL, "3", "--config", {"one JSON object"}},
        {NULL, NULL, "", "--config", {"bad JSON"}},
        {NULL, NULL, "{} {}", "--config", {"bad JSON"}},
        {"--port=1", NULL, "{\"port\": 70000}", "port", {"file ", "70000"}},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        pd_config c, before;
        memset(&c, 0x5A, sizeof c);
        before = c;
        pd_err err;
        const char *what = t[i].args ? t[i].args : t[i].env ? t[i].env : t[i].file;
        const pd_status rc = t[i].file ? load_json(&c, t[i].file, t[i].args, t[i].env, &err)
                                       : load(&c, t[i].args, t[i].env, &err);
        if (rc != PD_EINVAL) fail_msg("case %zu '%s': status %d %s", i, what, rc, err.msg);
        assert_memory_equal(&c, &before, sizeof c); /* untouched */
        if (strcmp(err.param, t[i].param) != 0) fail_msg("case %zu '%s': param '%s'", i, what, err.param);
        for (int w = 0; w < 3 && t[i].words[w]; w++) {
            if (!strstr(err.msg, t[i].words[w]))
                fail_msg("case %zu '%s': '%s' is not in: %s", i, what, t[i].words[w], err.msg);
        }
        assert_null(strstr(err.msg, "cret")); /* no message shows a key */
    }
}

static void file_bounds(void **state) {
    (void)state;
    const size_t n = (1 << 20) + 1;
    char *text = malloc(n);
    memset(text, ' ', n);
    memcpy(text, "{}", 2);
    char path[64], arg[100];
    pd_config c;
    pd_err err;
    for (int over = 0; over < 2; over++) {
        write_file(path, text, n - 1 + (size_t)over);
        snprintf(arg, sizeof arg, "--config=%s", path);
        assert_int_equal(load(&c, arg, NULL, &err), over ? PD_EINVAL : PD_OK);
        if (over)
            assert_non_null(strstr(err.msg, "at most 1048576 bytes"));
        else
            pd_config_done(&c);
        unlink(path);
    }
    /* nesting beyond reason, and values that are too long */
    memset(text, '[', n - 1);
    text[n - 1] = '\0';
    write_file(path, text, n - 1);
    snprintf(arg, sizeof arg, "--config=%s", path);
    assert_int_equal(load(&c, arg, NULL, &err), PD_EINVAL);
    unlink(path);

    memcpy(text, "--alias=", 8);
    memset(text + 8, 'a', 4097);
    text[8 + 4097] = '\0';
    assert_int_equal(load(&c, text, NULL, &err), PD_EINVAL);
    assert_non_null(strstr(err.msg, "4097 bytes; at most 4096"));
    text[8 + 4096] = '\0';
    assert_int_equal(load(&c, text, NULL, &err), PD_OK);
    pd_config_done(&c);
    free(text);
}

static void compression_is_kept_as_compact_text(void **state) {
    (void)state;
    pd_config c;
    pd_err err;
    assert_int_equal(load_json(&c, "{ \"compression\" : { \"press\": \"knorm\",\n \"ratio\": 0.5 } }", NULL, NULL, &err), PD_OK);
    assert_string_equal(c.compression, "{\"press\":\"knorm\",\"ratio\":0.5}");
    pd_config_done(&c);
    assert_int_equal(load(&c, NULL, "PRESSD_COMPRESSION={\"press\" :\n\"knorm\"}", &err), PD_OK);
    assert_string_equal(c.compression, "{\"press\":\"knorm\"}");
    pd_config_done(&c);
    assert_int_equal(load(&c, "--compression|snapkv@0.5", NULL, &err), PD_OK);
    assert_string_equal(c.compression, "snapkv@0.5");
    pd_config_done(&c);
}

static void variables_of_others_are_left_alone(void **state) {
    (void)state;
    pd_config c;
    pd_err err;
    assert_int_equal(load(&c, NULL,
                          "PRESSD_SERVICE_HOST=10.0.0.1|PRESSD_SERVICE_PORT=80|PRESSD_SERVICE_PORT_HTTP=80|"
                          "PRESSD_PORT=tcp://10.0.0.1:80|PRESSD_PORT_80_TCP_ADDR=10.0.0.1|"
                          "PRESSD_CANARY_PORT=udp://10.0.0.1:80|PRESSD_CANARY_SERVICE_HOST=1|"
                          "PRESSD_BIN=x|PRESSD_TEST_MODEL=x|pressd_port=x|PRESSD_NOTHING", &err), PD_OK);
    assert_int_equal(c.port, 8080);
    pd_config_done(&c);
    assert_int_equal(load(&c, NULL, "PRESSD_PORT=http://x", &err), PD_EINVAL);
    assert_int_equal(load(&c, NULL, "PRESSD_PORTS=1", &err), PD_EINVAL);
}

static void effective_settings_load_again(void **state) {
    (void)state;
    pd_config c, d;
    pd_err err;
    assert_int_equal(load(&c, "--model=m.gguf|--compression={\"press\":\"knorm\",\"ratio\":0.25}|-np|3|"
                              "--kv-cache-bytes=1024T|--no-metrics|--compute=f32|--alias=\xC3\xA9", NULL, &err), PD_OK);
    pd_buf a = {0}, b = {0};
    pd_config_json(&c, &a);
    assert_false(a.failed);
    assert_int_equal(load_json(&d, a.data, NULL, NULL, &err), PD_OK);
    pd_config_json(&d, &b);
    assert_string_equal(a.data, b.data);
    assert_string_equal(d.compression, c.compression);
    assert_int_equal(d.kv_cache_bytes, 1ull << 50);
    pd_config_done(&c);
    pd_config_done(&d);
    pd_buf_done(&a);
    pd_buf_done(&b);

    assert_int_equal(load(&c, "--api-key=alpha,beta", NULL, &err), PD_OK);
    assert_string_equal(c.api_key, "alpha,beta");
    pd_config_json(&c, &a);
    assert_null(strstr(a.data, "alpha"));
    assert_null(strstr(a.data, "beta"));
    assert_non_null(strstr(a.data, "2 hidden"));
    assert_int_equal(load_json(&d, a.data, NULL, NULL, &err), PD_EINVAL); /* the mask is no key */
    pd_config_done(&c);
    pd_buf_done(&a);
}

static void example_file_loads(void **state) {
    (void)state;
    pd_config c;
    pd_err err;
    if (load(&c, "--config=" PD_SOURCE_DIR "/config/examples/pressd.json", NULL, &err) != PD_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(c.kv_cache_bytes, 1ull << 30);
    assert_non_null(strstr(c.compression, "\"ratio\":0.5"));
    pd_config_done(&c);
}

/* Each row is in each text, no line of --help is wider than 100 columns. */
static void texts_hold_every_row(void **state) {
    (void)state;
    pd_buf help = {0}, man = {0}, md = {0};
    pd_config_help(&help);
    pd_config_man(&man);
    pd_config_markdown(&md);
    assert_false(help.failed || man.failed || md.failed);
    for (size_t i = 0; i < pd__n_options; i++) {
        const pd__option *o = &pd__options[i];
        char flag[80], name[PD__NAME_MAX];
        snprintf(flag, sizeof flag, "--%s%s%s", o->name, o->arg ? " " : ", --no-", o->arg ? o->arg : o->name);
        assert_non_null(strstr(help.data, flag));
        assert_non_null(strstr(md.data, flag));
        assert_non_null(strstr(md.data, pd__option_env(o, name)));
        assert_non_null(strstr(man.data, name));
    }
    for (const char *p = help.data; *p;) {
        const size_t n = strcspn(p, "\n");
        if (n > 100) fail_msg("%zu columns: %.*s", n, (int)n, p);
        if (n) assert_int_not_equal(p[n - 1], ' ');
        p += n + 1;
    }
    assert_non_null(strstr(help.data, "127.0.0.1"));
    assert_non_null(strstr(help.data, "0..65535"));
    for (const char *p = man.data; *p; p += strcspn(p, "\n") + 1) { /* only requests we use */
        if (*p == '.')
            assert_true(!strncmp(p, ".SH ", 4) || !strncmp(p, ".SS ", 4) || !strncmp(p, ".TP\n", 4) ||
                        !strncmp(p, ".B ", 3));
    }
    /* every Markdown row has the same five cells */
    for (const char *p = md.data; *p; p += strcspn(p, "\n") + 1) {
        int bars = 0;
        for (const char *q = p; *q && *q != '\n'; q++) bars += *q == '|';
        assert_int_equal(bars, 6);
    }
    pd_buf_done(&help);
    pd_buf_done(&man);
    pd_buf_done(&md);
}

static void suggestions(void **state) {
    (void)state;
    static const char *const known[] = {"serve", "presses", "inspect", "tokenize", "version", "ctx-size"};
    static const struct {
        const char *word, *want;
    } t[] = {
        {"serv", "serve"},      {"sevre", "serve"},     {"press", "presses"},  {"Version", "version"},
        {"tokenise", "tokenize"}, {"ctx_size", "ctx-size"}, {"ins", "inspect"}, {"xyz", NULL},
        {"", NULL},             {"s", NULL},            {"server", "serve"},   {"transmogrify", NULL},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        pd_suggest s = {.word = t[i].word};
        for (size_t k = 0; k < sizeof known / sizeof *known; k++) pd_suggest_offer(&s, known[k]);
        if (!t[i].want)
            assert_null(s.best);
        else if (!s.best || strcmp(s.best, t[i].want) != 0)
            fail_msg("'%s' gave %s", t[i].word, s.best ? s.best : "nothing");
    }
    char longest[65];
    memset(longest, 'a', 64);
    longest[64] = '\0';
    pd_suggest s = {.word = longest};
    pd_suggest_offer(&s, "a");
    assert_null(s.best);
    s.word = longest + 1;
    pd_suggest_offer(&s, longest + 1);
    assert_string_equal(s.best, longest + 1);
}

/* Random words, made of pieces that mean something: any outcome but a crash, a
 * leak or a message that is not a line of UTF-8. */
static void random_words(void **state) {
    (void)state;
    static const char *const piece[] = {
        "--", "-", "=", "no-", "port", "model", "ctx-size", "np", "metrics", "compression", "api-key", "host",
        "kv-cache-bytes", "{", "}", "\"press\":", "\"a\"", ",", "0", "65535", "99999999999999999999", "K", "iB",
        "f32", " ", "\xC3", "\xA9", "\n", "\x7F", "config", "/dev/null", "%s%n", "_", "PRESSD_", "", "PORT", "tcp://",
    };
    const size_t n_piece = sizeof piece / sizeof *piece;
    pd_mt19937 rng;
    pd_mt19937_seed(&rng, 20240607);
    size_t ok = 0;
    for (int round = 0; round < 20000; round++) {
        char words[ARGS_MAX][80], envs[3][80], *argv[ARGS_MAX + 1], *env[4];
        const int argc = 1 + (int)(pd_mt19937_next(&rng) % 5), envc = (int)(pd_mt19937_next(&rng) % 3);
        for (int i = 0; i < argc + envc; i++) {
            char *w = i < argc ? words[i] : envs[i - argc];
            size_t len = 0;
            if (i >= argc) len = (size_t)snprintf(w, 80, "PRESSD_");
            for (unsigned k = pd_mt19937_next(&rng) % 5 + (round % 2 == 0); k > 0; k--) {
                const char *p = piece[pd_mt19937_next(&rng) % n_piece];
                if (len + strlen(p) >= 80) break;
                len += (size_t)snprintf(w + len, 80 - len, "%s", p);
            }
            w[len] = '\0';
            *(i < argc ? &argv[i] : &env[i - argc]) = w;
        }
        if (round % 3 == 0 && argc > 1) snprintf(words[1], 80, "--%s", pd__options[round % pd__n_options].name);
        argv[argc] = NULL;
        env[envc] = NULL;
        pd_config c;
        pd_err err = {0};
        bool help = false;
        const pd_status rc = pd_config_load(&c, argc, argv, env, &help, &err);
        if (rc == PD_OK) {
            ok++;
            pd_buf dump = {0};
            pd_config_json(&c, &dump);
            assert_false(dump.failed);
            pd_buf_done(&dump);
            pd_config_done(&c);
            continue;
        }
        assert_int_equal(rc, PD_EINVAL);
        assert_int_equal(err.code, PD_EINVAL);
        assert_true(err.msg[0] != '\0' && pd_utf8_valid(err.msg, strlen(err.msg)));
    }
    assert_true(ok > 100); /* the generator reaches the accepting paths too */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(rows_cover_the_struct),
        cmocka_unit_test(flags_in_all_forms),
        cmocka_unit_test(help_beats_everything),
        cmocka_unit_test(sizes),
        cmocka_unit_test(ranges_of_every_row),
        cmocka_unit_test(precedence),
        cmocka_unit_test(every_error_names_its_place),
        cmocka_unit_test(file_bounds),
        cmocka_unit_test(compression_is_kept_as_compact_text),
        cmocka_unit_test(variables_of_others_are_left_alone),
        cmocka_unit_test(effective_settings_load_again),
        cmocka_unit_test(example_file_loads),
        cmocka_unit_test(texts_hold_every_row),
        cmocka_unit_test(suggestions),
        cmocka_unit_test(random_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
