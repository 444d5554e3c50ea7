/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Claims on blocks that are being fetched.
 *
 * Between processes a claim is a lock on bytes of the layer's file, which the kernel drops when the
 * process dies.  Those locks do not tell the threads of one process apart, who share the
 * descriptor; between them there is a list, as long as there are fetches under way.
 *
 * Waiting for a thread is a condition; for another process it is asking again and again, because a
 * wait for such a lock cannot be given a deadline, and its holder may be stopped.
 */
#include <errno.h>
#include <fcntl.h>
#include <time.h>

#include "block_cache_internal.h"

#define POLL_FIRST_NS 200000u /* a fetch over a local network takes about so long */
#define POLL_MAX_NS   5000000u

/* After a wait in vain nobody waits for so long: who was stopped with a claim may have others. */
#define REST_SECONDS 30u

bool block_lock(int fd, int type, uint64_t off, uint64_t len)
{
    struct flock lock = {
        .l_type = (short)type,
        .l_whence = SEEK_SET,
        .l_start = (off_t)off,
        .l_len = (off_t)len,
    };
    int r;

    do
        r = fcntl(fd, F_OFD_SETLK, &lock);
    while (r != 0 && errno == EINTR);
    return r == 0;
}

static bool is_claimed_locked(const struct block_layer *layer, uint64_t first, uint64_t end)
{
    const struct block_claim *c = layer->cache->claims;

    while (c && (c->layer != layer || c->end <= first || c->first >= end))
        c = c->next;
    return c != NULL;
}

bool block_claim_try(struct block_layer *layer, uint64_t first, unsigned nr,
                     struct block_claim *ret_claim)
{
    struct block_cache *cache = layer->cache;

    SCOPED_LOCK(&cache->claims_lock);
    *ret_claim = (struct block_claim){.first = first, .end = first + nr};
    if (is_claimed_locked(layer, first, first + nr) ||
        !block_lock(layer->fd, F_WRLCK, CLAIMS + first, nr))
        return false;
    ret_claim->layer = layer;
    ret_claim->next = cache->claims;
    cache->claims = ret_claim;
    return true;
}

void block_claim_end(struct block_claim *claim)
{
    struct block_claim **link;
    struct block_cache *cache;

    if (!claim->layer)
        return;
    cache = claim->layer->cache;
    SCOPED_LOCK(&cache->claims_lock);
    for (link = &cache->claims; *link != claim;)
        link = &(*link)->next;
    *link = claim->next;
    block_lock(claim->layer->fd, F_UNLCK, CLAIMS + claim->first, claim->end - claim->first);
    claim->layer = NULL;
    pthread_cond_broadcast(&cache->claim_ended);
}

/* -- Waiting ---------------------------------------------------------------------------------- */

static bool locked_elsewhere(const struct block_layer *layer, uint64_t first, unsigned nr)
{
    struct flock lock = {
        .l_type = F_WRLCK,
        .l_whence = SEEK_SET,
        .l_start = (off_t)(CLAIMS + first),
        .l_len = (off_t)nr,
    };

    return fcntl(layer->fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static struct timespec time_after(const struct timespec *t, uint64_t ns)
{
    ns += (uint64_t)t->tv_nsec;
    return (struct timespec){t->tv_sec + (time_t)(ns / 1000000000), (long)(ns % 1000000000)};
}

static bool time_passed(const struct timespec *t)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > t->tv_sec || (now.tv_sec == t->tv_sec && now.tv_nsec >= t->tv_nsec);
}

/* False: the time is over. */
static bool wait_for_threads(struct block_layer *layer, uint64_t first, uint64_t end,
                             const struct timespec *until)
{
    struct block_cache *cache = layer->cache;

    SCOPED_LOCK(&cache->claims_lock);
    while (is_claimed_locked(layer, first, end))
        if (pthread_cond_timedwait(&cache->claim_ended, &cache->claims_lock, until) == ETIMEDOUT)
            return false;
    return true;
}

/* False: the time is over. */
static bool wait_for_processes(struct block_layer *layer, uint64_t first, unsigned nr,
                               const struct timespec *until)
{
    uint64_t pause_ns = POLL_FIRST_NS;

    while (locked_elsewhere(layer, first, nr)) {
        if (time_passed(until))
            return false;
        nanosleep(&(struct timespec){.tv_nsec = (long)pause_ns}, NULL);
        pause_ns = min_u64(2 * pause_ns, POLL_MAX_NS);
    }
    return true;
}

bool block_claim_wait(struct block_layer *layer, uint64_t first, unsigned nr, unsigned timeout_ms)
{
    struct block_cache *cache = layer->cache;
    uint32_t in_vain = atomic_load(&cache->waited_in_vain);
    struct timespec now, until;

    if (in_vain && block_now() - in_vain < REST_SECONDS)
        return false;
    clock_gettime(CLOCK_MONOTONIC, &now);
    until = time_after(&now, timeout_ms * UINT64_C(1000000));
    if (wait_for_threads(layer, first, first + nr, &until) &&
        wait_for_processes(layer, first, nr, &until))
        return true;
    atomic_store(&cache->waited_in_vain, block_now());
    return false;
}
