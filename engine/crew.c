/* SPDX-License-Identifier: Apache-2.0 */
/*
 * If fewer threads can be started than were asked for, those that could do all the work.
 */
#include "crew.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "cleanup.h"

#define CREW_MAX 16

struct crew {
    crew_work_fn work;
    void *ctx;
    atomic_bool failed;
    pthread_mutex_t lock; /* of all below */
    int result;
    struct cairn_error err;
};

static void note_failure(struct crew *crew, int code, const struct cairn_error *err)
{
    SCOPED_LOCK(&crew->lock);

    if (crew->result == CAIRN_OK) {
        crew->result = code;
        crew->err = *err;
    }
    atomic_store(&crew->failed, true);
}

static void *member(void *arg)
{
    struct crew *crew = arg;
    struct cairn_error err;
    int ret = CAIRN_OK;

    while (ret == CAIRN_OK && !atomic_load(&crew->failed))
        ret = crew->work(crew->ctx, &err);
    if (ret < 0)
        note_failure(crew, ret, &err);
    return NULL;
}

int crew_run(unsigned nr, crew_work_fn work, void *ctx, struct cairn_error *err)
{
    struct crew crew = {.work = work, .ctx = ctx, .lock = PTHREAD_MUTEX_INITIALIZER};
    pthread_t threads[CREW_MAX];
    unsigned started = 0;

    while (started + 1 < nr && started < CREW_MAX &&
           pthread_create(&threads[started], NULL, member, &crew) == 0)
        started++;
    member(&crew);
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&crew.lock);
    if (crew.result != CAIRN_OK && err)
        *err = crew.err;
    return crew.result;
}
