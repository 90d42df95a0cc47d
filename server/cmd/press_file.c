/* SPDX-License-Identifier: Apache-2.0 */
/* See press_file.h. */
#include "server/cmd/press_file.h"

#include "engine/base/log.h"
#include "engine/base/utf8.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

pd_status pd_press_file_open(pd_press_file *f, const char *gguf, const char *path,
                             const pd_press_model *model, pd_err *err) {
    pd_gguf *g;
    uint64_t key = 0;
    pd_str name = {0};
    PD_TRY(pd_gguf_open(&g, gguf, err));
    const pd_status rc = pd_model_key(g, &key, err);
    if (pd_gguf_str(g, "general.name", &name, NULL) != PD_OK) name = (pd_str){gguf, strlen(gguf)};
    snprintf(f->model_name, sizeof f->model_name, "%.*s", (int)(name.len < 120 ? name.len : 120),
             name.data);
    f->model_name[pd_utf8_sanitize(f->model_name, strlen(f->model_name))] =
        '\0'; /* the file's word for it */
    pd_gguf_close(g);
    PD_TRY(rc);
    return access(path, F_OK) == 0 ? pd_press_data_load(&f->data, path, model, key, err)
                                   : pd_press_data_new(&f->data, model, key, err);
}

pd_status pd_press_file_save(const pd_press_file *f, const char *path, pd_err *err) {
    PD_TRY(pd_press_data_save(f->data, path, f->model_name, err));
    for (int id = 0; id < PD_DATA_N; id++)
        if (pd_press_data_get(f->data, (pd_data_id)id))
            pd_log(PD_LOG_INFO, "%s: %s, %zu numbers", path, pd_data_name((pd_data_id)id),
                   pd_press_data_elems(f->data, (pd_data_id)id));
    return PD_OK;
}

void pd_press_file_close(pd_press_file *f) {
    pd_press_data_close(f->data);
}
