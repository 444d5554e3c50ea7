/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker pool: threads, two queues, one lock.  Workers take from the queues in turn, so that
 * neither a flood of new requests delays those under way (an upload's next piece, a reply's next
 * buffer) nor the other way round.  The queue of work that continues something needs no bound of
 * its own: it holds at most one entry per connection.
 */
#include "workers.h"

#include <pthread.h>
#include <stdlib.h>

#include "cleanup.h"

struct queue {
    struct work *first, **last;
};

struct workers {
    pthread_mutex_t lock; /* protects all below but threads and size */
    pthread_cond_t wake;
    struct queue fresh, continuing;
    bool fresh_next; /* where both have something */
    size_t nr_fresh, max_fresh, nr_continuing;
    unsigned nr_busy;
    uint64_t nr_refused;
    bool stopping;
    unsigned size; /* constant: nr_threads until they are joined */
    unsigned nr_threads;
    pthread_t threads[];
};

static void queue_init(struct queue *q)
{
    q->first = NULL;
    q->last = &q->first;
}

static void queue_push(struct queue *q, struct work *work)
{
    work->next = NULL;
    *q->last = work;
    q->last = &work->next;
}

static struct work *queue_pop(struct queue *q)
{
    struct work *work = q->first;

    if (work) {
        q->first = work->next;
        if (!q->first)
            q->last = &q->first;
    }
    return work;
}

static struct work *next_locked(struct workers *w)
{
    bool fresh = w->fresh.first && (w->fresh_next || !w->continuing.first);
    struct work *work;

    w->fresh_next = !fresh;
    work = queue_pop(fresh ? &w->fresh : &w->continuing);
    w->nr_fresh -= work && fresh;
    w->nr_continuing -= work && !fresh;
    return work;
}

/* Runs until the pool stops and both queues are empty. */
static void *worker_main(void *arg)
{
    struct workers *w = arg;

    pthread_mutex_lock(&w->lock);
    for (;;) {
        struct work *work = next_locked(w);
        bool cancelled = w->stopping;

        if (work) {
            w->nr_busy++;
            pthread_mutex_unlock(&w->lock);
            work->run(work, cancelled);
            pthread_mutex_lock(&w->lock);
            w->nr_busy--;
        } else if (cancelled) {
            break;
        } else {
            pthread_cond_wait(&w->wake, &w->lock);
        }
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

int workers_new(unsigned nr_threads, size_t max_queued, struct workers **ret_workers,
                struct cairn_error *err)
{
    struct workers *w = calloc(1, sizeof(*w) + nr_threads * sizeof(w->threads[0]));

    if (!w)
        return error_no_memory(err, "the worker pool");
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->wake, NULL);
    queue_init(&w->fresh);
    queue_init(&w->continuing);
    w->max_fresh = max_queued;
    w->size = nr_threads;
    for (; w->nr_threads < nr_threads; w->nr_threads++) {
        int sys_errno = pthread_create(&w->threads[w->nr_threads], NULL, worker_main, w);

        if (sys_errno) {
            workers_free(w);
            return error_set_errno(err, sys_errno, "cannot start %u worker threads", nr_threads);
        }
    }
    *ret_workers = w;
    return CAIRN_OK;
}

bool workers_submit(struct workers *w, struct work *work, enum work_kind kind)
{
    bool taken;

    pthread_mutex_lock(&w->lock);
    taken = !w->stopping && (kind != WORK_NEW || w->nr_fresh < w->max_fresh);
    if (taken) {
        w->nr_fresh += kind == WORK_NEW;
        w->nr_continuing += kind != WORK_NEW;
        queue_push(kind == WORK_NEW ? &w->fresh : &w->continuing, work);
    }
    w->nr_refused += !taken;
    pthread_mutex_unlock(&w->lock);
    /* Not under the lock: whom it wakes would run into it. */
    if (taken)
        pthread_cond_signal(&w->wake);
    return taken;
}

void workers_get_load(struct workers *w, struct workers_load *ret_load)
{
    SCOPED_LOCK(&w->lock);
    *ret_load = (struct workers_load){
        .threads = w->size,
        .busy = w->nr_busy,
        .fresh = w->nr_fresh,
        .max_fresh = w->max_fresh,
        .continuing = w->nr_continuing,
        .refused = w->nr_refused,
    };
}

void workers_stop(struct workers *w)
{
    pthread_mutex_lock(&w->lock);
    w->stopping = true;
    pthread_cond_broadcast(&w->wake);
    pthread_mutex_unlock(&w->lock);
    for (; w->nr_threads > 0; w->nr_threads--)
        pthread_join(w->threads[w->nr_threads - 1], NULL);
}

void workers_free(struct workers *w)
{
    if (!w)
        return;
    workers_stop(w);
    pthread_cond_destroy(&w->wake);
    pthread_mutex_destroy(&w->lock);
    free(w);
}
