/* SPDX-License-Identifier: Apache-2.0 */
/* Memory limits (see sysmem.h).  sysinfo() rather than /proc/meminfo: a service
 * manager may hide the latter. */
#include "engine/base/sysmem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

/* A number in a one-line file; UINT64_MAX for "max", nonsense or no file. */
static uint64_t read_limit(const char *path) {
    FILE *f = fopen(path, "re");
    if (!f) return UINT64_MAX;
    char line[64];
    uint64_t v = UINT64_MAX;
    if (fgets(line, sizeof line, f)) {
        char *end;
        const unsigned long long x = strtoull(line, &end, 10);
        if (end != line) v = x;
    }
    fclose(f);
    return v;
}

/* The tightest of root/<group>/file and the same in every parent group. */
static uint64_t climb(const char *root, char *group, const char *file) {
    uint64_t least = UINT64_MAX;
    for (;;) {
        char path[4096 + 128];
        snprintf(path, sizeof path, "%s%s/%s", root, group, file);
        const uint64_t v = read_limit(path);
        if (v < least) least = v;
        char *slash = strrchr(group, '/');
        if (!slash) return least;
        *slash = '\0';
    }
}

static uint64_t cgroup_limit(void) {
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (!f) return UINT64_MAX;
    uint64_t least = UINT64_MAX;
    char line[4096];
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        uint64_t v = UINT64_MAX;
        if (controllers[1] == '\0')
            v = climb("/sys/fs/cgroup", group, "memory.max");
        else if (strstr(controllers + 1, "memory"))
            v = climb("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes");
        if (v < least) least = v;
    }
    fclose(f);
    return least;
}

uint64_t pd_sysmem_limit(void) {
    struct sysinfo si;
    uint64_t limit = (uint64_t)1 << 30;
    if (sysinfo(&si) == 0 && si.totalram) limit = (uint64_t)si.totalram * si.mem_unit;
    const uint64_t group = cgroup_limit();
    return group && group < limit ? group : limit;
}

uint64_t pd_sysmem_rss(void) {
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) return 0;
    unsigned long long size, resident;
    const int n = fscanf(f, "%llu %llu", &size, &resident);
    fclose(f);
    return n == 2 ? resident * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}
