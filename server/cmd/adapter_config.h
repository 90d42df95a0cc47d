/* SPDX-License-Identifier: Apache-2.0 */
/* A PEFT adapter_config.json: what it says of a plain LoRA. */
#ifndef PD_SERVER_CMD_ADAPTER_CONFIG_H
#define PD_SERVER_CMD_ADAPTER_CONFIG_H

#include "compression/import_data.h"

/* Anything that would make the adapter more or something else than x + B A x * scale in
 * the seven projections is refused by its name.  Errors: EFILE, ENOMEM. */
pd_status pd_adapter_config_read(const char *path, pd_lora_config *ret, pd_err *err);

#endif
