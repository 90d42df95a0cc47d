/* SPDX-License-Identifier: Apache-2.0 */
/* An engine's answer beside the plain forward pass. */
#ifndef PD_TESTS_UNIT_AGAINST_REF_H
#define PD_TESTS_UNIT_AGAINST_REF_H

#include "tests/unit/engine_case.h"
#include "tests/unit/ref_forward.h"

/* The reference on the prompt and what was generated, at each generated token: the
 * largest difference of log probabilities over what the answer reports (100 each). */
double against_reference(const ref_model *m, const ask *q, const answer *a, ref_sees sees, const void *arg);

#endif
