/* SPDX-License-Identifier: Apache-2.0 */
/* What measured bases are good for, as a table: what pressd calibrate prints.  Thread: main. */
#ifndef PD_SERVER_CMD_BASES_REPORT_H
#define PD_SERVER_CMD_BASES_REPORT_H

#include "compression/press_data.h"
#include "engine/base/buf.h"

/* A line for each kind of basis that `sets` (bits) has and d holds: the share of energy that a quarter, half
 * and three quarters of the directions keep, then the share of a layer's output that is lost with them, both
 * as the mean over layers and heads.  Nothing if there is none. */
void pd_bases_report(pd_buf *out, const pd_press_data *d, unsigned sets);

#endif
