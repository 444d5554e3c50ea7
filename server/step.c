/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tests' way to the steps of publishers and of the collector (step.h).
 */
#include "step.h"

#ifdef CAIRN_FAULTS

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

static _Atomic(step_hook_fn) step_hook;
static unsigned long pause_max_us;

static void read_environment(void)
{
    const char *text = getenv("CAIRN_STEP_PAUSE");

    pause_max_us = text ? strtoul(text, NULL, 10) : 0;
}

static void pause_at_random(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    unsigned long us = 0;
    struct timespec pause;

    pthread_once(&once, read_environment);
    if (pause_max_us == 0 || getrandom(&us, sizeof(us), 0) != sizeof(us))
        return;
    us %= pause_max_us;
    pause =
        (struct timespec){.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};
    nanosleep(&pause, NULL);
}

void step_set_hook(step_hook_fn hook)
{
    atomic_store(&step_hook, hook);
}

void step_reached(enum step step)
{
    step_hook_fn hook = atomic_load(&step_hook);

    if (hook)
        hook(step);
    else
        pause_at_random();
}

#endif
