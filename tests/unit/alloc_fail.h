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
 * One operation whose allocations fail, one in each run.  Each time it must end with OK, or with
 * NO_MEMORY and a message, and verify must find nothing wrong.  Whatever prepare, run and verify
 * make is freed when the three are through.
 *
 * Where all would take too long there is a sample: the first allocation at each place in the code
 * behind another one, and about as many more as sample says, at random by CAIRN_TEST_SEED.  With
 * CAIRN_TEST_SCALE=long (tests/run --long) it is all of them.
 */
struct alloc_sweep {
    const char *name;
    void (*prepare)(void *arg);                     /* before each run; may be NULL */
    int (*run)(void *arg, struct cairn_error *err); /* the one with a failure */
    void (*verify)(void *arg, int code);            /* behind each run; may be NULL */
    unsigned sample;                                /* 0: every allocation fails once */
};
void alloc_sweep_run(const struct alloc_sweep *sweep, void *arg);

#endif
