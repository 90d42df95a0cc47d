/* SPDX-License-Identifier: Apache-2.0 */
/* The rows of the kernel table: one function per file that overwrites the
 * entries this ISA does better.  Only kernels.c and scalar.c are compiled for
 * the baseline; the others carry their own -m flags and must be called only
 * after detection said yes. */
#ifndef PD_ENGINE_KERNELS_ROWS_H
#define PD_ENGINE_KERNELS_ROWS_H

#include "engine/kernels/kernels.h"

void pd__kernels_init_scalar(pd_kernels *k); /* fills every entry */
void pd__kernels_init_avx2(pd_kernels *k);
void pd__kernels_init_avxvnni(pd_kernels *k);
void pd__kernels_init_avx512(pd_kernels *k);
void pd__kernels_init_vnni(pd_kernels *k);
void pd__kernels_init_gemm_avx2(pd_kernels *k); /* called by their rows */
void pd__kernels_init_few_avx2(pd_kernels *k);
void pd__kernels_init_few_vnni(pd_kernels *k);
void pd__kernels_init_mat_avx2(pd_kernels *k);
void pd__kernels_init_mat_avx512(pd_kernels *k);
void pd__kernels_init_pick_avx2(pd_kernels *k);
void pd__kernels_init_pick_avx512(pd_kernels *k);
void pd__kernels_init_codes_scalar(pd_kernels *k);
void pd__kernels_init_codes_avx2(pd_kernels *k);
void pd__kernels_init_codes_avx512(pd_kernels *k);
void pd__kernels_init_vbmi(pd_kernels *k);
void pd__kernels_init_quad_avx2(pd_kernels *k);
void pd__kernels_init_quad_avx512(pd_kernels *k);
void pd__kernels_init_moments_avx2(pd_kernels *k);
void pd__kernels_init_moments_avx512(pd_kernels *k);
void pd__kernels_init_bf16(pd_kernels *k);

#endif
