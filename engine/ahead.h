/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Items made ahead of time: a few threads make items first, first + 1, … for one who takes them in
 * that order.  For work that waits for a disk or a network and has no order, ahead of work that has
 * one: the layers of a chain are opened and scanned many at a time, and merged from the base up.
 */
#ifndef ENGINE_AHEAD_H
#define ENGINE_AHEAD_H

#include <stdint.h>

#include "cleanup.h"
#include "error.h"

struct ahead;

struct ahead_work {
    /* Called from any thread, for each number once; hands the item over. */
    int (*make)(void *ctx, uint32_t nr, void **ret_item, struct cairn_error *err);
    void (*free)(void *item);
    void *ctx;
};

/* At most so many items are made and not yet taken. */
#define AHEAD_WINDOW 16u

/* Items [first, end).  Fewer threads are started if there is less to do, or no more to be had. */
int ahead_new(const struct ahead_work *work, uint32_t first, uint32_t end, struct ahead **ret_ahead,
              struct cairn_error *err);

/*
 * Take the next item, which there must be; its failure is this call's, and the next call goes on
 * behind it.  What nobody has begun is made here.  For one thread.
 */
int ahead_take(struct ahead *ahead, void **ret_item, struct cairn_error *err);

/* Frees what was not taken; waits for what is being made. */
void ahead_free(struct ahead *ahead);
CLEANUP_DEFINE(struct ahead *, ahead_free)

#endif
