/* SPDX-License-Identifier: Apache-2.0 */
/* pressd import-press-data: published press data into the file that serve reads.
 *
 * An existing file of the same model keeps its other sets. */
#include "compression/import_data.h"
#include "engine/base/file.h"
#include "engine/model/model.h"
#include "server/cmd/adapter_config.h"
#include "server/cmd/list.h"
#include "server/cmd/press_file.h"

#include <jansson.h>
#include <string.h>

enum { FILES_MAX = 3, CONFIG_MAX = 1 << 16 };

typedef struct {
    const char *model, *kind, *out, *file[FILES_MAX];
    size_t n_file;
} options;

/* sink_size and recent_size of DuoAttention's config.json. */
static pd_status read_sizes(const char *path, size_t *sink, size_t *recent, pd_err *err) {
    char *text;
    size_t n;
    PD_TRY(pd_file_read(path, CONFIG_MAX, &text, &n, err));
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    free(text);
    const json_t *s = json_object_get(root, "sink_size"), *r = json_object_get(root, "recent_size");
    const bool ok = json_is_integer(s) && json_is_integer(r) && json_integer_value(s) >= 0 &&
                    json_integer_value(r) >= 1 && json_integer_value(s) <= PD_DUO_SIZE_MAX &&
                    json_integer_value(r) <= PD_DUO_SIZE_MAX;
    *sink = ok ? (size_t)json_integer_value(s) : 0;
    *recent = ok ? (size_t)json_integer_value(r) : 0;
    json_decref(root);
    if (ok) return PD_OK;
    return pd_file_fail(path, err, "holds no sink_size in 0..%d and recent_size in 1..%d",
                        PD_DUO_SIZE_MAX, PD_DUO_SIZE_MAX);
}

static pd_status import_duo(pd_press_data *d, const options *o, pd_err *err) {
    size_t sink, recent;
    if (o->n_file != 2)
        return pd_fail(err, PD_EINVAL, NULL,
                       "--kind duo takes two files: full_attention_heads.tsv and config.json");
    PD_TRY(read_sizes(o->file[1], &sink, &recent, err));
    return pd_import_duo(d, o->file[0], sink, recent, err);
}

static pd_status import_restorekv(pd_press_data *d, const options *o, pd_data_set set, pd_err *err) {
    pd_lora_config c = {0};
    if (o->n_file != 3)
        return pd_fail(err, PD_EINVAL, NULL,
                       "--kind %s takes three files: restore_embeddings.safetensors, adapter_model.safetensors and adapter_config.json", o->kind);
    PD_TRY(pd_adapter_config_read(o->file[2], &c, err));
    return pd_import_restorekv(d, set, o->file[0], o->file[1], &c, err);
}

static pd_status import(pd_press_data *d, const options *o, pd_err *err) {
    static const struct {
        const char *kind;
        pd_status (*read)(pd_press_data *d, const char *path, pd_err *err);
    } one[] = {
        {"stats", pd_import_stats},
        {"qfilter", pd_import_qfilter},
        {"kvzap", pd_import_kvzap},
        {"lukv", pd_import_lukv},
        {"fastkvzip", pd_import_fastkvzip},
    };
    if (strcmp(o->kind, "duo") == 0) return import_duo(d, o, err);
    if (strcmp(o->kind, "restorekv") == 0) return import_restorekv(d, o, PD_SET_RESTORE, err);
    if (strcmp(o->kind, "restorekv_plus") == 0) return import_restorekv(d, o, PD_SET_RESTORE_PLUS, err);
    for (size_t i = 0; i < sizeof one / sizeof *one; i++) {
        if (strcmp(one[i].kind, o->kind) != 0) continue;
        if (o->n_file != 1)
            return pd_fail(err, PD_EINVAL, NULL, "--kind %s takes one file", o->kind);
        return one[i].read(d, o->file[0], err);
    }
    return pd_fail(err, PD_EINVAL, "--kind",
                   "--kind is '%.40s'; stats, qfilter, kvzap, duo, lukv, fastkvzip, restorekv and restorekv_plus are known", o->kind);
}

static pd_status model_of(const char *path, pd_press_model *model, pd_err *err) {
    pd_gguf *g;
    pd_hparams hp;
    PD_TRY(pd_gguf_open(&g, path, err));
    const pd_status rc = pd_model_hparams(g, NULL, &hp, err);
    pd_gguf_close(g);
    PD_TRY(rc);
    *model = (pd_press_model){hp.n_layer, hp.n_head, hp.n_head_kv, hp.head_dim, hp.n_embd, hp.n_ff, NULL};
    return PD_OK;
}

static int convert(const options *o) {
    pd_err err = {0};
    pd_press_file f = {0};
    pd_press_model model;
    pd_status rc = model_of(o->model, &model, &err);
    if (rc == PD_OK) rc = pd_press_file_open(&f, o->model, o->out, &model, &err);
    if (rc == PD_OK) rc = import(f.data, o, &err);
    if (rc == PD_OK) rc = pd_press_file_save(&f, o->out, &err);
    pd_press_file_close(&f);
    return rc == PD_OK ? 0 : pd_cmd_fail(&err);
}

static int print_help(void) {
    pd_buf out = {0};
    pd_buf_printf(&out, "usage: pressd import-press-data %s\n\n%s", pd_cmd_import_press_data.usage,
                  "Converts what the authors of a press published for this very model. Of an "
                  "existing DATA file of\n"
                  "the same model the other sets stay.\n"
                  "\n"
                  "  stats      model.safetensors of kvpress' expected attention statistics\n"
                  "  qfilter    model.safetensors of Q-Filters\n"
                  "  kvzap      model.safetensors of KVzap, linear or MLP\n"
                  "  duo        full_attention_heads.tsv and config.json of DuoAttention\n"
                  "  lukv       budget curves of LU-KV, .npy\n"
                  "  fastkvzip  gates of Fast KVzip; they are published pickled, which is not read: save them\n"
                  "             as safetensors first, tensor NAME of layer L as layers.L.NAME\n"
                  "  restorekv  restore_embeddings.safetensors of RestoreKV, and adapter_model.safetensors and\n"
                  "             adapter_config.json of the LoRA adapter beside it; restorekv_plus: those that\n"
                  "             were trained with kvzip_plus_normalization\n");
    return pd_cmd_print(&out);
}

static int run(int argc, char **argv) {
    const pd_cmd *me = &pd_cmd_import_press_data;
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0))
        return print_help();
    options o = {0};
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        const char **value = strcmp(a, "-m") == 0 || strcmp(a, "--model") == 0    ? &o.model
                             : strcmp(a, "-o") == 0 || strcmp(a, "--output") == 0 ? &o.out
                             : strcmp(a, "--kind") == 0                           ? &o.kind
                                                                                  : NULL;
        if (value) {
            if (++i == argc) return pd_cmd_usage(me, "nothing after", a);
            *value = argv[i];
        } else if (a[0] == '-') {
            return pd_cmd_usage(me, "unknown option", a);
        } else if (o.n_file == FILES_MAX) {
            return pd_cmd_usage(me, "more files than any kind has:", a);
        } else {
            o.file[o.n_file++] = a;
        }
    }
    if (!o.model) return pd_cmd_usage(me, "no model given", NULL);
    if (!o.kind) return pd_cmd_usage(me, "no kind given", NULL);
    if (!o.out) return pd_cmd_usage(me, "no output given", NULL);
    return convert(&o);
}

const pd_cmd pd_cmd_import_press_data = {
    .name = "import-press-data",
    .usage = "-m MODEL --kind stats|qfilter|kvzap|duo|lukv|fastkvzip|restorekv|restorekv_plus FILE... -o DATA",
    .summary = "convert published press data of a model; serve it with --press-data",
    .run = run,
};
