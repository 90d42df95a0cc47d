/* SPDX-License-Identifier: Apache-2.0 */
/* What the machine could do at best: the bounds that tests/bench compares with.
 *
 *     bench_limits THREADS SECONDS [MB...]
 *
 * Prints CSV: what, size, value, unit.  `read` is a plain pass over a buffer of
 * so many MB (10^6 bytes) that the threads share, huge pages asked for, as one
 * stream a thread and as four, the better one; `int8` and `f32` are the widest dot product
 * and multiply-add instructions on registers alone, operations being multiplies
 * and adds.  Each figure is the best pass of those that fit the seconds, since
 * others on the machine can only slow one down.  Code is chosen at run time, as
 * in the engine. */
#include "engine/kernels/kernels.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { MAX_THREADS = 256, PEAK_STEPS = 200000, PEAK_CHAINS = 12, LINE = 64 };

typedef struct {
    void (*run)(const void *x, size_t bytes); /* a thread's share of one pass */
    const char *x;
    size_t bytes;
} job;

static _Thread_local volatile uint64_t sink; /* keeps the loops from being dropped */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* ---- passes on all threads ---- */

static struct {
    pthread_barrier_t begin, end;
    job share[MAX_THREADS];
    size_t n;
    bool stop;
} team;

static void *worker(void *arg) {
    const job *j = arg;
    for (;;) {
        pthread_barrier_wait(&team.begin);
        if (team.stop) return NULL;
        j->run(j->x, j->bytes);
        pthread_barrier_wait(&team.end);
    }
}

static double one_pass(void) {
    pthread_barrier_wait(&team.begin);
    const double t0 = now();
    team.share[0].run(team.share[0].x, team.share[0].bytes);
    pthread_barrier_wait(&team.end);
    return now() - t0;
}

/* Seconds of the fastest pass; the buffer is shared out in whole lines. */
static double best(void (*run)(const void *, size_t), const char *x, size_t bytes, double seconds) {
    for (size_t i = 0; i < team.n; i++) {
        const size_t line = bytes / LINE, a = line * i / team.n, b = line * (i + 1) / team.n;
        team.share[i] = (job){.run = run, .x = x ? x + a * LINE : NULL, .bytes = (b - a) * LINE};
    }
    one_pass();
    double ret = 1e9;
    for (const double end = now() + seconds; now() < end;) {
        const double t = one_pass();
        if (t < ret) ret = t;
    }
    return ret;
}

/* ---- reading ---- */

/* `streams` runs of lines side by side, all of one length; what the division
 * leaves over (below 64 lines) is not read. */
#define READ_BODY(V, LOAD, ADD, ZERO, streams)                                                  \
    const size_t step = bytes / LINE / (streams) * LINE;                                        \
    V s[streams][LINE / sizeof(V)];                                                             \
    for (size_t c = 0; c < (streams); c++)                                                      \
        for (size_t k = 0; k < LINE / sizeof(V); k++) s[c][k] = ZERO();                         \
    for (size_t i = 0; i < step; i += LINE)                                                     \
        for (size_t c = 0; c < (streams); c++)                                                  \
            for (size_t k = 0; k < LINE / sizeof(V); k++)                                       \
                s[c][k] = ADD(s[c][k], LOAD((const void *)((const char *)x + c * step + i +     \
                                                           k * sizeof(V))));                    \
    uint64_t out[LINE / 8];                                                                     \
    for (size_t c = 0; c < (streams); c++) {                                                    \
        memcpy(out, s[c], LINE);                                                                \
        sink += out[0];                                                                         \
    }

#define PLAIN_LOAD(p) (*(const uint64_t *)(p))
#define PLAIN_ADD(a, b) ((a) + (b))
#define PLAIN_ZERO() 0

static void read_plain_1(const void *x, size_t bytes) {
    READ_BODY(uint64_t, PLAIN_LOAD, PLAIN_ADD, PLAIN_ZERO, 1)
}
static void read_plain_4(const void *x, size_t bytes) {
    READ_BODY(uint64_t, PLAIN_LOAD, PLAIN_ADD, PLAIN_ZERO, 4)
}

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vnni")))

AVX2 static void read_avx2_1(const void *x, size_t bytes) {
    READ_BODY(__m256i, _mm256_load_si256, _mm256_add_epi64, _mm256_setzero_si256, 1)
}
AVX2 static void read_avx2_4(const void *x, size_t bytes) {
    READ_BODY(__m256i, _mm256_load_si256, _mm256_add_epi64, _mm256_setzero_si256, 4)
}
AVX512 static void read_avx512_1(const void *x, size_t bytes) {
    READ_BODY(__m512i, _mm512_load_si512, _mm512_add_epi64, _mm512_setzero_si512, 1)
}
AVX512 static void read_avx512_4(const void *x, size_t bytes) {
    READ_BODY(__m512i, _mm512_load_si512, _mm512_add_epi64, _mm512_setzero_si512, 4)
}

/* ---- instructions on registers: 12 chains, since a latency of 5 on two ports needs 10 ---- */

#define CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define DECLARE(i) s##i = x,
#define STEP(i)               \
    s##i = OP(s##i);          \
    __asm__ volatile("" : "+v"(s##i)); /* keeps the loop as it is */
#define STEP2(i)              \
    s##i = OP(s##i);          \
    __asm__ volatile("" : "+x"(s##i));
#define CHAIN_BODY(V, STEP)             \
    (void)arg, (void)bytes;             \
    V CHAINS(DECLARE) unused = x;       \
    (void)unused;                       \
    for (int i = 0; i < PEAK_STEPS; i++) { CHAINS(STEP) }

AVX512 static void int8_vnni(const void *arg, size_t bytes) {
    const __m512i x = _mm512_set1_epi8(3);
#define OP(s) _mm512_dpbusd_epi32(s, x, x)
    CHAIN_BODY(__m512i, STEP)
#undef OP
}
AVX512 static void f32_avx512(const void *arg, size_t bytes) {
    const __m512 x = _mm512_set1_ps(0.5f);
#define OP(s) _mm512_fmadd_ps(s, x, x)
    CHAIN_BODY(__m512, STEP)
#undef OP
}
/* Without a dot product instruction: multiply to 16 bits, add pairs to 32, add. */
AVX2 static void int8_avx2(const void *arg, size_t bytes) {
    const __m256i x = _mm256_set1_epi8(3), one = _mm256_set1_epi16(1);
#define OP(s) _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(s, x), one))
    CHAIN_BODY(__m256i, STEP2)
#undef OP
}
AVX2 static void f32_avx2(const void *arg, size_t bytes) {
    const __m256 x = _mm256_set1_ps(0.5f);
#define OP(s) _mm256_fmadd_ps(s, x, x)
    CHAIN_BODY(__m256, STEP2)
#undef OP
}
#endif

/* ---- figures ---- */

static void report(const char *what, double size, double value, const char *unit) {
    printf("%s,%.0f,%.4g,%s\n", what, size, value, unit);
    fflush(stdout);
}

static void bandwidth(double mb, double seconds) {
    const size_t bytes = (size_t)(mb * 1e6) / LINE * LINE, huge = (size_t)2 << 20;
    char *x = aligned_alloc(huge, (bytes + huge - 1) / huge * huge);
    if (!x) fail("aligned_alloc");
    madvise(x, bytes, MADV_HUGEPAGE); /* a wish; refused, the figure is that of small pages */
    memset(x, 1, bytes);
    void (*run[2])(const void *, size_t) = {read_plain_1, read_plain_4};
#if defined(__x86_64__)
    if (pd_cpu_detect() & PD_CPU_VNNI) {
        run[0] = read_avx512_1, run[1] = read_avx512_4;
    } else if (pd_cpu_detect() & PD_CPU_AVX2) {
        run[0] = read_avx2_1, run[1] = read_avx2_4;
    }
#endif
    double t = 1e9;
    for (int i = 0; i < 2; i++) {
        const double s = best(run[i], x, bytes, seconds / 2);
        if (s < t) t = s;
    }
    report("read", mb, (double)bytes / t * 1e-9, "GB/s");
    free(x);
}

#if defined(__x86_64__)
static void peak(const char *what, void (*run)(const void *, size_t), double lanes_ops,
                 double seconds) {
    const double ops = lanes_ops * PEAK_STEPS * PEAK_CHAINS * (double)team.n;
    report(what, 0, ops / best(run, NULL, 0, seconds) * 1e-9, "GOP/s");
}

static void peaks(double seconds) {
    const unsigned cpu = pd_cpu_detect();
    if (cpu & PD_CPU_VNNI) {
        peak("int8", int8_vnni, 128, seconds);
        peak("f32", f32_avx512, 32, seconds);
    } else if (cpu & PD_CPU_AVX2) {
        peak("int8", int8_avx2, 64, seconds);
        peak("f32", f32_avx2, 16, seconds);
    }
}
#else
static void peaks(double seconds) {
    (void)seconds; /* no instruction is timed yet: reading alone */
}
#endif

int main(int argc, char **argv) {
    const unsigned long n = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    const double seconds = argc > 2 ? strtod(argv[2], NULL) : 0;
    if (n < 1 || n > MAX_THREADS || !(seconds > 0)) {
        fprintf(stderr, "usage: bench_limits THREADS (1..%d) SECONDS [MB...]\n", MAX_THREADS);
        return 2;
    }
    team.n = n;
    if (pthread_barrier_init(&team.begin, NULL, (unsigned)team.n) ||
        pthread_barrier_init(&team.end, NULL, (unsigned)team.n))
        fail("pthread_barrier_init");
    pthread_t thread[MAX_THREADS];
    for (size_t i = 1; i < team.n; i++)
        if (pthread_create(&thread[i], NULL, worker, &team.share[i])) fail("pthread_create");
    printf("what,size,value,unit\n");
    peaks(seconds);
    for (int i = 3; i < argc; i++) {
        const double mb = strtod(argv[i], NULL);
        if (mb > 0) bandwidth(mb, seconds);
    }
    team.stop = true;
    pthread_barrier_wait(&team.begin);
    for (size_t i = 1; i < team.n; i++) pthread_join(thread[i], NULL);
    return 0;
}
