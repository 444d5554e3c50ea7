/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory, file descriptors, threads and time of this process.  What /proc does not tell is left
 * out.
 */
#include "process_metrics.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"

#define US 1000000u

static void write_value(struct metrics *m, const char *name, const char *help, uint64_t value)
{
    metrics_family(m, name, "gauge", help);
    metrics_value(m, NULL, value);
}

static void write_memory(struct metrics *m)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    FILE *file = fopen("/proc/self/statm", "re");
    uint64_t virtual_pages, resident_pages;

    if (!file)
        return;
    if (fscanf(file, "%" SCNu64 " %" SCNu64, &virtual_pages, &resident_pages) == 2) {
        write_value(m, "process_virtual_memory_bytes", "Virtual memory size.",
                    virtual_pages * page);
        write_value(m, "process_resident_memory_bytes", "Resident memory size.",
                    resident_pages * page);
    }
    fclose(file);
}

static void write_fds(struct metrics *m)
{
    DIR *dir = opendir("/proc/self/fd");
    const struct dirent *entry;
    struct rlimit limit;
    uint64_t nr = 0;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        write_value(m, "process_max_fds", "Maximum number of open file descriptors.",
                    limit.rlim_cur);
    if (!dir)
        return;
    while ((entry = readdir(dir)))
        nr += entry->d_name[0] != '.';
    closedir(dir);
    write_value(m, "process_open_fds", "Number of open file descriptors.", nr - 1); /* dir's own */
}

/* Threads (the 20th field of /proc/self/stat) and clock ticks from booting to the start (22nd). */
static bool read_stat(uint64_t *ret_threads, uint64_t *ret_start_ticks)
{
    char text[1024] = "";
    FILE *file = fopen("/proc/self/stat", "re");
    const char *rest;

    if (!file)
        return false;
    text[fread(text, 1, sizeof(text) - 1, file)] = 0;
    fclose(file);
    rest = strrchr(text, ')'); /* the name may hold anything */
    return rest && sscanf(rest + 1,
                          " %*c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s "
                          "%" SCNu64 " %*s %" SCNu64,
                          ret_threads, ret_start_ticks) == 2;
}

static uint64_t now_us(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * US + (uint64_t)now.tv_nsec / 1000;
}

static void write_start(struct metrics *m)
{
    const uint64_t hz = (uint64_t)sysconf(_SC_CLK_TCK);
    uint64_t threads, ticks;

    if (!read_stat(&threads, &ticks))
        return;
    write_value(m, "process_threads", "Number of threads.", threads);
    metrics_family(m, "process_start_time_seconds", "gauge",
                   "Start time of the process since unix epoch.");
    metrics_seconds(m, NULL, now_us(CLOCK_REALTIME) - now_us(CLOCK_BOOTTIME) + ticks * US / hz);
}

void process_write_metrics(void *unused, struct metrics *m)
{
    (void)unused;
    metrics_family(m, "cairn_build_info", "gauge", "1, with the version that runs.");
    metrics_value(m, "version=\"" CAIRN_VERSION "\"", 1);
    write_memory(m);
    write_fds(m);
    write_start(m);
    metrics_family(m, "process_cpu_seconds_total", "counter", "Total user and system CPU time.");
    metrics_seconds(m, NULL, now_us(CLOCK_PROCESS_CPUTIME_ID));
}
