/* SPDX-License-Identifier: Apache-2.0 */
#include "alloc_fail.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#define RUNS_MAX 100000

static atomic_long countdown; /* the allocation that takes it to 0 fails */
static atomic_bool failed;
static atomic_long live;

/* -- The wrapped calls ------------------------------------------------------------------------- */

static bool fails(void)
{
    if (atomic_load(&countdown) <= 0 || atomic_fetch_sub(&countdown, 1) != 1)
        return false;
    atomic_store(&failed, true);
    errno = ENOMEM;
    return true;
}

static void *counted(void *p)
{
    if (p)
        atomic_fetch_add(&live, 1);
    return p;
}

/* To the linker shared libraries seem to refer to what is wrapped, as well. */
#define VISIBLE __attribute__((visibility("default")))

/* What the linker calls in the place of NAME, and by what name it lets us call it. */
#define WRAPPED(type, name, ...)                                                                   \
    type __real_##name(__VA_ARGS__);                                                               \
    VISIBLE type __wrap_##name(__VA_ARGS__);                                                       \
    type __wrap_##name(__VA_ARGS__)

WRAPPED(void *, malloc, size_t size)
{
    return fails() ? NULL : counted(__real_malloc(size));
}

WRAPPED(void *, calloc, size_t nr, size_t size)
{
    return fails() ? NULL : counted(__real_calloc(nr, size));
}

WRAPPED(void *, aligned_alloc, size_t alignment, size_t size)
{
    return fails() ? NULL : counted(__real_aligned_alloc(alignment, size));
}

WRAPPED(void *, realloc, void *p, size_t size)
{
    void *moved = fails() ? NULL : __real_realloc(p, size);

    return p ? moved : counted(moved);
}

WRAPPED(void *, reallocarray, void *p, size_t nr, size_t size)
{
    void *moved = fails() ? NULL : __real_reallocarray(p, nr, size);

    return p ? moved : counted(moved);
}

WRAPPED(void, free, void *p)
{
    if (p)
        atomic_fetch_sub(&live, 1);
    __real_free(p);
}

WRAPPED(char *, strdup, const char *text)
{
    return fails() ? NULL : counted(__real_strdup(text));
}

WRAPPED(char *, strndup, const char *text, size_t len)
{
    return fails() ? NULL : counted(__real_strndup(text, len));
}

WRAPPED(char *, realpath, const char *path, char *resolved)
{
    char *ret = fails() ? NULL : __real_realpath(path, resolved);

    return resolved ? ret : counted(ret);
}

WRAPPED(int, vasprintf, char **ret_text, const char *fmt, va_list ap)
{
    int len = fails() ? -1 : __real_vasprintf(ret_text, fmt, ap);

    if (len >= 0)
        counted(*ret_text);
    return len;
}

int __wrap_asprintf(char **ret_text, const char *fmt, ...);
int __wrap_asprintf(char **ret_text, const char *fmt, ...)
{
    va_list ap;
    int len;

    va_start(ap, fmt);
    len = __wrap_vasprintf(ret_text, fmt, ap);
    va_end(ap);
    return len;
}

/* What _FORTIFY_SOURCE makes of the two. */
int __wrap___vasprintf_chk(char **ret_text, int flag, const char *fmt, va_list ap);
int __wrap___vasprintf_chk(char **ret_text, int flag, const char *fmt, va_list ap)
{
    (void)flag;
    return __wrap_vasprintf(ret_text, fmt, ap);
}

int __wrap___asprintf_chk(char **ret_text, int flag, const char *fmt, ...);
int __wrap___asprintf_chk(char **ret_text, int flag, const char *fmt, ...)
{
    va_list ap;
    int len;

    (void)flag;
    va_start(ap, fmt);
    len = __wrap_vasprintf(ret_text, fmt, ap);
    va_end(ap);
    return len;
}

WRAPPED(DIR *, fdopendir, int fd)
{
    return fails() ? NULL : __real_fdopendir(fd);
}

WRAPPED(int, inflateInit2_, z_streamp stream, int bits, const char *version, int size)
{
    return fails() ? Z_MEM_ERROR : __real_inflateInit2_(stream, bits, version, size);
}

WRAPPED(int, deflateInit2_, z_streamp stream, int level, int method, int bits, int mem_level,
        int strategy, const char *version, int size)
{
    if (fails())
        return Z_MEM_ERROR;
    return __real_deflateInit2_(stream, level, method, bits, mem_level, strategy, version, size);
}

WRAPPED(ZSTD_CCtx *, ZSTD_createCCtx, void)
{
    return fails() ? NULL : __real_ZSTD_createCCtx();
}

WRAPPED(ZSTD_DCtx *, ZSTD_createDCtx, void)
{
    return fails() ? NULL : __real_ZSTD_createDCtx();
}

int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    (void)fd;
    return 0;
}

int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
    (void)fd;
    return 0;
}

/* Before json_memory.c, which watches what it finds. */
static __attribute__((constructor(101))) void take_jansson(void)
{
    json_set_alloc_funcs(__wrap_malloc, __wrap_free);
}

/* -- Sweeps ------------------------------------------------------------------------------------ */

void alloc_fail_arm(unsigned nth)
{
    atomic_store(&failed, false);
    atomic_store(&countdown, nth);
}

bool alloc_fail_disarm(void)
{
    atomic_store(&countdown, 0);
    return atomic_load(&failed);
}

long alloc_fail_live(void)
{
    return atomic_load(&live);
}

/* One run; false: no allocation failed. */
static bool run_once(const struct alloc_sweep *sweep, void *arg, unsigned nth)
{
    struct cairn_error err = {.message = ""};
    long before;
    bool one_failed;
    int code;

    if (sweep->prepare)
        sweep->prepare(arg);
    before = alloc_fail_live();
    alloc_fail_arm(nth);
    code = sweep->run(arg, &err);
    one_failed = alloc_fail_disarm();
    if (alloc_fail_live() != before)
        fail_msg("%s: with allocation %u failing (%d, %s), %ld are left over", sweep->name, nth,
                 code, code ? err.message : "", alloc_fail_live() - before);
    if (code && (!one_failed || code != CAIRN_E_NO_MEMORY || !err.message[0]))
        fail_msg("%s: with allocation %u failing: %d, %s", sweep->name, nth, code, err.message);
    if (sweep->verify)
        sweep->verify(arg, code);
    return one_failed;
}

/* The first run is for what is made once in a process. */
void alloc_sweep_run(const struct alloc_sweep *sweep, void *arg)
{
    unsigned nth = 1;

    run_once(sweep, arg, 0);
    while (run_once(sweep, arg, nth)) {
        if (++nth > RUNS_MAX)
            fail_msg("%s: no end after %d allocations", sweep->name, RUNS_MAX);
    }
    if (nth == 1)
        fail_msg("%s: allocates nothing", sweep->name);
    print_message("%s: %u allocations\n", sweep->name, nth - 1);
}
