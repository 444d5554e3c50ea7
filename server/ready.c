/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Readiness.  One thread tries the store, again and again; requests only look at what it found, and
 * for how long it has been at it.  So a store that hangs is told from one that fails, and costs one
 * thread however often one asks.
 *
 * A store that is full is degraded: taking all its servers out of rotation would end reading, too.
 * So is Redis when it is down, for it is a cache; it is judged by its last calls, not tried here.
 */
#include "ready.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "clock.h"
#include "metrics.h"

enum state {
    STATE_OK,
    STATE_DEGRADED,
    STATE_FAILED,
};

struct part {
    const char *name;
    enum state state;
    char reason[CAIRN_ERROR_MESSAGE_MAX];
};

struct ready {
    struct ready_options options;
    pthread_t thread;

    pthread_mutex_t lock; /* protects all below; not held while the store is tried */
    pthread_cond_t changed;
    bool ending;       /* the thread shall */
    bool stopping;     /* the server will */
    bool tried;        /* once at least */
    uint64_t since_us; /* when the try under way began; 0: there is none */
    int code;          /* what the last one gave */
    char message[CAIRN_ERROR_MESSAGE_MAX];
    struct store_space space;
};

/* -- Trying the store --------------------------------------------------------------------- */

static void wait_ms_locked(struct ready *ready, unsigned ms)
{
    uint64_t until_us = clock_now_us() + (uint64_t)ms * 1000;
    const struct timespec until = {.tv_sec = (time_t)(until_us / 1000000),
                                   .tv_nsec = (long)(until_us % 1000000) * 1000};

    pthread_cond_timedwait(&ready->changed, &ready->lock, &until);
}

static void try_store_locked(struct ready *ready)
{
    struct cairn_error err = {0};
    struct store_space space = {0};
    int code;

    ready->since_us = clock_now_us();
    pthread_mutex_unlock(&ready->lock);
    code = store_probe(ready->options.store, &space, &err);
    pthread_mutex_lock(&ready->lock);
    ready->since_us = 0;
    ready->tried = true;
    ready->code = code;
    snprintf(ready->message, sizeof(ready->message), "%s", code ? err.message : "");
    if (code == CAIRN_OK)
        ready->space = space;
    pthread_cond_broadcast(&ready->changed);
}

static void *ready_main(void *arg)
{
    struct ready *ready = arg;

    SCOPED_LOCK(&ready->lock);
    while (!ready->ending) {
        try_store_locked(ready);
        if (!ready->ending)
            wait_ms_locked(ready, ready->options.period_ms);
    }
    return NULL;
}

static void wait_for_first_try(struct ready *ready)
{
    const uint64_t until_us = clock_now_us() + (uint64_t)ready->options.deadline_ms * 1000;

    SCOPED_LOCK(&ready->lock);
    while (!ready->tried && clock_now_us() < until_us)
        wait_ms_locked(ready, ready->options.deadline_ms);
}

int ready_new(const struct ready_options *options, struct ready **ret_ready,
              struct cairn_error *err)
{
    struct ready *ready = calloc(1, sizeof(*ready));
    pthread_condattr_t attr;
    int sys_errno;

    if (!ready)
        return error_no_memory(err, "readiness");
    ready->options = *options;
    pthread_mutex_init(&ready->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&ready->changed, &attr);
    pthread_condattr_destroy(&attr);
    sys_errno = pthread_create(&ready->thread, NULL, ready_main, ready);
    if (sys_errno) {
        pthread_cond_destroy(&ready->changed);
        pthread_mutex_destroy(&ready->lock);
        free(ready);
        return error_set_errno(err, sys_errno, "cannot start a thread that tries the store");
    }
    wait_for_first_try(ready);
    *ret_ready = ready;
    return CAIRN_OK;
}

void ready_free(struct ready *ready)
{
    if (!ready)
        return;
    pthread_mutex_lock(&ready->lock);
    ready->ending = true;
    pthread_cond_broadcast(&ready->changed);
    pthread_mutex_unlock(&ready->lock);
    pthread_join(ready->thread, NULL);
    pthread_cond_destroy(&ready->changed);
    pthread_mutex_destroy(&ready->lock);
    free(ready);
}

void ready_stop(struct ready *ready)
{
    SCOPED_LOCK(&ready->lock);
    ready->stopping = true;
}

/* -- Parts -------------------------------------------------------------------------------- */

static struct part store_part(struct ready *ready)
{
    struct part part = {.name = "store"};
    uint64_t took_us;

    SCOPED_LOCK(&ready->lock);
    took_us = ready->since_us ? clock_now_us() - ready->since_us : 0;
    if (took_us > (uint64_t)ready->options.deadline_ms * 1000 || !ready->tried) {
        part.state = STATE_FAILED;
        snprintf(part.reason, sizeof(part.reason),
                 "it has not answered for %" PRIu64 " ms, expected %u at most", took_us / 1000,
                 ready->options.deadline_ms);
    } else if (ready->code != CAIRN_OK) {
        part.state = ready->code == CAIRN_E_NO_SPACE ? STATE_DEGRADED : STATE_FAILED;
        snprintf(part.reason, sizeof(part.reason), "%s", ready->message);
    }
    return part;
}

static struct part workers_part(const struct http_request *req)
{
    struct part part = {.name = "workers"};
    uint64_t queued, max;

    http_queue(req, &queued, &max);
    if (queued >= max) {
        part.state = STATE_FAILED;
        snprintf(part.reason, sizeof(part.reason),
                 "%" PRIu64 " requests wait for a worker, and more are refused", queued);
    }
    return part;
}

static struct part redis_part(struct ready *ready)
{
    struct part part = {.name = "redis"};
    struct redis_stats stats;

    redis_get_stats(ready->options.redis, &stats);
    if (stats.nodes_down > 0) {
        part.state = STATE_DEGRADED;
        snprintf(part.reason, sizeof(part.reason),
                 "%" PRIu64 " of %" PRIu64 " nodes: not found, or left alone after failures",
                 stats.nodes_down, stats.nodes);
    }
    return part;
}

static struct part server_part(struct ready *ready)
{
    struct part part = {.name = "server"};

    SCOPED_LOCK(&ready->lock);
    if (ready->stopping) {
        part.state = STATE_FAILED;
        snprintf(part.reason, sizeof(part.reason), "it is stopping");
    }
    return part;
}

#define PARTS_MAX 4

/* req may be NULL: then without the workers, which are its server's. */
static unsigned take_parts(struct ready *ready, const struct http_request *req,
                           struct part parts[PARTS_MAX])
{
    unsigned nr = 0;

    parts[nr++] = server_part(ready);
    parts[nr++] = store_part(ready);
    if (req)
        parts[nr++] = workers_part(req);
    if (ready->options.redis)
        parts[nr++] = redis_part(ready);
    return nr;
}

static enum state worst_of(const struct part *parts, unsigned nr)
{
    enum state worst = STATE_OK;

    for (unsigned i = 0; i < nr; i++)
        if (parts[i].state > worst)
            worst = parts[i].state;
    return worst;
}

/* -- /readyz and /metrics ----------------------------------------------------------------- */

void ready_handle(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    static const char *const states[] = {"ok", "degraded", "failed"};
    static const char *const statuses[] = {"ready", "degraded", "unready"};
    struct part parts[PARTS_MAX];
    unsigned nr = take_parts(ctx, req, parts);
    enum state worst = worst_of(parts, nr);
    json_t *json = json_object();

    for (unsigned i = 0; i < nr; i++)
        json_object_set_new(json, parts[i].name,
                            json_pack("{s:s, s:s*}", "state", states[parts[i].state], "reason",
                                      parts[i].state ? parts[i].reason : NULL));
    http_reply_header(reply, "Cache-Control", "no-store");
    http_reply_json(reply, worst == STATE_FAILED ? 503 : 200,
                    json_pack("{s:s, s:o}", "status", statuses[worst], "parts", json));
}

void ready_write_metrics(void *ctx, struct metrics *m)
{
    struct ready *ready = ctx;
    struct part parts[PARTS_MAX];
    unsigned nr = take_parts(ready, NULL, parts);
    char labels[64];

    metrics_family(m, "cairn_ready", "gauge",
                   "1: /readyz says so, but for the workers; 0: the server is unready.");
    metrics_value(m, NULL, worst_of(parts, nr) != STATE_FAILED);
    metrics_family(m, "cairn_part_ok", "gauge", "1: nothing is wrong with this part of /readyz.");
    for (unsigned i = 0; i < nr; i++) {
        snprintf(labels, sizeof(labels), "part=\"%s\"", parts[i].name);
        metrics_value(m, labels, parts[i].state == STATE_OK);
    }
    SCOPED_LOCK(&ready->lock);
    if (ready->space.size == 0) /* a store without end, or one that was never reached */
        return;
    metrics_family(m, "cairn_store_size_bytes", "gauge", "What the object store could hold.");
    metrics_value(m, NULL, ready->space.size);
    metrics_family(m, "cairn_store_free_bytes", "gauge", "What the object store has room for.");
    metrics_value(m, NULL, ready->space.free);
}
