/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tests' way to the steps of publishers and of the collector (step.h).
 */
#include "step.h"

#ifdef CAIRN_FAULTS

#include <pthread.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

void (*step_hook)(void *ctx, enum step step);
void *step_hook_ctx;

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

void step_reached(enum step step)
{
    if (step_hook)
        step_hook(step_hook_ctx, step);
    else
        pause_at_random();
}

const char *step_name(enum step step)
{
    static const char *const names[] = {
#define STEP_NAME(name) #name,
        STEPS(STEP_NAME)
#undef STEP_NAME
    };

    return names[step];
}

#endif
