/* SPDX-License-Identifier: Apache-2.0 */
/* A file of press data at work: what calibrate and import-press-data share.
 * Thread: main. */
#ifndef PD_SERVER_CMD_PRESS_FILE_H
#define PD_SERVER_CMD_PRESS_FILE_H

#include "compression/press_data.h"

typedef struct pd_press_file {
    pd_press_data *data;
    char model_name[128];
} pd_press_file;

/* The data of `path` if such a file is there, else empty data, of the model in
 * the GGUF file `gguf`.  Errors: EFILE (another model's data, not such a file). */
pd_status pd_press_file_open(pd_press_file *f, const char *gguf, const char *path, const pd_press_model *model, pd_err *err);
/* Write it, and say on standard error what is in it. */
pd_status pd_press_file_save(const pd_press_file *f, const char *path, pd_err *err);
void pd_press_file_close(pd_press_file *f); /* zeroed is fine */

#endif
