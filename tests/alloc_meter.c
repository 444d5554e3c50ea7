/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sanitizer tells of each allocation through hooks; without one, the allocator's entry points
 * are replaced by some that count and go on to glibc's own.
 */
#include "alloc_meter.h"

#include <malloc.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
/* Both compilers' runtimes have these; only clang ships their header, <sanitizer/…>. */
size_t __sanitizer_get_allocated_size(const volatile void *p);
int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void *, size_t),
                                              void (*on_free)(const volatile void *));
#else
#define SANITIZED 0
#endif

static _Thread_local bool metering;
static _Thread_local int64_t now, peak, limit; /* below 0: more of what was there before is gone */

static void add(size_t size)
{
    static const char text[] = "alloc_meter: more memory than stated\n";

    if (!metering)
        return;
    now += (int64_t)size;
    if (now > peak)
        peak = now;
    if (now > limit) {
        metering = false;
        if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
            _exit(1);
        abort();
    }
}

static void sub(size_t size)
{
    if (metering)
        now -= (int64_t)size;
}

#if SANITIZED
static void count_malloc(const volatile void *p, size_t size)
{
    (void)p;
    add(size);
}

static void count_free(const volatile void *p)
{
    if (metering && p)
        sub(__sanitizer_get_allocated_size(p));
}
#else
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t nr, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t align, size_t size);
void __libc_free(void *p);

static void *added(void *p)
{
    add(malloc_usable_size(p));
    return p;
}

void *malloc(size_t size)
{
    return added(__libc_malloc(size));
}

void *calloc(size_t nr, size_t size)
{
    return added(__libc_calloc(nr, size));
}

void *realloc(void *p, size_t size)
{
    size_t before = malloc_usable_size(p);
    void *q = __libc_realloc(p, size);

    if (q || size == 0)
        sub(before);
    return added(q);
}

void *aligned_alloc(size_t align, size_t size)
{
    return added(__libc_memalign(align, size));
}

int posix_memalign(void **ret_p, size_t align, size_t size)
{
    *ret_p = added(__libc_memalign(align, size));
    return *ret_p ? 0 : 12; /* ENOMEM */
}

void free(void *p)
{
    sub(malloc_usable_size(p));
    __libc_free(p);
}
#endif

void alloc_meter_start(size_t bound)
{
#if SANITIZED
    static bool installed;

    if (!installed)
        installed = __sanitizer_install_malloc_and_free_hooks(count_malloc, count_free) != 0;
#endif
    now = peak = 0;
    limit = (int64_t)bound;
    metering = true;
}

size_t alloc_meter_stop(void)
{
    metering = false;
    return (size_t)peak;
}
