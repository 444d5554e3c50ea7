/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Allocations that fail on demand, and how many there are.
 *
 * The linker turns the allocating calls of everything that is linked statically, which is all of
 * ours, into calls of alloc_fail.c (--wrap, see alloc_test in CMakeLists.txt); jansson is told to
 * allocate there as well; of zlib and libzstd the calls that make a context are wrapped.  What
 * other shared libraries allocate for themselves does not fail and is not counted.  Syncs do
 * nothing here: thousands of them would take minutes.
 */
#ifndef TESTS_UNIT_ALLOC_FAIL_H
#define TESTS_UNIT_ALLOC_FAIL_H

#include "test.h"

#include <stdbool.h>

#include "error.h"

/* The nth allocation from now on fails, once; 0: none. */
void alloc_fail_arm(unsigned nth);
/* None fails any more.  Has one failed? */
bool alloc_fail_disarm(void);
/* How many there are now that were not freed. */
long alloc_fail_live(void);

/*
 * One operation whose every allocation fails once.  run is called again and again, with one more
 * allocation done before the one that fails, until none fails.  Each time it must end with OK, or
 * with NO_MEMORY and a message, and have freed what it allocated.
 */
struct alloc_sweep {
    const char *name;
    void (*prepare)(void *arg);                     /* before each run; may be NULL */
    int (*run)(void *arg, struct cairn_error *err); /* frees whatever it makes */
    void (*verify)(void *arg, int code);            /* behind each run; may be NULL */
};
void alloc_sweep_run(const struct alloc_sweep *sweep, void *arg);

#endif
