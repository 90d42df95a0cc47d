/* SPDX-License-Identifier: Apache-2.0 */
/* Which rows of the kernel table this machine can run.
 *
 * A feature counts when CPUID has it and XCR0 says the operating system saves
 * its registers; a hypervisor may grant the first without the second.  This
 * file is compiled for the baseline ISA: it runs before anything is known. */
#include "engine/kernels/kernels.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

enum {
    XCR0_AVX = 0x6,     /* XMM, YMM */
    XCR0_AVX512 = 0xe6, /* ... and opmask, the upper halves of ZMM0-15, ZMM16-31 */
};

static bool has(unsigned reg, unsigned bits) {
    return (reg & bits) == bits;
}

/* Low half of XCR0; only legal once CPUID showed OSXSAVE. */
static unsigned xcr0(void) {
    unsigned lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return lo;
}

unsigned pd_cpu_detect(void) {
    unsigned a, b, c, d, b7, c7, d7;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, bit_OSXSAVE)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return 0;
    const unsigned os = xcr0();
    unsigned flags = 0;
    if (!has(os, XCR0_AVX) || !has(c, bit_AVX | bit_FMA | bit_F16C) || !has(b7, bit_AVX2))
        return flags;
    flags |= PD_CPU_AVX2;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && has(a, bit_AVXVNNI)) flags |= PD_CPU_AVXVNNI;
    if (!has(os, XCR0_AVX512) ||
        !has(b7, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL))
        return flags;
    flags |= PD_CPU_AVX512;
    if (has(c7, bit_AVX512VBMI)) flags |= PD_CPU_VBMI;
    if (!has(c7, bit_AVX512VNNI)) return flags;
    flags |= PD_CPU_VNNI;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && has(a, bit_AVX512BF16)) flags |= PD_CPU_BF16;
    return flags;
}
#else
unsigned pd_cpu_detect(void) {
    return 0;
}
#endif

static const struct {
    const char *name;
    unsigned bits;
} words[] = {
    {"scalar", 0},
    {"avx2", PD_CPU_AVX2},
    {"avxvnni", PD_CPU_AVXVNNI},
    {"avx512", PD_CPU_AVX512},
    {"vbmi", PD_CPU_VBMI},
    {"vnni", PD_CPU_VNNI},
    {"bf16", PD_CPU_BF16},
    {"all", PD_CPU_AVX2 | PD_CPU_AVXVNNI | PD_CPU_AVX512 | PD_CPU_VNNI | PD_CPU_BF16 | PD_CPU_VBMI},
};

pd_status pd_cpu_mask_parse(const char *text, unsigned *ret, pd_err *err) {
    unsigned bits = 0;
    for (const char *p = text;;) {
        const size_t n = strcspn(p, ",");
        size_t i = 0;
        while (i < sizeof words / sizeof *words &&
               (strlen(words[i].name) != n || memcmp(words[i].name, p, n) != 0))
            i++;
        if (i == sizeof words / sizeof *words)
            return pd_fail(err, PD_EINVAL, "cpu_mask",
                           "cpu_mask: unknown word '%.*s'; known: scalar, avx2, avxvnni, avx512, vbmi, vnni, bf16, all",
                           (int)(n < 40 ? n : 40), p);
        bits |= words[i].bits;
        if (p[n] == '\0') break;
        p += n + 1;
    }
    *ret = bits;
    return PD_OK;
}
