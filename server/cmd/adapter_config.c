/* SPDX-License-Identifier: Apache-2.0 */
/* Reading adapter_config.json (see adapter_config.h).  The names are those of PEFT's LoraConfig. */
#include "server/cmd/adapter_config.h"

#include "engine/base/file.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_MAX = 1 << 16 };

/* Members that change what an adapter computes; false, null and empty ones do not. */
static const char *const refused[] = {
    "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication",
    "alora_invocation_tokens", "target_parameters", "trainable_token_indices", "megatron_config", "arrow_config", "velora_config", "monteclora_config", "kasa_config",
};

static bool is_set(const json_t *v) {
    return !(v == NULL || json_is_null(v) || json_is_false(v) || (json_is_array(v) && json_array_size(v) == 0) ||
             (json_is_object(v) && json_object_size(v) == 0));
}

/* The projections named in a list; a text is a pattern, which names none. */
static pd_status read_targets(const json_t *list, const char *path, unsigned *ret, pd_err *err) {
    if (json_is_string(list)) return PD_OK;
    if (!json_is_array(list) || json_array_size(list) == 0) return pd_file_fail(path, err, "target_modules is no list of projections");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i)), *dot = name ? strrchr(name, '.') : NULL;
        const char *last = dot ? dot + 1 : name ? name : "";
        unsigned p = 0;
        while (p < PD_PROJ_N && strcmp(last, pd_proj_name((pd_proj)p)) != 0) p++;
        if (p == PD_PROJ_N)
            return pd_file_fail(path, err, "target_modules[%zu] is '%.60s'; q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj can be adapted",
                                i, name ? name : "no text");
        *ret |= 1u << p;
    }
    return PD_OK;
}

static pd_status read_config(const json_t *root, const char *path, pd_lora_config *ret, pd_err *err) {
    const char *type = json_string_value(json_object_get(root, "peft_type")), *bias = json_string_value(json_object_get(root, "bias"));
    const json_t *r = json_object_get(root, "r"), *alpha = json_object_get(root, "lora_alpha");
    if (!type || strcmp(type, "LORA") != 0) return pd_file_fail(path, err, "peft_type is '%.40s'; LORA is read", type ? type : "?");
    if (!json_is_integer(r) || json_integer_value(r) < 1 || json_integer_value(r) > PD_ADAPTER_RANK_MAX)
        return pd_file_fail(path, err, "r is no whole number in 1..%d", PD_ADAPTER_RANK_MAX);
    if (!json_is_number(alpha) || !isfinite(json_number_value(alpha))) return pd_file_fail(path, err, "lora_alpha is no number");
    if (bias && strcmp(bias, "none") != 0) return pd_file_fail(path, err, "bias is '%.40s'; none is read", bias);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (is_set(json_object_get(root, refused[i]))) return pd_file_fail(path, err, "%s is set, which is not read", refused[i]);
    const double rank = (double)json_integer_value(r);
    *ret = (pd_lora_config){.rank = (size_t)rank};
    ret->scale = json_number_value(alpha) / (json_is_true(json_object_get(root, "use_rslora")) ? sqrt(rank) : rank);
    return read_targets(json_object_get(root, "target_modules"), path, &ret->targets, err);
}

pd_status pd_adapter_config_read(const char *path, pd_lora_config *ret, pd_err *err) {
    char *text;
    size_t n;
    PD_TRY(pd_file_read(path, CONFIG_MAX, &text, &n, err));
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    free(text);
    const pd_status rc = json_is_object(root) ? read_config(root, path, ret, err) : pd_file_fail(path, err, "is no JSON object");
    json_decref(root);
    return rc;
}
