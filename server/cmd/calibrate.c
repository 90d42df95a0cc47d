/* SPDX-License-Identifier: Apache-2.0 */
/* pressd calibrate: measure what presses need to know of a model, from a text.
 *
 * An existing file of the same model keeps the sets that are not measured anew. */
#include "engine/base/file.h"
#include "engine/base/log.h"
#include "engine/base/utf8.h"
#include "engine/run/calibrate.h"
#include "server/cmd/bases_report.h"
#include "server/cmd/list.h"
#include "server/cmd/press_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MAX ((size_t)256 << 20)

static const struct {
    const char *name;
    pd_data_set set;
} parts[] = {
    {"stats", PD_SET_STATS},        {"qfilter", PD_SET_QFILTER}, {"duo", PD_SET_DUO_CALIBRATED},
    {"kvzap", PD_SET_KVZAP_LINEAR}, {"lukv", PD_SET_LUKV},       {"eigen", PD_SET_EIGEN},
    {"joint", PD_SET_JOINT},        {"codes", PD_SET_CODES},     {"fastkvzip", PD_SET_FASTKVZIP},
};
enum { N_PARTS = sizeof parts / sizeof *parts };

typedef struct {
    const char *model, *text, *only, *out, *tokens, *chunk, *repeat_tokens, *threads, *compute;
} words;

typedef struct {
    pd_calibrate_opts calib;
    pd_engine_opts engine;
} options;

/* ---- the command line ---- */

static pd_status number(const char *text, const char *name, size_t min, size_t max, size_t *ret,
                        pd_err *err) {
    if (!text) return PD_OK;
    char *end;
    errno = 0;
    const unsigned long long v = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || v < min || v > max)
        return pd_fail(err, PD_EINVAL, name, "%s must be a number in %zu..%zu, not '%.40s'", name,
                       min, max, text);
    *ret = (size_t)v;
    return PD_OK;
}

static const char read_parts[] = "stats,qfilter,duo,kvzap,lukv,fastkvzip,eigen,joint,codes"; /* by a press */

/* "stats,duo" -> bits. */
static pd_status parse_only(const char *list, unsigned *ret, pd_err *err) {
    unsigned sets = 0;
    for (const char *p = list ? list : read_parts; *p;) {
        const size_t n = strcspn(p, ",");
        size_t i = 0;
        while (i < N_PARTS && !(strlen(parts[i].name) == n && memcmp(parts[i].name, p, n) == 0))
            i++;
        if (i == N_PARTS)
            return pd_fail(
                err, PD_EINVAL, "--only",
                "--only has the word '%.*s'; it lists some of stats, qfilter, duo, kvzap, lukv, eigen, joint, codes, fastkvzip",
                (int)(n < 40 ? n : 40), p);
        sets |= 1u << parts[i].set;
        p += n + (p[n] == ',');
    }
    if (!sets) return pd_fail(err, PD_EINVAL, "--only", "--only is empty");
    *ret = sets;
    return PD_OK;
}

static pd_status parse_values(const words *w, options *o, pd_err *err) {
    size_t threads = 0;
    o->calib.tokens = 100000;
    o->calib.chunk = 1024;
    o->calib.repeat_tokens = 32768;
    PD_TRY(parse_only(w->only, &o->calib.sets, err));
    PD_TRY(number(w->tokens, "--tokens", 32, 100000000, &o->calib.tokens, err));
    PD_TRY(number(w->chunk, "--chunk", 32, 1 << 20, &o->calib.chunk, err));
    PD_TRY(
        number(w->repeat_tokens, "--repeat-tokens", 32, 100000000, &o->calib.repeat_tokens, err));
    PD_TRY(number(w->threads, "--threads", 0, 256, &threads, err));
    if (w->compute && strcmp(w->compute, "f32") != 0 && strcmp(w->compute, "int8") != 0)
        return pd_fail(err, PD_EINVAL, "--compute", "--compute must be int8 or f32, not '%.40s'",
                       w->compute);
    o->engine = (pd_engine_opts){
        .model_path = w->model, .n_threads = (unsigned)threads, .cpu_mask = ~0u, .parallel = 1};
    o->engine.compute =
        w->compute && strcmp(w->compute, "f32") == 0 ? PD_COMPUTE_F32 : PD_COMPUTE_INT8;
    return PD_OK;
}

static int print_help(void) {
    pd_buf out = {0};
    pd_buf_printf(
        &out, "usage: pressd calibrate %s\n\n%s", pd_cmd_calibrate.usage,
        "Reads a text with the model and measures what presses need to know of it. Of an existing "
        "DATA\n"
        "file of the same model the sets that are not measured anew stay.\n"
        "\n"
        "  -m, --model MODEL    the GGUF file\n"
        "      --text FILE      UTF-8 text of the kind the model will read\n"
        "  -o, --output DATA    the file to make, for pressd serve --press-data\n"
        "      --only LIST      some of the words below; without it all that a press reads\n"
        "      --tokens N       of the text, at most (default 100000)\n"
        "      --chunk N        tokens of one prompt (default 1024)\n"
        "      --repeat-tokens N  at most so many are read twice, for kvzap, lukv and fastkvzip\n"
        "                   (default 32768)\n"
        "  -t, --threads N      compute threads; 0 = chosen\n"
        "      --compute TYPE   int8 or f32 (default int8)\n"
        "\n"
        "  stats      mean and covariance of queries      press expected_attention_stats\n"
        "  qfilter    main direction of queries           press qfilter\n"
        "  duo        how far back heads look             press duo_attention\n"
        "  kvzap      linear regressors                   press kvzap, model_type linear\n"
        "  lukv       budget curves of layers and heads   press lukv\n"
        "  fastkvzip  gates on each layer's input         press fastkvzip\n"
        "  eigen      bases of keys and values            press eigen_attention\n"
        "  joint      bases of all heads' keys together   press sals\n"
        "  codes      codebooks of keys                   press hcattention, sub_vector\n"
        "\n"
        "For eigen and joint a table is printed: what share of the energy a quarter, half and three quarters\n"
        "of the directions keep, and what share of a layer's output goes with the others.\n");
    return pd_cmd_print(&out);
}

static int parse_words(int argc, char **argv, words *w) {
    const struct {
        const char *name, *brief;
        const char **value;
    } flags[] = {
        {"--model", "-m", &w->model},
        {"--text", NULL, &w->text},
        {"--only", NULL, &w->only},
        {"--output", "-o", &w->out},
        {"--tokens", NULL, &w->tokens},
        {"--chunk", NULL, &w->chunk},
        {"--repeat-tokens", NULL, &w->repeat_tokens},
        {"--threads", "-t", &w->threads},
        {"--compute", NULL, &w->compute},
    };
    for (int i = 1; i < argc; i++) {
        size_t k = 0;
        const size_t n = sizeof flags / sizeof *flags;
        while (k < n && strcmp(argv[i], flags[k].name) != 0 &&
               !(flags[k].brief && strcmp(argv[i], flags[k].brief) == 0))
            k++;
        if (k == n) return pd_cmd_usage(&pd_cmd_calibrate, "unknown option", argv[i]);
        if (++i == argc) return pd_cmd_usage(&pd_cmd_calibrate, "nothing after", argv[i - 1]);
        *flags[k].value = argv[i];
    }
    if (!w->model) return pd_cmd_usage(&pd_cmd_calibrate, "no model given", NULL);
    if (!w->text) return pd_cmd_usage(&pd_cmd_calibrate, "no text given", NULL);
    if (!w->out) return pd_cmd_usage(&pd_cmd_calibrate, "no output given", NULL);
    return 0;
}

/* ---- the work ---- */

static void on_progress(void *arg, size_t done, size_t all) {
    int *last = arg;
    const int tenth = (int)(done * 10 / all);
    if (tenth <= *last) return;
    *last = tenth;
    pd_log(PD_LOG_INFO, "calibrating: step %zu of %zu", done, all);
}

static pd_status measure(const words *w, options *o, pd_buf *report, pd_err *err) {
    pd_engine *e = NULL;
    pd_press_file f = {0};
    int last = 0;
    PD_TRY(pd_engine_open(&e, &o->engine, NULL, NULL, err));
    pd_status rc =
        pd_press_file_open(&f, w->model, w->out, &pd_engine_get_info(e)->press_model, err);
    if (rc == PD_OK) rc = pd_calibrate(e, &o->calib, f.data, on_progress, &last, err);
    if (rc == PD_OK) rc = pd_press_file_save(&f, w->out, err);
    if (rc == PD_OK) pd_bases_report(report, f.data, o->calib.sets);
    pd_press_file_close(&f);
    pd_engine_close(e);
    return rc;
}

static int run(int argc, char **argv) {
    words w = {0};
    options o = {0};
    pd_err err = {0};
    char *text = NULL;
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0))
        return print_help();
    const int usage = parse_words(argc, argv, &w);
    if (usage) return usage;
    pd_status rc = parse_values(&w, &o, &err);
    if (rc == PD_OK) rc = pd_file_read(w.text, TEXT_MAX, &text, &o.calib.len, &err);
    if (rc == PD_OK && !pd_utf8_valid(text, o.calib.len))
        rc = pd_file_fail(w.text, &err, "is not UTF-8 text");
    o.calib.text = text;
    pd_buf report = {0};
    if (rc == PD_OK) rc = measure(&w, &o, &report, &err);
    free(text);
    if (rc == PD_OK) return pd_cmd_print(&report);
    pd_buf_done(&report);
    return pd_cmd_fail(&err);
}

const pd_cmd pd_cmd_calibrate = {
    .name = "calibrate",
    .usage = "-m MODEL --text FILE -o DATA [--only LIST] [--tokens N] [--chunk N] [--repeat-tokens "
             "N] [-t N] [--compute TYPE]",
    .summary = "measure the press data of a model from a text file; serve it with --press-data",
    .run = run,
};
