/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ring of slots, between the next number to take and the next one to make.
 */
#include "ahead.h"

#include <stdbool.h>

#define NR_THREADS (AHEAD_WINDOW / 2)

struct slot {
    bool made;
    int code;
    void *item; /* if code is OK */
    struct cairn_error err;
};

struct ahead {
    struct ahead_work work;
    uint32_t end;
    unsigned nr_threads;
    pthread_t threads[NR_THREADS];

    pthread_mutex_t lock; /* of all below */
    pthread_cond_t made, room;
    bool stopping;
    uint32_t next_make, next_take;
    struct slot slots[AHEAD_WINDOW];
};

static struct slot *slot_of(struct ahead *ahead, uint32_t nr)
{
    return &ahead->slots[nr % AHEAD_WINDOW];
}

/* Number *ret_nr is the caller's to make; false: there is nothing left to do. */
static bool begin_locked(struct ahead *ahead, uint32_t *ret_nr)
{
    while (!ahead->stopping && ahead->next_make < ahead->end &&
           ahead->next_make - ahead->next_take >= AHEAD_WINDOW)
        pthread_cond_wait(&ahead->room, &ahead->lock);
    if (ahead->stopping || ahead->next_make >= ahead->end)
        return false;
    *ret_nr = ahead->next_make++;
    return true;
}

static void *run(void *arg)
{
    struct ahead *ahead = arg;
    uint32_t nr;

    SCOPED_LOCK(&ahead->lock);
    while (begin_locked(ahead, &nr)) {
        struct slot *slot = slot_of(ahead, nr);

        pthread_mutex_unlock(&ahead->lock);
        slot->code = ahead->work.make(ahead->work.ctx, nr, &slot->item, &slot->err);
        pthread_mutex_lock(&ahead->lock);
        slot->made = true;
        pthread_cond_signal(&ahead->made);
    }
    return NULL;
}

int ahead_new(const struct ahead_work *work, uint32_t first, uint32_t end, struct ahead **ret_ahead,
              struct cairn_error *err)
{
    struct ahead *ahead = calloc(1, sizeof(*ahead));

    if (!ahead)
        return error_no_memory(err, "what works ahead");
    ahead->work = *work;
    ahead->end = end;
    ahead->next_make = ahead->next_take = first;
    pthread_mutex_init(&ahead->lock, NULL);
    pthread_cond_init(&ahead->made, NULL);
    pthread_cond_init(&ahead->room, NULL);
    /* One item is the taker's own. */
    while (ahead->nr_threads < NR_THREADS && ahead->nr_threads + 1 < end - first &&
           pthread_create(&ahead->threads[ahead->nr_threads], NULL, run, ahead) == 0)
        ahead->nr_threads++;
    *ret_ahead = ahead;
    return CAIRN_OK;
}

/* Take the next item out of its slot, where somebody puts it or has put it. */
static int take_locked(struct ahead *ahead, void **ret_item, struct cairn_error *err)
{
    struct slot *slot = slot_of(ahead, ahead->next_take);
    int code;

    while (!slot->made)
        pthread_cond_wait(&ahead->made, &ahead->lock);
    code = slot->code;
    if (code == CAIRN_OK)
        *ret_item = slot->item;
    else if (err)
        *err = slot->err;
    slot->made = false;
    ahead->next_take++;
    pthread_cond_signal(&ahead->room);
    return code;
}

int ahead_take(struct ahead *ahead, void **ret_item, struct cairn_error *err)
{
    uint32_t nr;

    pthread_mutex_lock(&ahead->lock);
    if (ahead->next_take < ahead->next_make) {
        int code = take_locked(ahead, ret_item, err);

        pthread_mutex_unlock(&ahead->lock);
        return code;
    }
    nr = ahead->next_make++;
    ahead->next_take++;
    pthread_mutex_unlock(&ahead->lock);
    return ahead->work.make(ahead->work.ctx, nr, ret_item, err);
}

void ahead_free(struct ahead *ahead)
{
    if (!ahead)
        return;
    pthread_mutex_lock(&ahead->lock);
    ahead->stopping = true;
    pthread_cond_broadcast(&ahead->room);
    pthread_mutex_unlock(&ahead->lock);
    for (unsigned i = 0; i < ahead->nr_threads; i++)
        pthread_join(ahead->threads[i], NULL);
    for (uint32_t nr = ahead->next_take; nr < ahead->next_make; nr++)
        if (slot_of(ahead, nr)->code == CAIRN_OK)
            ahead->work.free(slot_of(ahead, nr)->item);
    pthread_cond_destroy(&ahead->room);
    pthread_cond_destroy(&ahead->made);
    pthread_mutex_destroy(&ahead->lock);
    free(ahead);
}
