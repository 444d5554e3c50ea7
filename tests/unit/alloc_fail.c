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

#include "scale.h"

#define RUNS_MAX 100000

static atomic_long countdown; /* the allocation that takes it to 0 fails */
static atomic_bool failed;
static atomic_long live;

static atomic_bool noting; /* while none is to fail, where each is made, in order */
static atomic_uint nr_noted;
static uintptr_t noted[RUNS_MAX];

/* -- The wrapped calls ------------------------------------------------------------------------- */

/* place: the instruction behind the call. */
static bool fails_at(const void *place)
{
    if (atomic_load(&noting)) {
        unsigned i = atomic_fetch_add(&nr_noted, 1);

        if (i < RUNS_MAX)
            noted[i] = (uintptr_t)place;
    }
    if (atomic_load(&countdown) <= 0 || atomic_fetch_sub(&countdown, 1) != 1)
        return false;
    atomic_store(&failed, true);
    errno = ENOMEM;
    return true;
}
#define FAILS fails_at(__builtin_return_address(0))

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
    return FAILS ? NULL : counted(__real_malloc(size));
}

WRAPPED(void *, calloc, size_t nr, size_t size)
{
    return FAILS ? NULL : counted(__real_calloc(nr, size));
}

WRAPPED(void *, aligned_alloc, size_t alignment, size_t size)
{
    return FAILS ? NULL : counted(__real_aligned_alloc(alignment, size));
}

WRAPPED(void *, realloc, void *p, size_t size)
{
    void *moved = FAILS ? NULL : __real_realloc(p, size);

    return p ? moved : counted(moved);
}

WRAPPED(void *, reallocarray, void *p, size_t nr, size_t size)
{
    void *moved = FAILS ? NULL : __real_reallocarray(p, nr, size);

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
    return FAILS ? NULL : counted(__real_strdup(text));
}

WRAPPED(char *, strndup, const char *text, size_t len)
{
    return FAILS ? NULL : counted(__real_strndup(text, len));
}

WRAPPED(char *, realpath, const char *path, char *resolved)
{
    char *ret = FAILS ? NULL : __real_realpath(path, resolved);

    return resolved ? ret : counted(ret);
}

static int counted_vasprintf(bool fail, char **ret_text, const char *fmt, va_list ap);

WRAPPED(int, vasprintf, char **ret_text, const char *fmt, va_list ap)
{
    return counted_vasprintf(FAILS, ret_text, fmt, ap);
}

static int counted_vasprintf(bool fail, char **ret_text, const char *fmt, va_list ap)
{
    int len = fail ? -1 : __real_vasprintf(ret_text, fmt, ap);

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
    len = counted_vasprintf(FAILS, ret_text, fmt, ap);
    va_end(ap);
    return len;
}

/* What _FORTIFY_SOURCE makes of the two. */
int __wrap___vasprintf_chk(char **ret_text, int flag, const char *fmt, va_list ap);
int __wrap___vasprintf_chk(char **ret_text, int flag, const char *fmt, va_list ap)
{
    (void)flag;
    return counted_vasprintf(FAILS, ret_text, fmt, ap);
}

int __wrap___asprintf_chk(char **ret_text, int flag, const char *fmt, ...);
int __wrap___asprintf_chk(char **ret_text, int flag, const char *fmt, ...)
{
    va_list ap;
    int len;

    (void)flag;
    va_start(ap, fmt);
    len = counted_vasprintf(FAILS, ret_text, fmt, ap);
    va_end(ap);
    return len;
}

WRAPPED(DIR *, fdopendir, int fd)
{
    return FAILS ? NULL : __real_fdopendir(fd);
}

WRAPPED(int, inflateInit2_, z_streamp stream, int bits, const char *version, int size)
{
    return FAILS ? Z_MEM_ERROR : __real_inflateInit2_(stream, bits, version, size);
}

WRAPPED(int, deflateInit2_, z_streamp stream, int level, int method, int bits, int mem_level,
        int strategy, const char *version, int size)
{
    if (FAILS)
        return Z_MEM_ERROR;
    return __real_deflateInit2_(stream, level, method, bits, mem_level, strategy, version, size);
}

WRAPPED(ZSTD_CCtx *, ZSTD_createCCtx, void)
{
    return FAILS ? NULL : __real_ZSTD_createCCtx();
}

WRAPPED(ZSTD_DCtx *, ZSTD_createDCtx, void)
{
    return FAILS ? NULL : __real_ZSTD_createDCtx();
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
    atomic_store(&nr_noted, 0);
    atomic_store(&noting, nth == 0);
    atomic_store(&countdown, nth);
}

bool alloc_fail_disarm(void)
{
    atomic_store(&countdown, 0);
    atomic_store(&noting, false);
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
    long before = alloc_fail_live();
    bool one_failed;
    int code;

    if (sweep->prepare)
        sweep->prepare(arg);
    alloc_fail_arm(nth);
    code = sweep->run(arg, &err);
    one_failed = alloc_fail_disarm();
    if (code && (!one_failed || code != CAIRN_E_NO_MEMORY || !err.message[0]))
        fail_msg("%s: with allocation %u failing: %d, %s", sweep->name, nth, code, err.message);
    if (sweep->verify)
        sweep->verify(arg, code);
    if (alloc_fail_live() != before)
        fail_msg("%s: with allocation %u failing (%d, %s), %ld are left over", sweep->name, nth,
                 code, code ? err.message : "", alloc_fail_live() - before);
    return one_failed;
}

/* -- Which allocations ------------------------------------------------------------------------ */

static bool seen[1 << 20];

/* The first allocation at its place in the code behind the one that came before it. */
static bool is_new(unsigned nth)
{
    uint64_t before = nth > 1 ? noted[nth - 2] : 0;
    uint64_t hash = (noted[nth - 1] * 31 + before) * UINT64_C(0x9e3779b97f4a7c15) >> 44;
    bool is_first = !seen[hash];

    seen[hash] = true;
    return is_first;
}

/* Called with one after the other. */
static bool wanted(const struct alloc_sweep *sweep, unsigned nth, unsigned nr)
{
    bool chance = random() % (long)nr < (long)sweep->sample;

    return is_new(nth) || chance || sweep->sample == 0 || scale_is_long();
}

/* How many allocations a run makes; noted is where. */
static unsigned count_allocations(const struct alloc_sweep *sweep, void *arg)
{
    unsigned nr;

    run_once(sweep, arg, 0); /* makes what is made once in a process */
    run_once(sweep, arg, 0);
    nr = atomic_load(&nr_noted);
    if (nr == 0 || nr > RUNS_MAX)
        fail_msg("%s: %u allocations, expected 1 to %d", sweep->name, nr, RUNS_MAX);
    return nr;
}

void alloc_sweep_run(const struct alloc_sweep *sweep, void *arg)
{
    const unsigned nr = count_allocations(sweep, arg);
    unsigned nr_failed = 0;

    memset(seen, 0, sizeof(seen));
    srandom((unsigned)scale_seed());
    for (unsigned nth = 1; nth <= nr; nth++)
        if (wanted(sweep, nth, nr))
            nr_failed += run_once(sweep, arg, nth);
    assert_true(nr_failed > 0);
    print_message("%s: %u of %u allocations failed\n", sweep->name, nr_failed, nr);
}
